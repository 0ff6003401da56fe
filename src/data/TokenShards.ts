/**
 * The TokenShards artifact: Arrow files `shard-00000.arrow`, …, one row per document with its token ids, its id and its length in bytes of
 * UTF-8. How documents were delimited (BOS, EOS) and by which tokenizer is stated in the facts and again in every file's schema metadata.
 */
import { join } from "node:path"
import type { List, Uint16, Uint32, Utf8 } from "apache-arrow"
import { Effect, Schema } from "effect"
import type { ArtifactHandle } from "../artifacts/Artifact.ts"
import { StageError } from "../pipeline/StageType.ts"
import { arrow, batchOf, columnOf, openWriter, readBatches, type Room } from "./ArrowFile.ts"
import { load } from "../engine/Native.ts"
import { fileFailure } from "./FileFailure.ts"

/** "document": one at the start (BOS) or end (EOS) of every document. */
export const Delimiter = Schema.Literals(["document", "none"])

/** What token ids mean; two inputs that differ in it cannot be packed together. */
export const TokenPolicy = Schema.Struct({
  tokenizer: Schema.String,
  tokenizer_digest: Schema.String,
  vocabulary_size: Schema.Int,
  bos: Delimiter,
  eos: Delimiter
})
export type TokenPolicy = typeof TokenPolicy.Type

export const Shard = Schema.Struct({
  path: Schema.String,
  sha256: Schema.String,
  documents: Schema.Int,
  tokens: Schema.Int,
  /** UTF-8 bytes of the text that the tokens stand for. */
  bytes: Schema.Int
})
export type Shard = typeof Shard.Type

export const TokenShardsFacts = Schema.Struct({
  ...TokenPolicy.fields,
  documents: Schema.Int,
  tokens: Schema.Int,
  bytes: Schema.Int,
  /** Rows and texts that gave no tokens, by reason. */
  skipped: Schema.Record(Schema.String, Schema.Int),
  /** Those of them that quarantine.jsonl holds. */
  quarantined: Schema.optionalKey(Schema.Int),
  /** Documents in which U+FFFD stands for what is not UTF-8. */
  replaced: Schema.Int,
  shards: Schema.Array(Shard)
})
export type TokenShardsFacts = typeof TokenShardsFacts.Type

/** Token ids as files hold them. */
export type TokenArray = Uint16Array<ArrayBuffer> | Uint32Array<ArrayBuffer>

/** 16 bits where every id fits, else 32. */
export const isWide = (vocabularySize: number): boolean => vocabularySize > 2 ** 16
export const tokenArray = (vocabularySize: number, length: number): TokenArray =>
  isWide(vocabularySize) ? new Uint32Array(length) : new Uint16Array(length)

export const shardName = (index: number): string => `shard-${String(index).padStart(5, "0")}.arrow`

/** Collects documents and writes them as one shard. */
export class ShardBuilder {
  readonly #vocabularySize: number
  #tokens: TokenArray
  #length = 0
  #offsets: Array<number> = [0]
  #ids: Array<string> = []
  #bytes: Array<number> = []
  textBytes = 0

  constructor(vocabularySize: number) {
    this.#vocabularySize = vocabularySize
    this.#tokens = tokenArray(vocabularySize, 1 << 16)
  }

  get documents(): number {
    return this.#ids.length
  }
  get tokens(): number {
    return this.#length
  }

