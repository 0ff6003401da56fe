/**
 * Hugging Face's safetensors format: u64 length of a JSON header, the header, then the tensors' bytes without gaps, little-endian.
 * Reading touches the header only; a tensor's bytes come when asked for, so files beyond 4 GB need no more memory than their largest tensor.
 * A header is not trusted: every number in it is checked against a named limit or against the file's length before it is used.
 */
import { createHash } from "node:crypto"
import { Effect, FileSystem, type PlatformError, Schema, type Scope } from "effect"
import { fromBfloat16, fromFloat16, toBfloat16, toFloat16 } from "./HalfPrecision.ts"

/** The reference implementation's own limit: a 100 MB header describes over half a million tensors (CWE-770: allocation on a claim). */
export const MAX_HEADER_BYTES = 100_000_000
/** Weights have 1 or 2 dimensions, convolutions 4 or 5; a longer list only serves overflow games with the product. */
export const MAX_DIMENSIONS = 8
/** One read call: Node refuses lengths of 2 GiB and above. */
const READ_BYTES = 1 << 30

export const DTYPE_BYTES = {
  F64: 8,
  F32: 4,
  F16: 2,
  BF16: 2,
  I64: 8,
  I32: 4,
  I16: 2,
  I8: 1,
  U64: 8,
  U32: 4,
  U16: 2,
  U8: 1,
  BOOL: 1,
  F8_E4M3: 1,
  F8_E5M2: 1
} as const
export type Dtype = keyof typeof DTYPE_BYTES
/** The dtypes that are written. */
export type FloatDtype = "F32" | "F16" | "BF16"

const Count = Schema.Int.check(Schema.isGreaterThanOrEqualTo(0))
const HeaderEntry = Schema.Struct({
  dtype: Schema.Literals(Object.keys(DTYPE_BYTES) as ReadonlyArray<Dtype>),
  shape: Schema.Array(Count).check(Schema.isMaxLength(MAX_DIMENSIONS)),
  data_offsets: Schema.Tuple([Count, Count])
})
const Metadata = Schema.Record(Schema.String, Schema.String)
const decodeEntry = Schema.decodeUnknownEffect(HeaderEntry)
const decodeMetadata = Schema.decodeUnknownEffect(Metadata)

export class SafetensorsError extends Schema.TaggedError<SafetensorsError>()("SafetensorsError", {
  path: Schema.String,
  cause: Schema.String
}) {
  override get message() {
    return `${this.path}: not a usable safetensors file: ${this.cause}`
  }
}

export interface SafetensorsTensor {
  readonly name: string
  readonly dtype: Dtype
  readonly shape: ReadonlyArray<number>
  /** Product of the shape. */
  readonly elements: number
  readonly byteLength: number
  /** Of its first byte in the file. */
  readonly byteOffset: number
  /** The stored bytes, read anew at each call. */
  readonly bytes: () => Effect.Effect<Uint8Array<ArrayBuffer>, SafetensorsError>
  /** The values in row-major order; F32, F16, BF16 and F64 only. */
  readonly toFloat32: () => Effect.Effect<Float32Array, SafetensorsError>
}

export interface SafetensorsFile {
  readonly path: string
  /** Bytes in front of the data. */
  readonly headerBytes: number
  readonly metadata: Readonly<Record<string, string>>
  /** By name, in the order of their data. */
  readonly tensors: ReadonlyMap<string, SafetensorsTensor>
}

const elementsOf = (shape: ReadonlyArray<number>): number => shape.reduce((product, size) => product * size, 1)

/** The system's own words say more than the tag ("ENOSPC: no space left on device, write"). */
const toError = (path: string) => (error: PlatformError.PlatformError) =>
  new SafetensorsError({ path, cause: error.cause instanceof Error ? error.cause.message : error.message })

/** Reads exactly `length` bytes from `position` on. */
const readRange = Effect.fnUntraced(function* (file: FileSystem.File, path: string, position: number, length: number) {
  const out = new Uint8Array(length)
  let done = 0
  while (done < length) {
    const target = out.subarray(done, Math.min(length, done + READ_BYTES))
    const count = yield* file.read(target, { position: BigInt(position + done) }).pipe(Effect.mapError(toError(path)))
    if (count === 0) return yield* new SafetensorsError({ path, cause: `the file ends at byte ${position + done}` })
    done += count
  }
  return out
})

