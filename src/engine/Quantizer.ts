/** Block quantization by the native engine, bit for bit as ggml's own. */
import { Effect, Schema } from "effect"
import * as Native from "./Native.ts"

export const BlockType = Schema.Literals(["F16", "Q8_0", "Q4_0"])
export type BlockType = typeof BlockType.Type

/** Values in a block, which a row must be a multiple of, and the bytes that it takes. */
export const blockLayout: Record<BlockType, { readonly values: number; readonly bytes: number }> = {
  F16: { values: 1, bytes: 2 },
  Q8_0: { values: 32, bytes: 34 },
  Q4_0: { values: 32, bytes: 18 }
}

/** A value is not finite, or the rows do not fit the block; `reason` names the index. */
export class CannotQuantize extends Schema.TaggedError<CannotQuantize>()("CannotQuantize", {
  type: BlockType,
  reason: Schema.String
}) {
  override get message() {
    return `cannot quantize to ${this.type}: ${this.reason}`
  }
}

/** Rows of `columns` values to rows of blocks, off the JavaScript thread. `values` must not change until it is done. */
export const quantize = Effect.fn("Quantizer.quantize")(function* (
  type: BlockType,
  values: Float32Array,
  columns: number
) {
  const native = yield* Native.load
  return yield* Effect.tryPromise({
    try: () => native.quantize(type, values, columns),
    catch: (cause) => new CannotQuantize({ type, reason: cause instanceof Error ? cause.message : String(cause) })
  })
})
