/**
 * Reads the header of a GGUF file: metadata and tensor table, for showing and verifying files. Nothing in it is trusted: counts and lengths are
 * checked against named limits and against the bytes that are there before anything is allocated for them.
 */
import { Effect, FileSystem } from "effect"
import {
  DEFAULT_ALIGNMENT,
  GgufError,
  MAGIC,
  MAX_DIMENSIONS,
  MAX_TENSOR_NAME_BYTES,
  padded,
  TENSOR_TYPES,
  type TensorType,
  tensorBytes,
  VALUE_TYPES,
  type ValueType,
  VERSION
} from "./GgufFormat.ts"

/** The largest vocabularies (256,000 pieces with scores and merges) need some 20 MB; a longer header is an attack on memory (CWE-770). */
export const MAX_HEADER_BYTES = 128 << 20
/** Models have some 50 metadata entries, the largest mixtures some 2,000 tensors. */
export const MAX_METADATA_ENTRIES = 1 << 16
export const MAX_TENSORS = 1 << 16
/** Keys are dotted names; the format itself allows 65,535 bytes. */
export const MAX_KEY_BYTES = 65_535
/** Chat templates are the longest strings, tens of kilobytes. */
export const MAX_STRING_BYTES = 1 << 24
/** ggml asks for a power of two; beyond a huge page nobody aligns. */
export const MAX_ALIGNMENT = 1 << 21
/** The first piece of the header to be read; doubled until the header fits. */
const FIRST_READ_BYTES = 1 << 20

/** 64-bit integers beyond 2^53 stay bigint. */
export type GgufScalar = number | bigint | boolean | string
export type GgufValue = GgufScalar | ReadonlyArray<GgufScalar>

export interface GgufTensor {
  readonly name: string
  /** The contiguous dimension first: a matrix [out, in] has dimensions [in, out]. */
  readonly dimensions: ReadonlyArray<number>
  readonly type: TensorType
  readonly elements: number
  readonly byteLength: number
  /** Position of the data in the file. */
  readonly position: number
  readonly bytes: () => Effect.Effect<Uint8Array<ArrayBuffer>, GgufError>
}

export interface GgufFile {
  readonly path: string
  readonly fileBytes: number
  readonly metadata: ReadonlyMap<string, GgufValue>
  readonly tensors: ReadonlyMap<string, GgufTensor>
}

const typesById = new Map<number, TensorType>(
  Object.entries(TENSOR_TYPES).map(([name, { id }]) => [id, name as TensorType])
)

/** The header goes on beyond the bytes that were read; `needed` is how far at least. */
class Incomplete extends Error {
  readonly needed: number
  constructor(needed: number) {
    super()
    this.needed = needed
  }
}
class Malformed extends Error {}

/** Smallest encoding of a value of each type: what an array's count is checked against. */
const smallest: Readonly<Record<ValueType, number>> = {
  uint8: 1,
  int8: 1,
  uint16: 2,
  int16: 2,
  uint32: 4,
  int32: 4,
  float32: 4,
  bool: 1,
  string: 8,
  array: 12,
  uint64: 8,
  int64: 8,
  float64: 8
}

