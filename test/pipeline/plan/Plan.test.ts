/** The plan says what a run would do and why, in fields: old → new. */
import { readdirSync, rmSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { describeReason, type StagePlan } from "../../../src/pipeline/plan/Plan.ts"
import { outcomes, workplace } from "../fixtures/harness.ts"
import { planHere, runHere } from "../fixtures/in-process.ts"

const text = `version: 1
name: t
stages:
  a: { uses: write, with: { text: a, watch: seen.txt } }
  b: { uses: join, in: { documents: a.documents } }
  c: { uses: join, in: { documents: a.documents }, with: { glue: "-" } }
`
const shown = (plans: ReadonlyArray<StagePlan>) =>
  Object.fromEntries(plans.map((plan) => [plan.stage, [plan.status, ...plan.reasons.map(describeReason)].join(": ")]))

describe("plan", () => {
  it.live("before, after, and for each kind of change", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      place.write(text)
      const [blocked, below] = yield* planHere(place)
      assert.strictEqual(blocked?.status, "blocked")
      assert.match(blocked?.message ?? "", /seen\.txt: no such file\. Next: write it/u)
      assert.match(below?.message ?? "", /^waits for a: /u)

      writeFileSync(join(place.folder, "seen.txt"), "1")
      assert.deepStrictEqual(shown(yield* planHere(place)), {
        a: "stale: no result yet",
        b: "stale: no result yet: a runs first",
        c: "stale: no result yet: a runs first"
      })
      assert.deepStrictEqual(readdirSync(place.folder).sort(), ["pipeline.yaml", "seen.txt"], "a plan writes nothing")

      const { run } = yield* runHere(place)
      const fresh = yield* planHere(place)
      assert.deepStrictEqual(shown(fresh), { a: "fresh", b: "fresh", c: "fresh" })
      assert.deepStrictEqual(
        fresh.map((plan) => plan.from),
        [run, run, run]
      )

      place.write(text.replace("text: a", "text: b, lr: { peak: 0.01, schedule: cosine, min: 0 }"))
      assert.deepStrictEqual(shown(yield* planHere(place)), {
        a: 'stale: text: "a" → "b": lr.peak: 0.0004 → 0.01: lr.min: absent → 0',
        b: "pending: a runs first",
        c: "pending: a runs first"
      })
      place.write(
        text
          .replace('glue: "-"', 'glue: "+"')
          .replace("documents: a.documents }, with", "documents: [a.documents, a.documents] }, with")
      )
      assert.deepStrictEqual(shown(yield* planHere(place)), {
        a: "fresh",
        b: "fresh",
        c: 'stale: glue: "-" → "+": input documents (a.documents, a.documents) changed'
      })
      place.write(
        text.replace(
          'uses: join, in: { documents: a.documents }, with: { glue: "-" }',
          "uses: write, with: { text: c }"
        )
      )
      assert.strictEqual(shown(yield* planHere(place))["c"], "stale: stage type: join → write")

      place.write(text)
      writeFileSync(join(place.folder, "seen.txt"), "2")
      assert.strictEqual(shown(yield* planHere(place))["a"], "stale: what it reads from outside changed")
      assert.deepStrictEqual(shown(yield* planHere(place, { fromStage: "b" })), {
        a: "reuse: what it reads from outside changed",
        b: "stale: forced",
        c: "excluded"
      })
      assert.deepStrictEqual(outcomes(yield* runHere(place)), { a: "done", b: "cached", c: "cached" })

      const artifacts = join(place.runs, "store", "artifacts")
      for (const name of readdirSync(artifacts))
        if (!name.endsWith(".json")) rmSync(join(artifacts, name), { recursive: true })
      assert.match(
        shown(yield* planHere(place))["a"] ?? "",
        /^stale: the stored result is damaged: documents .* text\.txt is missing$/u
      )
    }).pipe(Effect.scoped)
  )

  it.live("a result that a check refuses blocks its stage and what is below", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      place.write(text.replace(", watch: seen.txt", ""))
      yield* runHere(place)
      place.write(text.replace(", watch: seen.txt } }", ' }, checks: ["length > 3"] }'))
      const [a, b] = yield* planHere(place)
      assert.strictEqual(a?.status, "blocked")
      assert.match(a?.message ?? "", /does not meet check "length > 3" \(.*pipeline\.yaml:4:\d+\).*length is 1/u)
      assert.match(b?.message ?? "", /^waits for a: /u)
    }).pipe(Effect.scoped)
  )
})
