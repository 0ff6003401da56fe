import { copyFileSync, readFileSync, truncateSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Result, Schema } from "effect"
import type { ArtifactHandle } from "../../src/artifacts/Artifact.ts"
import { openSplit, type PackedDataset } from "../../src/data/PackedDataset.ts"
import { openLoader } from "../../src/data/SampleLoader.ts"
import { sampleAt } from "../../src/data/SampleOrder.ts"
import { load } from "../../src/engine/Native.ts"
import { packStage } from "../../src/stages/Pack.ts"
import { runStage, temporaryFolder } from "../stages/stage-fixture.ts"
import { tinyDataset } from "../stages/training-fixture.ts"
import { tokenShards } from "./token-fixture.ts"

const int = (minimum: number, maximum: number) => Schema.Int.check(Schema.isBetween({ minimum, maximum }))

const layout = { blockLength: 17, wide: false, boundaries: false, lengths: false, vocabularySize: 96, seed: 0 }

/** The rows that a block gives, by the reader that keeps the whole file in memory. */
const rowOf = (data: PackedDataset, block: number) => {
  const ids = [...data.tokens(block)]
  const targets = ids.slice(1).map((id, i) => (i + 1 < data.length(block) ? id : -1))
  return [ids.slice(0, -1), targets]
}

const rowsOf = (rows: { readonly tokens: Int32Array; readonly targets: Int32Array }, length: number) =>
  Array.from({ length: rows.tokens.length / length }, (_, row) => [
    [...rows.tokens.subarray(row * length, (row + 1) * length)],
    [...rows.targets.subarray(row * length, (row + 1) * length)]
  ])

describe("SampleLoader", () => {
  it.live("gives the blocks of the order's own function, from any sample and for any stride, over many batches", () =>
    Effect.gen(function* () {
      const handle = yield* tinyDataset({ train: 53, validation: 3 })
      const data = yield* openSplit(handle, "train")
      const loader = yield* openLoader(handle, "train", 3407)
      assert.deepStrictEqual([loader.blocks, loader.seqLen], [53, 16])
      for (const [first, count, stride] of [
        [0, 60, 1],
        [10 ** 9 + 7, 5, 1],
        [2, 9, 4],
        [2 ** 45, 3, 1000]
      ] as const)
        assert.deepStrictEqual(
          rowsOf(yield* loader.samples(first, count, stride), 16),
          Array.from({ length: count }, (_, i) => rowOf(data, sampleAt(first + i * stride, 53, 3407)))
        )
      assert.deepStrictEqual(
        rowsOf(yield* loader.inOrder(4, 3), 16),
        [4, 5, 6].map((block) => rowOf(data, block))
      )
    })
  )

  const documents = Array.from({ length: 300 }, (_, i) =>
    Array.from({ length: 1 + ((i * 37) % 60) }, (_, at) => 7 * i + at)
  )
  for (const [packing, attention_reset, vocabulary_size] of [
    ["best-fit", false, 32000],
    ["best-fit", true, 32000],
    ["concatenate", true, 128_000],
    ["best-fit", true, 128_000]
  ] as const)
    it.live(`reads ${packing}${attention_reset ? " with boundaries" : ""} of ${vocabulary_size} pieces`, () =>
      Effect.gen(function* () {
        const tokens = [yield* tokenShards(documents, { policy: { vocabulary_size } })]
        const params = { seq_len: 31, packing, attention_reset }
        const { dataset } = (yield* runStage(packStage, { params, inputs: { tokens } })).outputs
        const data = yield* openSplit(dataset, "train")
        const loader = yield* openLoader(dataset, "train", 1)
        assert.deepStrictEqual(
          rowsOf(yield* loader.inOrder(0, data.blocks), 31),
          Array.from({ length: data.blocks }, (_, block) => rowOf(data, block))
        )
      })
    )

  it.live("an empty split opens, and gives nothing", () =>
    Effect.gen(function* () {
      const loader = yield* openLoader(yield* tinyDataset({ train: 3, validation: 0 }), "validation", 0)
      assert.deepStrictEqual([loader.blocks, (yield* loader.inOrder(0, 0)).tokens.length], [0, 0])
      assert.include((yield* Effect.flip(loader.samples(0, 1))).message, "there are no blocks")
    })
  )
})

