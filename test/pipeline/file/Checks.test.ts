/** checks: they gate what is published, judge what is stored, and cost no work when they were wrong. */
import { existsSync, readdirSync, rmSync } from "node:fs"
import { join } from "node:path"
import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { decodeChecks, failedChecks } from "../../../src/pipeline/file/Checks.ts"
import type { Diagnostic } from "../../../src/pipeline/file/Diagnostics.ts"
import { parseYaml, Source } from "../../../src/pipeline/file/YamlSource.ts"
import { outcomes, type Workplace, workplace } from "../fixtures/harness.ts"
import { newRecord, runHere } from "../fixtures/in-process.ts"

const checks = (text: string) => {
  const report: Array<Diagnostic> = []
  const decoded = decodeChecks(parseYaml(new Source("file", "p.yaml", text)).root, "checks", report)
  return { checks: decoded, report }
}

describe("failed checks", () => {
  const facts = {
    state: { validation_loss: 3.2, tokens: 471, best: { step: 7 } },
    report: { tokens: 12, models: [{ model: "hf.model", perplexity: 245, tasks: { hellaswag: { acc: 0.3 } } }] }
  }
  const messages = (text: string) => failedChecks(checks(text), facts).map(({ message }) => message)

  it("those that are met say nothing", () => {
    assert.deepStrictEqual(
      messages(
        '["validation_loss < 5", "state.tokens >= 400", "best.step == 7", "models.0.perplexity < 300", "report.models.0.tasks.hellaswag.acc > 0.25"]'
      ),
      []
    )
  })

  it("the others name the check, its place and the value", () => {
    assert.deepStrictEqual(messages('["state.tokens >= 1e6"]'), [
      'check "state.tokens >= 1e6" (p.yaml:1:2): state.tokens is 471'
    ])
  })

  it("a name must be there, once", () => {
    assert.deepStrictEqual(messages('"tokens > 1"'), [
      'check "tokens > 1" (p.yaml:1:1): tokens is ambiguous: write state.tokens or report.tokens'
    ])
    assert.match(messages('"validation_los < 5"')[0] ?? "", /no fact "validation_los"; did you mean validation_loss\?/u)
    assert.match(messages('"zzz < 5"')[0] ?? "", /no fact "zzz"; there are validation_loss, tokens, best\.step/u)
  })

  it("after has no meaning in a check", () => {
    const { report } = checks('["a > 1 after 5 steps", 7]')
    assert.match(report.at(-1)?.message ?? "", /"after" belongs into stop_if/u)
    assert.match(report.at(0)?.message ?? "", /must be a condition in quotes/u)
  })
})

const text = (check: string, more = "") =>
  `version: 1\nname: t\nvars: { least: 9 }\nstages:\n  a: { uses: write, with: { text: hello }, checks: ["${check}"]${more} }\n  b: { uses: join, in: { documents: a.documents } }\n`

const stored = (place: Workplace, kind: string) => {
  const folder = join(place.runs, "store", kind)
  return existsSync(folder) ? readdirSync(folder) : []
}

describe("a run with checks", () => {
  it.live("publishes nothing that fails one, and a corrected check needs no rerun", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      place.write(text("length >= ${vars.least}", ", retry: { times: 5 }"))
      const record = newRecord()
      const refused = yield* runHere(place, {}, record)
      assert.deepStrictEqual(outcomes(refused), { a: "failed", b: "skipped" })
      const [stage] = refused.stages
      assert.strictEqual(stage?.failure?.failure, "check-failed")
      assert.strictEqual(stage?.attempts, 1)
      assert.match(
        stage?.failure?.message ?? "",
        /^the result does not meet check "length >= 9" \(.*pipeline\.yaml:5:\d+\): length is 5$/u
      )
      assert.deepStrictEqual(stored(place, "artifacts"), [])
      assert.deepStrictEqual(stored(place, "keys"), [])

      // Still wrong: refused again, from what is kept.
      assert.deepStrictEqual(outcomes(yield* runHere(place, { overrides: ["vars.least=6"] }, record)), {
        a: "failed",
        b: "skipped"
      })
      const published = yield* runHere(place, { overrides: ["vars.least=5"] }, record)
      assert.deepStrictEqual(outcomes(published), { a: "done", b: "done" })
      assert.deepStrictEqual(record.started, ["a", "b"], "the work of a was done once")
      assert.deepStrictEqual(stored(place, "work"), [])
    }).pipe(Effect.scoped)
  )

  it.live("a kept result that is not whole is made again", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      for (const part of ["result.json", join("output", "documents")]) {
        place.write(text("length > 5"))
        const record = newRecord()
        yield* runHere(place, {}, record)
        const [key = ""] = stored(place, "work")
        rmSync(join(place.runs, "store", "work", key, ".held", part), { recursive: true })
        place.write(text("length > 4"))
        assert.deepStrictEqual(outcomes(yield* runHere(place, {}, record)), { a: "done", b: "done" })
        assert.deepStrictEqual(record.started, ["a", "a", "b"])
        rmSync(place.runs, { recursive: true })
      }
    }).pipe(Effect.scoped)
  )

  it.live("--force does the work again", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      place.write(text("length > 5"))
      const record = newRecord()
      yield* runHere(place, {}, record)
      place.write(text("length > 4"))
      yield* runHere(place, { force: ["a"] }, record)
      assert.deepStrictEqual(record.started, ["a", "a", "b"])
    }).pipe(Effect.scoped)
  )

  it.live("judges a stored result too", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      place.write(text("length > 4"))
      yield* runHere(place)
      place.write(text("length > 5"))
      const record = newRecord()
      const judged = yield* runHere(place, {}, record)
      assert.deepStrictEqual(outcomes(judged), { a: "failed", b: "skipped" })
      assert.match(judged.stages[0]?.failure?.message ?? "", /^the stored result does not meet check "length > 5"/u)
      assert.deepStrictEqual(record.started, [])
      place.write(text("length > 3"))
      assert.deepStrictEqual(outcomes(yield* runHere(place, {}, record)), { a: "cached", b: "cached" })
    }).pipe(Effect.scoped)
  )
})
