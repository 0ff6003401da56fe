/** What may change a stage key, and what may not. */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Layer, Schema } from "effect"
import { canonicalJson, digestOf } from "../../../src/artifacts/CanonicalJson.ts"
import { loadPipeline } from "../../../src/pipeline/file/Pipeline.ts"
import { keyParts, stageKey } from "../../../src/pipeline/plan/StageKey.ts"
import { workplace } from "../fixtures/harness.ts"
import { testRegistry, testStages } from "../fixtures/stages.ts"

const keyOf = (text: string, stage = "a") =>
  Effect.gen(function* () {
    const place = yield* workplace
    const pipeline = yield* loadPipeline({ file: place.write(text) })
    const found = pipeline.stages.find(({ name }) => name === stage)
    assert.isDefined(found)
    if (found === undefined) return ""
    return stageKey(keyParts(found.type, found.params, {}, null))
  }).pipe(Effect.scoped, Effect.provide(Layer.merge(NodeServices.layer, testRegistry)))

const file = (stage: string, more = "") => `version: 1\nname: t\n${more}\nstages:\n  a: ${stage}\n`
const plain = file("{ uses: write, with: { text: x, steps: 4, lr: { peak: 0.0004, schedule: cosine } } }")

/** Shuffles the keys of every object, by the numbers given. */
const reordered = (value: Schema.Json, numbers: ReadonlyArray<number>): Schema.Json => {
  if (Array.isArray(value)) return value.map((item) => reordered(item, numbers))
  if (typeof value !== "object" || value === null) return value
  const entries = Object.entries(value).map(([key, inner]) => [key, reordered(inner, numbers)] as const)
  const rank = (index: number) => numbers[index % Math.max(1, numbers.length)] ?? 0
  return Object.fromEntries(
    entries
      .map((entry, index) => ({ entry, rank: rank(index) }))
      .sort((a, b) => a.rank - b.rank)
      .map(({ entry }) => entry)
  )
}

describe("the stage key", () => {
  for (const [name, text] of Object.entries({
    "comments and layout":
      "# hello\nname: t\nversion: 1 # one\nstages:\n  a:\n    with:\n      lr:\n        schedule: 'cosine'\n        peak: 0.0004\n      steps: 4\n      text: \"x\"\n    uses: write\n",
    "4e-4 or 0.0004": file("{ uses: write, with: { text: x, steps: 4, lr: { peak: 4e-4, schedule: cosine } } }"),
    "a default spelled out": file(
      "{ uses: write, with: { text: x, steps: 0x4, watch: null, lr: { peak: .4e-3, schedule: cosine } } }"
    ),
    "a variable": file(
      "{ uses: write, with: { text: x, steps: '${vars.n}', lr: { peak: 4e-4, schedule: cosine } } }",
      "vars: { n: 4 }"
    ),
    "operational parameters": file("{ uses: write, with: { text: x, steps: 4, log_every: 99 } }"),
    "resources, retry, time limits": file(
      "{ uses: write, with: { text: x, steps: 4 }, resources: { cpus: 7 }, retry: { times: 9 }, timeout: 1h, grace: 9s }"
    )
  })) {
    it.effect(`does not see ${name}`, () =>
      Effect.gen(function* () {
        assert.strictEqual(yield* keyOf(text), yield* keyOf(plain))
      })
    )
  }

  for (const [name, text] of Object.entries({
    "a parameter": file("{ uses: write, with: { text: x, steps: 5 } }"),
    "a nested parameter": file("{ uses: write, with: { text: x, steps: 4, lr: { peak: 5e-4, schedule: cosine } } }"),
    "an optional key": file(
      "{ uses: write, with: { text: x, steps: 4, lr: { peak: 4e-4, schedule: cosine, min: 0 } } }"
    )
  })) {
    it.effect(`sees ${name}`, () =>
      Effect.gen(function* () {
        assert.notStrictEqual(yield* keyOf(text), yield* keyOf(plain))
      })
    )
  }

  it("sees the stage version, the order of inputs, the port, and what is observed", () => {
    const type = testStages["join"]
    assert.isDefined(type)
    if (type === undefined) return
    const key = (inputs: Record<string, ReadonlyArray<string>>, observed: Schema.Json = null, version = 1) =>
      stageKey(keyParts({ ...type, version }, { glue: "+" }, inputs, observed))
    const keys = [
      key({ documents: ["a", "b"], extra: [] }),
      key({ documents: ["b", "a"], extra: [] }),
      key({ documents: ["a"], extra: ["b"] }),
      key({ documents: ["a", "b"], extra: [] }, { file: "x" }),
      key({ documents: ["a", "b"], extra: [] }, null, 2)
    ]
    assert.strictEqual(new Set(keys).size, keys.length)
  })

  it("is not made of the stage's name", () => {
    const type = testStages["write"]
    if (type === undefined) return
    assert.strictEqual(Object.keys(keyParts(type, { text: "x" }, {}, null)).includes("name"), false)
  })

  it.effect.prop(
    "canonical JSON does not depend on key order",
    [Schema.Json, Schema.Array(Schema.Int)],
    ([value, numbers]) =>
      Effect.sync(() => {
        const other = reordered(value, numbers)
        assert.strictEqual(canonicalJson(value), canonicalJson(other))
        assert.strictEqual(digestOf(value), digestOf(other))
      }),
    { arbitrary: { runs: 300 } }
  )

  it.effect.prop(
    "canonical JSON reads back as the same value",
    [Schema.Json],
    ([value]) =>
      Effect.sync(() => assert.deepStrictEqual(JSON.parse(canonicalJson(value)), JSON.parse(JSON.stringify(value)))),
    { arbitrary: { runs: 300 } }
  )

  const Write = Schema.Struct({ text: Schema.String, steps: Schema.Int, log_every: Schema.Int, wait: Schema.Int })
  it.effect.prop(
    "operational parameters cannot change it",
    [Write, Schema.Int],
    ([params, other]) =>
      Effect.sync(() => {
        const type = testStages["write"]
        if (type === undefined) return
        const key = stageKey(keyParts(type, params, {}, null))
        assert.strictEqual(stageKey(keyParts(type, { ...params, log_every: other, wait: other }, {}, null)), key)
        const changed = { ...params, steps: params.steps + 1 }
        assert.notStrictEqual(stageKey(keyParts(type, changed, {}, null)), key)
      }),
    { arbitrary: { runs: 200 } }
  )
})
