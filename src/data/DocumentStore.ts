/**
 * Documents of token shards by number, read from the files as they are asked for: memory does not grow with the corpus. Of each document one bit is kept,
 * whether it is held out for validation, and of the first ones of a source where they lie.
 */
import { closeSync, openSync, readSync } from "node:fs"
import type { ShardRows, TokenArray } from "./TokenShards.ts"

/** Open files at a time. */
const mostOpen = 256

/** Bytes of documents' offsets that one source keeps in memory; of a larger one, the rest is read for each document. */
const mostOffsets = 2 ** 22

/** Files of one source that stay open between reads, those used last. Calls throw file system errors. */
export class FilePool {
  readonly #open = new Map<string, number>()
  #buffer = new Uint8Array(1 << 16)
  #offsetsLeft: number

  constructor(mostOffsetBytes = mostOffsets) {
    this.#offsetsLeft = mostOffsetBytes
  }

  /** The offsets, copied, while there is room for them. */
  keptOffsets(offsets: Int32Array): Int32Array | undefined {
    if (offsets.byteLength > this.#offsetsLeft) return undefined
    this.#offsetsLeft -= offsets.byteLength
    return offsets.slice()
  }

  /** Room for a document; the next call may give the same. */
  buffer(bytes: number): Uint8Array<ArrayBuffer> {
    if (bytes > this.#buffer.length) this.#buffer = new Uint8Array(Math.max(bytes, 2 * this.#buffer.length))
    return this.#buffer.subarray(0, bytes)
  }

  read(file: string, bytes: Uint8Array, position: number): void {
    let descriptor = this.#open.get(file)
    if (descriptor === undefined) {
      for (const [oldest, other] of this.#open) {
        if (this.#open.size < mostOpen) break
        closeSync(other)
        this.#open.delete(oldest)
      }
      descriptor = openSync(file, "r")
    } else {
      this.#open.delete(file)
    }
    this.#open.set(file, descriptor)
    for (let at = 0; at < bytes.length;) {
      const read = readSync(descriptor, bytes, at, bytes.length - at, position + at)
      if (read === 0) throw new Error(`${file} ends before byte ${position + bytes.length}`)
      at += read
    }
  }

  close(): void {
    for (const descriptor of this.#open.values()) closeSync(descriptor)
    this.#open.clear()
  }
}

/** Documents in a row, by number from 0. */
export interface DocumentRows {
  readonly documents: number
  readonly tokens: number
  /** Tokens of a document. */
  length(row: number): number
  /** Its tokens; valid until the next call, also one of other documents of the same pool. */
  read(row: number): TokenArray
}

/** Documents that are in memory. */
export const rowsInMemory = ({ documents, offsets, tokens }: ShardRows): DocumentRows => ({
  documents,
  tokens: (offsets[documents] ?? 0) - (offsets[0] ?? 0),
  length: (row) => (offsets[row + 1] ?? 0) - (offsets[row] ?? 0),
  read: (row) => tokens.subarray(offsets[row], offsets[row + 1])
})

/** Documents of a shard that was read and checked before, whose columns are views of the whole file. */
export const rowsInFile = (pool: FilePool, file: string, shard: ShardRows): DocumentRows => {
  const { documents } = shard
  const wide = shard.tokens instanceof Uint32Array
  const width = wide ? 4 : 2
  const tokensAt = shard.tokens.byteOffset
  const offsetsAt = shard.offsets.byteOffset
  const total = (shard.offsets[documents] ?? 0) - (shard.offsets[0] ?? 0)
  // No function below refers to the shard itself: its columns, and with them the whole file, are free once it was checked.
  const range = new Int32Array(2)
  const rangeBytes = new Uint8Array(range.buffer)
  const kept = pool.keptOffsets(shard.offsets)
  const rangeOf = (row: number): readonly [number, number] => {
    if (kept !== undefined) return [kept[row] ?? 0, kept[row + 1] ?? 0]
    pool.read(file, rangeBytes, offsetsAt + row * 4)
    return [range[0] ?? 0, range[1] ?? 0]
  }
  return {
    documents,
    tokens: total,
    length: (row) => {
      const [start, end] = rangeOf(row)
      return end - start
    },
    read: (row) => {
      const [start, end] = rangeOf(row)
      const length = end - start
      const bytes = pool.buffer(length * width)
      pool.read(file, bytes, tokensAt + start * width)
      return wide ? new Uint32Array(bytes.buffer, 0, length) : new Uint16Array(bytes.buffer, 0, length)
    }
  }
}

/** All documents of one input, and which of them are held out for validation. */
export class Source {
  readonly name: string
  documents = 0
  tokens = 0
  tokensHeldOut = 0
  readonly #parts: Array<DocumentRows> = []
  /** #starts[p] is the number of documents before part p. */
  readonly #starts: Array<number> = []
  #heldOut = new Uint8Array(64)

  constructor(name: string, parts: ReadonlyArray<DocumentRows> = []) {
    this.name = name
    for (const part of parts) this.add(part)
  }

  add(part: DocumentRows): void {
    this.#starts.push(this.documents)
    this.#parts.push(part)
    this.documents += part.documents
    this.tokens += part.tokens
    if (this.documents > 8 * this.#heldOut.length) {
      const grown = new Uint8Array(Math.max(this.documents >>> 2, 2 * this.#heldOut.length))
      grown.set(this.#heldOut)
      this.#heldOut = grown
    }
  }

  isHeldOut(index: number): boolean {
    return (((this.#heldOut[index >>> 3] ?? 0) >>> (index & 7)) & 1) === 1
  }

  /** Holds a document of `length` tokens out, once. */
  holdOut(index: number, length: number): void {
    this.#heldOut[index >>> 3] = (this.#heldOut[index >>> 3] ?? 0) | (1 << (index & 7))
    this.tokensHeldOut += length
  }

  #partOf(index: number): readonly [DocumentRows, number] {
    let low = 0
    for (let high = this.#starts.length; high - low > 1;) {
      const middle = (low + high) >>> 1
      if ((this.#starts[middle] ?? 0) <= index) low = middle
      else high = middle
    }
    const part = this.#parts[low]
    if (part === undefined || index >= this.documents) throw new RangeError(`no document ${index} of ${this.documents}`)
    return [part, index - (this.#starts[low] ?? 0)]
  }

  /** The tokens of a document; valid until the next call. */
  document(index: number): TokenArray {
    const [part, row] = this.#partOf(index)
    return part.read(row)
  }

  length(index: number): number {
    const [part, row] = this.#partOf(index)
    return part.length(row)
  }
}