describe("the native order", () => {
  it.live.prop(
    "is SampleOrder's, for all sizes, seeds and samples",
    [int(1, 400), int(0, Number.MAX_SAFE_INTEGER), Schema.Array(int(0, Number.MAX_SAFE_INTEGER))],
    ([blocks, seed, indices]) =>
      Effect.gen(function* () {
        const { Loader } = yield* load
        const handle = yield* tinyDataset({ train: blocks, validation: 0 })
        const loader = new Loader(join(handle.folder, "train.arrow"), { ...layout, seed })
        for (const index of [...indices, 0, blocks, 2 ** 33, Number.MAX_SAFE_INTEGER])
          assert.strictEqual(loader.sampleAt(index), sampleAt(index, blocks, seed))
        loader.dispose()
        assert.throws(() => loader.blocks, /disposed/u)
      }),
    { arbitrary: { runs: 40 } }
  )

  it.live("ranks of any world see each sample once an epoch, wherever they begin", () =>
    Effect.gen(function* () {
      const { Loader } = yield* load
      for (const blocks of [1, 2, 7, 64, 255, 1000]) {
        const handle = yield* tinyDataset({ train: blocks, validation: 0 })
        const loader = new Loader(join(handle.folder, "train.arrow"), { ...layout, seed: 3407 })
        for (const world of [1, 2, 3, 8, 16, 61]) {
          const first = 5 * blocks
          const seen = Array.from({ length: world }, (_, rank) => rank).flatMap((rank) => {
            const mine: Array<number> = []
            for (let index = first + rank; index < first + blocks; index += world) mine.push(loader.sampleAt(index))
            return mine
          })
          assert.strictEqual(new Set(seen).size, blocks)
          assert.strictEqual(seen.length, blocks)
        }
      }
    })
  )
})

describe("the reading thread", () => {
  /** What becomes of each call; handlers are there before the first can fail. */
  const outcomes = (calls: ReadonlyArray<Promise<void>>) =>
    Effect.promise(async () =>
      (await Promise.allSettled(calls)).map((call) => (call.status === "rejected" ? String(call.reason) : "read"))
    )
  const buffers = (rows: number) => ({ tokens: new Int32Array(16 * rows), targets: new Int32Array(16 * rows) })

  it.live("reads many batches in flight in their order, and leaves JavaScript free meanwhile", () =>
    Effect.gen(function* () {
      const { Loader } = yield* load
      const handle = yield* tinyDataset({ train: 53, validation: 0 })
      const loader = new Loader(join(handle.folder, "train.arrow"), { ...layout, seed: 3407 })
      const batches = Array.from({ length: 300 }, (_, index) => ({ first: 7 * index, ...buffers(7) }))
      const order: Array<number> = []
      yield* outcomes(
        batches.map(async ({ first, targets, tokens }) => {
          await loader.samples(first, 1, tokens, targets, 7)
          order.push(first)
        })
      )
      assert.deepStrictEqual(
        order,
        batches.map(({ first }) => first)
      )
      const data = yield* openSplit(handle, "train")
      for (const batch of batches)
        assert.deepStrictEqual(
          rowsOf(batch, 16),
          Array.from({ length: 7 }, (_, i) => rowOf(data, sampleAt(batch.first + i, 53, 3407)))
        )
      loader.dispose()
    })
  )

  it.live("a batch that fails names file and block, and the ones behind it are read", () =>
    Effect.gen(function* () {
      const { Loader } = yield* load
      const handle = yield* tinyDataset({ train: 9, validation: 0 })
      const file = join(handle.folder, "train.arrow")
      const loader = new Loader(file, layout)
      const [{ tokens, targets }, rest] = [buffers(2), buffers(9)]
      assert.deepStrictEqual(
        yield* outcomes([
          loader.inOrder(8, tokens, targets),
          loader.inOrder(0, rest.tokens, rest.targets),
          loader.inOrder(3, tokens, targets)
        ]),
        [`Error: ${file}: no block 9 of 9`, "read", "read"]
      )
      assert.deepStrictEqual(tokens, rest.tokens.slice(3 * 16, 5 * 16))
      loader.dispose()
    })
  )

  it.live(
    "disposed of while it reads: the running read ends, the others are refused, the arrays are JavaScript's again",
    () =>
      Effect.gen(function* () {
        const { Loader } = yield* load
        const handle = yield* tinyDataset({ train: 53, validation: 0 })
        for (let round = 0; round < 50; round++) {
          const loader = new Loader(join(handle.folder, "train.arrow"), layout)
          const calls = Array.from({ length: 20 }, () => {
            const { targets, tokens } = buffers(500)
            return loader.samples(0, 1, tokens, targets, 500)
          })
          loader.dispose()
          loader.dispose()
          calls.push(loader.samples(0, 1, new Int32Array(16), new Int32Array(16), 0))
          const ends = yield* outcomes(calls)
          const refused = ends.findIndex((end) => end !== "read")
          assert.deepStrictEqual(new Set(ends.slice(refused)), new Set(["Error: the loader was disposed of"]))
        }
      })
  )
})

