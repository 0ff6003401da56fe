import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import type { ArtifactHandle } from "../../src/artifacts/Artifact.ts"
import { type DocumentFormat, encodeList } from "../../src/data/Documents.ts"
import { openSplit } from "../../src/data/PackedDataset.ts"
import { factsOf, readShard } from "../../src/data/TokenShards.ts"
import { importPackedStage } from "../../src/stages/ImportPacked.ts"
import { packStage } from "../../src/stages/Pack.ts"
import { tokenShards } from "../data/token-fixture.ts"
import { artifactOf, runStage, temporaryFolder } from "./stage-fixture.ts"

/** Written out by hand: "LITPKDS", version 1, type 8 (uint16), 4 tokens: 1, 15043, 3186, 2. */
const golden = Buffer.from(
  ["4c4954504b4453", "0100000000000000", "08", "0400000000000000", "0100", "c33a", "720c", "0200"].join(""),
  "hex"
)

const wrap = (tokens: ReadonlyArray<number>, type = 8): Buffer => {
  const header = Buffer.from(golden.subarray(0, 24))
  header.writeUInt8(type, 15)
  header.writeBigUInt64LE(BigInt(tokens.length), 16)
  const ids =
    type === 8 ? Uint16Array.from(tokens) : type === 4 ? Int32Array.from(tokens) : BigInt64Array.from(tokens, BigInt)
  return Buffer.concat([header, Buffer.from(ids.buffer)])
}

const documentsOf = Effect.fnUntraced(function* (
  files: Readonly<Record<string, Buffer>>,
  format: DocumentFormat = "litpkds"
) {
  const folder = yield* temporaryFolder
  mkdirSync(join(folder, "files"))
  const list = Object.entries(files).map(([name, bytes]) => {
    writeFileSync(join(folder, "files", name), bytes)
    return { path: `files/${name}`, format, source: name, bytes: bytes.length, sha256: "" }
  })
  writeFileSync(join(folder, "documents.jsonl"), encodeList(list))
  return artifactOf("Documents", folder, {}, "old.documents")
})

const tokensOf = Effect.fnUntraced(function* (handle: ArtifactHandle) {
  const facts = yield* factsOf(handle)
  const parts = yield* Effect.forEach(facts.shards, (shard) => readShard(handle, shard, facts))
  return parts.flat().flatMap((part) =>
    Array.from({ length: part.documents }, (_, row) => ({
      id: part.id(row),
      tokens: [...part.tokens.subarray(part.offsets[row], part.offsets[row + 1])],
      bytes: part.bytes[row]
    }))
  )
})

const imported = Effect.fnUntraced(function* (
  files: Readonly<Record<string, Buffer>>,
  params: Readonly<Record<string, unknown>> = {}
) {
  const result = yield* runStage(importPackedStage, { params, inputs: { documents: [yield* documentsOf(files)] } })
  return { ...result, documents: yield* tokensOf(result.outputs.tokens) }
})

const refused = (files: Readonly<Record<string, Buffer>>) =>
  imported(files).pipe(
    Effect.flip,
    Effect.map((error) => (error._tag === "StageError" ? [error.failure, error.message] : [error._tag, ""]))
  )

