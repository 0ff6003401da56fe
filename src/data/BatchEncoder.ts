/**
 * Gathers documents into batches for the tokenizer's threads. A batch that a reader left in one place is tokenized there, without copying; small ones are
 * put together in two buffers that take turns: while one is tokenized, the other is filled.
 */
import { Effect } from "effect"
import type { EncodedBatch } from "../engine/Native.ts"
import type { Tokenizer } from "../engine/Tokenizer.ts"
import type { DocumentItem, ItemBatch, PassedItem } from "./DocumentReader.ts"

/** Bytes of text after which a batch is full. */
const batchBytes = 2 ** 20

/** A document whose text is in the batch's buffer. */
export type Entry = (PassedItem | (Omit<DocumentItem, "bytes"> & { readonly length: number })) & {
  /** Bytes of the files that were read to get this far. */
  readonly done: number
  /** The number of its file. */
  readonly file: number
}

export interface Encoded {
  readonly entries: ReadonlyArray<Entry>
  /** Document i, counted without what was passed over, has ids [offsets[i], offsets[i + 1]). */
  readonly encoded: EncodedBatch
}

/** Where documents lie in one buffer, and what is known of them. */
class Gathered {
  text: Uint8Array
  filled = 0
  readonly ranges: Array<number> = []
  readonly entries: Array<Entry> = []
  readonly documents: Array<DocumentItem> = []

  constructor(text: Uint8Array) {
    this.text = text
  }

  /** `begin`: of the document in the text. */
  enter(item: DocumentItem, begin: number, at: { readonly done: number; readonly file: number }): void {
    const { bytes, ...entry } = item
    this.ranges.push(begin, begin + bytes.length)
    this.entries.push({ ...entry, ...at, length: bytes.length })
    this.documents.push(item)
  }
}

export class BatchEncoder {
  readonly #tokenizer: Tokenizer
  readonly #options: { readonly addBos: boolean; readonly addEos: boolean; readonly threads: number }
  #buffer: Uint8Array<ArrayBuffer> = new Uint8Array(2 * batchBytes)
  #other: Uint8Array<ArrayBuffer> = new Uint8Array(2 * batchBytes)
  #now = new Gathered(this.#buffer)

  constructor(
    tokenizer: Tokenizer,
    policy: { readonly bos: "document" | "none"; readonly eos: "document" | "none"; readonly threads: number }
  ) {
    this.#tokenizer = tokenizer
    this.#options = {
      addBos: policy.bos === "document",
      addEos: policy.eos === "document",
      threads: policy.threads
    }
  }

  /** Takes documents in; true: the batch is full, and must be started before anything else is added or read. */
  add({ arena, done, file, items }: ItemBatch): boolean {
    const at = { done, file }
    const inPlace = arena !== undefined && this.#now.filled === 0 && textBytes(items) >= batchBytes / 2
    if (inPlace) this.#now.text = arena
    for (const item of items) {
      if (item.kind === "passed") this.#now.entries.push({ ...item, ...at })
      else this.#now.enter(item, inPlace ? item.bytes.byteOffset - arena.byteOffset : this.#copy(item.bytes), at)
    }
    return inPlace || this.#now.filled >= batchBytes || this.#now.entries.length >= 2 ** 16
  }

  /** Where the bytes stand in the buffer now. */
  #copy(bytes: Uint8Array): number {
    const begin = this.#now.filled
    const end = begin + bytes.length
    if (end > this.#buffer.length) {
      const grown = new Uint8Array(Math.max(end, 2 * this.#buffer.length))
      grown.set(this.#buffer.subarray(0, begin))
      this.#buffer = grown
      this.#now.text = grown
    }
    this.#buffer.set(bytes, begin)
    this.#now.filled = end
    return begin
  }

  /** Tokenizes what was gathered, while the next batch may be gathered. The one before must be done. */
  start(): Effect.Effect<Encoded> {
    const { documents, entries, ranges, text } = this.#now
    if (text === this.#buffer) [this.#buffer, this.#other] = [this.#other, this.#buffer]
    this.#now = new Gathered(this.#buffer)
    const places = Uint32Array.from(ranges)
    const whole = documents.every(({ first, last }) => first && last)
    const encoded = whole
      ? this.#tokenizer.encodeRanges(text, places, this.#options)
      : this.#withParts(text, places, documents)
    return Effect.map(encoded, (batch) => ({ entries, encoded: batch }))
  }

  /** Parts of long documents differ in what goes around them; most batches of them are one part. */
  #withParts(
    text: Uint8Array,
    ranges: Uint32Array,
    documents: ReadonlyArray<DocumentItem>
  ): Effect.Effect<EncodedBatch> {
    const { addBos, addEos, threads } = this.#options
    const { dummyPrefix } = this.#tokenizer.vocabulary
    const parts = Effect.forEach(documents, ({ first, last }, i) =>
      this.#tokenizer.encodeRanges(text, ranges.slice(2 * i, 2 * i + 2), {
        addBos: addBos && first,
        addEos: addEos && last,
        dummyPrefix: dummyPrefix && first,
        threads
      })
    )
    return Effect.map(parts, joined)
  }
}

/** The batches, at least one, as one. */
const joined = (batches: ReadonlyArray<EncodedBatch>): EncodedBatch => {
  const [only] = batches
  if (only !== undefined && batches.length === 1) return only
  const ids = new Uint32Array(batches.reduce((sum, batch) => sum + batch.ids.length, 0))
  const offsets = new Uint32Array(batches.length + 1)
  for (const [i, batch] of batches.entries()) {
    ids.set(batch.ids, offsets[i])
    offsets[i + 1] = (offsets[i] ?? 0) + batch.ids.length
  }
  return { ids, offsets }
}

const textBytes = (items: ItemBatch["items"]): number =>
  items.reduce((sum, item) => sum + (item.kind === "document" ? item.bytes.length : 0), 0)