describe("damage", () => {
  const corrupted = Effect.fnUntraced(function* (handle: ArtifactHandle) {
    const { failure, message, next } = yield* Effect.flip(openLoader(handle, "train", 0))
    assert.strictEqual(failure, "corrupt")
    assert.include(next, "--force packed")
    return message
  })

  it.live("is found at once by the digest, and named", () =>
    Effect.gen(function* () {
      const handle = yield* tinyDataset({ train: 9, validation: 1 })
      truncateSync(join(handle.folder, "train.arrow"), 500)
      assert.match(yield* corrupted(handle), /^packed\.dataset: train\.arrow: wrong sha256/u)
    })
  )

  it.live(
    "is found without a digest too: every cut and every changed byte of the structure fails or changes tokens only",
    () =>
      Effect.gen(function* () {
        const { Loader } = yield* load
        const handle = yield* tinyDataset({ train: 9, validation: 1 })
        const whole = readFileSync(join(handle.folder, "train.arrow"))
        const file = join(yield* temporaryFolder, "train.arrow")
        const read = (first: number, elements: number, change: Partial<typeof layout> = {}) =>
          Effect.tryPromise({
            try: async () => {
              const loader = new Loader(file, { ...layout, ...change })
              await loader
                .inOrder(first, new Int32Array(elements), new Int32Array(elements))
                .finally(() => loader.dispose())
            },
            catch: String
          })
        const outcomes = { failed: 0, read: 0 }
        const attempt = Effect.fnUntraced(function* (bytes: Buffer) {
          writeFileSync(file, bytes)
          const outcome = yield* Effect.result(read(0, 9 * 16))
          if (Result.isFailure(outcome)) assert.include(outcome.failure, file)
          outcomes[Result.isFailure(outcome) ? "failed" : "read"]++
        })
        for (let length = 0; length < whole.length; length += 7) yield* attempt(whole.subarray(0, length))
        assert.strictEqual(outcomes.read, 0)
        for (let at = 0; at < whole.length; at++)
          for (const change of [0x01, 0x80, 0xff]) {
            const changed = Buffer.from(whole)
            changed[at] = (changed[at] ?? 0) ^ change
            yield* attempt(changed)
          }
        assert.isAbove(outcomes.failed, 100)
        copyFileSync(join(handle.folder, "train.arrow"), file)
        const refusal = (...call: Parameters<typeof read>) => Effect.flip(read(...call))
        assert.match(yield* refusal(0, 16, { boundaries: true }), /columns are not those/u)
        assert.match(yield* refusal(0, 16, { blockLength: 10 ** 9 }), /shorter than its blocks|room for/u)
        assert.match(yield* refusal(0, 16, { vocabularySize: 5 }), /block 0 has the token id/u)
        assert.match(yield* refusal(9, 16), /no block 9 of 9/u)
        assert.match(yield* refusal(0, 15), /whole rows/u)
      })
  )
})
