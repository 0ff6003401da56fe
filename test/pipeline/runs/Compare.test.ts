/** Runs side by side, and what must hold between them. */
import { rmSync } from "node:fs"
import { join } from "node:path"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Result } from "effect"
import { type Assertion, checkAssertion, findMetrics, parseAssertion } from "../../../src/pipeline/runs/Assertion.ts"
import { type Comparison, compareRuns, type Metric } from "../../../src/pipeline/runs/Compare.ts"
import { Runs } from "../../../src/pipeline/runs/Runs.ts"
import { services, workplace } from "../fixtures/harness.ts"
import { runHere } from "../fixtures/in-process.ts"

const metric = (name: string, values: Metric["values"], type: Metric["type"] = "TrainingState"): Metric => ({
  name,
  values,
  type,
  differs: new Set(values).size > 1
})
const comparison: Comparison = {
  runs: ["A", "B", "C"],
  parameters: [],
  metrics: [
    metric("base.state.validation_loss", [2, 2.008, 2.02]),
    metric("base.state.steps", [10, 10, 10]),
    metric("final.checkpoint.validation_loss", [2, 2.008, 2.02], "Checkpoint"),
    metric("scores.report.models[chat.model].acc", [0.5, 0.6, undefined], "EvalReport"),
    metric("hf.model.dtype", ["bf16", "bf16", "f32"], "HfModel"),
    metric("hf.model.parameters", [0, 0, 1], "HfModel"),
    metric("gguf.gguf.parameters", [5, 5, 5], "GgufModel")
  ]
}
const parsed = (text: string): Assertion => Result.getOrThrow(parseAssertion(text))
const holds = (text: string) =>
  Result.getOrThrow(checkAssertion(comparison, parsed(text))).map((finding) => finding.holds)

describe("assertions", () => {
  it("hold each later run to the first, or to a value", () => {
    assert.deepStrictEqual(holds("val_loss within 0.5%"), [true, false])
    assert.deepStrictEqual(holds("validation_loss within 0.01"), [true, false])
    assert.deepStrictEqual(holds("val_loss <="), [false, false])
    assert.deepStrictEqual(holds("val_loss >="), [true, true])
    assert.deepStrictEqual(holds("val_loss<2.01"), [true, false])
    assert.deepStrictEqual(holds("base.steps =="), [true, true])
    assert.deepStrictEqual(holds("steps == 10"), [true, true])
    assert.deepStrictEqual(holds("dtype =="), [true, false])
    assert.deepStrictEqual(holds('hf.model.dtype != "f32"'), [true, false])
    assert.deepStrictEqual(holds("hf.parameters within 5%"), [true, false])
  })

  it("fail where a run lacks the metric, or where it is no number", () => {
    assert.deepStrictEqual(holds("acc >="), [true, false])
    assert.deepStrictEqual(holds("dtype within 1%"), [false, false])
    assert.deepStrictEqual(holds("dtype < 3"), [false, false])
  })

  it("that are none are refused with examples", () => {
    for (const text of [
      "",
      "val_loss",
      "val_loss near 3",
      "val_loss within",
      "val_loss within -1%",
      "a <= b c",
      "<= 3"
    ]) {
      const refused = parseAssertion(text)
      assert.isTrue(Result.isFailure(refused), text)
      if (Result.isFailure(refused)) assert.include(refused.failure.message, "val_loss within 0.5%")
    }
  })

  it("name metrics in full or in short; what is unknown or ambiguous says what there is", () => {
    const names = (query: string) => Result.getOrThrow(findMetrics(query, comparison.metrics)).map(({ name }) => name)
    assert.deepStrictEqual(names("val_loss"), ["base.state.validation_loss"])
    assert.deepStrictEqual(names("final.val_loss"), ["final.checkpoint.validation_loss"])
    assert.deepStrictEqual(names("models[chat.model].acc"), ["scores.report.models[chat.model].acc"])
    const refusal = (query: string) => {
      const found = findMetrics(query, comparison.metrics)
      return Result.isFailure(found) ? found.failure.message : ""
    }
    assert.include(refusal("parameters"), "fits 2: hf.model.parameters, gguf.gguf.parameters; write which")
    assert.include(refusal("val_los"), 'did you mean "val_loss"?')
    assert.include(refusal("base.step"), 'did you mean "base.steps"?')
    assert.strictEqual(refusal("nothing"), 'no run has a metric "nothing"')
  })
})

describe("comparison", () => {
  it.live("tells which parameters and facts differ, and which a run lacks", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      const pipeline = (text: string, glue: string) =>
        place.write(`version: 1
name: t
vars: { glue: "${glue}" }
stages:
  a: { uses: write, with: { text: ${text} } }
  b: { uses: join, in: { documents: [a.documents] }, with: { glue: "\${vars.glue}" } }
`)
      pipeline("one", "+")
      const first = yield* runHere(place)
      pipeline("three", "-")
      const second = yield* runHere(place)
      const compared = yield* Effect.gen(function* () {
        const runs = yield* Runs
        return yield* compareRuns([yield* runs.find(first.run), yield* runs.find(second.run)])
      }).pipe(Effect.provide(services(place.runs)))
      const differing = (rows: ReadonlyArray<{ readonly name: string; readonly differs: boolean }>) =>
        rows.flatMap(({ differs, name }) => (differs ? [name] : []))
      assert.deepStrictEqual(differing(compared.parameters), ["vars.glue", "a.text", "b.glue"])
      assert.deepStrictEqual(differing(compared.metrics), ["a.documents.length"])
      assert.include(
        compared.parameters.map(({ name }) => name),
        "a.lr.peak"
      )

      rmSync(join(second.folder, "stages/02-b/out"), { recursive: true })
      rmSync(join(second.folder, "pipeline.resolved.json"))
      const less = yield* Effect.gen(function* () {
        const runs = yield* Runs
        return yield* compareRuns([yield* runs.find(first.run), yield* runs.find(second.run)])
      }).pipe(Effect.provide(services(place.runs)))
      assert.deepStrictEqual(less.metrics.find(({ name }) => name === "b.tokens.count")?.values, [1, undefined])
      assert.isTrue(less.parameters.every(({ differs }) => differs))
    }).pipe(Effect.scoped)
  )
})
