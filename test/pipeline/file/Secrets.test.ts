/** Secrets: who gets them, what is refused before anything runs, and that no byte of a run's folders holds a value. */
import { readdirSync, readFileSync } from "node:fs"
import { join } from "node:path"
import { assert, describe, it } from "@effect/vitest"
import { ConfigProvider, Effect, Redacted, Runtime } from "effect"
import { scrubDeep, scrubber } from "../../../src/pipeline/file/Secrets.ts"
import { outcomes, runFile, type Workplace, workplace } from "../fixtures/harness.ts"
import { newRecord, runHere } from "../fixtures/in-process.ts"

const head = "version: 1\nname: t\n"
const value = "hf_s3cret/value+1"
const environment = (variables: Readonly<Record<string, string>>) =>
  Effect.provide(ConfigProvider.layer(ConfigProvider.fromEnv({ env: variables })))

/** Files below the folder that hold the text. */
const holders = (folder: string, text: string): ReadonlyArray<string> =>
  readdirSync(folder, { recursive: true, withFileTypes: true }).flatMap((entry) => {
    const file = join(entry.parentPath, entry.name)
    return entry.isFile() && readFileSync(file).includes(text) ? [file] : []
  })

describe("scrubbing", () => {
  const scrub = scrubber(
    new Map([
      ["TOKEN", Redacted.make(value)],
      ["KEY", Redacted.make('line "one" of it\nsecond line\nx')]
    ])
  )
  it("finds a value as it is, in a URL, in JSON, and single lines of one that has several", () => {
    assert.strictEqual(scrub(`a ${value} b`), "a [secret TOKEN] b")
    assert.strictEqual(scrub(`?t=${encodeURIComponent(value)}`), "?t=[secret TOKEN]")
    assert.strictEqual(scrub(JSON.stringify({ k: 'line "one" of it\nsecond line\nx' })), '{"k":"[secret KEY]"}')
    assert.strictEqual(scrub("> second line"), "> [secret KEY]")
    assert.strictEqual(scrub("x"), "x")
  })
  it("goes into every text of a value", () => {
    const event: unknown = { a: [value, 1, null], [value]: { b: `${value}!` } }
    assert.deepStrictEqual(scrubDeep(event, scrub), {
      a: ["[secret TOKEN]", 1, null],
      "[secret TOKEN]": { b: "[secret TOKEN]!" }
    })
  })
})

describe("before anything runs", () => {
  const pipeline = `${head}secrets: [FIRST]\nstages:\n  a: { uses: write, with: { text: a } }\n  b: { uses: write, with: { text: b }, secrets: [SECOND] }\n`
  const refusal = (place: Workplace, variables: Readonly<Record<string, string>>) =>
    Effect.gen(function* () {
      const error = yield* Effect.flip(runHere(place).pipe(environment(variables)))
      assert.strictEqual(error._tag, "PreflightFailed")
      assert.strictEqual(error._tag === "PreflightFailed" ? error[Runtime.errorExitCode] : undefined, 6)
      assert.deepStrictEqual(
        readdirSync(place.runs).filter((name) => name !== "store"),
        [],
        "no run folder"
      )
      assert.deepStrictEqual(readdirSync(join(place.runs, "store", "locks")), [], "no lock")
      return error.message
    })

  it.live("a secret that is missing, empty or too short is named, with its stages", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      place.write(pipeline)
      const missing = yield* refusal(place, { FIRST: "" })
      assert.match(missing, /^the secret FIRST of stages a, b is not set\. Next: export FIRST/mu)
      assert.match(missing, /^the secret SECOND of stage b is not set\. Next: export SECOND/mu)
      const short = yield* refusal(place, { FIRST: "12345", SECOND: value })
      assert.match(short, /the secret FIRST of stages a, b has fewer than 6 characters/u)
      assert.notInclude(short, "12345")
    }).pipe(Effect.scoped)
  )

  it.live("only stages that are selected need theirs", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      place.write(pipeline)
      const summary = yield* runHere(place, { only: ["a"] }).pipe(environment({ FIRST: value }))
      assert.deepStrictEqual(outcomes(summary), { a: "done" })
    }).pipe(Effect.scoped)
  )

  it.live("a value in the file or in an override is refused, and not repeated", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      place.write(pipeline.replace("text: b", `text: "${value}"`))
      const message = yield* refusal(place, { FIRST: value, SECOND: "another-value" })
      assert.match(message, /the value of the secret FIRST stands in the pipeline/u)
      assert.notInclude(message, value)
    }).pipe(Effect.scoped)
  )

  it.live("names must be names", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      place.write(pipeline.replace("[FIRST]", "[hf_pasted-token]"))
      const error = yield* Effect.flip(runHere(place, {}, newRecord()))
      assert.match(error.message, /:3:11: secrets\[0\]: must be the name of an environment variable/u)
      assert.notInclude(error.message, "pasted", "what may be a value is not repeated")
    }).pipe(Effect.scoped)
  )
})

