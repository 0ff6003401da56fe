/**
 * The PackedDataset artifact: `train.arrow` and `validation.arrow`, one column `tokens` of fixed-size lists. A block holds seq_len + 1 tokens:
 * its first seq_len are the input, its last seq_len the targets. Blocks do not overlap.
 */
import { join } from "node:path"
import type { FixedSizeList, RecordBatch, Schema as ArrowSchema, Uint16 } from "apache-arrow"
import { Effect, Schema } from "effect"
import type { ArtifactHandle } from "../artifacts/Artifact.ts"
import { StageError } from "../pipeline/StageType.ts"
import { type Arrow, arrow, batchOf, columnOf, openWriter, readBatches } from "./ArrowFile.ts"
import { fileFailure } from "./FileFailure.ts"
import { largest, TokenPolicy } from "./TokenShards.ts"

export type Split = "train" | "validation"

export const Mixture = Schema.Struct({
  /** The input's origin, "stage.port". */
  source: Schema.String,
  /** As asked, normalised to a sum of 1; without weights, what the data gave. */
  weight: Schema.Finite,
  /** Share of the train blocks. */
  realised: Schema.Finite,
  blocks: Schema.Int
})
export type Mixture = typeof Mixture.Type

/** Where a source's tokens went: tokens = train + validation + tail + left_out. */
export const Accounting = Schema.Struct({
  source: Schema.String,
  documents: Schema.Int,
  tokens: Schema.Int,
  train: Schema.Int,
  validation: Schema.Int,
  /** Remainders too short for a block, of train and validation. */
  tail: Schema.Int,
  /** Whole train blocks that the weights leave no room for. */
  left_out: Schema.Int
})
export type Accounting = typeof Accounting.Type

/** What is known of the dataset as a whole: in the artifact's facts, and in the schema metadata of both files. */
export const DatasetMetadata = Schema.Struct({
  ...TokenPolicy.fields,
  seq_len: Schema.Int,
  train_blocks: Schema.Int,
  validation_blocks: Schema.Int,
  mixture: Schema.Array(Mixture),
  accounting: Schema.Array(Accounting)
})
export type DatasetMetadata = typeof DatasetMetadata.Type

export const PackedDatasetFacts = Schema.Struct({
  ...DatasetMetadata.fields,
  /** sha256 of the two files. */
  files: Schema.Struct({ train: Schema.String, validation: Schema.String })
})
export type PackedDatasetFacts = typeof PackedDatasetFacts.Type

/** Arrow metadata is text: strings stand as they are, all else as JSON. */
const toMetadata = (metadata: DatasetMetadata): Map<string, string> =>
  new Map(
    Object.entries(metadata).map(([key, value]) => [key, typeof value === "string" ? value : JSON.stringify(value)])
  )

const stringFields = new Set(["tokenizer", "tokenizer_digest", "bos", "eos"])
const fromMetadata = (entries: Readonly<Record<string, string>>): unknown =>
  Object.fromEntries(
    Object.entries(entries).map(([key, value]) => [key, stringFields.has(key) ? value : JSON.parse(value)])
  )

/** Blocks per record batch: about 8 MiB of tokens, the same for all batches but the last. */
const blocksPerBatch = (blockLength: number): number => Math.max(1, Math.floor(2 ** 22 / blockLength))

const schemaOf = ({ Field, FixedSizeList, Schema, Uint16 }: Arrow, metadata: DatasetMetadata): ArrowSchema =>
  new Schema(
    [new Field("tokens", new FixedSizeList(metadata.seq_len + 1, new Field("item", new Uint16(), false)), false)],
    toMetadata(metadata)
  )

export interface SplitWriter {
  /** Room for the next block, to be filled before the next call. */
  readonly next: () => Uint16Array
  readonly close: () => { readonly bytes: number; readonly sha256: string }
}

/** Writes one split; exactly metadata.{train,validation}_blocks blocks must follow. The writer's calls throw file system errors. */
export const openSplitWriter = Effect.fn("PackedDataset.openSplitWriter")(function* (
  folder: string,
  split: Split,
  metadata: DatasetMetadata
) {
  const library = yield* arrow
  const blockLength = metadata.seq_len + 1
  const schema = schemaOf(library, metadata)
  const blocks = split === "train" ? metadata.train_blocks : metadata.validation_blocks
  const capacity = Math.min(blocksPerBatch(blockLength), Math.max(1, blocks))
  const buffer = new Uint16Array(capacity * blockLength)
  const file = `${split}.arrow`
  const output = yield* Effect.try({ try: () => openWriter(library, join(folder, file)), catch: fileFailure(file) })
  let filled = 0
  let batches = 0
  const flush = (): void => {
    const { FixedSizeList, Field, makeData, Uint16 } = library
    const data = buffer.subarray(0, filled * blockLength)
    const type = new FixedSizeList(blockLength, new Field("item", new Uint16(), false))
    const child = makeData({ type: new Uint16(), length: data.length, nullCount: 0, data })
    output.write(batchOf(library, schema, filled, [makeData({ type, length: filled, nullCount: 0, child })]))
    filled = 0
    batches++
  }
  const writer: SplitWriter = {
    next: () => {
      if (filled === capacity) flush()
      return buffer.subarray(filled * blockLength, ++filled * blockLength)
    },
    close: () => {
      if (filled > 0 || batches === 0) flush()
      return output.close()
    }
  }
  return writer
})