const parseHeader = Effect.fnUntraced(function* (path: string, bytes: Uint8Array) {
  const json = yield* Effect.try({
    try: (): unknown => JSON.parse(new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes)),
    catch: (error) => new SafetensorsError({ path, cause: `the header is not JSON: ${String(error)}` })
  })
  if (typeof json !== "object" || json === null || Array.isArray(json)) {
    return yield* new SafetensorsError({ path, cause: "the header is not a JSON object" })
  }
  return Object.entries(json as Readonly<Record<string, unknown>>)
})

/** Opens `path`, checks its header against the file's length, and describes its tensors. Nothing stays open. */
export const readSafetensors: (
  path: string
) => Effect.Effect<SafetensorsFile, SafetensorsError, FileSystem.FileSystem> = Effect.fn("readSafetensors")(
  function* (path) {
    const fs = yield* FileSystem.FileSystem
    const invalid = (cause: string) => new SafetensorsError({ path, cause })
    const withFile = <A>(use: (file: FileSystem.File) => Effect.Effect<A, SafetensorsError, Scope.Scope>) =>
      fs.open(path, { flag: "r" }).pipe(Effect.mapError(toError(path)), Effect.flatMap(use), Effect.scoped)

    const { dataStart, dataBytes, entries } = yield* withFile((file) =>
      Effect.gen(function* () {
        const size = Number((yield* file.stat.pipe(Effect.mapError(toError(path)))).size)
        if (size < 8) return yield* invalid(`${size} bytes, fewer than the 8 of the header's length`)
        const prefix = yield* readRange(file, path, 0, 8)
        const claimed = new DataView(prefix.buffer).getBigUint64(0, true)
        if (claimed > BigInt(MAX_HEADER_BYTES)) {
          return yield* invalid(`a header of ${claimed} bytes exceeds the limit of ${MAX_HEADER_BYTES}`)
        }
        const length = Number(claimed)
        if (length + 8 > size) return yield* invalid(`a header of ${length} bytes in a file of ${size}`)
        const header = yield* readRange(file, path, 8, length)
        return { dataStart: 8 + length, dataBytes: size - 8 - length, entries: yield* parseHeader(path, header) }
      })
    )

    let metadata: Readonly<Record<string, string>> = {}
    const found: Array<{ readonly name: string; readonly entry: typeof HeaderEntry.Type }> = []
    for (const [name, value] of entries) {
      if (name === "__metadata__") {
        metadata = yield* decodeMetadata(value).pipe(
          Effect.mapError((error) => invalid(`__metadata__: ${error.message}`))
        )
      } else {
        const entry = yield* decodeEntry(value).pipe(
          Effect.mapError((error) => invalid(`tensor ${name}: ${error.message}`))
        )
        found.push({ name, entry })
      }
    }
    found.sort(
      (a, b) => a.entry.data_offsets[0] - b.entry.data_offsets[0] || a.entry.data_offsets[1] - b.entry.data_offsets[1]
    )

    const tensors = new Map<string, SafetensorsTensor>()
    let end = 0
    for (const { name, entry } of found) {
      const [from, to] = entry.data_offsets
      const elements = elementsOf(entry.shape)
      const byteLength = elements * DTYPE_BYTES[entry.dtype]
      if (from !== end)
        return yield* invalid(`tensor ${name} starts at ${from}, not at ${end}: data must have no gap or overlap`)
      if (to < from || to > dataBytes) return yield* invalid(`tensor ${name} ends at ${to} of ${dataBytes} data bytes`)
      if (byteLength !== to - from) {
        return yield* invalid(
          `tensor ${name}: ${entry.dtype} [${entry.shape.join(", ")}] takes ${byteLength} bytes, not ${to - from}`
        )
      }
      end = to
      const bytes = () => withFile((file) => readRange(file, path, dataStart + from, byteLength))
      const toFloat32 = () =>
        Effect.flatMap(bytes(), (stored) => {
          switch (entry.dtype) {
            case "F32":
              return Effect.succeed(new Float32Array(stored.buffer))
            case "F16":
              return Effect.succeed(fromFloat16(new Uint16Array(stored.buffer)))
            case "BF16":
              return Effect.succeed(fromBfloat16(new Uint16Array(stored.buffer)))
            case "F64":
              return Effect.succeed(Float32Array.from(new Float64Array(stored.buffer)))
            default:
              return Effect.fail(invalid(`tensor ${name} is ${entry.dtype}, not a float type`))
          }
        })
      const byteOffset = dataStart + from
      tensors.set(name, {
        name,
        dtype: entry.dtype,
        shape: entry.shape,
        elements,
        byteLength,
        byteOffset,
        bytes,
        toFloat32
      })
    }
    if (end !== dataBytes) return yield* invalid(`${dataBytes - end} bytes after the last tensor`)
    return { path, headerBytes: dataStart, metadata, tensors }
  }
)

