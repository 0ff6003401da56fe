/**
 * Writes GGUF files: header first, then one tensor at a time, so that memory holds no more than the largest. The bytes depend on the arguments alone.
 */
import { createHash } from "node:crypto"
import { Effect, FileSystem, type PlatformError } from "effect"
import {
  DEFAULT_ALIGNMENT,
  GgufError,
  MAGIC,
  MAX_TENSOR_NAME_BYTES,
  padded,
  TENSOR_TYPES,
  type TensorType,
  tensorBytes,
  VALUE_TYPES,
  type ValueType,
  VERSION
} from "./GgufFormat.ts"

export type MetadataValue =
  | { readonly type: "uint32" | "int32" | "float32"; readonly value: number }
  | { readonly type: "bool"; readonly value: boolean }
  | { readonly type: "string"; readonly value: string }
  | { readonly type: "array"; readonly of: "int32" | "float32"; readonly values: ArrayLike<number> }
  | { readonly type: "array"; readonly of: "string"; readonly values: ReadonlyArray<string> }

export interface GgufTensorSource<E = never, R = never> {
  readonly name: string
  readonly type: TensorType
  /** Rows × columns as Hugging Face has it, [out, in], or [n]; the file has it the other way round. */
  readonly shape: ReadonlyArray<number>
  /** Evaluated when its turn comes: the tensor's bytes in `type`. */
  readonly bytes: Effect.Effect<Uint8Array, E, R>
}

/** A growing little-endian buffer. */
class Output {
  private bytes = new Uint8Array(1 << 16)
  private view = new DataView(this.bytes.buffer)
  private length = 0
  /** Makes room for `by` bytes and returns where they start. Take it before `view` or `bytes`: they may be new. */
  private grow(by: number): number {
    const start = this.length
    this.length += by
    if (this.length > this.bytes.length) {
      const larger = new Uint8Array(2 ** Math.ceil(Math.log2(this.length)))
      larger.set(this.bytes)
      this.bytes = larger
      this.view = new DataView(larger.buffer)
    }
    return start
  }
  uint32(value: number) {
    const at = this.grow(4)
    this.view.setUint32(at, value, true)
  }
  int32(value: number) {
    const at = this.grow(4)
    this.view.setInt32(at, value, true)
  }
  float32(value: number) {
    const at = this.grow(4)
    this.view.setFloat32(at, value, true)
  }
  uint64(value: number) {
    const at = this.grow(8)
    this.view.setBigUint64(at, BigInt(value), true)
  }
  bool(value: boolean) {
    const at = this.grow(1)
    this.view.setUint8(at, value ? 1 : 0)
  }
  string(value: string) {
    const bytes = new TextEncoder().encode(value)
    this.uint64(bytes.length)
    const at = this.grow(bytes.length)
    this.bytes.set(bytes, at)
  }
  type(type: ValueType) {
    this.uint32(VALUE_TYPES.indexOf(type))
  }
  value(entry: MetadataValue) {
    this.type(entry.type)
    switch (entry.type) {
      case "bool":
        return this.bool(entry.value)
      case "string":
        return this.string(entry.value)
      case "array":
        this.type(entry.of)
        this.uint64(entry.values.length)
        if (entry.of === "string") for (const value of entry.values) this.string(value)
        else for (let i = 0; i < entry.values.length; i++) this[entry.of](entry.values[i]!)
        return undefined
      default:
        return this[entry.type](entry.value)
    }
  }
  pad(alignment: number) {
    this.grow(padded(this.length, alignment) - this.length)
  }
  done(): Uint8Array {
    return this.bytes.subarray(0, this.length)
  }
}

const elementsOf = (shape: ReadonlyArray<number>): number => shape.reduce((product, size) => product * size, 1)

const header = (
  metadata: ReadonlyArray<readonly [string, MetadataValue]>,
  tensors: ReadonlyArray<Pick<GgufTensorSource, "name" | "type" | "shape">>
): Uint8Array => {
  const out = new Output()
  out.uint32(MAGIC)
  out.uint32(VERSION)
  out.uint64(tensors.length)
  out.uint64(metadata.length)
  for (const [key, entry] of metadata) {
    out.string(key)
    out.value(entry)
  }
  let offset = 0
  for (const { name, shape, type } of tensors) {
    out.string(name)
    out.uint32(shape.length)
    for (const size of shape.toReversed()) out.uint64(size)
    out.uint32(TENSOR_TYPES[type].id)
    out.uint64(offset)
    offset += padded(tensorBytes(type, elementsOf(shape)), DEFAULT_ALIGNMENT)
  }
  out.pad(DEFAULT_ALIGNMENT)
  return out.done()
}

/** Writes `path`, metadata and tensors in the given order, and syncs it. Returns the file's length and digest. */
export const writeGguf = Effect.fn("writeGguf")(function* <E = never, R = never>(
  path: string,
  metadata: ReadonlyArray<readonly [string, MetadataValue]>,
  tensors: ReadonlyArray<GgufTensorSource<E, R>>
) {
  const fs = yield* FileSystem.FileSystem
  const failed = (cause: string) => new GgufError({ path, cause })
  const io = <A, R2>(effect: Effect.Effect<A, PlatformError.PlatformError, R2>) =>
    Effect.mapError(effect, (error) => failed(error.message))
  for (const { name, shape, type } of tensors) {
    if (new TextEncoder().encode(name).length > MAX_TENSOR_NAME_BYTES)
      return yield* failed(`tensor name ${name} is too long`)
    if (shape.at(-1)! % TENSOR_TYPES[type].elements !== 0) {
      return yield* failed(`tensor ${name}: rows of ${shape.at(-1)} values are no multiple of ${type}'s block`)
    }
  }
  const file = yield* io(fs.open(path, { flag: "w" }))
  const hash = createHash("sha256")
  let bytes = 0
  const write = (chunk: Uint8Array) => {
    hash.update(chunk)
    bytes += chunk.length
    return chunk.length === 0 ? Effect.void : io(file.writeAll(chunk))
  }
  yield* write(header(metadata, tensors))
  for (const tensor of tensors) {
    const data = yield* tensor.bytes
    const expected = tensorBytes(tensor.type, elementsOf(tensor.shape))
    if (data.length !== expected) {
      return yield* failed(
        `tensor ${tensor.name} was given ${data.length} bytes for ${tensor.type}, which takes ${expected}`
      )
    }
    yield* write(data)
    yield* write(new Uint8Array(padded(data.length, DEFAULT_ALIGNMENT) - data.length))
  }
  yield* io(file.sync)
  return { bytes, sha256: hash.digest("hex") }
}, Effect.scoped)
