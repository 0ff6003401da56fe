import { assert, describe, it } from "@effect/vitest"
import { Effect, Fiber } from "effect"
import { readAhead } from "../../src/engine/ReadAhead.ts"

describe("readAhead", () => {
  it.live("gives each in its turn, with a bounded number ahead", () =>
    Effect.gen(function* () {
      const begun: Array<number> = []
      const read = (index: number) =>
        Effect.suspend(() => {
          begun.push(index)
          // The later ones are ready first.
          return Effect.delay(Effect.succeed(index), `${10 - index} millis`)
        })
      const next = readAhead(read, 7, 3)
      for (let index = 0; index < 7; index++) {
        assert.strictEqual(yield* next, index)
        assert.strictEqual(begun.length, Math.min(index + 4, 7))
      }
      assert.deepStrictEqual(begun, [0, 1, 2, 3, 4, 5, 6])
    })
  )

  it.live("a read that fails fails its own turn", () =>
    Effect.gen(function* () {
      const read = (index: number) => (index === 2 ? Effect.fail(`no ${index}`) : Effect.succeed(index))
      const next = readAhead(read, 5, 4)
      assert.strictEqual(yield* next, 0)
      assert.strictEqual(yield* next, 1)
      assert.strictEqual(yield* Effect.flip(next), "no 2")
    })
  )

  it.live("the reads end with the fiber that asked for them", () =>
    Effect.gen(function* () {
      let interrupted = 0
      const read = (index: number) =>
        index === 0 ? Effect.succeed(0) : Effect.onInterrupt(Effect.never, () => Effect.sync(() => interrupted++))
      yield* Fiber.join(yield* Effect.forkChild(readAhead(read, 9, 4)))
      yield* Effect.sleep("10 millis")
      assert.strictEqual(interrupted, 4)
    })
  )
})
