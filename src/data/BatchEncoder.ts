/** Gathers documents into batches for the tokenizer's threads. Two buffers take turns: while one is tokenized, the other is filled. */
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

interface Gathered {
  text: Uint8Array<ArrayBuffer>
  filled: number
  offsets: Array<number>
  entries: Array<Entry>
  documents: Array<DocumentItem>
}

const empty = (text: Uint8Array<ArrayBuffer>): Gathered => ({
  text,
  filled: 0,
  offsets: [0],
  entries: [],
  documents: []
})

export class BatchEncoder {
  readonly #tokenizer: Tokenizer
  readonly #options: { readonly addBos: boolean; readonly addEos: boolean; readonly threads: number }
  #now: Gathered = empty(new Uint8Array(2 * batchBytes))
  #other: Uint8Array<ArrayBuffer> = new Uint8Array(2 * batchBytes)

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

  /** Copies the documents; true: the batch is full. */
  add({ done, file, items }: ItemBatch): boolean {
    const now = this.#now
    for (const item of items) {
      if (item.kind === "passed") {
        now.entries.push({ ...item, done, file })
        continue
      }
      const { bytes, ...entry } = item
      const end = now.filled + bytes.length
      if (end > now.text.length) {
        const grown = new Uint8Array(Math.max(end, 2 * now.text.length))
        grown.set(now.text.subarray(0, now.filled))
        now.text = grown
      }
      now.text.set(bytes, now.filled)
      now.filled = end
      now.offsets.push(end)
      now.entries.push({ ...entry, done, file, length: bytes.length })
      now.documents.push(item)
    }
    return now.filled >= batchBytes || now.entries.length >= 2 ** 16
  }

  /** Tokenizes what was gathered, while the next batch may be gathered. */
  start(): Effect.Effect<Encoded> {
    const { documents, entries, filled, offsets, text } = this.#now
    this.#now = empty(this.#other)
    this.#other = text
    const ends = Uint32Array.from(offsets)
    const whole = documents.every(({ first, last }) => first && last)
    const encoded: Effect.Effect<EncodedBatch> = whole
      ? this.#tokenizer.encodeBatch(text.subarray(0, filled), ends, this.#options)
      : Effect.sync(() => this.#withParts(text, ends, documents))
    return Effect.map(encoded, (batch) => ({ entries, encoded: batch }))
  }

  /** Parts of long documents differ in what goes around them. */
  #withParts(text: Uint8Array, ends: Uint32Array, documents: ReadonlyArray<DocumentItem>): EncodedBatch {
    const { addBos, addEos } = this.#options
    const all = documents.map(({ first, last }, i) =>
      this.#tokenizer.encode(text.subarray(ends[i], ends[i + 1]), {
        addBos: addBos && first,
        addEos: addEos && last,
        dummyPrefix: first
      })
    )
    const ids = new Uint32Array(all.reduce((sum, { length }) => sum + length, 0))
    const offsets = new Uint32Array(all.length + 1)
    for (const [i, part] of all.entries()) {
      ids.set(part, offsets[i])
      offsets[i + 1] = (offsets[i] ?? 0) + part.length
    }
    return { ids, offsets }
  }
}
