/**
 * GGUF version 3, the file format of llama.cpp (ggml's docs/gguf.md): "GGUF", u32 version, u64 tensor count, u64 metadata count, the metadata, the
 * tensor table, then the tensors' data; all little-endian, data start and every tensor padded to the alignment. This file holds what reader and
 * writer share.
 */
import { Schema } from "effect"

export const MAGIC = 0x46554747
export const VERSION = 3
export const DEFAULT_ALIGNMENT = 32
/** ggml keeps names in 64 bytes with their end mark; its loader refuses longer ones. */
export const MAX_TENSOR_NAME_BYTES = 63
export const MAX_DIMENSIONS = 4

/** ggml's tensor types: number in the file, elements and bytes of a block. */
export const TENSOR_TYPES = {
  F32: { id: 0, elements: 1, bytes: 4 },
  F16: { id: 1, elements: 1, bytes: 2 },
  Q4_0: { id: 2, elements: 32, bytes: 18 },
  Q4_1: { id: 3, elements: 32, bytes: 20 },
  Q5_0: { id: 6, elements: 32, bytes: 22 },
  Q5_1: { id: 7, elements: 32, bytes: 24 },
  Q8_0: { id: 8, elements: 32, bytes: 34 },
  Q2_K: { id: 10, elements: 256, bytes: 84 },
  Q3_K: { id: 11, elements: 256, bytes: 110 },
  Q4_K: { id: 12, elements: 256, bytes: 144 },
  Q5_K: { id: 13, elements: 256, bytes: 176 },
  Q6_K: { id: 14, elements: 256, bytes: 210 },
  BF16: { id: 30, elements: 1, bytes: 2 }
} as const
export type TensorType = keyof typeof TENSOR_TYPES

/** Bytes of `elements` values in rows that are whole blocks. */
export const tensorBytes = (type: TensorType, elements: number): number =>
  (elements / TENSOR_TYPES[type].elements) * TENSOR_TYPES[type].bytes

/** Metadata value types by their number in the file. */
export const VALUE_TYPES = [
  "uint8",
  "int8",
  "uint16",
  "int16",
  "uint32",
  "int32",
  "float32",
  "bool",
  "string",
  "array",
  "uint64",
  "int64",
  "float64"
] as const
export type ValueType = (typeof VALUE_TYPES)[number]

export const padded = (length: number, alignment: number): number => Math.ceil(length / alignment) * alignment

export class GgufError extends Schema.TaggedError<GgufError>()("GgufError", {
  path: Schema.String,
  cause: Schema.String
}) {
  override get message() {
    return `${this.path}: not a usable GGUF file: ${this.cause}`
  }
}
