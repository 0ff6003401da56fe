/** docs/change-classes.md says of every parameter and port what its definition says, and why; the rules say it for pairs of values. */
import { readFileSync } from "node:fs"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Layer, type Schema } from "effect"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { loadPipelineText } from "../../src/pipeline/file/Pipeline.ts"
import { diffPipelines } from "../../src/pipeline/plan/Diff.ts"
import { parameterDifferences } from "../../src/pipeline/plan/KeyDifference.ts"
import { StageRegistry } from "../../src/pipeline/StageRegistry.ts"
import type { AnyStageType, ChangeClass } from "../../src/pipeline/StageType.ts"
import * as Stages from "../../src/stages/registry.ts"
import { decodeParameters } from "./stage-fixture.ts"

const allStages = Effect.gen(function* () {
  const registry = yield* StageRegistry
  const types = yield* Effect.forEach(registry.names, (name) => registry.load(name, "."))
  return types.flatMap((type) => type ?? [])
}).pipe(Effect.provide(Stages.layer))

/** Stage → row → [class, reason]. */
const table = (): ReadonlyMap<string, ReadonlyMap<string, readonly [string, string]>> => {
  const text = readFileSync(new URL("../../docs/change-classes.md", import.meta.url), "utf8")
  return new Map(
    text
      .split(/^## /mu)
      .slice(1)
      .map((section) => {
        const rows = section.split("\n").flatMap((line) => {
          const [, name, change, why] = /^\| ([a-z_ 0-9]+) \| ([a-z]+) \| (.+) \|$/u.exec(line) ?? []
          return name === undefined || name === "parameter" ? [] : [[name, [change ?? "", why ?? ""] as const] as const]
        })
        return [section.slice(0, section.indexOf("\n")), new Map(rows)] as const
      })
  )
}

const stated = (stage: AnyStageType): ReadonlyArray<readonly [string, string]> => [
  ...Object.entries(stage.params).map(
    ([name, { change }]) => [name, typeof change === "function" ? "rule" : change] as const
  ),
  ...Object.entries(stage.inputs).flatMap(([name, { change }]) =>
    change === undefined || change === "identity" ? [] : [[`input ${name}`, change] as const]
  )
]

describe("change classes", () => {
  it.live("the table names every parameter of every stage, with its class and a reason", () =>
    Effect.gen(function* () {
      const stages = yield* allStages
      const documented = table()
      assert.deepStrictEqual(
        Array.from(documented.keys()),
        stages.map(({ name }) => name)
      )
      for (const stage of stages) {
        const rows = documented.get(stage.name) ?? new Map<string, readonly [string, string]>()
        assert.deepStrictEqual(
          Array.from(rows, ([name, [change]]) => [name, change]),
          stated(stage).map((row) => Array.from(row)),
          stage.name
        )
        for (const [name, [, why]] of rows) assert.isAbove(why.length, 15, `${stage.name}.${name} has no reason`)
      }
    })
  )

  /** The class of each changed parameter, for values as a file writes them. */
  const classes = Effect.fnUntraced(function* (
    name: string,
    shared: Readonly<Record<string, unknown>>,
    before: Readonly<Record<string, unknown>>,
    after: Readonly<Record<string, unknown>>
  ) {
    const stage = (yield* allStages).find((type) => type.name === name)
    if (stage === undefined) return yield* Effect.die(new Error(`no stage ${name}`))
    // Encoded forms of these schemas are their decoded ones, but for presets of models.
    const encoded = (params: Readonly<Record<string, unknown>>) =>
      Effect.map(
        decodeParameters(stage, { ...shared, ...params }),
        (decoded) => decoded as Readonly<Record<string, Schema.Json>>
      )
    const found = parameterDifferences(stage, yield* encoded(before), yield* encoded(after))
    return Object.fromEntries(
      found.map((difference) => [difference.path.split(".")[0], difference.change])
    ) as Readonly<Record<string, ChangeClass>>
  })

  it.live("pretrain: budgets, schedules and checkpoints to keep", () =>
    Effect.gen(function* () {
      const lr = (schedule: string, changed: Readonly<Record<string, number>> = {}) => ({
        lr: { peak: 1e-3, min: 1e-4, warmup_steps: 10, decay_fraction: 0.2, schedule, ...changed }
      })
      const shared = { model: "tinyllama-demo", max_tokens: 1e6, batch_tokens: 1000 }
      const change = (before: Readonly<Record<string, unknown>>, after: Readonly<Record<string, unknown>>) =>
        classes("pretrain", shared, before, after)
      const [more, less] = [{ max_tokens: 2e6 }, { max_tokens: 5e5 }]
      for (const schedule of ["constant", "wsd"]) {
        assert.deepStrictEqual(yield* change(lr(schedule), { ...lr(schedule), ...more }), {
          max_tokens: "continuation"
        })
        assert.deepStrictEqual(yield* change(lr(schedule), { ...lr(schedule), ...less }), { max_tokens: "identity" })
      }
      for (const schedule of ["cosine", "linear"])
        for (const other of [more, less])
          assert.deepStrictEqual(yield* change(lr(schedule), { ...lr(schedule), ...other }), { max_tokens: "identity" })
      assert.deepStrictEqual(yield* change(lr("wsd"), lr("wsd", { min: 0 })), { lr: "continuation" })
      assert.deepStrictEqual(yield* change(lr("wsd"), lr("wsd", { decay_fraction: 0.1 })), { lr: "continuation" })
      assert.deepStrictEqual(yield* change(lr("wsd"), lr("wsd", { decay_fraction: 0.5 })), { lr: "identity" })
      assert.deepStrictEqual(yield* change(lr("wsd"), lr("wsd", { peak: 2e-3 })), { lr: "identity" })
      assert.deepStrictEqual(yield* change(lr("wsd"), lr("wsd", { warmup_steps: 20 })), { lr: "identity" })
      assert.deepStrictEqual(yield* change(lr("cosine"), lr("cosine", { min: 0 })), { lr: "identity" })
      assert.deepStrictEqual(yield* change(lr("cosine"), lr("cosine", { decay_fraction: 0.5 })), { lr: "continuation" })
      assert.deepStrictEqual(yield* change(lr("constant"), lr("wsd")), { lr: "identity" })
      // The decay of the longer run begins after the constant one's last step.
      assert.deepStrictEqual(yield* change(lr("constant"), { ...lr("wsd"), ...more }), {
        lr: "continuation",
        max_tokens: "continuation"
      })
      assert.deepStrictEqual(yield* change({ keep: 3 }, { keep: 1 }), { keep: "continuation" })
      assert.deepStrictEqual(yield* change({ keep: 1 }, { keep: 3 }), { keep: "identity" })
      for (const [before, after, expected] of [
        [1000, 3000, "continuation"],
        [1000, 0, "continuation"],
        [1000, 1500, "identity"],
        [0, 1000, "identity"]
      ] as const)
        assert.deepStrictEqual(yield* change({ keep_every_tokens: before }, { keep_every_tokens: after }), {
          keep_every_tokens: expected
        })
      assert.deepStrictEqual(yield* change({ micro_batch: 4 }, { micro_batch: 8 }), { micro_batch: "identity" })
    })
  )

  it.live("sft: more epochs under a constant schedule alone", () =>
    Effect.gen(function* () {
      assert.deepStrictEqual(yield* classes("sft", {}, { epochs: 2 }, { epochs: 3 }), { epochs: "continuation" })
      assert.deepStrictEqual(yield* classes("sft", {}, { epochs: 3 }, { epochs: 2 }), { epochs: "identity" })
      assert.deepStrictEqual(yield* classes("sft", { schedule: "cosine" }, { epochs: 2 }, { epochs: 3 }), {
        epochs: "identity"
      })
    })
  )

  it.live("lists that grow and shrink are additive", () =>
    Effect.gen(function* () {
      assert.deepStrictEqual(yield* classes("eval", {}, { tasks: ["a"] }, { tasks: "all" }), { tasks: "additive" })
      assert.deepStrictEqual(yield* classes("quantize", {}, { types: ["Q8_0"] }, { types: ["Q4_0"] }), {
        types: "additive"
      })
      assert.deepStrictEqual(yield* classes("convert", {}, { gguf: [] }, { gguf: ["F32"] }), { gguf: "additive" })
      assert.deepStrictEqual(
        yield* classes("download", {}, { sources: [{ path: "a" }] }, { sources: [{ path: "b" }, { path: "a" }] }),
        { sources: "additive" }
      )
    })
  )
})

describe("models to measure", () => {
  const text = (models: string, lr = "4e-4", epochs = "2") => `version: 1
name: t
stages:
  text: { uses: download, with: { sources: [{ path: a.txt }] } }
  tokens: { uses: tokenize, in: { documents: [text.documents] } }
  packed: { uses: pack, in: { tokens: [tokens.tokens] }, with: { seq_len: 64 } }
  base: { uses: pretrain, in: { data: packed.dataset }, with: { model: llama-15m, max_tokens: 1e6, lr: { peak: ${lr} } } }
  final: { uses: checkpoint, in: { state: base.state } }
  hf: { uses: convert, in: { checkpoint: final.checkpoint } }
  chat: { uses: sft, in: { base: final.checkpoint, conversations: text.documents }, with: { epochs: ${epochs} } }
  scores: { uses: eval, in: { models: [${models}], data: packed.dataset } }
`
  const load = (source: string) =>
    loadPipelineText({ label: "pipeline.yaml", text: source, baseDirectory: "/nowhere" }).pipe(
      Effect.provide(Layer.provideMerge(Stages.layer, NodeServices.layer))
    )
  const effectOnScores = (before: string, after: string) =>
    Effect.map(
      Effect.all([load(before), load(after)]),
      ([old, now]) => diffPipelines(old, now).stages.find(({ stage }) => stage === "scores")?.effect
    )

  it.live("scores of those that stay are kept; where none stays, nothing is", () =>
    Effect.gen(function* () {
      const both = "hf.model, chat.model"
      assert.strictEqual(yield* effectOnScores(text("hf.model"), text(both)), "additive")
      assert.strictEqual(yield* effectOnScores(text(both), text(both, "4e-4", "3")), "additive")
      assert.strictEqual(yield* effectOnScores(text(both), text(both, "5e-4")), "stale")
      assert.strictEqual(yield* effectOnScores(text("hf.model"), text("chat.model")), "stale")
    })
  )
})
