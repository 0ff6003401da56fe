/** What an edit does to results that exist: fields with their class, stages with their effect; text that means the same is no difference. */
import { assert, describe, it } from "@effect/vitest"
import { Effect, Layer } from "effect"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { diffPipelines, type PipelineDiff } from "../../../src/pipeline/plan/Diff.ts"
import { describeChange } from "../../../src/pipeline/plan/KeyDifference.ts"
import { loadPipelineText } from "../../../src/pipeline/file/Pipeline.ts"
import { testRegistry } from "../fixtures/stages.ts"

const text = `version: 1
name: t
vars: { letters: 2 }
stages:
  a: { uses: write, with: { text: a, lr: { peak: 4e-4, schedule: cosine } } }
  b: { uses: cut, in: { documents: a.documents }, with: { letters: "\${vars.letters}" } }
  c: { uses: train, in: { documents: b.documents }, with: { steps: 10 } }
  d: { uses: join, in: { documents: [a.documents, b.documents] } }
`

const load = (source: string) =>
  loadPipelineText({ label: "pipeline.yaml", text: source, baseDirectory: "/nowhere" }).pipe(
    Effect.provide(Layer.provideMerge(testRegistry, NodeServices.layer))
  )
const compare = (before: string, after: string) =>
  Effect.map(Effect.all([load(before), load(after)]), ([a, b]) => diffPipelines(a, b))

const fields = (diff: PipelineDiff) =>
  diff.fields.map(({ after, before, change, path }) => `${path}: ${describeChange(before, after)} [${change}]`)
const effects = (diff: PipelineDiff) => Object.fromEntries(diff.stages.map(({ effect, stage }) => [stage, effect]))
const kept = { a: "kept", b: "kept", c: "kept", d: "kept" } as const

describe("diff", () => {
  it.effect("comments, order, spelling, defaults and variables that come to the same are no difference", () =>
    Effect.gen(function* () {
      const same = `# another comment
name: t
version: 1
stages:
  d: { in: { documents: [a.documents, b.documents] }, uses: join, with: { glue: "+" } }
  c: { uses: train, with: { steps: 1e1, schedule: constant }, in: { documents: [b.documents] } }
  b: { uses: cut, in: { documents: a.documents }, with: { letters: 2 } }
  a: { uses: write, with: { lr: { schedule: cosine, peak: 0.0004 }, text: "a" } }
vars: { letters: 7, unused: 1 }
`
      const diff = yield* compare(text, same)
      assert.deepStrictEqual(fields(diff), [])
      assert.deepStrictEqual(effects(diff), kept)
    })
  )

  it.effect("each class has its effect, and passes it on", () =>
    Effect.gen(function* () {
      const identity = yield* compare(text, text.replace("4e-4", "5e-4"))
      assert.deepStrictEqual(fields(identity), ["a.with.lr.peak: 0.0004 → 0.0005 [identity]"])
      assert.deepStrictEqual(effects(identity), { a: "stale", b: "stale", c: "stale", d: "stale" })
      assert.deepStrictEqual(
        identity.stages.map(({ through }) => through),
        [[], ["a"], ["b"], ["a", "b"]]
      )
      const more = yield* compare(text, text.replace("steps: 10", "steps: 20"))
      assert.deepStrictEqual(fields(more), ["c.with.steps: 10 → 20 [continuation]"])
      assert.deepStrictEqual(effects(more), { ...kept, c: "continues" })
      const fewer = yield* compare(text, text.replace("steps: 10", "steps: 5"))
      assert.deepStrictEqual(fields(fewer), ["c.with.steps: 10 → 5 [identity]"])
      assert.deepStrictEqual(effects(fewer), { ...kept, c: "stale" })
      const operational = yield* compare(
        text,
        text
          .replace("text: a,", "text: a, log_every: 5,")
          .replace("uses: join", "uses: join, resources: { cpus: 1 }, timeout: 5m")
      )
      assert.deepStrictEqual(fields(operational), [
        "a.with.log_every: 1 → 5 [operational]",
        'd.resources.cpus: "all" → 1 [operational]',
        'd.timeout: null → "5m" [operational]'
      ])
      assert.deepStrictEqual(effects(operational), kept)
    })
  )

  it.effect("a variable's change shows where it is used", () =>
    Effect.gen(function* () {
      const diff = yield* compare(text, text.replace("vars: { letters: 2 }", "vars: { letters: 3 }"))
      assert.deepStrictEqual(fields(diff), ["b.with.letters: 2 → 3 [identity]"])
      assert.deepStrictEqual(effects(diff), { a: "kept", b: "stale", c: "stale", d: "stale" })
    })
  )

  it.effect("stages that come, go, are renamed, or get other edges", () =>
    Effect.gen(function* () {
      const renamed = yield* compare(
        text,
        text.replaceAll("b:", "cutter:").replaceAll("b.documents", "cutter.documents")
      )
      assert.deepStrictEqual(effects(renamed), { a: "kept", cutter: "renamed", c: "kept", d: "kept" })
      assert.deepStrictEqual(renamed.stages.find(({ stage }) => stage === "cutter")?.from, "b")
      const gone = yield* compare(
        text,
        text.replace(/ {2}c: .*\n/u, "  e: { uses: cut, in: { documents: b.documents } }\n")
      )
      assert.deepStrictEqual(effects(gone), { a: "kept", b: "kept", d: "kept", e: "added", c: "removed" })
      assert.deepStrictEqual(fields(gone), ['e: absent → "uses cut" [identity]', 'c: "uses train" → absent [identity]'])
      const edges = yield* compare(text, text.replace("[a.documents, b.documents]", "[b.documents, a.documents]"))
      assert.deepStrictEqual(effects(edges), { ...kept, d: "stale" })
      const type = yield* compare(text, text.replace("uses: cut,", "uses: cut, after: a,"))
      assert.deepStrictEqual(effects(type), kept)
    })
  )
})
