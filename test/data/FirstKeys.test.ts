/** The loader tells where in its row each input's document begins. */
import { readFileSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Result, Schema } from "effect"
import { openSplit } from "../../src/data/PackedDataset.ts"
import { openLoader, type Rows } from "../../src/data/SampleLoader.ts"
import { load } from "../../src/engine/Native.ts"
import { packStage } from "../../src/stages/Pack.ts"
import { runStage, temporaryFolder } from "../stages/stage-fixture.ts"
import { documentDataset, tinyDataset } from "../stages/training-fixture.ts"
import { tokenShards } from "./token-fixture.ts"

const int = (minimum: number, maximum: number) => Schema.Int.check(Schema.isBetween({ minimum, maximum }))

/** A document's every token is its number, from 1: a token says where it belongs. */
const numbered = (lengths: ReadonlyArray<number>) => lengths.map((length, i) => Array<number>(length).fill(i + 1))

const row = ({ firstKeys = new Int32Array(0), tokens }: Rows, length: number, index: number) => {
  const part = (ids: Int32Array) => [...ids.subarray(index * length, (index + 1) * length)]
  return { tokens: part(tokens), firstKeys: part(firstKeys) }
}

/** Each position's first like token without another between them, counted from the tokens alone. */
const expected = (tokens: ReadonlyArray<number>) => {
  let start = 0
  return tokens.map((token, i) => (start = i > 0 && token !== tokens[i - 1] ? i : start))
}

describe("first keys", () => {
  it.live.prop(
    "are where documents begin, 0 for one that goes on from the block before, in any packing and order",
    [Schema.NonEmptyArray(int(1, 90)), int(1, 40), Schema.Literals(["concatenate", "best-fit"])],
    ([lengths, seq_len, packing]) =>
      Effect.gen(function* () {
        // Packing shuffles documents: none has the number of another.
        const tokens = [yield* tokenShards(numbered([...lengths, 2 * seq_len + 2]))]
        const params = { seq_len, packing, attention_reset: true, validation: 0 }
        const { dataset } = (yield* runStage(packStage, { params, inputs: { tokens } })).outputs
        const loader = yield* openLoader(dataset, "train", 7, { documents: true })
        const plain = yield* openLoader(dataset, "train", 7)
        const all = yield* loader.inOrder(0, loader.blocks)
        const data = yield* openSplit(dataset, "train")
        for (let block = 0; block < loader.blocks; block++) {
          const { firstKeys, tokens: inputs } = row(all, seq_len, block)
          // Padding is 0, hence a document of its own.
          assert.deepStrictEqual(firstKeys, expected(inputs), `block ${block} of ${inputs.join(" ")}`)
          assert.isTrue(firstKeys.every((key, i) => key >= 0 && key <= i))
          if (data.length(block) > seq_len && data.boundaries(block)?.length === 0)
            assert.deepStrictEqual([...new Set(firstKeys)], [0])
        }
        const [first, count, stride] = [2 ** 40 + 3, 2 * loader.blocks + 1, 5]
        const samples = yield* loader.samples(first, count, stride)
        for (let i = 0; i < count; i++) {
          const { firstKeys, tokens: inputs } = row(samples, seq_len, i)
          assert.deepStrictEqual(firstKeys, expected(inputs))
        }
        const { firstKeys, ...others } = samples
        assert.isDefined(firstKeys)
        assert.deepStrictEqual(yield* plain.samples(first, count, stride), others)
      }),
    { arbitrary: { runs: 30 } }
  )

  it.live("an empty split gives none", () =>
    Effect.gen(function* () {
      const data = yield* documentDataset({ train: [[[1, 2], [3]]], validation: [] }, { padded: true })
      const loader = yield* openLoader(data, "validation", 0, { documents: true })
      assert.deepStrictEqual([loader.blocks, (yield* loader.inOrder(0, 0)).firstKeys?.length], [0, 0])
    })
  )
})

describe("bad input", () => {
  it.live("a dataset that does not tell where documents begin is refused with the next step", () =>
    Effect.gen(function* () {
      const error = yield* Effect.flip(
        openLoader(yield* tinyDataset({ train: 3, validation: 0 }), "train", 0, { documents: true })
      )
      assert.deepInclude(error, {
        failure: "invalid-input",
        message: "packed.dataset: its blocks do not tell where documents begin, which document_mask: true needs",
        next: "set attention_reset: true on packed, or document_mask: false"
      })
    })
  )

  it.live("every changed byte of the file fails with its name, or leaves first keys that attention can take", () =>
    Effect.gen(function* () {
      const { Loader } = yield* load
      const blocks = [numbered([9, 8]), numbered([17]), numbered([1, 1, 1, 14])]
      const data = yield* documentDataset({ train: blocks, validation: [] }, { padded: false })
      const whole = readFileSync(join(data.folder, "train.arrow"))
      const file = join(yield* temporaryFolder, "train.arrow")
      const layout = { blockLength: 17, wide: false, boundaries: true, lengths: false, vocabularySize: 96, seed: 0 }
      const read = (sizes: { readonly rows: number; readonly keys: number }, change: Partial<typeof layout> = {}) =>
        Effect.tryPromise({
          try: async () => {
            const loader = new Loader(file, { ...layout, ...change })
            const firstKeys = new Int32Array(sizes.keys)
            await loader
              .inOrder(0, new Int32Array(16 * sizes.rows), new Int32Array(16 * sizes.rows), firstKeys)
              .finally(() => loader.dispose())
            return firstKeys
          },
          catch: String
        })
      const starts = new Set<string>()
      for (let at = 0; at < whole.length; at++) {
        const changed = Buffer.from(whole)
        changed[at] = (changed[at] ?? 0) ^ 0x83
        writeFileSync(file, changed)
        const outcome = yield* Effect.result(read({ rows: 3, keys: 48 }))
        if (Result.isSuccess(outcome)) {
          assert.isTrue(outcome.success.every((key, i) => key >= 0 && key <= i % 16))
        } else {
          assert.include(outcome.failure, file)
          for (const found of outcome.failure.match(/block \d+'s document starts [a-z ]+/u) ?? []) starts.add(found)
        }
      }
      assert.isTrue([...starts].some((found) => found.endsWith("lie outside their column")))
      assert.isTrue([...starts].some((found) => found.endsWith("are not ascending positions in the block")))
      writeFileSync(file, whole)
      assert.deepStrictEqual([...(yield* read({ rows: 1, keys: 16 }))], [...Array(9).fill(0), ...Array(7).fill(9)])
      assert.include(yield* Effect.flip(read({ rows: 2, keys: 16 })), "first keys are as many as tokens")
      const without = yield* tinyDataset({ train: 3, validation: 0 })
      writeFileSync(file, readFileSync(join(without.folder, "train.arrow")))
      assert.include(
        yield* Effect.flip(read({ rows: 1, keys: 16 }, { boundaries: false })),
        "does not tell where documents begin"
      )
    })
  )
})
