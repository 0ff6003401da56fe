/** Values of ggml's tensor formats: what a quantized tensor will be read as, to state the error and to check files. */
import { fromBfloat16, fromFloat16 } from "./HalfPrecision.ts"
import { TENSOR_TYPES, type TensorType } from "./GgufFormat.ts"

/** The types that can be turned back. */
export type ReadableType = Extract<TensorType, "F32" | "F16" | "BF16" | "Q8_0" | "Q4_0">

const halves = (bytes: Uint8Array): Uint16Array => {
  const copy = bytes.slice()
  return new Uint16Array(copy.buffer)
}

/** The scale that starts every block. */
const scalesOf = (bytes: Uint8Array, blockBytes: number): Float32Array => {
  const bits = new Uint16Array(bytes.length / blockBytes)
  for (let block = 0; block < bits.length; block++) {
    bits[block] = bytes[block * blockBytes]! | (bytes[block * blockBytes + 1]! << 8)
  }
  return fromFloat16(bits)
}

export const dequantize = (type: ReadableType, bytes: Uint8Array): Float32Array => {
  switch (type) {
    case "F32":
      return new Float32Array(bytes.slice().buffer)
    case "F16":
      return fromFloat16(halves(bytes))
    case "BF16":
      return fromBfloat16(halves(bytes))
    case "Q8_0": {
      // f16 scale, 32 signed bytes.
      const stride = TENSOR_TYPES.Q8_0.bytes
      const scales = scalesOf(bytes, stride)
      const signed = new Int8Array(bytes.buffer, bytes.byteOffset, bytes.length)
      const out = new Float32Array(scales.length * 32)
      for (let block = 0; block < scales.length; block++) {
        for (let i = 0; i < 32; i++) out[block * 32 + i] = scales[block]! * signed[block * stride + 2 + i]!
      }
      return out
    }
    case "Q4_0": {
      // f16 scale, 16 bytes: value j in the low half of byte j, value j + 16 in the high half, both with 8 added.
      const stride = TENSOR_TYPES.Q4_0.bytes
      const scales = scalesOf(bytes, stride)
      const out = new Float32Array(scales.length * 32)
      for (let block = 0; block < scales.length; block++) {
        for (let i = 0; i < 16; i++) {
          const pair = bytes[block * stride + 2 + i]!
          out[block * 32 + i] = scales[block]! * ((pair & 15) - 8)
          out[block * 32 + i + 16] = scales[block]! * ((pair >> 4) - 8)
        }
      }
      return out
    }
  }
}
