/**
 * What the runner itself costs: planning and running stages that do nothing, a run in which all is up to date, a long list of runs. Whole processes,
 * each less the start of `tinyllama --version`, in turns with peers: make, and snakemake where it is installed.
 */
import { spawnSync } from "node:child_process"
import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { Console, Effect } from "effect"

const program = fileURLToPath(new URL("../../bin/tinyllama.js", import.meta.url))

/** A stage without work: what remains is the runner. */
const noop = `import { Effect } from "effect"
import { writeFileSync } from "node:fs"
import { join } from "node:path"
import { defineStage, parameter } from "tinyllama/stage"
import { Schema } from "effect"

export default defineStage({
  name: "noop",
  version: 1,
  describe: "Does nothing",
  params: { number: parameter(Schema.Int, { change: "identity", describe: "Tells stages apart" }) },
  inputs: { documents: { type: "Documents", many: true, optional: true, describe: "To come after something" } },
  outputs: { documents: { type: "Documents", describe: "A number" } },
  runsIn: "runner",
  run: (context) =>
    Effect.sync(() => {
      writeFileSync(join(context.output("documents"), "number"), String(context.params.number))
      return { documents: {} }
    })
})
`

/** `count` stages: chains of ten, side by side. */
const pipelineOf = (count: number): string => {
  const stages = Array.from({ length: count }, (_, index) => {
    const edges = index % 10 === 0 ? "" : ` in: { documents: s${index - 1}.documents },`
    return `  s${index}: { uses: ./noop.ts,${edges} with: { number: ${index} } }`
  })
  return `version: 1\nname: noop-${count}\nstages:\n${stages.join("\n")}\n`
}

const makefileOf = (count: number): string => {
  const names = Array.from({ length: count }, (_, index) => `s${index}`)
  const rules = names.map((name, index) => `${name}:${index % 10 === 0 ? "" : ` s${index - 1}`}\n\t@: > ${name}`)
  return `all: ${names.join(" ")}\n${rules.join("\n")}\n`
}

const snakefileOf = (count: number): string => {
  const names = Array.from({ length: count }, (_, index) => `s${index}`)
  const rules = names.map((name, index) => {
    const input = index % 10 === 0 ? "" : `\n    input: "s${index - 1}.txt"`
    return `rule ${name}:${input}\n    output: "${name}.txt"\n    run: open(output[0], "w").close()`
  })
  return `rule all:\n    input: ${names.map((name) => `"${name}.txt"`).join(", ")}\n${rules.join("\n")}\n`
}

interface Folder {
  readonly path: string
  readonly write: (name: string, text: string) => void
}
const newFolder = (): Folder => {
  const path = mkdtempSync(join(tmpdir(), "tinyllama-bench-"))
  return { path, write: (name, text) => writeFileSync(join(path, name), text) }
}

const millis = (command: string, args: ReadonlyArray<string>, cwd: string, expected = 0): number => {
  const start = performance.now()
  const ended = spawnSync(command, args, { cwd, stdio: ["ignore", "ignore", "pipe"], encoding: "utf8" })
  const elapsed = performance.now() - start
  if (ended.status !== expected)
    throw new Error(`${command} ${args.join(" ")} ended with ${ended.status}: ${ended.stderr}`)
  return elapsed
}
const tinyllama = (folder: Folder, ...args: ReadonlyArray<string>): number =>
  millis(process.execPath, [program, ...args], folder.path)

const median = (values: ReadonlyArray<number>): number =>
  values.toSorted((a, b) => a - b)[values.length >> 1] ?? Number.NaN

/** Medians of interleaved repetitions, so that a drift of the machine hits all alike. */
const inTurns = (repeats: number, cases: Readonly<Record<string, () => number>>): Readonly<Record<string, number>> => {
  const times = Object.fromEntries(Object.keys(cases).map((name) => [name, new Array<number>()]))
  for (let round = 0; round < repeats; round++)
    for (const [name, measure] of Object.entries(cases)) times[name]?.push(measure())
  return Object.fromEntries(Object.entries(times).map(([name, values]) => [name, median(values)]))
}

const available = (command: string): boolean => spawnSync(command, ["--version"], { stdio: "ignore" }).status === 0

/** A runs folder with many runs, by copying the one that is there. */
const multiplyRuns = (folder: Folder, count: number): void => {
  const runs = join(folder.path, "runs")
  const [original = ""] = readdirSync(runs).filter((name) => /^\d{4}-/u.test(name))
  const record = JSON.parse(readFileSync(join(runs, original, "run.json"), "utf8")) as object
  for (let index = 0; index < count; index++) {
    const id = `2026-01-01-0000-copy-${String(index).padStart(4, "0")}`
    cpSync(join(runs, original), join(runs, id), { recursive: true, verbatimSymlinks: true })
    writeFileSync(join(runs, id, "run.json"), JSON.stringify({ ...record, id }))
  }
}