export interface PackedDataset {
  readonly seqLen: number
  readonly blocks: number
  /** The seq_len + 1 tokens of a block, a view of the file's buffer. A RangeError for an index outside [0, blocks). */
  readonly tokens: (blockIndex: number) => Uint16Array
  readonly metadata: DatasetMetadata
}

const tokensOf = (batch: RecordBatch): Uint16Array => {
  const child = columnOf<FixedSizeList<Uint16>>(batch, 0).children[0]
  return (child?.values as Uint16Array | undefined)?.subarray(0, child?.length ?? 0) ?? new Uint16Array(0)
}

/**
 * Opens one split. Fails as corrupt, with the file named, for a damaged file, one that is no packed dataset, or ids beyond the vocabulary; `sha256`
 * (from the facts) finds every other damage too.
 */
export const openPackedDataset = Effect.fn("PackedDataset.open")(function* (
  folder: string,
  split: Split,
  options: { readonly sha256?: string; readonly origin?: string } = {}
) {
  const file = join(folder, `${split}.arrow`)
  const stage = options.origin?.split(".")[0]
  const { batches, metadata, columns, failure } = yield* readBatches({
    file,
    place: options.origin === undefined ? file : `${options.origin}: ${split}.arrow`,
    remake: `pack the data anew: tinyllama run --force ${stage ?? "the stage that packs"}`,
    sha256: options.sha256
  })
  const decoded = yield* Effect.try({
    try: () => fromMetadata(metadata),
    catch: () => failure("its schema metadata cannot be read")
  }).pipe(
    Effect.flatMap(Schema.decodeUnknownEffect(DatasetMetadata)),
    Effect.mapError((error) =>
      error._tag === "StageError" ? error : failure(`this is not a packed dataset: ${error.message}`)
    )
  )
  const blockLength = decoded.seq_len + 1
  const expected = `tokens: FixedSizeList[${blockLength}]<Uint16>`
  if (columns.join(", ") !== expected) return yield* failure(`the columns are ${columns.join(", ")}, not ${expected}`)
  const chunks = batches.map(tokensOf)
  const perChunk = batches[0]?.numRows ?? 0
  const blocks = batches.reduce((sum, batch) => sum + batch.numRows, 0)
  const stated = split === "train" ? decoded.train_blocks : decoded.validation_blocks
  const regular = batches.every(
    (batch, i) =>
      chunks[i]?.length === batch.numRows * blockLength && (i === batches.length - 1 || batch.numRows === perChunk)
  )
  if (blocks !== stated || !regular)
    return yield* failure(`it holds ${blocks} blocks where its metadata states ${stated}`)
  if (chunks.some((chunk) => largest(chunk) >= decoded.vocabulary_size))
    return yield* failure(`it has token ids beyond the vocabulary of ${decoded.vocabulary_size}`)
  const dataset: PackedDataset = {
    seqLen: decoded.seq_len,
    blocks,
    metadata: decoded,
    tokens: (blockIndex) => {
      const chunk = chunks[Math.floor(blockIndex / perChunk)]
      if (chunk === undefined || !Number.isInteger(blockIndex) || blockIndex < 0 || blockIndex >= blocks)
        throw new RangeError(`no block ${blockIndex} of ${blocks}`)
      const at = (blockIndex % perChunk) * blockLength
      return chunk.subarray(at, at + blockLength)
    }
  }
  return dataset
})

/** Opens a split of an artifact, with the digest that its facts state. */
export const openSplit = Effect.fn("PackedDataset.openSplit")(function* (handle: ArtifactHandle, split: Split) {
  const facts = yield* Schema.decodeUnknownEffect(PackedDatasetFacts)(handle.facts).pipe(
    Effect.mapError(
      (error) =>
        new StageError({
          failure: "corrupt",
          message: `${handle.origin}: its facts are not those of a packed dataset: ${error.message}`,
          next: `pack the data anew: tinyllama run --force ${handle.origin.split(".")[0]}`
        })
    )
  )
  return yield* openPackedDataset(handle.folder, split, { sha256: facts.files[split], origin: handle.origin })
})
