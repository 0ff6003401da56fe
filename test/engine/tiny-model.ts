/** A native model small enough for tests of the training loop, and data that it can learn: each token follows from the one before. */
import { Effect } from "effect"
import * as Native from "../../src/engine/Native.ts"
import type { LearningRateSchedule } from "../../src/engine/Schedule.ts"
import type { TrainingData, TrainingPlan } from "../../src/engine/Trainer.ts"
import type { TrainingBatch } from "../../src/engine/TrainingStep.ts"

export const tinyConfig: Native.ModelConfig = {
  vocab_size: 64,
  hidden_size: 32,
  intermediate_size: 64,
  num_hidden_layers: 1,
  num_attention_heads: 2,
  num_key_value_heads: 1,
  head_dim: 16,
  rms_norm_eps: 1e-5,
  rope_theta: 10_000,
  tie_word_embeddings: false
}

/** Lives as long as the scope. */
export const tinyModel = (seed: number, options: Partial<Native.ModelOptions> = {}) =>
  Effect.acquireRelease(
    Effect.map(Native.load, (native) => {
      const model = new native.Model(tinyConfig, { threads: 1, ...options })
      model.initialize(seed)
      return model
    }),
    (model) => Effect.sync(() => model.dispose())
  )

const LENGTH = 16

const sample = (index: number): ReadonlyArray<number> => {
  const tokens = [(index * 29) % 64]
  while (tokens.length <= LENGTH) tokens.push((tokens.at(-1)! * 5 + 3) % 64)
  return tokens
}

export const batchOf = (indices: ReadonlyArray<number>): TrainingBatch => {
  const rows = indices.map(sample)
  return {
    tokens: Int32Array.from(rows.flatMap((row) => row.slice(0, LENGTH))),
    targets: Int32Array.from(rows.flatMap((row) => row.slice(1))),
    batch: rows.length,
    length: LENGTH,
    inputTokens: rows.length * LENGTH
  }
}

const range = (first: number, count: number) => Array.from({ length: count }, (_, i) => first + i)

/** Micro-batches of two. */
export const tinyData: TrainingData = {
  batches: (first, count) =>
    Effect.succeed(
      range(0, Math.ceil(count / 2)).map((i) => batchOf(range(first + 2 * i, Math.min(2, count - 2 * i))))
    ),
  validation: Effect.succeed([batchOf([1001, 1002]), batchOf([1003])])
}

const schedule: LearningRateSchedule = {
  kind: "cosine",
  peak: 1e-2,
  minimum: 1e-3,
  warmupSteps: 2,
  totalSteps: 12,
  decayFraction: 0.2
}

/** Twelve steps of four samples; the last of two. */
export const tinyPlan: TrainingPlan = {
  totalSamples: 46,
  samplesPerStep: 4,
  schedule,
  optimizer: { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weightDecay: 0.1, decay: "all", clip: 1 },
  seed: 7,
  validateEvery: 4,
  saveEvery: 5,
  keep: 2,
  saveEverySeconds: 3600,
  badSteps: 0,
  logEvery: 3,
  flopsPerToken: 1e5,
  flopsFormula: "6N",
  advice: { diverged: "lower lr.peak", memory: "lower micro_batch" }
}
