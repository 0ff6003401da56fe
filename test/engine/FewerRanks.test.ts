import { assert, describe, it } from "@effect/vitest"
import { withFewerRanks } from "../../src/engine/FewerRanks.ts"

const wish = {
  strategy: "hsdp",
  shard_size: 2,
  gradient_sum: "fixed-order",
  communicator: "auto",
  watchdog_seconds: 45
} as const

describe("training with fewer ranks than the file asks for", () => {
  it("says nothing where all are there", () => {
    assert.deepStrictEqual(withFewerRanks(wish, { size: 4 }, 12), { wish, said: [] })
  })

  it("keeps the step's micro-batches, and says who has none in the last round", () => {
    assert.deepStrictEqual(withFewerRanks(wish, { size: 2, wanted: 4 }, 12).said, [
      "2 of 4 ranks do the 12 micro-batches of a step"
    ])
    assert.deepStrictEqual(withFewerRanks({ ...wish, strategy: "fsdp" }, { size: 3, wanted: 4 }, 8).said, [
      "3 of 4 ranks do the 8 micro-batches of a step; in its last round 1 of them has none"
    ])
  })

  it("shares out over all ranks where the groups of hsdp do not divide them", () => {
    const fewer = withFewerRanks(wish, { size: 3, wanted: 4 }, 12)
    assert.strictEqual(fewer.wish.strategy, "fsdp")
    assert.include(fewer.said, "strategy fsdp instead of hsdp: groups of 2 do not divide 3 ranks")
  })

  it("says where the sums will be rounded otherwise", () => {
    assert.match(
      withFewerRanks({ ...wish, gradient_sum: "fast" }, { size: 2, wanted: 4 }, 12).said[1] ?? "",
      /^gradient_sum is fast: sums on 2 ranks are rounded otherwise than on 4/u
    )
  })
})