/** Reads on from the start of `bytes`, the first part of a file of `fileBytes`. Throws Incomplete or Malformed, which stay in this file. */
class Cursor {
  position = 0
  readonly bytes: Uint8Array
  private readonly fileBytes: number
  private readonly view: DataView
  private readonly text = new TextDecoder("utf-8", { ignoreBOM: true })
  constructor(bytes: Uint8Array, fileBytes: number) {
    this.bytes = bytes
    this.fileBytes = fileBytes
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  }
  fail(cause: string): never {
    throw new Malformed(`${cause} (at byte ${this.position})`)
  }
  /** Claims the next `length` bytes and returns where they start. */
  take(length: number): number {
    const start = this.position
    const end = start + length
    if (end > this.fileBytes) this.fail(`${length} bytes are needed, the file has ${this.fileBytes - start} more`)
    if (end > MAX_HEADER_BYTES) this.fail(`the header exceeds the limit of ${MAX_HEADER_BYTES} bytes`)
    if (end > this.bytes.length) throw new Incomplete(end)
    this.position = end
    return start
  }
  uint32(): number {
    return this.view.getUint32(this.take(4), true)
  }
  int64(signed: boolean): number | bigint {
    const start = this.take(8)
    const value = signed ? this.view.getBigInt64(start, true) : this.view.getBigUint64(start, true)
    return value >= Number.MIN_SAFE_INTEGER && value <= Number.MAX_SAFE_INTEGER ? Number(value) : value
  }
  count(what: string, limit: number, smallestItem: number): number {
    const value = this.int64(false)
    if (typeof value === "bigint" || value > limit) return this.fail(`${value} ${what} exceed the limit of ${limit}`)
    if (value * smallestItem > this.fileBytes - this.position) this.fail(`${value} ${what} do not fit in the file`)
    return value
  }
  string(limit: number): string {
    const length = this.count("bytes of a string", limit, 1)
    const start = this.take(length)
    return this.text.decode(this.bytes.subarray(start, start + length))
  }
  valueType(): ValueType {
    const id = this.uint32()
    return VALUE_TYPES[id] ?? this.fail(`unknown value type ${id}`)
  }
  scalar(type: ValueType): GgufScalar {
    const { view } = this
    switch (type) {
      case "uint8":
        return view.getUint8(this.take(1))
      case "int8":
        return view.getInt8(this.take(1))
      case "uint16":
        return view.getUint16(this.take(2), true)
      case "int16":
        return view.getInt16(this.take(2), true)
      case "uint32":
        return this.uint32()
      case "int32":
        return view.getInt32(this.take(4), true)
      case "float32":
        return view.getFloat32(this.take(4), true)
      case "bool":
        return view.getUint8(this.take(1)) !== 0
      case "string":
        return this.string(MAX_STRING_BYTES)
      case "uint64":
        return this.int64(false)
      case "int64":
        return this.int64(true)
      case "float64":
        return view.getFloat64(this.take(8), true)
      case "array":
        return this.fail("an array in an array")
    }
  }
  value(): GgufValue {
    const type = this.valueType()
    if (type !== "array") return this.scalar(type)
    const items = this.valueType()
    const count = this.count("array items", MAX_HEADER_BYTES, smallest[items])
    const values: Array<GgufScalar> = []
    for (let i = 0; i < count; i++) values.push(this.scalar(items))
    return values
  }
}

const readMetadata = (cursor: Cursor, count: number): ReadonlyMap<string, GgufValue> => {
  const metadata = new Map<string, GgufValue>()
  for (let i = 0; i < count; i++) {
    const key = cursor.string(MAX_KEY_BYTES)
    if (metadata.has(key)) cursor.fail(`the key ${key} comes twice`)
    metadata.set(key, cursor.value())
  }
  return metadata
}

interface TableEntry {
  readonly name: string
  readonly dimensions: ReadonlyArray<number>
  readonly type: TensorType
  readonly elements: number
  readonly offset: number
}

const readTable = (cursor: Cursor, count: number): ReadonlyArray<TableEntry> => {
  const names = new Set<string>()
  return Array.from({ length: count }, () => {
    const name = cursor.string(MAX_TENSOR_NAME_BYTES)
    if (names.has(name)) cursor.fail(`the tensor ${name} comes twice`)
    names.add(name)
    const rank = cursor.uint32()
    if (rank > MAX_DIMENSIONS) cursor.fail(`tensor ${name} has ${rank} dimensions, more than ${MAX_DIMENSIONS}`)
    let elements = 1
    const dimensions = Array.from({ length: rank }, () => {
      const size = cursor.int64(false)
      // The product is checked at every step: a short file can claim more elements than there are atoms.
      if (typeof size === "bigint" || elements * size > Number.MAX_SAFE_INTEGER) {
        return cursor.fail(`tensor ${name} has too many elements`)
      }
      elements *= size
      return size
    })
    const id = cursor.uint32()
    const type = typesById.get(id) ?? cursor.fail(`tensor ${name} has the unknown type ${id}`)
    const block = TENSOR_TYPES[type].elements
    if ((dimensions[0] ?? 1) % block !== 0) {
      cursor.fail(`tensor ${name}: rows of ${dimensions[0]} values are no multiple of ${type}'s block of ${block}`)
    }
    const offset = cursor.int64(false)
    return typeof offset === "bigint"
      ? cursor.fail(`tensor ${name} starts at ${offset}`)
      : { name, dimensions, type, elements, offset }
  })
}

