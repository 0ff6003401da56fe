/**
 * Conversion between fp32 and the 16-bit floats of model files: IEEE binary16 (fp16) and bfloat16 (bf16). Both round to nearest, ties to even;
 * NaN stays NaN (quiet), values beyond the range become infinite.
 */

/** Every fp16 value by its bits: reading a tensor is one load per element. */
const float16Values = /* @__PURE__ */ (() => {
  let table: Float32Array | undefined
  return (): Float32Array => {
    if (table === undefined) {
      table = new Float32Array(65_536)
      for (let bits = 0; bits < 65_536; bits++) {
        const sign = bits & 0x8000 ? -1 : 1
        const exponent = (bits >> 10) & 31
        const fraction = bits & 1023
        table[bits] =
          exponent === 31
            ? fraction === 0
              ? sign * Infinity
              : NaN
            : exponent === 0
              ? sign * fraction * 2 ** -24
              : sign * (1024 + fraction) * 2 ** (exponent - 25)
      }
    }
    return table
  }
})()

export const fromFloat16 = (bits: Uint16Array): Float32Array => {
  const values = float16Values()
  const out = new Float32Array(bits.length)
  for (let i = 0; i < bits.length; i++) out[i] = values[bits[i]!]!
  return out
}

const bitsOf = (values: Float32Array): Uint32Array => new Uint32Array(values.buffer, values.byteOffset, values.length)

export const toFloat16 = (values: Float32Array): Uint16Array => {
  const bits = bitsOf(values)
  const out = new Uint16Array(values.length)
  for (let i = 0; i < bits.length; i++) {
    const word = bits[i]!
    const sign = (word >>> 16) & 0x8000
    const magnitude = word & 0x7fffffff
    if (magnitude > 0x7f800000) {
      out[i] = sign | 0x7e00
    } else if (magnitude >= 0x477ff000) {
      // 65520 and above lie nearer to 2^16 than to the largest fp16, 65504.
      out[i] = sign | 0x7c00
    } else if (magnitude >= 0x38800000) {
      // Normal: rebias the exponent by 112, drop 13 fraction bits; a carry out of the fraction raises the exponent, as it should.
      out[i] = sign | ((magnitude - 0x38000000 + 0x0fff + ((magnitude >>> 13) & 1)) >>> 13)
    } else if (magnitude < 0x33000000) {
      out[i] = sign
    } else {
      // Subnormal: the result counts units of 2^-24.
      const shift = 126 - (magnitude >>> 23)
      const fraction = (magnitude & 0x007fffff) | 0x00800000
      const kept = fraction >>> shift
      const rest = fraction & ((1 << shift) - 1)
      const half = 1 << (shift - 1)
      out[i] = sign | (kept + (rest > half || (rest === half && kept & 1) ? 1 : 0))
    }
  }
  return out
}

export const fromBfloat16 = (bits: Uint16Array): Float32Array => {
  const words = new Uint32Array(bits.length)
  for (let i = 0; i < bits.length; i++) words[i] = bits[i]! << 16
  return new Float32Array(words.buffer)
}

export const toBfloat16 = (values: Float32Array): Uint16Array => {
  const bits = bitsOf(values)
  const out = new Uint16Array(values.length)
  for (let i = 0; i < bits.length; i++) {
    const word = bits[i]!
    out[i] = (word & 0x7fffffff) > 0x7f800000 ? (word >>> 16) | 0x0040 : (word + 0x7fff + ((word >>> 16) & 1)) >>> 16
  }
  return out
}
