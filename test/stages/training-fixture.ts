/** Datasets and models small enough to train in a test. */
import { join } from "node:path"
import { writeFileSync } from "node:fs"
import { Effect } from "effect"
import { type DatasetMetadata, openSplitWriter, type Split } from "../../src/data/PackedDataset.ts"
import { artifactOf, temporaryFolder } from "./stage-fixture.ts"

export const VOCABULARY = 96
export const SEQ_LEN = 16

/** The least that exercises grouped queries, two layers and odd sizes. */
export const tinyShape = {
  vocab_size: VOCABULARY,
  hidden_size: 32,
  intermediate_size: 56,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  max_position_embeddings: 32
}

const write = Effect.fnUntraced(function* (folder: string, split: Split, blocks: number, metadata: DatasetMetadata) {
  const writer = yield* openSplitWriter(folder, split, metadata)
  for (let block = 0; block < blocks; block++) {
    const tokens = writer.next()
    let token = (block * 31 + (split === "train" ? 0 : 7)) % metadata.vocabulary_size
    for (let i = 0; i < tokens.length; i++) {
      tokens[i] = token
      token = (token * 5 + 3) % metadata.vocabulary_size
    }
  }
  return (yield* Effect.promise(() => writer.close())).sha256
})

/** A dataset in which each token follows from the one before. */
export const tinyDataset = Effect.fnUntraced(function* (sizes: {
  readonly train: number
  readonly validation: number
  readonly vocabulary?: number
  readonly seqLen?: number
}) {
  const folder = yield* temporaryFolder
  const metadata: DatasetMetadata = {
    tokenizer: "llama-2",
    tokenizer_digest: "0".repeat(64),
    vocabulary_size: sizes.vocabulary ?? VOCABULARY,
    bos: "document",
    eos: "none",
    seq_len: sizes.seqLen ?? SEQ_LEN,
    train_blocks: sizes.train,
    validation_blocks: sizes.validation,
    mixture: [],
    accounting: []
  }
  const files = {
    train: yield* write(folder, "train", sizes.train, metadata),
    validation: yield* write(folder, "validation", sizes.validation, metadata)
  }
  return artifactOf("PackedDataset", folder, { ...metadata, files }, "packed.dataset")
})

/** A dataset of these blocks, each a list of documents; what they leave free of a block is padding. */
export const documentDataset = Effect.fnUntraced(function* (
  blocks: Readonly<Record<Split, ReadonlyArray<ReadonlyArray<ReadonlyArray<number>>>>>,
  options: { readonly padded: boolean }
) {
  const folder = yield* temporaryFolder
  const metadata: DatasetMetadata = {
    tokenizer: "llama-2",
    tokenizer_digest: "0".repeat(64),
    vocabulary_size: VOCABULARY,
    bos: "document",
    eos: "none",
    seq_len: SEQ_LEN,
    ...(options.padded ? { packing: "best-fit" as const } : {}),
    attention_reset: true,
    train_blocks: blocks.train.length,
    validation_blocks: blocks.validation.length,
    mixture: [],
    accounting: []
  }
  const writeAll = Effect.fnUntraced(function* (split: Split) {
    const writer = yield* openSplitWriter(folder, split, metadata)
    for (const documents of blocks[split]) {
      const block = writer.next()
      const tokens = documents.flat()
      block.set(tokens)
      const starts = documents.slice(1).map((_, i) => documents.slice(0, i + 1).flat().length)
      writer.describe(starts, tokens.length)
    }
    return (yield* Effect.promise(() => writer.close())).sha256
  })
  const files = { train: yield* writeAll("train"), validation: yield* writeAll("validation") }
  return artifactOf("PackedDataset", folder, { ...metadata, files }, "packed.dataset")
})

/** A Documents artifact with one file of conversations, one per line. */
export const conversationDocuments = Effect.fnUntraced(function* (lines: ReadonlyArray<string>) {
  const folder = yield* temporaryFolder
  const text = lines.map((line) => `${line}\n`).join("")
  writeFileSync(join(folder, "talk.jsonl"), text)
  const entry = {
    path: "talk.jsonl",
    format: "jsonl",
    source: "talk.jsonl",
    bytes: Buffer.byteLength(text),
    sha256: "0".repeat(64)
  }
  writeFileSync(join(folder, "documents.jsonl"), `${JSON.stringify(entry)}\n`)
  return artifactOf("Documents", folder, { files: 1, bytes: entry.bytes }, "talk.documents")
})
