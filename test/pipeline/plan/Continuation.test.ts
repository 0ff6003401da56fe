/** Changes that keep something: the run hands the older result to the stage, the plan says so, and the bytes are those of a run from nothing. */
import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { outcomes, workplace } from "../fixtures/harness.ts"
import { planHere, runHere } from "../fixtures/in-process.ts"

const text = (steps: number, schedule: string) => `version: 1
name: t
stages:
  a: { uses: write, with: { text: a } }
  b: { uses: train, in: { documents: a.documents }, with: { steps: ${steps}, schedule: ${schedule} } }
  c: { uses: count, with: { steps: 3 } }
`

describe("continuation", () => {
  it.live("more steps go on from the older result under a constant schedule, and not under a cosine", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      place.write(text(10, "constant"))
      const first = yield* runHere(place)
      assert.include(first.warnings, "b: counted from 0")

      place.write(text(25, "constant"))
      const planned = (yield* planHere(place)).find(({ stage }) => stage === "b")
      assert.strictEqual(planned?.change, "continuation")
      assert.deepStrictEqual(planned?.resumesAt, { done: 10, total: 25, unit: "steps" })
      assert.strictEqual(planned?.resumesFrom, "previous")
      assert.strictEqual(planned?.estimate?.basis?._tag, "PastRuns")
      const longer = yield* runHere(place)
      assert.include(longer.warnings, "b: counted from 10")
      assert.deepStrictEqual(outcomes(longer), { a: "cached", b: "done", c: "cached" })
      const elsewhere = yield* workplace
      elsewhere.write(text(25, "constant"))
      assert.strictEqual(
        longer.stages[1]?.outputs["state"]?.digest,
        (yield* runHere(elsewhere)).stages[1]?.outputs["state"]?.digest
      )

      place.write(text(40, "cosine"))
      assert.strictEqual((yield* planHere(place)).find(({ stage }) => stage === "b")?.change, "identity")
      assert.include((yield* runHere(place)).warnings, "b: counted from 0")
      place.write(text(60, "constant"))
      assert.include((yield* runHere(place)).warnings, "b: counted from 25", "the newest result of the same lineage")
      assert.include(
        (yield* runHere(place, { force: ["b"] })).warnings,
        "b: counted from 0",
        "force takes nothing along"
      )
    }).pipe(Effect.scoped)
  )

  it.live("time: past runs scaled by the amount of work that is left, else the stage type's model", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      place.write(text(10, "constant"))
      const before = (yield* planHere(place)).find(({ stage }) => stage === "b")?.estimate
      assert.deepStrictEqual([before?.seconds, before?.basis?._tag, before?.bytes], [1, "Model", 10])
      const unknown = (yield* planHere(place)).find(({ stage }) => stage === "c")?.estimate
      assert.deepStrictEqual([unknown?.seconds, unknown?.basis], [undefined, undefined])
      yield* runHere(place)
      const estimateOf = (steps: number) =>
        Effect.gen(function* () {
          place.write(text(steps, "cosine"))
          return (yield* planHere(place)).find(({ stage }) => stage === "b")?.estimate
        })
      const [double, quadruple] = [yield* estimateOf(20), yield* estimateOf(40)]
      assert.deepStrictEqual(double?.basis, { _tag: "PastRuns", runs: 1 })
      assert.closeTo(quadruple?.seconds ?? 0, 2 * (double?.seconds ?? 0), 1e-9)
    }).pipe(Effect.scoped)
  )
})