describe("a worker", () => {
  it.live("gets what its stage names and nothing else, and nothing it says is written as it is", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      const tell = (names: string) => `uses: tell, with: { names: ${names} }`
      place.write(`${head}stages:
  one: { ${tell("[FIRST, SECOND, PLAIN]")}, secrets: [FIRST] }
  two: { ${tell("[SECOND, FIRST, PLAIN]")}, secrets: [SECOND] }
  three: { ${tell("[PLAIN, FIRST, SECOND]")} }
`)
      const variables = { FIRST: value, SECOND: "second-secret-value", PLAIN: "for everyone" }
      Object.assign(process.env, variables)
      yield* Effect.addFinalizer(() =>
        Effect.sync(() => {
          for (const name of Object.keys(variables)) delete process.env[name]
        })
      )
      const summary = yield* runFile(place)
      assert.deepStrictEqual(outcomes(summary), { one: "done", two: "done", three: "done" })
      const factsOf = (stage: string) =>
        summary.stages.find((one) => one.stage === stage)?.outputs["documents"]?.facts["found"]
      assert.deepStrictEqual(factsOf("one"), { FIRST: "[secret FIRST]", SECOND: null, PLAIN: "for everyone" })
      assert.deepStrictEqual(factsOf("two"), { FIRST: null, SECOND: "[secret SECOND]", PLAIN: "for everyone" })
      assert.deepStrictEqual(factsOf("three"), { FIRST: null, SECOND: null, PLAIN: "for everyone" })
      assert.deepStrictEqual(holders(place.folder, value), [])
      assert.deepStrictEqual(holders(place.folder, encodeURIComponent(value)), [])
      assert.deepStrictEqual(holders(place.folder, variables.SECOND), [])
      const attempt = join(summary.folder, "stages", "01-one", "attempts", "1")
      for (const file of ["stdout.log", "stderr.log"]) {
        assert.include(readFileSync(join(attempt, file), "utf8"), "FIRST=[secret FIRST]", file)
      }
      const journal = readFileSync(join(summary.folder, "events.jsonl"), "utf8")
      assert.include(journal, "said FIRST=[secret FIRST]")
      assert.include(journal, "warned FIRST=[secret FIRST]")
    }).pipe(Effect.scoped)
  )

  it.live("that fails with a value in its message tells it to nobody", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      place.write(
        `${head}secrets: [FIRST]\nstages:\n  one: { uses: tell, with: { names: [FIRST], fail: true }, retry: { times: 0 } }\n`
      )
      process.env["FIRST"] = value
      yield* Effect.addFinalizer(() => Effect.sync(() => delete process.env["FIRST"]))
      const summary = yield* runFile(place)
      assert.strictEqual(summary.stages[0]?.failure?.message, "refused with FIRST=[secret FIRST]")
      assert.deepStrictEqual(holders(place.folder, value), [])
    }).pipe(Effect.scoped)
  )
})
