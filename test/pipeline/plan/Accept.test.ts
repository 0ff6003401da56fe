/** Acceptance: an older result stands for what the file asks now, on record; `why` tells the difference of the two keys. */
import { readdirSync } from "node:fs"
import { join } from "node:path"
import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { accept, revoke } from "../../../src/pipeline/plan/Accept.ts"
import { describeReason } from "../../../src/pipeline/plan/Plan.ts"
import { type Explanation, why } from "../../../src/pipeline/plan/Why.ts"
import { outcomes, workplace } from "../fixtures/harness.ts"
import { planHere, runHere, withPipeline } from "../fixtures/in-process.ts"

const text = `version: 1
name: t
stages:
  a: { uses: write, with: { text: a } }
  b: { uses: join, in: { documents: a.documents } }
  c: { uses: cut, in: { documents: a.documents } }
`
const statuses = (plans: ReadonlyArray<{ readonly stage: string; readonly status: string }>) =>
  Object.fromEntries(plans.map(({ stage, status }) => [stage, status]))

describe("accept", () => {
  it.live("the older result serves, below nothing is stale, and everybody is told", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      place.write(text)
      const first = yield* runHere(place)
      place.write(text.replace("text: a", "text: A"))
      assert.deepStrictEqual(statuses(yield* planHere(place)), { a: "stale", b: "pending", c: "pending" })

      const { acceptance, from } = yield* withPipeline(place, (pipeline) => accept(pipeline, "a", "only the case"))
      assert.strictEqual(from, first.run)
      assert.deepStrictEqual(acceptance.changes, ['text: "a" → "A"'])
      const plans = yield* planHere(place)
      assert.deepStrictEqual(statuses(plans), { a: "accepted", b: "fresh", c: "fresh" })
      assert.match(plans[0]?.message ?? "", /accepted by \S+@\S+: only the case/u)

      const summary = yield* runHere(place)
      assert.deepStrictEqual(outcomes(summary), { a: "cached", b: "cached", c: "cached" })
      assert.match(summary.warnings.join("\n"), /a: accepted by .* and not made: only the case/u)

      const taken = yield* withPipeline(place, (pipeline) => revoke(pipeline, "a"))
      assert.strictEqual(taken.because, "only the case")
      assert.strictEqual((yield* planHere(place))[0]?.status, "stale")
      assert.deepStrictEqual(readdirSync(join(place.runs, "store", "accepted")), [])
    }).pipe(Effect.scoped)
  )

  it.live("a result that is made after all wins over the acceptance; acceptances follow each other", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      place.write(text)
      yield* runHere(place)
      for (const letter of ["B", "C"]) {
        place.write(text.replace("text: a", `text: ${letter}`))
        yield* withPipeline(place, (pipeline) => accept(pipeline, "a", "as good"))
        assert.strictEqual((yield* planHere(place))[0]?.status, "accepted")
      }
      yield* runHere(place, { force: ["a"] })
      assert.strictEqual((yield* planHere(place))[0]?.status, "fresh")
    }).pipe(Effect.scoped)
  )

  it.live("refuses what cannot be accepted, and says what to do", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      place.write(text)
      const refusal = (stage: string, because = "x") =>
        Effect.map(Effect.flip(withPipeline(place, (pipeline) => accept(pipeline, stage, because))), (error) =>
          "next" in error ? `${error.message} Next: ${error.next}` : error.message
        )
      assert.match(
        yield* refusal("a"),
        /a has no complete result that could be accepted .*Next: tinyllama run .* --to-stage a/u
      )
      assert.match(
        yield* refusal("b"),
        /b: its inputs are not known while a is not up to date Next: run or accept a first/u
      )
      assert.match(yield* refusal("aa"), /no stage "aa" in .*; did you mean "a"\?/u)
      assert.match(yield* refusal("a", " "), /--because needs a reason/u)
      yield* runHere(place)
      assert.match(yield* refusal("a"), /a is up to date \(result of .*\): there is nothing to accept/u)
      const nothing = yield* Effect.flip(withPipeline(place, (pipeline) => revoke(pipeline, "a")))
      assert.match(nothing.message, /a: nothing is accepted/u)
    }).pipe(Effect.scoped)
  )
})

const story = ({ above, plan }: Explanation): unknown => [
  `${plan.stage}: ${plan.status}: ${plan.reasons.map(describeReason).join("; ")}`,
  ...above.map(story)
]

describe("why", () => {
  it.live("leads up to the fields that began it", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      place.write(text)
      yield* runHere(place)
      const fresh = yield* withPipeline(place, (pipeline) => why(pipeline, "b"))
      assert.deepStrictEqual(fresh === undefined ? undefined : story(fresh), ["b: fresh: "])
      assert.strictEqual(fresh?.last?.key, fresh?.plan.key)

      place.write(
        text
          .replace("text: a", "text: A, steps: 11")
          .replace("b: { uses: join,", 'b: { uses: join, with: { glue: "-" },')
      )
      const stale = yield* withPipeline(place, (pipeline) => why(pipeline, "b"))
      assert.deepStrictEqual(stale === undefined ? undefined : story(stale), [
        'b: stale: a runs first; glue: "+" → "-"',
        ['a: stale: text: "a" → "A"; steps: 10 → 11']
      ])
    }).pipe(Effect.scoped)
  )
})
