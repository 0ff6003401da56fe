/**
 * The PackedDataset artifact: `train.arrow` and `validation.arrow`, one column `tokens` of fixed-size lists. A block holds seq_len + 1 tokens:
 * its first seq_len are the input, its last seq_len the targets. Blocks do not overlap. Two more columns are there when they say something:
 * `boundaries`, with attention_reset, lists the positions in the block, other than 0, at which a document begins; `length`, with packing best-fit,
 * is the number of tokens before the padding, whose ids are 0 and which is no target.
 */
import { join } from "node:path"
import type { Data, FixedSizeList, List, RecordBatch, Schema as ArrowSchema, Uint16, Uint32 } from "apache-arrow"
import { Effect, Schema } from "effect"
import type { ArtifactHandle } from "../artifacts/Artifact.ts"
import { StageError } from "../pipeline/StageType.ts"
import { type Arrow, arrow, batchOf, columnOf, openWriter, readBatches, type Written } from "./ArrowFile.ts"
import { fileFailure } from "./FileFailure.ts"
import { isWide, largest, type TokenArray, tokenArray, TokenPolicy } from "./TokenShards.ts"

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
  left_out: Schema.Int,
  /** With best-fit: places in the blocks that hold no token. They are not in the sum. */
  padding: Schema.optionalKey(Schema.Int)
})
export type Accounting = typeof Accounting.Type

/** What is known of the dataset as a whole: in the artifact's facts, and in the schema metadata of both files. */
export const DatasetMetadata = Schema.Struct({
  ...TokenPolicy.fields,
  seq_len: Schema.Int,
  /** How blocks were filled; absent: documents end to end. */
  packing: Schema.optionalKey(Schema.Literal("best-fit")),
  /** Blocks tell where documents begin. */
  attention_reset: Schema.optionalKey(Schema.Literal(true)),
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

const stringFields = new Set(["tokenizer", "tokenizer_digest", "bos", "eos", "packing"])
const fromMetadata = (entries: Readonly<Record<string, string>>): unknown =>
  Object.fromEntries(
    Object.entries(entries).map(([key, value]) => [key, stringFields.has(key) ? value : JSON.parse(value)])
  )

/** Blocks per record batch: about 8 MiB of tokens, the same for all batches but the last. */
const blocksPerBatch = (blockLength: number): number => Math.max(1, Math.floor(2 ** 22 / blockLength))

const schemaOf = (
  { Field, FixedSizeList, List, Schema, Uint16, Uint32 }: Arrow,
  metadata: DatasetMetadata
): ArrowSchema => {
  const item = isWide(metadata.vocabulary_size) ? new Uint32() : new Uint16()
  return new Schema(
    [
      new Field("tokens", new FixedSizeList(metadata.seq_len + 1, new Field("item", item, false)), false),
      ...(metadata.attention_reset
        ? [new Field("boundaries", new List(new Field("item", new Uint32(), false)), false)]
        : []),
      ...(metadata.packing === "best-fit" ? [new Field("length", new Uint32(), false)] : [])
    ],
    toMetadata(metadata)
  )
}

/** The columns as apache-arrow prints them. */
const columnsOf = (metadata: DatasetMetadata): string =>
  [
    `tokens: FixedSizeList[${metadata.seq_len + 1}]<${isWide(metadata.vocabulary_size) ? "Uint32" : "Uint16"}>`,
    ...(metadata.attention_reset ? ["boundaries: List<Uint32>"] : []),
    ...(metadata.packing === "best-fit" ? ["length: Uint32"] : [])
  ].join(", ")

export interface SplitWriter {
  /** Waits until there is room for blocks, and tells for how many `next` may be called. Fails with file system errors. */
  readonly room: () => Promise<number>
  /** The next block, to be filled before the next call. A RangeError beyond the room. */
  readonly next: () => TokenArray
  /** What else there is to say of the block that `next` gave last: where documents begin in it, ascending and without 0; tokens before the padding. */
  readonly describe: (boundaries: ReadonlyArray<number>, length: number) => void
  /** Waits until all is written. Fails with file system errors. */
  readonly close: () => Promise<Written>
}

/**
 * Writes one split; exactly metadata.{train,validation}_blocks blocks must follow. Two buffers of a record batch each take turns: one is filled while
 * the other is written.
 */
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
  let buffer = tokenArray(metadata.vocabulary_size, capacity * blockLength)
  let spare = blocks > capacity ? tokenArray(metadata.vocabulary_size, capacity * blockLength) : undefined
  const file = `${split}.arrow`
  const output = yield* Effect.try({ try: () => openWriter(library, join(folder, file)), catch: fileFailure(file) })
  let filled = 0
  let batches = 0
  let boundaries: Array<number> = []
  let offsets = new Int32Array(capacity + 1)
  let lengths = new Uint32Array(capacity)
  /** Begins to write the blocks so far, from whose buffers nothing else may be made until `output.written`. */
  const writeBatch = (): void => {
    const { FixedSizeList, Field, List, makeData, Uint16, Uint32 } = library
    const data = buffer.subarray(0, filled * blockLength)
    const child =
      data instanceof Uint16Array
        ? makeData({ type: new Uint16(), length: data.length, nullCount: 0, data })
        : makeData({ type: new Uint32(), length: data.length, nullCount: 0, data })
    const type = new FixedSizeList(blockLength, new Field("item", child.type, false))
    const columns: Array<Data> = [makeData({ type, length: filled, nullCount: 0, child })]
    if (metadata.attention_reset) {
      const starts = Uint32Array.from(boundaries)
      const list = new List(new Field("item", new Uint32(), false))
      columns.push(
        makeData({
          type: list,
          length: filled,
          nullCount: 0,
          valueOffsets: offsets.subarray(0, filled + 1),
          child: makeData({ type: new Uint32(), length: starts.length, nullCount: 0, data: starts })
        })
      )
    }
    if (metadata.packing === "best-fit")
      columns.push(makeData({ type: new Uint32(), length: filled, nullCount: 0, data: lengths.subarray(0, filled) }))
    output.write(batchOf(library, schema, filled, columns))
    batches++
  }
  const writer: SplitWriter = {
    room: async () => {
      if (filled < capacity) return capacity - filled
      await output.written() // the spare buffer is free from here on
      writeBatch()
      ;[buffer, spare] = [spare ?? tokenArray(metadata.vocabulary_size, capacity * blockLength), buffer]
      offsets = new Int32Array(capacity + 1)
      lengths = new Uint32Array(capacity)
      boundaries = []
      filled = 0
      return capacity
    },
    next: () => {
      if (filled === capacity) throw new RangeError(`no room for more than ${capacity} blocks`)
      offsets[filled + 1] = boundaries.length
      lengths[filled] = blockLength
      return buffer.subarray(filled * blockLength, ++filled * blockLength)
    },
    describe: (starts, length) => {
      if (metadata.attention_reset) boundaries.push(...starts)
      offsets[filled] = boundaries.length
      lengths[filled - 1] = length
    },
    close: () => {
      if (filled > 0 || batches === 0) writeBatch()
      return output.close()
    }
  }
  return writer
})

