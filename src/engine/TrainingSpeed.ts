/** Speed of training steps on random tokens: whole ones, and their operations each alone. */
import { Effect } from "effect"
import { type ModelShape, toModelConfig, trainingFlops } from "../model/Architecture.ts"
import { StageError } from "../pipeline/StageType.ts"
import * as Native from "./Native.ts"
import { nativeFailure, openModel } from "./TrainingModel.ts"

/** Dense bf16 of an H100 or H200, by its datasheet: the usual denominator. */
const PEAK_FLOPS = 989e12
const WARM_UP_STEPS = 3
const KERNEL_ROUNDS = 7
const MEMORY_ADVICE = "lower --micro-batch, or choose a stronger --recompute"

export interface Size {
  readonly microBatch: number
  readonly length: number
  readonly accumulate: number
}

/** Shares of the peak, by three ways to count a token's operations. */
export interface ModelFlopsUtilization {
  readonly causal: number
  readonly fullAttention: number
  readonly litgpt: number
}

export interface TrainingSpeed {
  readonly device: string
  readonly tokensPerSecond: number
  readonly stepMillis: { readonly median: number; readonly fastest: number; readonly slowest: number }
  /** Of a GPU alone. */
  readonly mfu?: ModelFlopsUtilization
  /** From the start of the process. */
  readonly firstStepSeconds: number
  /** Bytes in use on the GPU, 0 on the CPU. */
  readonly deviceMemory: number
  readonly loss: number
}

/** Random tokens, each target the token after. */
const randomBatch = (vocabulary: number, { length, microBatch }: Size, seed: number): Native.Batch => {
  const ids = new Int32Array(microBatch * length + 1)
  // Numerical Recipes' generator: all that is asked is that no two batches are alike.
  let state = seed
  for (let i = 0; i < ids.length; i++) {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0
    ids[i] = Math.floor((state / 2 ** 32) * vocabulary)
  }
  return { tokens: ids.subarray(0, -1), targets: ids.subarray(1), batch: microBatch, length }
}

const utilization = (shape: ModelShape, length: number, rate: number): ModelFlopsUtilization => ({
  causal: (rate * trainingFlops["6(N - E) + 6LAT"](shape, length)) / PEAK_FLOPS,
  fullAttention: (rate * trainingFlops["6(N - E) + 12LAT"](shape, length)) / PEAK_FLOPS,
  litgpt: (rate * trainingFlops["6N + 12LAT"](shape, length)) / PEAK_FLOPS
})

export const measureTraining: (
  shape: ModelShape,
  options: Native.ModelOptions,
  size: Size & { readonly steps: number }
) => Effect.Effect<TrainingSpeed, StageError> = Effect.fn("measureTraining")(function* (shape, options, size) {
  const model: Native.NativeModel = yield* openModel(shape, options)
  model.initialize(3407)
  const batches = Array.from({ length: 8 }, (_, seed) => randomBatch(shape.vocab_size, size, seed + 1))
  const tokens = size.microBatch * size.length * size.accumulate
  const step = (number: number) =>
    Effect.tryPromise({
      try: async () => {
        const chosen = Array.from({ length: size.accumulate }, (_, i) => batches[(number * size.accumulate + i) % 8])
        // All at once: the engine does them one after the other, and no device waits for JavaScript.
        const losses = chosen.flatMap((batch) => (batch === undefined ? [] : [model.accumulate(batch, 1 / tokens)]))
        const stepped = model.step({
          step: number + 1,
          learningRate: 4e-4,
          beta1: 0.9,
          beta2: 0.95,
          epsilon: 1e-8,
          weightDecay: 0.1,
          decay: "all",
          clip: 1
        })
        const sums = await Promise.all(losses)
        await stepped
        return sums.reduce((sum, { lossSum }) => sum + lossSum, 0) / tokens
      },
      catch: nativeFailure(`step ${number + 1}`, MEMORY_ADVICE)
    })
  yield* step(0)
  const firstStepSeconds = performance.now() / 1000
  for (let number = 1; number < WARM_UP_STEPS; number++) yield* step(number)
  const millis: Array<number> = []
  let loss = 0
  for (let number = 0; number < size.steps; number++) {
    const start = performance.now()
    loss = yield* step(WARM_UP_STEPS + number)
    millis.push(performance.now() - start)
  }
  millis.sort((a, b) => a - b)
  const median = millis[millis.length >> 1] ?? Number.NaN
  const tokensPerSecond = (1000 * tokens) / median
  const speed: TrainingSpeed = {
    device: model.deviceName,
    tokensPerSecond,
    stepMillis: { median, fastest: millis[0] ?? Number.NaN, slowest: millis.at(-1) ?? Number.NaN },
    ...(options.device === "cuda" ? { mfu: utilization(shape, size.length, tokensPerSecond) } : {}),
    firstStepSeconds,
    deviceMemory: model.deviceMemory,
    loss
  }
  return speed
}, Effect.scoped)

export interface KernelSpeed extends Native.KernelTiming {
  /** Of the step's operations together, each taken alone. */
  readonly shareOfStep: number
  /** Of what this run's fastest product, or plainest reading, reached. */
  readonly shareOfCeiling: number
}

export const measureKernels: (
  shape: ModelShape,
  options: Native.ModelOptions,
  size: Size
) => Effect.Effect<
  {
    readonly device: string
    readonly peaks: { readonly bytes: number; readonly operations: number }
    readonly kernels: ReadonlyArray<KernelSpeed>
  },
  StageError
> = Effect.fn("measureKernels")(function* (shape, options, size) {
  const native = yield* Effect.mapError(
    Native.load,
    (error) => new StageError({ failure: "internal", message: error.message, next: "npm run build:native" })
  )
  const { device, timings } = yield* Effect.tryPromise({
    try: () => native.timeKernels(toModelConfig(shape), options, size.microBatch, size.length, KERNEL_ROUNDS),
    catch: nativeFailure("timing the operations", MEMORY_ADVICE)
  })
  const inStep = (timing: Native.KernelTiming) => timing.seconds * timing.calls * (timing.perStep ? 1 : size.accumulate)
  const total = timings.reduce((sum, timing) => sum + inStep(timing), 0)
  const peaks = {
    bytes: Math.max(
      ...timings.filter(({ operations }) => operations === 0).map(({ bytes, seconds }) => bytes / seconds)
    ),
    operations: Math.max(...timings.map(({ operations, seconds }) => operations / seconds))
  }
  const kernels = timings.map((timing) => ({
    ...timing,
    shareOfStep: inStep(timing) / total,
    shareOfCeiling:
      timing.operations > 0
        ? timing.operations / timing.seconds / peaks.operations
        : timing.bytes / timing.seconds / peaks.bytes
  }))
  return { device, peaks, kernels }
})
