import { assert, describe, it } from "@effect/vitest"
import { Effect, Schema } from "effect"
import { permutation, sampleAt } from "../../src/data/SampleOrder.ts"

const int = (minimum: number, maximum: number) => Schema.Int.check(Schema.isBetween({ minimum, maximum }))
const Blocks = int(1, 400)
const Seed = int(0, Number.MAX_SAFE_INTEGER)
const epochOf = (epoch: number, blocks: number, seed: number) =>
  Array.from({ length: blocks }, (_, i) => sampleAt(epoch * blocks + i, blocks, seed))
const sorted = (values: ReadonlyArray<number>) => [...values].sort((a, b) => a - b)
const upTo = (n: number) => Array.from({ length: n }, (_, i) => i)

describe("SampleOrder", () => {
  it.effect.prop("every epoch is a bijection, also far out", [Blocks, Seed, int(0, 2 ** 42)], ([blocks, seed, epoch]) =>
    Effect.sync(() => assert.deepStrictEqual(sorted(epochOf(epoch, blocks, seed)), upTo(blocks)))
  )

  it.effect.prop(
    "ranks that stride cover each sample once, whatever their number",
    [Blocks, Seed, int(1, 17)],
    ([blocks, seed, world]) =>
      Effect.sync(() => {
        const seen = upTo(world).flatMap((rank) => {
          const mine: Array<number> = []
          for (let index = rank; index < blocks; index += world) mine.push(sampleAt(index, blocks, seed))
          return mine
        })
        assert.deepStrictEqual(sorted(seen), upTo(blocks))
      })
  )

  it("epochs and seeds have orders of their own", () => {
    const orders = [epochOf(0, 500, 1), epochOf(1, 500, 1), epochOf(0, 500, 2), epochOf(0, 500, 1 + 2 ** 32), upTo(500)]
    for (const [i, a] of orders.entries())
      for (const b of orders.slice(i + 1)) {
        const same = a.filter((block, at) => block === b[at]).length
        assert.isBelow(same, 10) // two random orders agree in one place on average
      }
  })

  it("spreads each position evenly over the blocks", () => {
    // chi-square of position 3's block over 20,000 seeds with 10 blocks: 9 degrees of freedom, 27.9 is the 0.1 % point
    for (const position of [0, 3, 9]) {
      const counts = Array.from({ length: 10 }, () => 0)
      for (let seed = 0; seed < 20_000; seed++) {
        const block = permutation(10, seed, 0)(position)
        counts[block] = (counts[block] ?? 0) + 1
      }
      assert.isBelow(
        counts.reduce((sum, n) => sum + (n - 2000) ** 2 / 2000, 0),
        27.9
      )
    }
  })

  it("neighbours do not stay neighbours", () => {
    const order = epochOf(0, 10_000, 3407)
    const mean = order.slice(1).reduce((sum, block, i) => sum + Math.abs(block - (order[i] ?? 0)), 0) / 9999
    assert.isTrue(Math.abs(mean - 10_000 / 3) < 150) // two uniform draws are n/3 apart on average
  })

  it("takes indices and sizes beyond 32 bits", () => {
    const blocks = 2 ** 40 + 7
    const seen = new Set(upTo(1000).map((i) => sampleAt(5 * blocks + i, blocks, 7)))
    assert.strictEqual(seen.size, 1000)
    assert.isTrue([...seen].every((block) => block >= 0 && block < blocks) && Math.max(...seen) > 2 ** 39)
  })

  it("stays as it is: resumed runs depend on it", () => {
    assert.deepStrictEqual(epochOf(0, 10, 3407), [5, 0, 9, 4, 7, 2, 1, 8, 3, 6])
    assert.deepStrictEqual(epochOf(7, 10, 3407), [0, 2, 7, 6, 3, 8, 1, 5, 9, 4])
  })

  it("refuses what is not an index", () => {
    assert.throws(() => sampleAt(-1, 10, 0), RangeError)
    assert.throws(() => sampleAt(0, 0, 0), RangeError)
  })
})
