/** Random weights of a given shape, the same on every run, large enough that attention and its rotation decide what comes next. */
import { type ModelShape, tensorShapes } from "../../src/model/Architecture.ts"

/** Grouped-query attention, full vocabulary, rows of whole blocks. */
export const smallShape: ModelShape = {
  vocab_size: 32_000,
  hidden_size: 64,
  intermediate_size: 96,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  head_dim: 16,
  max_position_embeddings: 64,
  rms_norm_eps: 1e-5,
  rope_theta: 10_000,
  tie_word_embeddings: false
}

const uniform = (seed: number) => () => {
  // mulberry32
  seed = (seed + 0x6d2b79f5) | 0
  let t = Math.imul(seed ^ (seed >>> 15), 1 | seed)
  t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
  return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
}

/** Whether two arrays hold the same bits. Deep equality of large arrays takes seconds. */
export const sameBits = (a: Float32Array, b: Float32Array): boolean =>
  Buffer.from(a.buffer, a.byteOffset, a.byteLength).equals(Buffer.from(b.buffer, b.byteOffset, b.byteLength))

export const elementsOf = (shape: ReadonlyArray<number>): number => shape.reduce((product, size) => product * size, 1)

/** By Hugging Face's names. Matrices have a standard deviation of 1.5 / sqrt(columns), the embedding of 1, norms lie around 1. */
export const randomWeights = (shape: ModelShape, seed = 1): ReadonlyMap<string, Float32Array> => {
  const key = JSON.stringify([shape, seed])
  const weights = made.get(key) ?? make(shape, seed)
  made.set(key, weights)
  return weights
}

const made = new Map<string, ReadonlyMap<string, Float32Array>>()

const make = (shape: ModelShape, seed: number): ReadonlyMap<string, Float32Array> =>
  new Map(
    tensorShapes(shape).map((tensor, index) => {
      const next = uniform(seed * 1000 + index)
      const isNorm = tensor.shape.length === 1
      const deviation = tensor.name.includes("embed") ? 1 : 1.5 / Math.sqrt(tensor.shape.at(-1)!)
      const values = Float32Array.from({ length: elementsOf(tensor.shape) }, () =>
        isNorm ? 0.8 + 0.4 * next() : deviation * Math.sqrt(12) * (next() - 0.5)
      )
      return [tensor.name, values]
    })
  )