export interface PackedDataset {
  readonly seqLen: number
  readonly blocks: number
  /** The seq_len + 1 tokens of a block, a view of the file's buffer. A RangeError for an index outside [0, blocks). */
  readonly tokens: (blockIndex: number) => TokenArray
  /** Where documents begin in the block, other than at 0; undefined where the dataset does not tell. */
  readonly boundaries: (blockIndex: number) => Uint32Array | undefined
  /** Tokens of the block before its padding. */
  readonly length: (blockIndex: number) => number
  readonly metadata: DatasetMetadata
}

const tokensOf = (batch: RecordBatch): TokenArray => {
  const child = columnOf<FixedSizeList<Uint16 | Uint32>>(batch, 0).children[0]
  return (child?.values as TokenArray | undefined)?.subarray(0, child?.length ?? 0) ?? new Uint16Array(0)
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
  const expected = columnsOf(decoded)
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
  const placeOf = (blockIndex: number): readonly [number, number] => {
    if (!Number.isInteger(blockIndex) || blockIndex < 0 || blockIndex >= blocks)
      throw new RangeError(`no block ${blockIndex} of ${blocks}`)
    return [Math.floor(blockIndex / perChunk), blockIndex % perChunk]
  }
  const lengthColumn = decoded.attention_reset ? 2 : 1
  const dataset: PackedDataset = {
    seqLen: decoded.seq_len,
    blocks,
    metadata: decoded,
    tokens: (blockIndex) => {
      const [chunk, row] = placeOf(blockIndex)
      return (chunks[chunk] ?? new Uint16Array(0)).subarray(row * blockLength, (row + 1) * blockLength)
    },
    boundaries: (blockIndex) => {
      const [chunk, row] = placeOf(blockIndex)
      const batch = batches[chunk]
      if (!decoded.attention_reset || batch === undefined) return undefined
      const list = columnOf<List<Uint32>>(batch, 1)
      const values = list.children[0]?.values as Uint32Array | undefined
      return values?.subarray(list.valueOffsets[row], list.valueOffsets[row + 1]) ?? new Uint32Array(0)
    },
    length: (blockIndex) => {
      const [chunk, row] = placeOf(blockIndex)
      const batch = batches[chunk]
      if (decoded.packing !== "best-fit" || batch === undefined) return blockLength
      return columnOf<Uint32>(batch, lengthColumn).values[row] ?? blockLength
    }
  }
  return dataset
})

/** The facts of a PackedDataset artifact, checked. */
export const factsOf = (handle: ArtifactHandle): Effect.Effect<PackedDatasetFacts, StageError> =>
  Schema.decodeUnknownEffect(PackedDatasetFacts)(handle.facts).pipe(
    Effect.mapError(
      (error) =>
        new StageError({
          failure: "corrupt",
          message: `${handle.origin}: its facts are not those of a packed dataset: ${error.message}`,
          next: `pack the data anew: tinyllama run --force ${handle.origin.split(".")[0]}`
        })
    )
  )

/** Opens a split of an artifact, with the digest that its facts state. */
export const openSplit = Effect.fn("PackedDataset.openSplit")(function* (handle: ArtifactHandle, split: Split) {
  const facts = yield* factsOf(handle)
  return yield* openPackedDataset(handle.folder, split, { sha256: facts.files[split], origin: handle.origin })
})
