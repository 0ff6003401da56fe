/** Packing other than TinyLlama's: whole documents, boundaries, wide ids; and what other Arrow implementations read. */
import { execFileSync, spawnSync } from "node:child_process"
import { readFileSync } from "node:fs"
import { join } from "node:path"
import { assert, describe, it } from "@effect/vitest"
import { tableFromIPC as flechetteTable } from "@uwdata/flechette"
import { Effect, Schema } from "effect"
import type { ArtifactHandle } from "../../src/artifacts/Artifact.ts"
import { placePieces } from "../../src/data/BestFit.ts"
import { openSplit, type PackedDataset, PackedDatasetFacts } from "../../src/data/PackedDataset.ts"
import { packStage } from "../../src/stages/Pack.ts"
import { tokenShards } from "../data/token-fixture.ts"
import { runStage } from "./stage-fixture.ts"

const int = (minimum: number, maximum: number) => Schema.Int.check(Schema.isBetween({ minimum, maximum }))

/** Documents whose every token tells its document and its place in it. */
const documentsOf = (lengths: ReadonlyArray<number>): ReadonlyArray<ReadonlyArray<number>> =>
  lengths.map((length, i) => Array.from({ length }, (_, at) => 1 + ((i * 131 + at) % 31000)))

const pack = (tokens: ReadonlyArray<ArtifactHandle>, params: Readonly<Record<string, unknown>>) =>
  Effect.gen(function* () {
    const result = yield* runStage(packStage, { params, inputs: { tokens } })
    const facts = yield* Schema.decodeUnknownEffect(PackedDatasetFacts)(result.outputs.dataset.facts)
    const train = yield* openSplit(result.outputs.dataset, "train")
    const validation = yield* openSplit(result.outputs.dataset, "validation")
    return { ...result, facts, train, validation }
  })

/** The pieces of documents that a split holds. */
const piecesOf = (dataset: PackedDataset) =>
  Array.from({ length: dataset.blocks }, (_, block) => {
    const tokens = [...dataset.tokens(block)].slice(0, dataset.length(block))
    const starts = [0, ...(dataset.boundaries(block) ?? [])]
    return starts.map((start, i) => tokens.slice(start, starts[i + 1] ?? tokens.length))
  }).flat()

const sortedText = (lists: ReadonlyArray<ReadonlyArray<number>>) => lists.map((list) => list.join(" ")).toSorted()

describe("best-fit packing", () => {
  it.live.prop(
    "documents stay whole unless longer than a block, none is lost, and the account closes",
    [Schema.NonEmptyArray(int(0, 100)), int(3, 40), Schema.Literals([0, 0.3])],
    ([lengths, seqLen, validation]) =>
      Effect.gen(function* () {
        const documents = documentsOf([...lengths, 2 * seqLen])
        const result = yield* pack([yield* tokenShards(documents)], {
          seq_len: seqLen,
          validation,
          packing: "best-fit",
          attention_reset: true
        }).pipe(Effect.catchTag("StageError", () => Effect.succeed(undefined))) // all of it held out
        if (result === undefined) return
        const { facts, train, validation: held } = result
        const expected = documents.flatMap((document) =>
          Array.from({ length: Math.ceil(document.length / (seqLen + 1)) }, (_, i) =>
            document.slice(i * (seqLen + 1), (i + 1) * (seqLen + 1))
          )
        )
        assert.deepStrictEqual(sortedText([...piecesOf(train), ...piecesOf(held)]), sortedText(expected))
        const [row] = facts.accounting
        assert.deepStrictEqual([row?.tail, row?.left_out], [0, 0])
        assert.strictEqual(row?.tokens, (row?.train ?? 0) + (row?.validation ?? 0))
        assert.strictEqual((train.blocks + held.blocks) * (seqLen + 1), (row?.tokens ?? 0) + (row?.padding ?? 0))
        for (let block = 0; block < train.blocks; block++)
          assert.isTrue(
            train
              .tokens(block)
              .subarray(train.length(block))
              .every((token) => token === 0)
          )
      }),
    { arbitrary: { runs: 40 } }
  )

  it("takes the fullest block that has room, longest first", () => {
    const pieces = [3, 9, 4, 6, 1, 5].map((length, document) => ({ document, from: 0, length }))
    assert.deepStrictEqual(
      placePieces(pieces, 10).map((block) => block.map(({ length }) => length)),
      [
        [3, 5],
        [9, 1],
        [4, 6]
      ]
    )
  })

  it.live("wastes little, and less than a tenth of what cutting at block ends would separate", () =>
    Effect.gen(function* () {
      const documents = documentsOf(Array.from({ length: 4000 }, (_, i) => 5 + ((i * 7919) % 400)))
      const { facts, logs, train } = yield* pack([yield* tokenShards(documents, { perShard: 500 })], {
        seq_len: 511,
        validation: 0,
        packing: "best-fit"
      })
      assert.isBelow((facts.accounting[0]?.padding ?? 0) / (train.blocks * 512), 0.01)
      assert.include(logs[0], "padding")
    })
  )

  it.live("a mixture takes blocks of each source, and says what it leaves out", () =>
    Effect.gen(function* () {
      const tokens = [
        yield* tokenShards(documentsOf(Array.from({ length: 300 }, (_, i) => 1 + (i % 50))), { origin: "a.tokens" }),
        yield* tokenShards(documentsOf(Array.from({ length: 300 }, (_, i) => 1 + (i % 30))), { origin: "b.tokens" })
      ]
      const { facts } = yield* pack(tokens, { seq_len: 63, weights: [1, 1], packing: "best-fit", validation: 0 })
      assert.strictEqual(facts.mixture[0]?.blocks, facts.mixture[1]?.blocks)
      for (const row of facts.accounting) assert.strictEqual(row.tokens, row.train + row.left_out)
    })
  )
})