  /** `tokens` are ids of the vocabulary. */
  add(id: string, tokens: ArrayLike<number>, bytes: number): void {
    const end = this.#length + tokens.length
    if (end > this.#tokens.length) {
      const grown = tokenArray(this.#vocabularySize, Math.max(end, this.#tokens.length * 2))
      grown.set(this.#tokens.subarray(0, this.#length))
      this.#tokens = grown
    }
    this.#tokens.set(tokens, this.#length)
    this.#length = end
    this.#offsets.push(end)
    this.#ids.push(id)
    this.#bytes.push(bytes)
    this.textBytes += bytes
  }

  /** Begins the next shard in the same memory; the columns must be written by now. */
  clear(): void {
    this.#length = 0
    this.#offsets = [0]
    this.#ids = []
    this.#bytes = []
    this.textBytes = 0
  }

  /** The columns so far, as Arrow lays them out; valid until `clear`. */
  columns() {
    const ids = this.#ids.map((id) => Buffer.from(id))
    const idOffsets = new Int32Array(ids.length + 1)
    for (const [row, id] of ids.entries()) idOffsets[row + 1] = (idOffsets[row] ?? 0) + id.length
    return {
      tokens: this.#tokens.subarray(0, this.#length),
      offsets: Int32Array.from(this.#offsets),
      ids: Buffer.concat(ids),
      idOffsets,
      bytes: Uint32Array.from(this.#bytes)
    }
  }
}

/** Writes the collected documents as `folder/name`; nothing may be added meanwhile. Fails on disk errors. */
export const writeShard = Effect.fn("TokenShards.writeShard")(function* (
  builder: ShardBuilder,
  folder: string,
  name: string,
  policy: TokenPolicy
) {
  const library = yield* arrow
  const { Field, List, makeData, Schema: ArrowSchema, Uint16, Uint32, Utf8 } = library
  const item = isWide(policy.vocabulary_size) ? new Uint32() : new Uint16()
  const list = new List(new Field("item", item, false))
  const schema = new ArrowSchema(
    [
      new Field("tokens", list, false),
      new Field("document", new Utf8(), false),
      new Field("bytes", new Uint32(), false)
    ],
    new Map(Object.entries(policy).map(([key, value]) => [key, String(value)]))
  )
  const { tokens, offsets, ids, idOffsets, bytes } = builder.columns()
  const length = builder.documents
  const child =
    tokens instanceof Uint16Array
      ? makeData({ type: new Uint16(), length: tokens.length, nullCount: 0, data: tokens })
      : makeData({ type: new Uint32(), length: tokens.length, nullCount: 0, data: tokens })
  const { sha256 } = yield* Effect.tryPromise({
    try: () => {
      const writer = openWriter(library, join(folder, name))
      writer.write(
        batchOf(library, schema, length, [
          makeData({ type: list, length, nullCount: 0, valueOffsets: offsets, child }),
          makeData({ type: new Utf8(), length, nullCount: 0, valueOffsets: idOffsets, data: ids }),
          makeData({ type: new Uint32(), length, nullCount: 0, data: bytes })
        ])
      )
      return writer.close()
    },
    catch: fileFailure(name)
  })
  const shard: Shard = { path: name, sha256, documents: length, tokens: tokens.length, bytes: builder.textBytes }
  return shard
})

/** Documents of a shard, or of a part of one: row i has tokens[offsets[i] .. offsets[i + 1]). Views of the file's buffer. */
export interface ShardRows {
  readonly documents: number
  readonly tokens: TokenArray
  readonly offsets: Int32Array
  readonly bytes: Uint32Array
  readonly id: (row: number) => string
}

/** The facts of a TokenShards artifact, checked. */
export const factsOf = (handle: ArtifactHandle): Effect.Effect<TokenShardsFacts, StageError> =>
  Schema.decodeUnknownEffect(TokenShardsFacts)(handle.facts).pipe(
    Effect.mapError(
      (error) =>
        new StageError({
          failure: "corrupt",
          message: `${handle.origin}: its facts are not those of token shards: ${error.message}`,
          next: remake(handle)
        })
    )
  )

const remake = (handle: ArtifactHandle): string =>
  `make ${handle.origin} anew: tinyllama run --force ${handle.origin.split(".")[0]}`

const expected = (policy: TokenPolicy): string =>
  `tokens: List<${isWide(policy.vocabulary_size) ? "Uint32" : "Uint16"}>, document: Utf8, bytes: Uint32`

/** Reads one shard and checks all that is said of it: digest, schema, counts, offsets, ids below the vocabulary's size. */
export const readShard = Effect.fn("TokenShards.readShard")(function* (
  handle: ArtifactHandle,
  shard: Shard,
  policy: TokenPolicy,
  room?: Room
) {
  const { batches, metadata, columns, failure } = yield* readBatches({
    file: join(handle.folder, shard.path),
    place: `${handle.origin}: ${shard.path}`,
    remake: remake(handle),
    sha256: shard.sha256,
    room
  })
  if (columns.join(", ") !== expected(policy))
    return yield* failure(`the columns are ${columns.join(", ")}, not ${expected(policy)}`)
  if (metadata["tokenizer_digest"] !== policy.tokenizer_digest)
    return yield* failure("its tokenizer is not the one that the facts name")
  const native = yield* Effect.mapError(
    load,
    (error) => new StageError({ failure: "internal", message: error.message, next: "npm run build:native" })
  )
  const rows = batches.map((batch): ShardRows => {
    const list = columnOf<List<Uint16 | Uint32>>(batch, 0)
    const child = list.children[0] as (typeof list.children)[number] & { readonly values: TokenArray }
    const ids = columnOf<Utf8>(batch, 1)
    return {
      documents: batch.numRows,
      tokens: child.values.subarray(0, child.length),
      offsets: list.valueOffsets.subarray(0, batch.numRows + 1),
      bytes: columnOf<Uint32>(batch, 2).values.subarray(0, batch.numRows),
      id: (row) =>
        Buffer.from(ids.values.subarray(ids.valueOffsets[row] ?? 0, ids.valueOffsets[row + 1] ?? 0)).toString("utf8")
    }
  })
  for (const { documents, tokens, offsets } of rows) {
    const ordered = offsets.every((offset, i) => offset >= (i === 0 ? 0 : (offsets[i - 1] ?? 0)))
    if (!ordered || offsets.length !== documents + 1 || (offsets.at(-1) ?? 0) > tokens.length)
      return yield* failure("its document offsets are out of order")
    if (native.largestId(tokens) >= policy.vocabulary_size)
      return yield* failure(`it has token ids beyond the vocabulary of ${policy.vocabulary_size}`)
  }
  const counted = rows.reduce((sum, { offsets }) => sum + (offsets.at(-1) ?? 0) - (offsets[0] ?? 0), 0)
  const documents = rows.reduce((sum, row) => sum + row.documents, 0)
  if (counted !== shard.tokens || documents !== shard.documents)
    return yield* failure(`it holds ${documents} documents and ${counted} tokens, the facts say otherwise`)
  return rows
})

/** The largest id, -1 for none. */
export const largest = (tokens: Uint16Array | Uint32Array): number => {
  let most = -1
  for (let i = 0; i < tokens.length; i++) if ((tokens[i] ?? 0) > most) most = tokens[i] ?? 0
  return most
}
