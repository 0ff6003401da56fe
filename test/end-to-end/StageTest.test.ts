/** `stage new` and `stage test` as a user has them: a stage that keeps the laws, and stages that break each of them. */
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { assert, describe, it } from "@effect/vitest"
import { smallPipeline, temporaryFolder, tinyllama } from "./command-line.ts"

interface Report {
  readonly ok: boolean
  readonly type: string
  readonly stage: string
  readonly laws: ReadonlyArray<{ readonly law: string; readonly state: string; readonly detail: string }>
  readonly made: ReadonlyArray<{ readonly port: string; readonly files: ReadonlyArray<{ readonly path: string }> }>
  readonly folder?: string
}

const test = async (args: ReadonlyArray<string>, cwd: string) => {
  const outcome = await tinyllama(["stage", "test", ...args, "--json"], { cwd })
  assert.notStrictEqual(outcome.stdout, "", outcome.stderr)
  return { code: outcome.code, report: JSON.parse(outcome.stdout) as Report }
}
const statesOf = ({ laws }: Report) => Object.fromEntries(laws.map(({ law, state }) => [law, state]))
const detailOf = ({ laws }: Report, name: string) => laws.find(({ law }) => law === name)?.detail ?? ""

/** Ten steps of 20 ms, one file; each export breaks one law. */
const lawless = `import { Effect } from "effect"
import { existsSync, readFileSync, writeFileSync } from "node:fs"
import { defineStage, Preempted } from "tinyllama/stage"
const stage = (name, { steps = 10, text = () => "same", deaf = false, quiet = false } = {}) => defineStage({
  name, version: 1, describe: name, params: {}, inputs: {}, outputs: { out: { type: "x-out", describe: "A text" } },
  run: Effect.fn(name)(function* (context) {
    const file = context.work + "/step"
    const resumed = existsSync(file)
    for (let step = resumed ? Number(readFileSync(file, "utf8")) : 0; step < steps; step++) {
      yield* Effect.sleep(20)
      if (context.stopRequested() && !deaf) return yield* new Preempted({ message: "saved" })
      writeFileSync(file, String(step + 1))
      if (!quiet) context.progress({ done: step + 1, total: steps, unit: "steps" })
    }
    if (name !== "empty") writeFileSync(context.output("out") + "/a.txt", text(resumed, context))
    return { out: {} }
  })
})
export const threads = stage("threads", { text: (_, { threads }) => String(threads) })
export const forgetful = stage("forgetful", { text: (resumed) => (resumed ? "resumed" : "whole") })
export const deaf = stage("deaf", { deaf: true, steps: 60 })
export const quiet = stage("quiet", { quiet: true })
export const empty = stage("empty")
export const needy = { ...stage("needy"), inputs: { odd: { type: "x-odd", describe: "Nobody makes it" } } }
`
const names = ["threads", "forgetful", "deaf", "quiet", "empty"]
const fixture = [
  "version: 1",
  "name: lawless",
  "stages:",
  ...names.map((name) => `  ${name}: { uses: "../lawless.mjs#${name}", grace: 300ms }`),
  ""
].join("\n")

const lawlessFolder = () => {
  const folder = temporaryFolder()
  writeFileSync(join(folder, "lawless.mjs"), lawless)
  mkdirSync(join(folder, "lawless.fixture"))
  writeFileSync(join(folder, "lawless.fixture/pipeline.yaml"), fixture)
  return folder
}

/** Up to six workers one after the other, on a machine that may be busy. */
const patience = 180_000

describe("stage new", { timeout: patience }, () => {
  it("writes a stage that keeps every law, and refuses to write over anything", async () => {
    const folder = temporaryFolder()
    const made = await tinyllama(["stage", "new", "dedupe"], { cwd: folder })
    assert.strictEqual(made.code, 0, made.stderr)
    assert.match(made.stdout, /wrote dedupe\.ts[^]*stage test \.\/dedupe\.ts/u)

    const { code, report } = await test(["./dedupe.ts"], folder)
    assert.deepStrictEqual(statesOf(report), {
      runs: "kept",
      "equal bytes": "kept",
      "resumes after a kill": "kept",
      "stops in time": "kept"
    })
    assert.strictEqual(code, 0)
    assert.match(
      detailOf(report, "resumes after a kill"),
      /SIGKILL at reading 2 of 4; then it went on at 3 of 4 files/u
    )
    assert.deepStrictEqual(
      report.made[0]?.files.map(({ path }) => path),
      ["words.json"]
    )
    assert.isUndefined(report.folder)

    const mine = "// mine\n"
    writeFileSync(join(folder, "dedupe.ts"), mine)
    const again = await tinyllama(["stage", "new", "dedupe"], { cwd: folder })
    assert.strictEqual(again.code, 2)
    assert.match(again.stderr, /dedupe\.ts: already there, and nothing was written/u)
    assert.strictEqual(readFileSync(join(folder, "dedupe.ts"), "utf8"), mine)
  })

  it("refuses names that cannot be stages or are taken", async () => {
    const folder = temporaryFolder()
    for (const [name, says] of [
      ["My Stage", /small letters, digits and -/u],
      ["pack", /a stage type of the program/u]
    ] as const) {
      const outcome = await tinyllama(["stage", "new", name], { cwd: folder })
      assert.strictEqual(outcome.code, 2)
      assert.match(outcome.stderr, says)
    }
  })
})

