/** Stages as jobs of a real Slurm: slurmctld, two slurmd, munged on this machine. Stages are the test registry's, with their real workers. */
import { type ChildProcess, spawn, spawnSync } from "node:child_process"
import { once } from "node:events"
import { chmodSync, existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { setTimeout as delay } from "node:timers/promises"
import { fileURLToPath } from "node:url"
import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import type { RunSummary } from "../../src/pipeline/run/Runner.ts"
import { jobsNamed, named, slurm, slurmEnvironment, slurmRuns } from "../fixtures/slurm-cluster.ts"
import { type Workplace, workplace } from "../pipeline/fixtures/harness.ts"
import { outputDigests, tinyllama } from "./command-line.ts"

const runner = fileURLToPath(new URL("../pipeline/fixtures/run.ts", import.meta.url))
const live = slurmRuns ? it.live : it.live.skip

/** Stage names are unique, so that their jobs can be told from those of other tests. */
let tests = 0
const file = (place: Workplace, stage: string, options = "") => {
  const name = `s${process.pid}x${tests++}`
  place.write(
    `version: 1\nname: t\ndefaults: { executor: { kind: slurm, poll: 1s${options} } }\nstages:\n  ${name}: ${stage}\n`
  )
  return { name, jobs: () => jobsNamed(`tl-${name}-`) }
}

interface Runner {
  readonly child: ChildProcess
  readonly ended: Promise<{
    readonly code: number | null
    readonly summary: RunSummary | undefined
    readonly text: string
  }>
}
const startRunner = (place: Workplace, environment: NodeJS.ProcessEnv = {}): Runner => {
  const child = spawn(process.execPath, [runner, place.folder], {
    stdio: ["ignore", "pipe", "pipe"],
    env: { ...process.env, ...slurmEnvironment, ...environment }
  })
  let [out, text] = ["", ""]
  child.stdout?.on("data", (chunk: Buffer) => (out += chunk.toString()))
  child.stderr?.on("data", (chunk: Buffer) => (text += chunk.toString()))
  const ended = once(child, "close").then(([code]) => ({
    code,
    summary: out === "" ? undefined : JSON.parse(out),
    text: out + text
  }))
  return { child, ended }
}
const completes = (place: Workplace, environment?: NodeJS.ProcessEnv) =>
  Effect.promise(async () => {
    const { code, summary, text } = await startRunner(place, environment).ended
    if (code !== 0 || summary === undefined) assert.fail(text)
    return summary
  })

/** Waits until the counting stage has come this far. */
const reached = (place: Workplace, step: number) =>
  Effect.promise(async () => {
    const work = join(place.runs, "store", "work")
    for (;;) {
      const [key] = existsSync(work) ? readdirSync(work) : []
      const count = key === undefined ? "" : join(work, key, "count.txt")
      if (existsSync(count) && Number(readFileSync(count, "utf8")) >= step) return
      await delay(20)
    }
  })
const until = (what: () => boolean) =>
  Effect.promise(async () => {
    while (!what()) await delay(100)
  })
const journal = (place: Workplace): string => readFileSync(join(place.runs, "latest", "events.jsonl"), "utf8")

describe.concurrent("a stage on Slurm", () => {
  live(named("with four ranks on two nodes makes its result, each rank with a log of its own"), () =>
    Effect.gen(function* () {
      const place = yield* workplace
      const { jobs } = file(
        place,
        "{ uses: together, with: { steps: 5, step_ms: 10 }, resources: { ranks: 4, nodes: 2, cpus: 4 } }"
      )
      const summary = yield* completes(place)
      assert.deepStrictEqual(summary.stages[0]?.outputs["state"]?.facts, { steps: 5, ranks: 4 })
      assert.deepStrictEqual(
        jobs().map(({ state }) => state),
        ["COMPLETED"]
      )
      const attempt = join(place.runs, "latest", "stages")
      const folder = join(attempt, readdirSync(attempt)[0] ?? "", "attempts", "1")
      assert.include(readFileSync(join(folder, "rank-3.stdout.log"), "utf8"), "rank 3 of 4 by srun, on 1 threads")
      assert.include(readFileSync(join(folder, "stdout.log"), "utf8"), "rank 0 of 4 by srun")
      assert.match(journal(place), /submitted as Slurm job \d+.*running on a,b/su)
      // Nothing is left to follow.
      assert.deepStrictEqual(
        readdirSync(join(place.runs, "store", "jobs")).filter((name) => name.endsWith(".json")),
        []
      )
    }).pipe(Effect.scoped)
  )

  live(named("saves and is cancelled by Ctrl-C; the next run goes on from there"), () =>
    Effect.gen(function* () {
      const place = yield* workplace
      const { jobs } = file(place, "{ uses: count, with: { steps: 200, step_ms: 40 }, resources: { cpus: 1 } }")
      const first = startRunner(place)
      yield* reached(place, 3)
      first.child.kill("SIGINT")
      const { code } = yield* Effect.promise(() => first.ended)
      assert.strictEqual(code, 75)
      assert.match(journal(place), /saved at step \d+/u)
      assert.isFalse(jobs().some(({ state }) => state === "RUNNING" || state === "PENDING"))
      const summary = yield* completes(place)
      assert.strictEqual(summary.stages[0]?.outcome, "done")
      assert.strictEqual(jobs().length, 2)
      assert.match(journal(place), /"AttemptStarted".*"attempt":2,.*"resumes":true/u)
    }).pipe(Effect.scoped)
  )

  live(
    named("is left alone by Ctrl-C where the file says so, and by a runner that is killed; the next one follows it"),
    () =>
      Effect.gen(function* () {
        const place = yield* workplace
        const { jobs } = file(
          place,
          "{ uses: count, with: { steps: 300, step_ms: 40 }, resources: { cpus: 1 } }",
          ", on_interrupt: detach"
        )
        const first = startRunner(place)
        yield* reached(place, 3)
        first.child.kill("SIGINT")
        assert.strictEqual((yield* Effect.promise(() => first.ended)).code, 75)
        assert.match(journal(place), /goes on without this runner/u)
        const second = startRunner(place)
        yield* until(() => /follows Slurm job/u.test(journal(place)))
        second.child.kill("SIGKILL")
        yield* Effect.promise(() => second.ended)
        assert.deepStrictEqual(
          jobs().map(({ state }) => state),
          ["RUNNING"]
        )
        const summary = yield* completes(place)
        assert.strictEqual(summary.stages[0]?.outcome, "done")
        assert.deepStrictEqual(
          jobs().map(({ state }) => state),
          ["COMPLETED"]
        )
        assert.strictEqual(journal(place).match(/submitted as Slurm job/gu)?.length, 1)
      }).pipe(Effect.scoped)
  )

  live(named("that ended while no runner was there is taken as it is"), () =>
    Effect.gen(function* () {
      const place = yield* workplace
      const { jobs } = file(place, "{ uses: count, with: { steps: 60, step_ms: 40 }, resources: { cpus: 1 } }")
      const first = startRunner(place)
      yield* reached(place, 3)
      first.child.kill("SIGKILL")
      yield* until(() => jobs().every(({ state }) => state === "COMPLETED"))
      const summary = yield* completes(place)
      assert.strictEqual(summary.stages[0]?.outcome, "done")
      assert.strictEqual(jobs().length, 1)
    }).pipe(Effect.scoped)
  )

  live(named("whose runner died is followed by any other that wants the same, wherever it would have run it"), () =>
    Effect.gen(function* () {
      const place = yield* workplace
      const stage = "{ uses: count, with: { steps: 100, step_ms: 40 }, resources: { cpus: 1 } }"
      const { jobs, name } = file(place, stage)
      const first = startRunner(place)
      yield* reached(place, 3)
      first.child.kill("SIGKILL")
      place.write(`version: 1\nname: other\nstages:\n  ${name}: ${stage}\n`)
      const summary = yield* completes(place)
      assert.strictEqual(summary.stages[0]?.outcome, "done")
      assert.match(journal(place), /follows Slurm job \d+, which run \S+ submitted/u)
      assert.deepStrictEqual(
        jobs().map(({ state }) => state),
        ["COMPLETED"]
      )
    }).pipe(Effect.scoped)
  )

  live(named("that has not begun is cancelled by Ctrl-C at once"), () =>
    Effect.gen(function* () {
      const place = yield* workplace
      const { jobs } = file(place, "{ uses: write, with: { text: x }, grace: 1h }", ', extra: ["--begin=now+1hour"]')
      const running = startRunner(place)
      yield* until(() => existsSync(join(place.runs, "latest", "events.jsonl")) && /BeginTime/u.test(journal(place)))
      running.child.kill("SIGINT")
      assert.strictEqual((yield* Effect.promise(() => running.ended)).code, 75)
      assert.deepStrictEqual(
        jobs().map(({ state }) => state),
        ["CANCELLED"]
      )
    }).pipe(Effect.scoped)
  )

  live(
    named("that takes longer than its timeout saves and fails as timeout; waiting in the queue does not count"),
    () =>
      Effect.gen(function* () {
        const place = yield* workplace
        file(
          place,
          "{ uses: count, with: { steps: 10000, step_ms: 40 }, resources: { cpus: 1 }, timeout: 4s }",
          ', extra: ["--begin=now+6"]'
        )
        const { code, summary } = yield* Effect.promise(() => startRunner(place).ended)
        assert.strictEqual(code, 1)
        assert.strictEqual(summary?.stages[0]?.failure?.failure, "timeout")
        const work = join(place.runs, "store", "work")
        assert.isAbove(Number(readFileSync(join(work, readdirSync(work)[0] ?? "", "count.txt"), "utf8")), 10)
      }).pipe(Effect.scoped)
  )

  live(named("whose runner died just after sbatch is found by its name"), () =>
    Effect.gen(function* () {
      const place = yield* workplace
      const { jobs } = file(place, "{ uses: count, with: { steps: 60, step_ms: 40 }, resources: { cpus: 1 } }")
      const tools = join(place.folder, "tools")
      mkdirSync(tools)
      writeFileSync(join(tools, "sbatch"), '#!/bin/sh\n/usr/bin/sbatch "$@" > /dev/null\nkill -9 $PPID\n')
      chmodSync(join(tools, "sbatch"), 0o755)
      const first = startRunner(place, { PATH: `${tools}:${process.env["PATH"]}` })
      yield* Effect.promise(() => first.ended)
      assert.strictEqual(jobs().length, 1)
      const summary = yield* completes(place)
      assert.strictEqual(summary.stages[0]?.outcome, "done")
      assert.strictEqual(jobs().length, 1)
    }).pipe(Effect.scoped)
  )

  live(named("that is requeued goes on where it was, as the same attempt"), () =>
    Effect.gen(function* () {
      const place = yield* workplace
      const { jobs } = file(place, "{ uses: count, with: { steps: 100, step_ms: 40 }, resources: { cpus: 1 } }")
      const running = startRunner(place)
      yield* reached(place, 3)
      slurm("scontrol", "requeue", jobs()[0]?.id ?? "")
      const { code, summary, text } = yield* Effect.promise(() => running.ended)
      assert.strictEqual(code, 0, text)
      assert.strictEqual(summary?.stages[0]?.attempts, 1)
      assert.match(journal(place), /begins on .*, for the 2\. time/u)
      assert.strictEqual(jobs().length, 1)
    }).pipe(Effect.scoped)
  )

  live(named("saves when its time is nearly over, and puts itself back into the queue"), () =>
    Effect.gen(function* () {
      const place = yield* workplace
      const { jobs } = file(
        place,
        "{ uses: count, with: { steps: 100, step_ms: 40 }, resources: { cpus: 1 } }",
        ", time: 1h"
      )
      const running = startRunner(place)
      yield* reached(place, 3)
      // What Slurm sends itself `grace` before the hour is over.
      slurm("scancel", "--signal=USR1", "--batch", jobs()[0]?.id ?? "")
      const { code, text } = yield* Effect.promise(() => running.ended)
      assert.strictEqual(code, 0, text)
      assert.match(journal(place), /begins on .*, for the 2\. time/u)
      assert.strictEqual(jobs().length, 1)
    }).pipe(Effect.scoped)
  )

  live(named("that somebody cancels ends the run as preempted, and the next one submits it again"), () =>
    Effect.gen(function* () {
      const place = yield* workplace
      const { jobs } = file(place, "{ uses: count, with: { steps: 100, step_ms: 40 }, resources: { cpus: 1 } }")
      const running = startRunner(place)
      yield* reached(place, 3)
      slurm("scancel", jobs()[0]?.id ?? "")
      assert.strictEqual((yield* Effect.promise(() => running.ended)).code, 75)
      assert.strictEqual((yield* completes(place)).stages[0]?.outcome, "done")
    }).pipe(Effect.scoped)
  )

  live(named("whose worker dies is tried again by a new job"), () =>
    Effect.gen(function* () {
      const place = yield* workplace
      const { jobs } = file(
        place,
        "{ uses: count, with: { steps: 5, die_at: 3 }, resources: { cpus: 1 }, retry: { base: 10ms } }"
      )
      const summary = yield* completes(place)
      assert.strictEqual(summary.stages[0]?.attempts, 2)
      assert.strictEqual(jobs().length, 2)
      assert.match(journal(place), /"worker-lost".*Slurm job \d+ .*these are my last words/su)
      // The first job, started again by hand, sees that a newer attempt has had the work folder.
      const stages = join(place.runs, "latest", "stages")
      const old = join(stages, readdirSync(stages)[0] ?? "", "attempts", "1")
      const log = join(place.folder, "old.log")
      const again = spawnSync("sbatch", ["--wait", `--error=${log}`, join(old, "job.sh")], {
        env: { ...process.env, ...slurmEnvironment }
      })
      assert.strictEqual(again.status, 75)
      assert.include(readFileSync(log, "utf8"), "a newer attempt has the work folder")
    }).pipe(Effect.scoped)
  )

  live(named("that nodes cannot see is refused by its own job: the file system is not shared"), () =>
    Effect.gen(function* () {
      const place = yield* workplace
      file(place, "{ uses: write, with: { text: x } }")
      const tools = join(place.folder, "tools")
      mkdirSync(tools)
      // As a node would see it that has other files at the same place.
      writeFileSync(
        join(tools, "sbatch"),
        `#!/bin/sh\nfor last; do :; done\nsed -i "s#^place=.*#place=/nowhere#" "$last"\nexec /usr/bin/sbatch "$@"\n`
      )
      chmodSync(join(tools, "sbatch"), 0o755)
      const { code, summary } = yield* Effect.promise(
        () => startRunner(place, { PATH: `${tools}:${process.env["PATH"]}` }).ended
      )
      assert.strictEqual(code, 1)
      assert.strictEqual(summary?.stages[0]?.failure?.failure, "invalid-input")
      assert.match(summary?.stages[0]?.failure?.message ?? "", /Slurm job \d+ on \w+ does not see .*not shared/u)
    }).pipe(Effect.scoped)
  )

  live(named("keeps what its secrets are out of all that it writes"), () =>
    Effect.gen(function* () {
      const place = yield* workplace
      file(place, "{ uses: tell, with: { names: [A_TOKEN] }, secrets: [A_TOKEN] }")
      yield* completes(place, { A_TOKEN: "very-secret-value" })
      const written = readdirSync(join(place.runs, "latest"), { recursive: true, withFileTypes: true })
        .filter((entry) => entry.isFile())
        .map((entry) => readFileSync(join(entry.parentPath, entry.name), "utf8"))
        .join("\n")
      assert.notInclude(written, "very-secret-value")
      assert.include(written, "printed A_TOKEN=[secret A_TOKEN]")
    }).pipe(Effect.scoped)
  )
})

describe("a stage on Slurm that has to give way", () => {
  live(named("to a job of a higher partition saves, waits, and goes on"), () =>
    Effect.gen(function* () {
      const place = yield* workplace
      const { jobs } = file(
        place,
        "{ uses: count, with: { steps: 100, step_ms: 40 }, resources: { cpus: all } }",
        ', partition: work, extra: ["--nodelist=b"]'
      )
      const running = startRunner(place)
      yield* reached(place, 3)
      slurm("sbatch", "--partition=urgent", "--nodelist=b", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
      const { code, summary, text } = yield* Effect.promise(() => running.ended)
      assert.strictEqual(code, 0, text)
      assert.strictEqual(summary?.stages[0]?.attempts, 1)
      assert.match(journal(place), /begins on .*, for the 2\. time/u)
      assert.strictEqual(jobs().length, 1)
    }).pipe(Effect.scoped)
  )
})

const corpus = (executor: string): string =>
  [
    "version: 1",
    "name: array",
    "stages:",
    "  corpus: { uses: download, with: { sources: [{ path: 'text/*.txt' }] } }",
    "  tokens:",
    "    uses: tokenize",
    "    in: { documents: [corpus.documents] }",
    "    with: { shard_bytes: 1000 }",
    "    resources: { cpus: 1 }",
    `    executor: { kind: slurm, poll: 1s${executor} }`,
    ""
  ].join("\n")

describe("the command line with Slurm", () => {
  const inPlace = (place: Workplace, args: ReadonlyArray<string>, env: NodeJS.ProcessEnv = {}) =>
    Effect.promise(() => tinyllama(args, { cwd: place.folder, env: { ...slurmEnvironment, ...env } }))
  const prepare = (place: Workplace, executor: string) => {
    mkdirSync(join(place.folder, "text"))
    for (let i = 0; i < 9; i++)
      writeFileSync(join(place.folder, "text", `${i}.txt`), `Text number ${i}. `.repeat(50 + i))
    place.write(corpus(executor))
  }

  live(named("tokenizes in a job array, and makes the result of its shares: what one process makes"), () =>
    Effect.gen(function* () {
      const place = yield* workplace
      prepare(place, ", array: 3")
      const planned = yield* inPlace(place, ["plan"])
      assert.match(planned.stdout, /tokens +slurm: --nodes=1 --ntasks=1 .*--array=1-3/u)
      const ran = yield* inPlace(place, ["run", "--plain"])
      assert.strictEqual(ran.code, 0, ran.stdout + ran.stderr)
      assert.match(ran.stdout + ran.stderr, /submitted as Slurm job \d+: .*array\.sh/u)
      assert.match(ran.stdout + ran.stderr, /submitted as Slurm job \d+: .*job\.sh/u)
      const shares = join(place.runs, "latest", "stages", "02-tokens", "attempts", "1", "shares")
      assert.deepStrictEqual(readdirSync(shares).sort(), ["1", "2", "3"])
      for (const share of ["1", "2", "3"])
        assert.match(readFileSync(join(shares, share, "events.jsonl"), "utf8"), /"_tag":"Shared"/u)
      const logs = yield* inPlace(place, ["logs", "/tokens"])
      assert.match(logs.stdout, /share 2\/3: |Slurm job/u)
      const joined = outputDigests(place.runs)
      const alone = yield* inPlace(place, ["run", "--runs", "alone", "-S", "tokens.executor={kind: local}"])
      assert.strictEqual(alone.code, 0, alone.stderr)
      assert.deepStrictEqual(joined, outputDigests(join(place.folder, "alone")))
    }).pipe(Effect.scoped)
  )

  live(named("refuses before anything runs what Slurm would refuse, by name"), () =>
    Effect.gen(function* () {
      const place = yield* workplace
      prepare(place, ", partition: gpus")
      const ran = yield* inPlace(place, ["run", "--plain"])
      assert.strictEqual(ran.code, 6, ran.stdout)
      assert.match(ran.stderr, /tokens: Slurm: .*[Ii]nvalid partition name.*--partition=gpus/su)
      assert.match(ran.stderr, /Next: correct the executor's partition/u)
      const doctor = yield* inPlace(place, ["doctor", "pipeline.yaml"])
      assert.strictEqual(doctor.code, 6)
      assert.match(doctor.stdout, /Slurm +tokens +MISSING/u)
      place.write(corpus(", time: 2h"))
      const fine = yield* inPlace(place, ["doctor", "pipeline.yaml"])
      assert.match(fine.stdout, /Slurm +tokens +ok +--nodes=1 .*--time=02:00:00\. a job would be taken to start at/u)
    }).pipe(Effect.scoped)
  )
})

describe("a run that its runner left to Slurm", () => {
  live(named("is shown, kept from gc and rm, and stopped by the command line"), () =>
    Effect.gen(function* () {
      const place = yield* workplace
      const { jobs } = file(place, "{ uses: count, with: { steps: 2000, step_ms: 40 }, resources: { cpus: 1 } }")
      const first = startRunner(place)
      yield* reached(place, 3)
      first.child.kill("SIGKILL")
      yield* Effect.promise(() => first.ended)
      const ask = (...args: ReadonlyArray<string>) =>
        Effect.promise(() => tinyllama(args, { cwd: place.folder, env: slurmEnvironment }))
      assert.match((yield* ask("status")).stdout, /left to Slurm job \d+; run again to follow it/u)
      assert.match((yield* ask("runs", "rm", "latest")).stderr, /Slurm job \d+ is at work on .*Next: tinyllama stop/u)
      assert.strictEqual((yield* ask("gc")).code, 0)
      assert.strictEqual(readdirSync(join(place.runs, "store", "making")).length, 1)
      const stopped = yield* ask("stop")
      assert.match(stopped.stdout, /Slurm job \d+ saved and ended/u, stopped.stderr)
      assert.isFalse(jobs().some(({ state }) => state === "RUNNING" || state === "PENDING"))
      assert.match((yield* ask("stop", "latest")).stdout, /is not running/u)
    }).pipe(Effect.scoped)
  )
})

describe("the command line without Slurm", () => {
  live(named("says so where the controller does not answer"), () =>
    Effect.gen(function* () {
      const place = yield* workplace
      mkdirSync(join(place.folder, "text"))
      writeFileSync(join(place.folder, "text", "0.txt"), "text")
      place.write(corpus(""))
      const conf = join(place.folder, "slurm.conf")
      const real = readFileSync(slurmEnvironment["SLURM_CONF"] ?? "", "utf8")
      writeFileSync(conf, real.replace("SlurmctldPort=26817", "SlurmctldPort=26999").concat("MessageTimeout=2\n"))
      const { code, stderr } = yield* Effect.promise(() =>
        tinyllama(["run", "--plain"], { cwd: place.folder, env: { SLURM_CONF: conf } })
      )
      assert.strictEqual(code, 6, stderr)
      assert.match(stderr, /Slurm: tokens: scontrol: .*Next: wait until the controller answers/su)
    }).pipe(Effect.scoped)
  )

  it.live("says so before anything runs", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      mkdirSync(join(place.folder, "text"))
      writeFileSync(join(place.folder, "text", "0.txt"), "text")
      mkdirSync(join(place.folder, "bin"))
      place.write(corpus(""))
      const { code, stderr } = yield* Effect.promise(() =>
        tinyllama(["run", "--plain"], { cwd: place.folder, env: { PATH: join(place.folder, "bin") } })
      )
      assert.strictEqual(code, 6, stderr)
      assert.match(
        stderr,
        /Slurm: tokens: scontrol: not found in PATH, so this machine has no Slurm\. Next: run on a login node/u
      )
    }).pipe(Effect.scoped)
  )
})