/** A tensor to write. `values` is evaluated when its turn comes: fp32 values, rounded to `dtype`, or bytes that are in `dtype` already. */
export interface TensorSource<E = never, R = never> {
  readonly name: string
  readonly dtype: FloatDtype
  readonly shape: ReadonlyArray<number>
  readonly values: Effect.Effect<Float32Array | Uint8Array, E, R>
}

/** fp32 values as the little-endian bytes of `dtype`. */
export const encodeFloats = (values: Float32Array, dtype: FloatDtype): Uint8Array => {
  const typed = dtype === "F32" ? values : dtype === "F16" ? toFloat16(values) : toBfloat16(values)
  return new Uint8Array(typed.buffer, typed.byteOffset, typed.byteLength)
}

/** The order of the reference implementation: wide dtypes first, then names by code point, so that every tensor is aligned. */
export const inFileOrder = <T extends { readonly name: string; readonly dtype: FloatDtype }>(
  tensors: Iterable<T>
): ReadonlyArray<T> => {
  // BF16 comes before F16 where both occur, as in the reference's enumeration of types.
  const rank = { F32: 0, BF16: 1, F16: 2 } as const
  return [...tensors].sort((a, b) => rank[a.dtype] - rank[b.dtype] || (a.name < b.name ? -1 : a.name > b.name ? 1 : 0))
}

/** The header with its length in front, padded with spaces to a multiple of 8 bytes. */
const encodeHeader = (
  tensors: ReadonlyArray<{ readonly name: string; readonly dtype: FloatDtype; readonly shape: ReadonlyArray<number> }>,
  metadata: Readonly<Record<string, string>>
): Uint8Array => {
  let offset = 0
  const entries = tensors.map(({ name, dtype, shape }): [string, unknown] => {
    const from = offset
    offset += elementsOf(shape) * DTYPE_BYTES[dtype]
    return [name, { dtype, shape, data_offsets: [from, offset] }]
  })
  const keys = Object.keys(metadata).sort()
  const head: ReadonlyArray<[string, unknown]> =
    keys.length === 0 ? [] : [["__metadata__", Object.fromEntries(keys.map((key) => [key, metadata[key]]))]]
  // Entry by entry: an object would move integer-like names to the front.
  const text = `{${[...head, ...entries].map(([key, value]) => `${JSON.stringify(key)}:${JSON.stringify(value)}`).join(",")}}`
  const json = new TextEncoder().encode(text)
  const length = Math.ceil(json.length / 8) * 8
  const out = new Uint8Array(8 + length).fill(0x20)
  new DataView(out.buffer).setBigUint64(0, BigInt(length), true)
  out.set(json, 8)
  return out
}

/**
 * Writes `path` in the reference implementation's order, one tensor at a time, and syncs it. The bytes depend on the arguments alone.
 * Returns the file's length and digest, both taken on the way out.
 */
export const writeSafetensors = Effect.fn("writeSafetensors")(function* <E = never, R = never>(
  path: string,
  tensors: Iterable<TensorSource<E, R>>,
  metadata: Readonly<Record<string, string>> = {}
) {
  const fs = yield* FileSystem.FileSystem
  const ordered = inFileOrder(tensors)
  const hash = createHash("sha256")
  const file = yield* fs.open(path, { flag: "w" }).pipe(Effect.mapError(toError(path)))
  let bytes = 0
  const write = (chunk: Uint8Array) => {
    hash.update(chunk)
    bytes += chunk.length
    return chunk.length === 0 ? Effect.void : file.writeAll(chunk).pipe(Effect.mapError(toError(path)))
  }
  yield* write(encodeHeader(ordered, metadata))
  for (const { name, dtype, shape, values } of ordered) {
    const given = yield* values
    const data = given instanceof Float32Array ? encodeFloats(given, dtype) : given
    const expected = elementsOf(shape) * DTYPE_BYTES[dtype]
    if (data.length !== expected) {
      return yield* new SafetensorsError({
        path,
        cause: `tensor ${name} was given ${data.length} bytes for ${dtype} [${shape.join(", ")}], which takes ${expected}`
      })
    }
    yield* write(data)
  }
  yield* file.sync.pipe(Effect.mapError(toError(path)))
  return { bytes, sha256: hash.digest("hex") }
}, Effect.scoped)