describe("stage test", { timeout: patience }, () => {
  it("takes the program's own stages on the fixture that comes with it, which is made once", async () => {
    const folder = temporaryFolder()
    const { code, report } = await test(["tokenize"], folder)
    assert.strictEqual(code, 0, JSON.stringify(report.laws))
    assert.match(detailOf(report, "resumes after a kill"), /went on at \d+ of \d+ bytes, to the same bytes/u)
    assert.isTrue(existsSync(join(folder, "runs/fixtures/store")))
    const again = await tinyllama(["stage", "test", "tokenize"], { cwd: folder })
    assert.notInclude(again.stdout, "making")
    assert.match(again.stdout, /tokenize keeps 4 of 4 laws/u)
  })

  it("takes a stage of a file, with its parameters", async () => {
    const { code, report } = await test(
      ["packed", "--file", smallPipeline, "-S", "packed.seq_len=32"],
      temporaryFolder()
    )
    assert.strictEqual(code, 0, JSON.stringify(report.laws))
    assert.deepInclude(report, { stage: "packed", type: "pack" })
  })

  it("names the law that a stage breaks, keeps what was made, and exits 1", async () => {
    const folder = lawlessFolder()
    const broken: ReadonlyArray<readonly [string, string, RegExp]> = [
      ["threads", "equal bytes", /^out: a\.txt has other bytes \(1 and 1 of them\)/u],
      ["forgetful", "resumes after a kill", /^SIGKILL at reading 5 of 10; then out: a\.txt has other bytes/u],
      ["deaf", "stops in time", /^SIGTERM at reading 30 of 60: did not stop within 300ms; poll stopRequested/u],
      ["empty", "runs", /^the output out is empty/u]
    ]
    for (const [name, law, says] of broken) {
      const { code, report } = await test([`./lawless.mjs#${name}`], folder)
      assert.strictEqual(code, 1, name)
      assert.strictEqual(statesOf(report)[law], "broken", `${name}: ${JSON.stringify(report.laws)}`)
      assert.match(detailOf(report, law), says)
      assert.isTrue(existsSync(join(report.folder ?? "", "first/output/out")))
    }
  })

  it("says what it could not see of a stage that reports no progress", async () => {
    const { code, report } = await test(["./lawless.mjs#quiet"], lawlessFolder())
    assert.strictEqual(code, 0)
    assert.deepInclude(statesOf(report), { "equal bytes": "kept", "resumes after a kill": "unproven" })
  })

  it("says what is missing: a fixture for an input, a stage of that name, a duration", async () => {
    const folder = lawlessFolder()
    const say = async (...args: ReadonlyArray<string>) => {
      const { code, stderr } = await tinyllama(["stage", "test", ...args], { cwd: folder })
      return `${code} ${stderr}`
    }
    assert.match(
      await say("./lawless.mjs#needy"),
      /^1 needy takes x-odd \(odd\), and no stage of .* makes that\nNext: .*--fixture/u
    )
    assert.match(await say("tokenise"), /^2 no stage "tokenise" here; did you mean "tokenize"\?/u)
    assert.match(await say("pakced", "--file", smallPipeline), /^2 no stage "pakced" in .*; did you mean "packed"\?/u)
    assert.match(await say("pack", "--timeout", "soon"), /^2 --timeout soon: write a duration/u)
    assert.match(await say("pack", "-S", "a=b"), /^2 --set and --profile change a pipeline file/u)
    assert.match(await say("pack", "--fixture", "nowhere"), /^3 nowhere\/pipeline\.yaml: cannot be read: no such file/u)
  })
})