describe("attention_reset", () => {
  it.live("tells where documents begin, and changes nothing else", () =>
    Effect.gen(function* () {
      const documents = documentsOf(Array.from({ length: 200 }, (_, i) => 1 + ((i * 37) % 60)))
      const tokens = [yield* tokenShards(documents)]
      const plain = yield* pack(tokens, { seq_len: 31, validation: 0 })
      const { train, outputs } = yield* pack(tokens, { seq_len: 31, validation: 0, attention_reset: true })
      const starts = new Set(documents.map((document) => document.slice(0, 2).join(" ")))
      let found = 0
      for (let block = 0; block < train.blocks; block++) {
        assert.deepStrictEqual([...train.tokens(block)], [...plain.train.tokens(block)])
        const positions = [...(train.boundaries(block) ?? [])]
        assert.deepStrictEqual(
          positions,
          positions.toSorted((a, b) => a - b)
        )
        assert.isTrue(positions.every((at) => at > 0 && at < 32))
        found += positions.length
        for (const at of positions.filter((position) => position < 31)) {
          const next = [...train.tokens(block).subarray(at, at + 2)]
          assert.isTrue(starts.has(next.join(" ")) || starts.has(String(next[0])))
        }
      }
      assert.isAbove(found, 150)
      assert.strictEqual(plain.train.boundaries(0), undefined)
      const table = flechetteTable(readFileSync(join(outputs.dataset.folder, "train.arrow")))
      assert.deepStrictEqual(table.names, ["tokens", "boundaries"])
      assert.deepStrictEqual(Array.from(table.getChild("boundaries").at(1)), [...(train.boundaries(1) ?? [])])
    })
  )
})

describe("vocabularies of more than 65,536 pieces", () => {
  it.live("have 32 bits a token, in shards and blocks", () =>
    Effect.gen(function* () {
      const documents = Array.from({ length: 60 }, (_, i) =>
        Array.from({ length: 20 }, (_, at) => 100_000 + 20 * i + at)
      )
      const tokens = [yield* tokenShards(documents, { policy: { vocabulary_size: 128_256 } })]
      for (const packing of ["concatenate", "best-fit"]) {
        const { outputs, train } = yield* pack(tokens, { seq_len: 19, validation: 0, packing })
        assert.isTrue(train.tokens(0) instanceof Uint32Array)
        const table = flechetteTable(readFileSync(join(outputs.dataset.folder, "train.arrow")))
        assert.deepStrictEqual(Array.from(table.getChild("tokens").at(2)), [...train.tokens(2)])
        assert.isTrue(train.tokens(2).every((token) => token >= 100_000))
      }
    })
  )
})

describe("weights", () => {
  it.live("that do not sum to one are normalised aloud, or refused when the file says so", () =>
    Effect.gen(function* () {
      const tokens = [
        yield* tokenShards(documentsOf(Array<number>(90).fill(20)), { origin: "a.tokens" }),
        yield* tokenShards(documentsOf(Array<number>(90).fill(20)), { origin: "b.tokens" })
      ]
      const { logs } = yield* pack(tokens, { seq_len: 9, weights: [3, 1] })
      assert.include(logs[0], "weights sum to 4: taken as 75.0 %, 25.0 %")
      const strict = { seq_len: 9, weights_sum: "one" }
      const refused = yield* Effect.flip(
        runStage(packStage, { params: { ...strict, weights: [0.7, 0.2] }, inputs: { tokens } })
      )
      assert.include(refused.message, "weights sum to 0.8999999999999999, not to 1")
      const exact = yield* pack(tokens, { ...strict, weights: [0.693584, 0.306416] })
      assert.notInclude(exact.logs.join("\n"), "weights sum to")
    })
  )
})

describe("other Arrow implementations", () => {
  const packed = Effect.gen(function* () {
    const documents = documentsOf(Array.from({ length: 500 }, (_, i) => 1 + ((i * 37) % 60)))
    const result = yield* pack([yield* tokenShards(documents)], { seq_len: 31 })
    return { ...result, file: join(result.outputs.dataset.folder, "train.arrow") }
  })

  it.live("Flechette reads blocks and metadata, row for row", () =>
    Effect.gen(function* () {
      const { file, train } = yield* packed
      const table = flechetteTable(readFileSync(file))
      assert.strictEqual(table.numRows, train.blocks)
      const column = table.getChild("tokens")
      for (let block = 0; block < train.blocks; block++)
        assert.deepStrictEqual(Array.from(column.at(block)), [...train.tokens(block)])
      assert.strictEqual(table.schema.metadata?.get("seq_len"), "31")
    })
  )

  const python = ["python3", "/usr/bin/python3"].find(
    (program) => spawnSync(program, ["-c", "import pyarrow"]).status === 0
  )
  it.live.skipIf(python === undefined)(
    `pyarrow reads blocks and metadata, row for row${python === undefined ? " (no python3 with pyarrow here)" : ""}`,
    () =>
      Effect.gen(function* () {
        const { file, train } = yield* packed
        const script =
          "import sys, json, pyarrow as pa, pyarrow.ipc as ipc; t = ipc.open_file(pa.memory_map(sys.argv[1])).read_all(); print(json.dumps([t.column('tokens').to_pylist(), t.schema.metadata[b'seq_len'].decode()]))"
        const [rows, seqLen] = JSON.parse(
          execFileSync(python ?? "python3", ["-c", script, file], { encoding: "utf8", maxBuffer: 2 ** 28 })
        )
        assert.strictEqual(seqLen, "31")
        assert.deepStrictEqual(
          rows,
          Array.from({ length: train.blocks }, (_, block) => [...train.tokens(block)])
        )
      })
  )
})
