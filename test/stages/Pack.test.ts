import { readFileSync, truncateSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { assert, describe, it } from "@effect/vitest"
import { tableFromIPC } from "apache-arrow"
import { Effect, Schema } from "effect"
import type { ArtifactHandle } from "../../src/artifacts/Artifact.ts"
import { openPackedDataset, openSplit, type PackedDataset, PackedDatasetFacts } from "../../src/data/PackedDataset.ts"
import { rowsInMemory, Source } from "../../src/data/DocumentStore.ts"
import { holdOut } from "../../src/data/HoldOut.ts"
import { load } from "../../src/engine/Native.ts"
import { interleave, mixtureCounts } from "../../src/data/Packing.ts"
import { packStage } from "../../src/stages/Pack.ts"
import { tokenShards } from "../data/token-fixture.ts"
import { runStage } from "./stage-fixture.ts"

const int = (minimum: number, maximum: number) => Schema.Int.check(Schema.isBetween({ minimum, maximum }))

/** `count` documents of varied lengths; every token tells its source and document. */
const corpus = (source: number, count: number, mean = 20): ReadonlyArray<ReadonlyArray<number>> =>
  Array.from({ length: count }, (_, i) =>
    Array.from({ length: 1 + ((i * 7919 + source) % (2 * mean)) }, () => source * 1000 + i)
  )

const blocksOf = (dataset: PackedDataset) => Array.from({ length: dataset.blocks }, (_, i) => [...dataset.tokens(i)])

const pack = (tokens: ReadonlyArray<ArtifactHandle>, params: Readonly<Record<string, unknown>>) =>
  Effect.gen(function* () {
    const result = yield* runStage(packStage, { params, inputs: { tokens } })
    const facts = yield* Schema.decodeUnknownEffect(PackedDatasetFacts)(result.outputs.dataset.facts)
    const train = yield* openSplit(result.outputs.dataset, "train")
    const validation = yield* openSplit(result.outputs.dataset, "validation")
    return { ...result, facts, train, validation }
  })

const refused = (tokens: ReadonlyArray<ArtifactHandle>, params: Readonly<Record<string, unknown>>) =>
  runStage(packStage, { params, inputs: { tokens } }).pipe(
    Effect.flip,
    Effect.map((error) => [error._tag === "StageError" ? error.failure : error._tag, error.message] as const)
  )

const histogram = (tokens: Iterable<number>) => {
  const counts = new Map<number, number>()
  for (const token of tokens) counts.set(token, (counts.get(token) ?? 0) + 1)
  return counts
}

describe("pack", () => {
  it.live("cuts all documents into blocks, holds some out whole, and repeats itself byte for byte", () =>
    Effect.gen(function* () {
      const documents = corpus(1, 400)
      const tokens = [yield* tokenShards(documents, { perShard: 90 })]
      const { facts, train, validation, outputs, logs } = yield* pack(tokens, { seq_len: 15, validation: 0.1 })
      const [row] = facts.accounting
      const total = documents.flat().length
      assert.strictEqual(row?.tokens, total)
      assert.strictEqual(total, (row?.train ?? 0) + (row?.validation ?? 0) + (row?.tail ?? 0))
      assert.deepStrictEqual(
        [train.seqLen, train.blocks * 16, validation.blocks * 16],
        [15, row?.train, row?.validation]
      )
      const held = new Set(blocksOf(validation).flat())
      assert.isTrue(held.size > 15 && held.size < 80) // about a tenth of 400
      assert.isTrue(
        blocksOf(train)
          .flat()
          .every((token) => !held.has(token))
      )
      assert.include(logs.join("\n"), "left out")
      const again = yield* pack(tokens, { seq_len: 15, validation: 0.1 })
      assert.strictEqual(again.outputs.dataset.digest, outputs.dataset.digest)
      const reseeded = yield* pack(tokens, { seq_len: 15, validation: 0.1, seed: 1 })
      assert.notDeepEqual(blocksOf(reseeded.train), blocksOf(train))
      assert.deepStrictEqual(blocksOf(reseeded.validation), blocksOf(validation))
    })
  )

  it.live.prop(
    "no token is lost or made up, whatever the sources, weights and lengths",
    [
      Schema.NonEmptyArray(Schema.Struct({ documents: int(0, 60), mean: int(1, 30), weight: int(0, 5) })),
      int(1, 40),
      Schema.Literals([0, 0.05, 0.5]),
      Schema.Boolean
    ],
    ([shape, seqLen, validation, weighted]) =>
      Effect.gen(function* () {
        const sources = shape.slice(0, 4).map(({ documents, mean }, s) => corpus(s + 1, documents, mean))
        const tokens = yield* Effect.forEach(sources, (documents, s) =>
          tokenShards(documents, { origin: `s${s}.tokens` })
        )
        const params = {
          seq_len: seqLen,
          validation,
          ...(weighted ? { weights: shape.slice(0, 4).map(({ weight }) => weight) } : {})
        }
        const result = yield* pack(tokens, params).pipe(
          Effect.catchTag("StageError", (error) =>
            Effect.sync(() => {
              assert.strictEqual(error.failure, "invalid-input") // too little data for one block
              return undefined
            })
          )
        )
        if (result === undefined) return
        const { facts, train, validation: held } = result
        const used = histogram([...blocksOf(train).flat(), ...blocksOf(held).flat()])
        for (const [s, row] of facts.accounting.entries()) {
          assert.strictEqual(row.tokens, sources[s]?.flat().length)
          assert.strictEqual(row.tokens, row.train + row.validation + row.tail + row.left_out)
          assert.isTrue(row.tail <= 2 * seqLen)
          const mine = [...used].filter(([token]) => Math.floor(token / 1000) === s + 1)
          assert.strictEqual(
            mine.reduce((sum, [, n]) => sum + n, 0),
            row.train + row.validation
          )
          const had = histogram(sources[s]?.flat() ?? [])
          assert.isTrue(mine.every(([token, n]) => n <= (had.get(token) ?? 0)))
        }
        assert.strictEqual(facts.train_blocks, train.blocks)
        assert.strictEqual(
          facts.mixture.reduce((sum, { blocks }) => sum + blocks, 0),
          train.blocks
        )
        if (validation === 0) assert.strictEqual(held.blocks, 0)
      }),
    { arbitrary: { runs: 30 } }
  )

  it.live("a mixture uses up the source that limits and spreads the sources evenly", () =>
    Effect.gen(function* () {
      const tokens = [
        yield* tokenShards(corpus(1, 300), { origin: "prose.tokens" }),
        yield* tokenShards(corpus(2, 300), { origin: "code.tokens" })
      ]
      const params = { seq_len: 9, weights: [3, 1], validation: 0 }
      const { facts, train, logs, warnings } = yield* pack(tokens, params)
      const [prose, code] = facts.mixture
      assert.isTrue(Math.abs((prose?.realised ?? 0) - 0.75) < 0.002)
      assert.strictEqual(prose?.weight, 0.75)
      assert.strictEqual(facts.accounting[0]?.left_out, 0) // prose is what limits
      assert.isTrue((facts.accounting[1]?.left_out ?? 0) > 0)
      assert.include(logs.join("\n"), "mixture: code.tokens 25.0 % (asked 25.0 %)")
      assert.include(warnings.join("\n"), "the weights leave out")
      const order = blocksOf(train).map(([first]) => Math.floor((first ?? 0) / 1000))
      for (let at = 0; at + 40 <= order.length; at += 40)
        assert.isTrue(Math.abs(order.slice(at, at + 40).filter((s) => s === 2).length - 10) <= 1)
      assert.strictEqual(code?.blocks, order.filter((s) => s === 2).length)
    })
  )

  it.live("validation never vanishes: documents follow until it fills a block, aloud", () =>
    Effect.gen(function* () {
      const { facts, warnings } = yield* pack([yield* tokenShards(corpus(1, 30))], { seq_len: 31, validation: 0.0001 })
      assert.isTrue(facts.validation_blocks >= 1)
      assert.include(warnings.join("\n"), "more documents are held out")
      const [failure, message] = yield* refused([yield* tokenShards([Array<number>(500).fill(7)])], { seq_len: 31 })
      assert.strictEqual(failure, "invalid-input")
      assert.include(message, "leaves nothing to train on")
    })
  )

  it("copies of a text stay on one side", () => {
    const texts = corpus(1, 200)
    const offsets = Int32Array.from(
      [0, ...texts.map((text) => text.length)].map(
        (
          (sum) => (n: number) =>
            (sum += n)
        )(0)
      )
    )
    const part = rowsInMemory({
      documents: 200,
      tokens: Uint16Array.from(texts.flat()),
      offsets,
      bytes: new Uint32Array(200),
      id: String
    })
    const sources = [new Source("a", [part]), new Source("b", [part, part])]
    holdOut(Effect.runSync(load), sources, 0.2, 4)
    const [a, b] = sources.map((source) =>
      Array.from({ length: source.documents }, (_, i) => (source.isHeldOut(i) ? 1 : 0))
    )
    assert.deepStrictEqual(b, [...(a ?? []), ...(a ?? [])])
    assert.isTrue((a ?? []).includes(1) && (a ?? []).includes(0))
  })

  it.live("refuses a seq_len larger than the data, and mixtures that cannot be", () =>
    Effect.gen(function* () {
      const tokens = [yield* tokenShards([[1, 2, 3, 4]], { origin: "a.tokens" })]
      const more = yield* tokenShards(corpus(1, 50), { origin: "b.tokens" })
      assert.deepStrictEqual(yield* refused(tokens, { seq_len: 2048, validation: 0 }), [
        "invalid-input",
        "seq_len 2,048 is larger than the data: 4 tokens in all, 4 of them to train on"
      ])
      const both = [...tokens, more]
      assert.include(
        (yield* refused(both, { seq_len: 31, weights: [1, 1], validation: 0 }))[1],
        "a.tokens has 4 tokens to train on"
      )
      assert.include((yield* refused(both, { seq_len: 31, weights: [1] }))[1], "weights has 1 numbers for 2 inputs")
      assert.include((yield* refused(both, { seq_len: 31, weights: [0, 0] }))[1], "all weights are 0")
      const { warnings } = yield* pack(both, { seq_len: 31, validation: 0 })
      assert.include(warnings.join("\n"), "a.tokens does not fill one block")
    })
  )

  it.live("refuses inputs of different tokenizers or policies", () =>
    Effect.gen(function* () {
      const plain = yield* tokenShards(corpus(1, 50), { origin: "a.tokens" })
      const eos = yield* tokenShards(corpus(1, 50), { origin: "b.tokens", policy: { eos: "document" } })
      const other = yield* tokenShards(corpus(1, 50), { origin: "c.tokens", policy: { tokenizer_digest: "e" } })
      assert.deepStrictEqual(yield* refused([plain, eos], { seq_len: 15 }), [
        "invalid-input",
        "b.tokens has eos document, but a.tokens has none"
      ])
      assert.include((yield* refused([plain, other], { seq_len: 15 }))[1], "c.tokens has tokenizer_digest e")
    })
  )

  it.live("a corrupt shard is named; a stop is obeyed", () =>
    Effect.gen(function* () {
      const tokens = yield* tokenShards(corpus(1, 50), { origin: "web.tokens" })
      const options = { params: { seq_len: 15 }, inputs: { tokens: [tokens] }, stopAfterPolls: 2 }
      assert.strictEqual((yield* Effect.flip(runStage(packStage, options)))._tag, "Preempted")
      truncateSync(join(tokens.folder, "shard-00001.arrow"), 64)
      const [failure, message] = yield* refused([tokens], { seq_len: 15 })
      assert.strictEqual(failure, "corrupt")
      assert.include(message, "web.tokens: shard-00001.arrow")
    })
  )
})

describe("PackedDataset", () => {
  it.live("any Arrow reader sees blocks and metadata; ours copies nothing", () =>
    Effect.gen(function* () {
      const { outputs, train } = yield* pack([yield* tokenShards(corpus(1, 100))], { seq_len: 15 })
      const table = tableFromIPC(readFileSync(join(outputs.dataset.folder, "train.arrow")))
      assert.deepStrictEqual(table.schema.fields.map(String), ["tokens: FixedSizeList[16]<Uint16>"])
      assert.strictEqual(table.numRows, train.blocks)
      assert.deepStrictEqual(Array.from(table.toArray()[3].tokens), [...train.tokens(3)])
      assert.strictEqual(table.schema.metadata.get("seq_len"), "15")
      assert.strictEqual(train.tokens(0).buffer, train.tokens(train.blocks - 1).buffer)
      assert.throws(() => train.tokens(train.blocks), RangeError)
      assert.throws(() => train.tokens(-1), RangeError)
      assert.throws(() => train.tokens(0.5), RangeError)
    })
  )

  it.live("an empty validation split opens", () =>
    Effect.gen(function* () {
      const { validation } = yield* pack([yield* tokenShards(corpus(1, 100))], { seq_len: 15, validation: 0 })
      assert.strictEqual(validation.blocks, 0)
      assert.throws(() => validation.tokens(0), RangeError)
    })
  )

  it.live("many record batches read as one", () =>
    Effect.gen(function* () {
      // a batch holds 2^22 tokens: four blocks of 2^20 each
      const documents = Array.from({ length: 9 }, (_, i) => Array<number>(2 ** 20).fill(i + 1))
      const { train, outputs } = yield* pack([yield* tokenShards(documents)], { seq_len: 2 ** 20 - 1, validation: 0 })
      assert.strictEqual(tableFromIPC(readFileSync(join(outputs.dataset.folder, "train.arrow"))).batches.length, 3)
      const firsts = Array.from({ length: 9 }, (_, i) => train.tokens(i)[0])
      assert.deepStrictEqual(new Set(firsts), new Set([1, 2, 3, 4, 5, 6, 7, 8, 9]))
    })
  )

  it.live("damage is corrupt with the file named", () =>
    Effect.gen(function* () {
      const { outputs } = yield* pack([yield* tokenShards(corpus(1, 100))], { seq_len: 15 })
      const { folder } = outputs.dataset
      const file = join(folder, "train.arrow")
      const whole = readFileSync(file)
      const damaged = Buffer.from(whole)
      damaged[whole.length >> 1] = (whole[whole.length >> 1] ?? 0) ^ 255
      writeFileSync(file, damaged)
      const changed = yield* Effect.flip(openSplit(outputs.dataset, "train"))
      assert.strictEqual(changed.failure, "corrupt")
      assert.include(changed.message, "pack.dataset: train.arrow: wrong sha256")
      writeFileSync(file, whole.subarray(0, whole.length - 100))
      const cut = yield* Effect.flip(openPackedDataset(folder, "train"))
      assert.deepStrictEqual([cut.failure, cut.message.includes(file)], ["corrupt", true])
      writeFileSync(file, readFileSync(join((yield* tokenShards([[1]])).folder, "shard-00000.arrow")))
      assert.include((yield* Effect.flip(openPackedDataset(folder, "train"))).message, "not a packed dataset")
      const missing = yield* Effect.flip(openPackedDataset("/nowhere", "validation"))
      assert.include(missing.message, "no such file")
    })
  )
})

describe("mixture", () => {
  const Counts = Schema.NonEmptyArray(Schema.Struct({ blocks: int(1, 2000), weight: int(1, 9) }))
  it.effect.prop("takes as much as the ratio allows", [Counts], ([parts]) =>
    Effect.sync(() => {
      const sum = parts.reduce((total, { weight }) => total + weight, 0)
      const weights = parts.map(({ weight }) => weight / sum)
      const counts = mixtureCounts(
        parts.map(({ blocks }) => blocks),
        weights
      )
      const total = Math.min(...parts.map(({ blocks }, s) => blocks / (weights[s] ?? 1)))
      for (const [s, count] of counts.entries()) {
        assert.isTrue(count <= (parts[s]?.blocks ?? 0))
        assert.isTrue(Math.abs(count - total * (weights[s] ?? 0)) <= 0.5 + 1e-9)
      }
      assert.isTrue(counts.some((count, s) => count === parts[s]?.blocks))
    })
  )

  it.effect.prop(
    "interleaves each source evenly, never a block behind or ahead of its share by more than the sources",
    [Counts],
    ([parts]) =>
      Effect.sync(() => {
        const counts = parts.slice(0, 5).map(({ blocks }) => blocks % 50)
        const total = counts.reduce((sum, count) => sum + count, 0)
        const taken = counts.map(() => 0)
        let block = 0
        for (const s of interleave(counts)) {
          taken[s] = (taken[s] ?? 0) + 1
          block++
          for (const [i, count] of counts.entries())
            assert.isTrue(Math.abs((block * count) / total - (taken[i] ?? 0)) < counts.length)
        }
        assert.deepStrictEqual(taken, counts)
      })
  )
})
