/** Speed of training, and of the matrix products it is made of. */
import { Effect } from "effect"
import type { Batch, Native } from "../../src/engine/Native.ts"
import { type ModelShape, parameterCount, presets, toModelConfig, trainingFlops } from "../../src/model/Architecture.ts"

export interface TrainingCase {
  readonly name: string
  readonly shape: ModelShape
  readonly batch: number
  readonly length: number
}

/** The default model, a 15M-parameter one, and TinyLlama's small sibling. */
export const cases = {
  demo: { name: "tinyllama-demo (d 128)", shape: presets["tinyllama-demo"], batch: 8, length: 256 },
  small: { name: "llama-15m (d 288)", shape: presets["llama-15m"], batch: 8, length: 256 },
  large: { name: "tinyllama-120m (d 768)", shape: presets["tinyllama-120m"], batch: 2, length: 512 }
} as const satisfies Record<string, TrainingCase>

/** For each training step: at least so many steps and seconds, after one step of warm-up. */
export interface Effort {
  readonly seconds: number
  readonly steps: number
}

export const flopsFormula = "6(N - E) + 6LAT" as const
export const flopsWords =
  "6 * (n - V*d) + 6 * L*d*T per token: n parameters without the input embedding V*d, attention over the causal half"

export interface Speed {
  readonly tokensPerSecond: number
  readonly gflops: number
}

export const speedOf = (training: TrainingCase, stepSeconds: number): Speed => {
  const tokensPerSecond = (training.batch * training.length) / stepSeconds
  return {
    tokensPerSecond,
    gflops: (tokensPerSecond * trainingFlops[flopsFormula](training.shape, training.length)) / 1e9
  }
}

export const median = (values: ReadonlyArray<number>): number => {
  const sorted = values.toSorted((a, b) => a - b)
  const middle = sorted.length >> 1
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2
}

const randomBatch = ({ batch, length, shape }: TrainingCase): Batch => {
  const ids = () => Int32Array.from({ length: batch * length }, () => Math.floor(Math.random() * shape.vocab_size))
  return { tokens: ids(), targets: ids(), batch, length }
}

/** Median seconds of a step: forward, backward, clipping by the global norm, AdamW. */
export const trainNative = Effect.fn("trainNative")(function* (
  native: Native,
  training: TrainingCase,
  threads: number,
  effort: Effort
) {
  const model = yield* Effect.acquireRelease(
    Effect.sync(() => new native.Model(toModelConfig(training.shape), { threads })),
    (model) => Effect.sync(() => model.dispose())
  )
  model.initialize(1)
  const batch = randomBatch(training)
  const optimizer = { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weightDecay: 0.1, decay: "all", clip: 1 } as const
  const step = async (index: number) => {
    const start = performance.now()
    await model.accumulate(batch, 1 / batch.tokens.length)
    await model.step({ ...optimizer, step: index, learningRate: 1e-3 })
    return (performance.now() - start) / 1000
  }
  return yield* Effect.promise(async () => {
    await step(1)
    const times: Array<number> = []
    let total = 0
    while (times.length < effort.steps || total < effort.seconds) {
      const seconds = await step(times.length + 2)
      times.push(seconds)
      total += seconds
    }
    return median(times)
  })
}, Effect.scoped)

/** Forward: m × n are rows × outputs. Input gradient: rows × inputs. Weight gradient: outputs × inputs. */
export interface Product {
  readonly name: string
  readonly pass: "forward" | "input gradient" | "weight gradient"
  readonly m: number
  readonly n: number
  readonly k: number
  /** How often a step does it, for the mean. */
  readonly count: number
}

export interface ProductSpeed extends Product {
  readonly gflops: number
  /** The best that was measured next to it: a peak taken in a disturbed moment would flatter. */
  readonly peak: number
  readonly share: number
}

const productsOf = (name: string, count: number, rows: number, width: number, out: number) =>
  ({
    forward: { name, count, pass: "forward", m: rows, n: out, k: width },
    inputGradient: { name, count, pass: "input gradient", m: rows, n: width, k: out },
    weightGradient: { name, count, pass: "weight gradient", m: out, n: width, k: rows }
  }) as const satisfies Record<string, Product>

export const LOSS_HEAD = "lm_head, as the fused loss multiplies"

/** Rounds of measuring every product in turn; a figure is the median over them. */
export const PRODUCT_ROUNDS = 3

/**
 * Every matrix product of one training step: y = x·Wᵀ, dx = dy·W, dW = dyᵀ·x for each weight. The peak is measured again before each, because
 * it drifts on a shared machine.
 */
export const measureProducts = Effect.fn("measureProducts")(function* (
  native: Native,
  training: TrainingCase,
  threads: number,
  seconds: number
) {
  const measurePeak = Effect.promise(() => native.measurePeak(threads, seconds))
  const { head, matmuls, loss } = productsOfStep(training)
  const rounds: Array<ReadonlyArray<Product & { readonly gflops: number; readonly peak: number }>> = []
  for (let round = 0; round < PRODUCT_ROUNDS; round++) {
    const speeds = []
    for (const { product, transposeA, transposeB } of matmuls) {
      const { m, n, k } = product
      const peak = yield* measurePeak
      const gflops = yield* Effect.promise(() =>
        native.measureMatmul(threads, { m, n, k, transposeA, transposeB }, seconds)
      )
      speeds.push({ ...product, gflops, peak })
    }
    const peak = yield* measurePeak
    const rates = yield* Effect.promise(() => native.measureLossProducts(threads, loss, seconds))
    for (const pass of ["forward", "inputGradient", "weightGradient"] as const) {
      speeds.push({ ...head[pass], gflops: rates[pass], peak })
    }
    rounds.push(speeds)
  }
  return rounds[0]!.map((product, index): ProductSpeed => {
    const gflops = median(rounds.map((round) => round[index]!.gflops))
    const peak = Math.max(...rounds.map((round) => round[index]!.peak))
    return { ...product, gflops, peak, share: gflops / peak }
  })
})

const productsOfStep = ({ batch, length, shape }: TrainingCase) => {
  const queries = shape.num_attention_heads * shape.head_dim
  const keys = shape.num_key_value_heads * shape.head_dim
  const rows = batch * length
  const { hidden_size: width, intermediate_size: inner, num_hidden_layers: layers, vocab_size: vocabulary } = shape
  const matmuls = (
    [
      ["qkv", width, queries + 2 * keys],
      ["o", queries, width],
      ["gate_up", width, 2 * inner],
      ["down", inner, width]
    ] as const
  ).flatMap(([name, inputs, outputs]) => {
    const products = productsOf(name, layers, rows, inputs, outputs)
    return [
      { product: products.forward, transposeA: false, transposeB: true },
      { product: products.inputGradient, transposeA: false, transposeB: false },
      { product: products.weightGradient, transposeA: true, transposeB: false }
    ]
  })
  return { matmuls, head: productsOf(LOSS_HEAD, 1, rows, width, vocabulary), loss: { rows, width, vocabulary } }
}

/** All products of a step: their operations over their time, as a rate or as a share of the peak. */
export const meanOf = (products: ReadonlyArray<ProductSpeed>, figure: "gflops" | "share"): number => {
  const operations = products.map(({ m, n, k, count }) => 2 * m * n * k * count)
  const time = products.reduce((sum, product, index) => sum + operations[index]! / product[figure], 0)
  return operations.reduce((sum, value) => sum + value, 0) / time
}

export const parametersOf = (training: TrainingCase): number => parameterCount(training.shape)
