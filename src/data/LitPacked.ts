/**
 * lit-gpt's PackedDataset files, as TinyLlama's data was prepared (lit_gpt/packed_dataset.py): 7 bytes "LITPKDS", then little-endian a version (u64, 1), a code
 * of the ids' type (u8), the number of tokens (u64), and the tokens. Files are full: a reader takes the size of all of them from the first.
 */
import { closeSync, openSync, writeSync } from "node:fs"
import { open } from "node:fs/promises"
import { StageError } from "../pipeline/StageType.ts"
import type { TokenArray } from "./TokenShards.ts"

export const magic = "LITPKDS"
export const headerBytes = 24
const version = 1n

/** Codes of numpy's types, as far as token ids come in them. */
const widths: ReadonlyMap<number, { readonly bytes: number; readonly name: string }> = new Map([
  [1, { bytes: 1, name: "uint8" }],
  [3, { bytes: 2, name: "int16" }],
  [4, { bytes: 4, name: "int32" }],
  [5, { bytes: 8, name: "int64" }],
  [8, { bytes: 2, name: "uint16" }]
])

export interface LitHeader {
  readonly type: number
  readonly tokens: number
}

const corrupt = (place: string, reason: string): StageError =>
  new StageError({ failure: "corrupt", message: `${place}: ${reason}`, next: "fetch or prepare the file anew" })

/** The header of a file of `size` bytes. Throws a StageError for what is not such a file, or cut off. */
export const decodeHeader = (header: Uint8Array, size: number, place: string): LitHeader => {
  const view = new DataView(header.buffer, header.byteOffset, header.byteLength)
  if (header.length < headerBytes || Buffer.from(header.subarray(0, 7)).toString("latin1") !== magic)
    throw corrupt(place, `this is no file of lit-gpt's PackedDataset: it does not begin with ${magic}`)
  if (view.getBigUint64(7, true) !== version)
    throw corrupt(place, `its version is ${view.getBigUint64(7, true)}, only 1 is known`)
  const type = view.getUint8(15)
  const width = widths.get(type)
  if (width === undefined) throw corrupt(place, `its ids have the type ${type}, which is not one of whole numbers`)
  const tokens = Number(view.getBigUint64(16, true))
  if (headerBytes + tokens * width.bytes !== size)
    throw corrupt(place, `it states ${tokens} tokens of type ${width.name}, and has ${size} bytes`)
  return { type, tokens }
}

export const encodeHeader = ({ tokens, type }: LitHeader): Uint8Array => {
  const header = Buffer.alloc(headerBytes)
  header.write(magic, "latin1")
  header.writeBigUInt64LE(version, 7)
  header.writeUInt8(type, 15)
  header.writeBigUInt64LE(BigInt(tokens), 16)
  return header
}

/** Tokens read at a time. */
const pieceTokens = 2 ** 18

const idsOf = (type: number, bytes: Uint8Array<ArrayBuffer>, count: number): ArrayLike<number> => {
  switch (type) {
    case 1:
      return bytes.subarray(0, count)
    case 3:
      return new Int16Array(bytes.buffer, 0, count)
    case 4:
      return new Int32Array(bytes.buffer, 0, count)
    case 5:
      return Array.from(new BigInt64Array(bytes.buffer, 0, count), Number)
    default:
      return new Uint16Array(bytes.buffer, 0, count)
  }
}

/** The tokens of a file, in pieces; valid until the next is asked for. Throws a StageError, or an error of the file system. */
export async function* readLitFile(file: string, place: string): AsyncGenerator<ArrayLike<number>> {
  await using handle = await open(file, "r")
  const { size } = await handle.stat()
  const head = await handle.read(new Uint8Array(headerBytes), 0, headerBytes, 0)
  const { tokens, type } = decodeHeader(head.buffer.subarray(0, head.bytesRead), size, place)
  const width = widths.get(type)?.bytes ?? 2
  const buffer = new Uint8Array(pieceTokens * width)
  for (let at = 0; at < tokens;) {
    const count = Math.min(pieceTokens, tokens - at)
    const wanted = count * width
    for (let filled = 0; filled < wanted;) {
      const { bytesRead } = await handle.read(buffer, filled, wanted - filled, headerBytes + at * width + filled)
      if (bytesRead === 0) throw corrupt(place, "it became shorter while it was read")
      filled += bytesRead
    }
    yield idsOf(type, buffer, count)
    at += count
  }
}

/** lit-gpt's choice: uint16 below 65,500 pieces, else int32. */
const typeFor = (vocabularySize: number): number => (vocabularySize < 65_500 ? 8 : 4)

export const litName = (prefix: string, index: number): string => `${prefix}_${String(index).padStart(10, "0")}.bin`

/** Writes blocks as files of `blocksPerFile` each; blocks that do not fill the last one are left out. Calls throw file system errors. */
export class LitWriter {
  readonly #path: (name: string) => string
  readonly #prefix: string
  readonly #type: number
  readonly #perFile: number
  readonly #blockLength: number
  /** Blocks that will be written. */
  readonly blocks: number
  #written = 0
  #descriptor: number | undefined

  constructor(options: {
    readonly path: (name: string) => string
    readonly prefix: string
    readonly vocabularySize: number
    readonly blockLength: number
    readonly blocksPerFile: number
    /** Blocks that there are. */
    readonly blocks: number
  }) {
    this.#path = options.path
    this.#prefix = options.prefix
    this.#type = typeFor(options.vocabularySize)
    this.#perFile = options.blocksPerFile
    this.#blockLength = options.blockLength
    this.blocks = options.blocks - (options.blocks % options.blocksPerFile)
  }

  get files(): number {
    return this.blocks / this.#perFile
  }

  write(block: TokenArray): void {
    if (this.#written === this.blocks) return
    if (this.#descriptor === undefined) {
      this.#descriptor = openSync(this.#path(litName(this.#prefix, this.#written / this.#perFile)), "w")
      this.#put(encodeHeader({ type: this.#type, tokens: this.#perFile * this.#blockLength }))
    }
    const ids = this.#type === 8 ? Uint16Array.from(block) : Int32Array.from(block)
    this.#put(new Uint8Array(ids.buffer))
    if (++this.#written % this.#perFile === 0) this.close()
  }

  #put(bytes: Uint8Array): void {
    for (let at = 0; at < bytes.length;) at += writeSync(this.#descriptor ?? -1, bytes, at)
  }

  close(): void {
    if (this.#descriptor !== undefined) closeSync(this.#descriptor)
    this.#descriptor = undefined
  }
}