export const overhead = Effect.fn("bench.overhead")(function* (options: { readonly quick: boolean }) {
  const stages = options.quick ? 200 : 1000
  const repeats = options.quick ? 3 : 5
  // It takes half a second for each.
  const rules = 20
  const [many, nine] = [newFolder(), newFolder()]
  const peers: Array<Folder> = []
  const emptyPeer = (name: string, text: string): Folder => {
    const folder = newFolder()
    folder.write(name, text)
    peers.push(folder)
    return folder
  }
  let peer = emptyPeer("Makefile", makefileOf(stages))
  let snakes = emptyPeer("Snakefile", snakefileOf(rules))
  try {
    for (const folder of [many, nine]) folder.write("noop.ts", noop)
    many.write("pipeline.yaml", pipelineOf(stages))
    nine.write("pipeline.yaml", pipelineOf(9))
    // Each time, peers too, into a new folder: ext4 finds room for new files slowly for half a minute after many were deleted.
    let round = 0
    const runs = () => `--runs=runs-${round}`
    tinyllama(nine, "run")
    const snakemake = available("snakemake")
    const cores = ["--cores", "2", "--quiet"]

    const times = inTurns(repeats, {
      start: () => tinyllama(many, "--version"),
      plan: () => {
        round += 1
        return tinyllama(many, "plan", "--json", runs())
      },
      run: () => tinyllama(many, "run", "--json", runs()),
      planFresh: () => tinyllama(many, "plan", "--json", runs()),
      runCached: () => tinyllama(many, "run", "--json", runs()),
      nineCached: () => tinyllama(nine, "run", "--json"),
      make: () => {
        peer = emptyPeer("Makefile", makefileOf(stages))
        return millis("make", ["-s", "-j2"], peer.path)
      },
      makeFresh: () => millis("make", ["-s", "-j2"], peer.path),
      ...(snakemake
        ? {
            snakemake: () => {
              snakes = emptyPeer("Snakefile", snakefileOf(rules))
              return millis("snakemake", cores, snakes.path)
            },
            snakemakeFresh: () => millis("snakemake", cores, snakes.path),
            snakemakeStart: () => millis("snakemake", ["--version"], snakes.path)
          }
        : {})
    })
    multiplyRuns(nine, options.quick ? 100 : 500)
    const lists = inTurns(repeats, {
      start: () => tinyllama(nine, "--version"),
      runsList: () => tinyllama(nine, "runs", "ls", "--json")
    })

    const start = times["start"] ?? 0
    const beyond = (name: string, from = start): number => (times[name] ?? Number.NaN) - from
    const perStage = (name: string, from = 0): number => beyond(name, from) / stages
    const snakeStart = times["snakemakeStart"] ?? 0
    const results = {
      stages,
      startMillis: start,
      planMillis: beyond("plan"),
      planFreshMillis: beyond("planFresh"),
      runMillisPerStage: beyond("run") / stages,
      runCachedMillisPerStage: beyond("runCached") / stages,
      nineCachedMillis: beyond("nineCached"),
      runsListMillis: (lists["runsList"] ?? Number.NaN) - (lists["start"] ?? 0),
      make: { runMillisPerStage: perStage("make"), freshMillis: times["makeFresh"] ?? null },
      snakemake: snakemake
        ? {
            rules,
            runMillisPerStage: beyond("snakemake", snakeStart) / rules,
            freshMillis: beyond("snakemakeFresh", snakeStart)
          }
        : null
    }
    yield* Console.log(textOf(results, options.quick))
    return results
  } finally {
    for (const folder of [many, nine, ...peers]) rmSync(folder.path, { recursive: true, force: true })
  }
})

const textOf = (
  results: {
    readonly stages: number
    readonly startMillis: number
    readonly planMillis: number
    readonly planFreshMillis: number
    readonly runMillisPerStage: number
    readonly runCachedMillisPerStage: number
    readonly nineCachedMillis: number
    readonly runsListMillis: number
    readonly make: { readonly runMillisPerStage: number; readonly freshMillis: number | null }
    readonly snakemake: {
      readonly rules: number
      readonly runMillisPerStage: number
      readonly freshMillis: number
    } | null
  },
  quick: boolean
): string => {
  const ms = (value: number | null) => (value === null ? "?" : `${value.toFixed(value < 10 ? 2 : 0)} ms`)
  const { make, snakemake, stages } = results
  return [
    `tinyllama --version: ${ms(results.startMillis)}; all below is beyond that (medians of whole processes, in turns)`,
    `plan ${stages} stages, nothing there: ${ms(results.planMillis)}; all fresh: ${ms(results.planFreshMillis)}`,
    `run ${stages} stages that do nothing: ${ms(results.runMillisPerStage)} each; all cached: ${ms(results.runCachedMillisPerStage)} each`,
    `run 9 cached stages: ${ms(results.nineCachedMillis)}`,
    `runs ls of ${quick ? 101 : 501} runs: ${ms(results.runsListMillis)}`,
    `make -j2, ${stages} empty targets: ${ms(make.runMillisPerStage)} each; all up to date: ${ms(make.freshMillis)}`,
    snakemake === null
      ? "snakemake is not installed (Debian: apt install snakemake)"
      : `snakemake --cores 2, ${snakemake.rules} empty rules: ${ms(snakemake.runMillisPerStage)} each; all up to date: ${ms(snakemake.freshMillis)} (beyond its own start)`
  ].join("\n")
}