describe("import-packed", () => {
  it.live("reads the layout as it is written down, with the length of the text", () =>
    Effect.gen(function* () {
      const { documents } = yield* imported({ "train_0000000000.bin": golden })
      assert.deepStrictEqual(documents, [
        { id: "train_0000000000.bin@0", tokens: [1, 15043, 3186, 2], bytes: 11 } // "Hello world"
      ])
      for (const type of [4, 5])
        assert.deepStrictEqual(
          (yield* imported({ "a_0.bin": wrap([1, 15043, 3186, 2], type) })).documents[0]?.tokens,
          [1, 15043, 3186, 2]
        )
    })
  )

  it.live("documents go on across files of one writer, and begin at <s> or end at </s>", () =>
    Effect.gen(function* () {
      const files = {
        "train_slim_0_0000000000.bin": wrap([1, 10, 11, 1, 12]),
        "train_slim_0_0000000001.bin": wrap([13, 14, 1, 1, 1]),
        "train_slim_1_0000000000.bin": wrap([20, 2, 21, 22, 2])
      }
      const begun = yield* imported(files)
      assert.deepStrictEqual(
        begun.documents.map(({ tokens }) => tokens),
        [
          [1, 10, 11],
          [1, 12, 13, 14],
          [20, 2, 21, 22, 2]
        ]
      )
      assert.include(begun.warnings.join(), "3 tokens <s> that fill the ends of files are left out")
      const ended = yield* imported(files, { bos: "none", eos: "document", shard_tokens: 6 })
      assert.deepStrictEqual(
        ended.documents.map(({ tokens }) => tokens),
        [
          [1, 10, 11, 1, 12, 13, 14, 1, 1, 1],
          [20, 2],
          [21, 22, 2]
        ]
      )
    })
  )

  it.live("refuses what is no such file, cut off, of another type, or of another vocabulary", () =>
    Effect.gen(function* () {
      assert.deepStrictEqual(yield* refused({ "a.bin": Buffer.from("not it, and long enough") }), [
        "corrupt",
        "a.bin: this is no file of lit-gpt's PackedDataset: it does not begin with LITPKDS"
      ])
      assert.include(
        (yield* refused({ "a.bin": golden.subarray(0, 30) }))[1],
        "it states 4 tokens of type uint16, and has 30 bytes"
      )
      assert.include((yield* refused({ "a.bin": golden.subarray(0, 10) }))[1], "no file of lit-gpt's")
      const [version, type] = [Buffer.from(golden), Buffer.from(golden)]
      version.writeUInt8(2, 7)
      type.writeUInt8(6, 15)
      assert.include((yield* refused({ "a.bin": version }))[1], "its version is 2")
      assert.include((yield* refused({ "a.bin": type }))[1], "its ids have the type 6")
      assert.include((yield* refused({ "a.bin": wrap([1, 40_000]) }))[1], "token 1 has the id 40000")
      assert.include((yield* refused({ "a.bin": wrap([-1], 4) }))[1], "token 0 has the id -1")
      assert.include((yield* refused({ "a.bin": wrap([1, 1, 1]) }))[1], "there is no document")
      const text = yield* documentsOf({ "a.txt": Buffer.from("x") }, "text")
      const error = yield* Effect.flip(runStage(importPackedStage, { inputs: { documents: [text] } }))
      assert.include(error.message, "a.txt is of format text, not litpkds")
    })
  )
})

describe("pack with litgpt", () => {
  it.live("writes files that lit-gpt reads, byte for byte, and says what does not fill one", () =>
    Effect.gen(function* () {
      const corpus = Array.from({ length: 40 }, (_, i) => [
        1,
        ...Array.from({ length: 19 }, (_, at) => 100 + i * 20 + at)
      ])
      const tokens = [yield* tokenShards(corpus)]
      const params = { seq_len: 9, validation: 0, litgpt: { chunk_blocks: 12 } }
      const { outputs, warnings } = yield* runStage(packStage, { params, inputs: { tokens } })
      const folder = join(outputs.dataset.folder, "litgpt")
      const names = readdirSync(folder).toSorted()
      assert.deepStrictEqual(
        names,
        [0, 1, 2, 3, 4, 5].map((n) => `train_000000000${n}.bin`)
      )
      const train = yield* openSplit(outputs.dataset, "train")
      const all = Array.from({ length: train.blocks }, (_, block) => [...train.tokens(block)])
      for (const [n, name] of names.entries())
        assert.isTrue(readFileSync(join(folder, name)).equals(wrap(all.slice(12 * n, 12 * (n + 1)).flat())))
      assert.include(warnings.join("\n"), "litgpt: 8 train blocks do not fill a file of 12")
      assert.include(warnings.join("\n"), "needs 8 files for each rank, there are 6")

      const files = Object.fromEntries(names.map((name) => [name, readFileSync(join(folder, name))]))
      const back = yield* imported(files)
      assert.deepStrictEqual(
        back.documents.flatMap((document) => document.tokens),
        all.slice(0, 72).flat()
      )
      const odd = { ...params, packing: "best-fit" }
      const error = yield* Effect.flip(runStage(packStage, { params: odd, inputs: { tokens } }))
      assert.include(error.message, "cannot tell padding from text")
    })
  )
})