/** What the header says, with the data's position; `bytes` is the file's beginning. */
const parse = (bytes: Uint8Array, fileBytes: number) => {
  const cursor = new Cursor(bytes, fileBytes)
  if (cursor.uint32() !== MAGIC) cursor.fail("it does not begin with GGUF")
  const version = cursor.uint32()
  if (version !== VERSION) cursor.fail(`version ${version}, only ${VERSION} can be read`)
  const tensorCount = cursor.count("tensors", MAX_TENSORS, 24)
  const metadataCount = cursor.count("metadata entries", MAX_METADATA_ENTRIES, 13)
  const metadata = readMetadata(cursor, metadataCount)
  const alignment = metadata.get("general.alignment") ?? DEFAULT_ALIGNMENT
  if (
    typeof alignment !== "number" ||
    !(alignment >= 1 && alignment <= MAX_ALIGNMENT) ||
    !Number.isInteger(Math.log2(alignment))
  ) {
    return cursor.fail(`an alignment of ${String(alignment)}`)
  }
  const table = readTable(cursor, tensorCount)
  const dataStart = padded(cursor.position, alignment)
  let end = 0
  for (const { name, offset, type, elements } of table) {
    if (offset !== end)
      cursor.fail(`tensor ${name} starts at ${offset}, not at ${end}: data must have no gap or overlap`)
    const length = tensorBytes(type, elements)
    if (dataStart + offset + length > fileBytes) {
      cursor.fail(`tensor ${name} needs ${length} bytes from ${dataStart + offset} on, the file has ${fileBytes}`)
    }
    end = padded(offset + length, alignment)
  }
  return { metadata, table, dataStart }
}

/** `parse`, with its two signals as values; anything else is a fault of this file. */
const tryParse = (bytes: Uint8Array, fileBytes: number): ReturnType<typeof parse> | Incomplete | Malformed => {
  try {
    return parse(bytes, fileBytes)
  } catch (signal) {
    if (signal instanceof Incomplete || signal instanceof Malformed) return signal
    throw signal
  }
}

/** Opens `path` and reads its header; a tensor's data come when asked for. Nothing stays open. */
export const readGguf: (path: string) => Effect.Effect<GgufFile, GgufError, FileSystem.FileSystem> = Effect.fn(
  "readGguf"
)(function* (path) {
  const fs = yield* FileSystem.FileSystem
  const failed = (cause: string) => new GgufError({ path, cause })
  const opened = fs.open(path, { flag: "r" }).pipe(Effect.mapError((error) => failed(error.message)))
  const readRange = (position: number, length: number) =>
    Effect.scoped(
      Effect.gen(function* () {
        const file = yield* opened
        const out = new Uint8Array(length)
        for (let done = 0; done < length;) {
          // Node refuses single reads of 2 GiB and above.
          const target = out.subarray(done, Math.min(length, done + (1 << 30)))
          const count = yield* file
            .read(target, { position: BigInt(position + done) })
            .pipe(Effect.mapError((error) => failed(error.message)))
          if (count === 0) return yield* failed(`the file ends at byte ${position + done}`)
          done += count
        }
        return out
      })
    )
  const fileBytes = Number((yield* fs.stat(path).pipe(Effect.mapError((error) => failed(error.message)))).size)
  let length = Math.min(fileBytes, FIRST_READ_BYTES)
  for (;;) {
    const bytes = yield* readRange(0, length)
    const result = tryParse(bytes, fileBytes)
    if (result instanceof Malformed) return yield* failed(result.message)
    if (result instanceof Incomplete) {
      length = Math.min(fileBytes, Math.max(2 * length, result.needed))
      continue
    }
    const tensors = new Map<string, GgufTensor>()
    for (const { name, dimensions, type, elements, offset } of result.table) {
      const position = result.dataStart + offset
      const byteLength = tensorBytes(type, elements)
      tensors.set(name, {
        name,
        dimensions,
        type,
        elements,
        byteLength,
        position,
        bytes: () => readRange(position, byteLength)
      })
    }
    return { path, fileBytes, metadata: result.metadata, tensors }
  }
})
