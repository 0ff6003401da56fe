import { createHash } from "node:crypto"
import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { blockLayout, quantize } from "../../src/engine/Quantizer.ts"

/** 8 rows of 2048: sums of four steps of a linear congruential generator. */
const goldenInput = () => {
  let state = 1
  return Float32Array.from({ length: 8 * 2048 }, () => {
    let sum = 0
    for (let step = 0; step < 4; step++) {
      state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0
      sum += (state >>> 8) - 8_388_608
    }
    return Math.fround(sum) * 2 ** -29
  })
}

const sha256 = (bytes: Uint8Array) => createHash("sha256").update(bytes).digest("hex").slice(0, 16)

describe("Quantizer", () => {
  it.effect("makes ggml's blocks", () =>
    Effect.gen(function* () {
      const values = goldenInput()
      // The hashes of ggml_quantize_chunk's output for this input; old and new versions of ggml agree on them.
      assert.strictEqual(sha256(yield* quantize("Q8_0", values, 2048)), "1a738177bdfb60ac")
      assert.strictEqual(sha256(yield* quantize("Q4_0", values, 2048)), "cc9e8eaabb2f772f")
    })
  )

  it.effect("rounds to binary16 as the platform's Float16Array", () =>
    Effect.gen(function* () {
      const values = Float32Array.of(
        ...goldenInput(),
        0,
        -0,
        65_504,
        65_520,
        1e-7,
        6e-8,
        2 ** -25,
        3 * 2 ** -26,
        1.0004883,
        1e30
      )
      const halves = yield* quantize("F16", values, values.length)
      const bits = new DataView(halves.buffer, halves.byteOffset, halves.byteLength)
      for (const [index, value] of values.entries())
        assert.strictEqual(bits.getFloat16(2 * index, true), Math.f16round(value))
    })
  )

  it.effect("knows the size of blocks", () =>
    Effect.gen(function* () {
      for (const type of ["F16", "Q8_0", "Q4_0"] as const) {
        const { values, bytes } = blockLayout[type]
        assert.strictEqual((yield* quantize(type, new Float32Array(values * 6), values * 2)).length, bytes * 6)
      }
    })
  )

  it.effect("names the value that is not finite", () =>
    Effect.gen(function* () {
      const values = new Float32Array(64)
      values[37] = Number.NaN
      const error = yield* Effect.flip(quantize("Q8_0", values, 64))
      assert.strictEqual(error.message, "cannot quantize to Q8_0: value 37 is not finite")
      values[37] = Number.NEGATIVE_INFINITY
      assert.strictEqual(
        (yield* Effect.flip(quantize("F16", values, 64))).message,
        "cannot quantize to F16: value 37 is not finite"
      )
    })
  )

  it.effect("refuses rows that are no whole blocks", () =>
    Effect.gen(function* () {
      const error = yield* Effect.flip(quantize("Q4_0", new Float32Array(96), 48))
      assert.match(error.message, /rows of 48 values cannot be quantized: blocks hold 32/u)
      assert.match((yield* Effect.flip(quantize("Q4_0", new Float32Array(96), 64))).message, /no whole rows of 64/u)
    })
  )
})
