/** Speed of training steps on random tokens: whole ones, and their operations each alone. */
import { Effect } from "effect"
import { type ModelShape, toModelConfig, trainingFlops } from "../model/Architecture.ts"
import { StageError } from "../pipeline/StageType.ts"
import { forecastMemory, type MemoryForecast } from "./GpuMemory.ts"
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

/** Taken away from a GPU while the timed steps run, as communication would: native/device/contention.h. */
export interface Contention {
  readonly multiprocessors: number
  /** Read and written together. */
  readonly gigabytesPerSecond: number
}

export interface TrainingSpeed {
  readonly device: string
  readonly ranks: number
  /** Of all ranks together. Of a world that is not there: of the one rank. */
  readonly tokensPerSecond: number
  readonly stepMillis: { readonly median: number; readonly fastest: number; readonly slowest: number }
  /** Medians: of a micro-batch's forward and backward pass, and of a step's update. */
  readonly microBatchMillis: number
  readonly updateMillis: number
  /** Of a GPU alone. */
  readonly mfu?: ModelFlopsUtilization
  /** From the start of the process. */
  readonly firstStepSeconds: number
  /** Bytes of this rank: what the model holds, what was forecast for that, and what the driver and the communicator took besides. */
  readonly memory: {
    readonly held: number
    readonly forecast: number
    readonly context: number
    readonly communicator: number
  }
  /** What was really moved. */
  readonly contention?: Contention
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
  size: Size & { readonly steps: number; readonly contention?: Contention }
) => Effect.Effect<TrainingSpeed, StageError> = Effect.fn("measureTraining")(function* (shape, options, size) {
  const model: Native.NativeModel = yield* openModel(shape, options)
  model.initialize(3407)
  const { communicator = "single", rank = 0, size: ranks = 1 } = options.world ?? {}
  const batches = Array.from({ length: 8 }, (_, seed) => randomBatch(shape.vocab_size, size, 8 * rank + seed + 1))
  const own = size.microBatch * size.length * size.accumulate
  const tokens = own * ranks
  const timings: Array<{ readonly step: number; readonly microBatch: number; readonly update: number }> = []
  const step = (number: number) =>
    Effect.tryPromise({
      try: async () => {
        const chosen = Array.from({ length: size.accumulate }, (_, i) => batches[(number * size.accumulate + i) % 8])
        // All at once: the engine does them one after the other, and no device waits for JavaScript.
        const start = performance.now()
        const losses = chosen.flatMap((batch, i) =>
          batch === undefined
            ? []
            : [model.accumulate(batch, 1 / tokens, { last: i + 1 === size.accumulate, contributors: ranks })]
        )
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
        const passed = performance.now()
        await stepped
        const end = performance.now()
        timings.push({ step: end - start, microBatch: (passed - start) / size.accumulate, update: end - passed })
        return sums.reduce((sum, { lossSum }) => sum + lossSum, 0) / own
      },
      catch: nativeFailure(`step ${number + 1}`, MEMORY_ADVICE)
    })
  yield* step(0)
  const firstStepSeconds = performance.now() / 1000
  for (let number = 1; number < WARM_UP_STEPS; number++) yield* step(number)
  const { contention } = size
  if (contention !== undefined) yield* contend(model, contention)
  timings.length = 0
  let loss = 0
  for (let number = 0; number < size.steps; number++) loss = yield* step(WARM_UP_STEPS + number)
  const moved = contention === undefined ? undefined : { ...contention, gigabytesPerSecond: model.endContention() }
  const steps = timings.map((timing) => timing.step)
  const rate = (1000 * own) / medianOf(steps)
  const { memory } = model
  const native = yield* Effect.orDie(Native.load)
  const forecast: MemoryForecast = forecastMemory(native, shape, options, {
    batch: size.microBatch,
    length: size.length
  })
  const speed: TrainingSpeed = {
    device: model.deviceName,
    ranks,
    tokensPerSecond: communicator === "fake" ? rate : rate * ranks,
    stepMillis: { median: medianOf(steps), fastest: Math.min(...steps), slowest: Math.max(...steps) },
    microBatchMillis: medianOf(timings.map(({ microBatch }) => microBatch)),
    updateMillis: medianOf(timings.map(({ update }) => update)),
    ...(options.device === "cuda" ? { mfu: utilization(shape, size.length, rate) } : {}),
    firstStepSeconds,
    memory: {
      held: memory.inUse - memory.context - memory.communicator,
      forecast: forecast.planned,
      context: memory.context,
      communicator: memory.communicator
    },
    ...(moved === undefined ? {} : { contention: moved }),
    loss
  }
  return speed
}, Effect.scoped)

/** Longer than any bench: it ends by itself then, should this process not end it. */
const MOST_CONTENTION_SECONDS = 600

const contend = (model: Native.NativeModel, { gigabytesPerSecond, multiprocessors }: Contention) =>
  Effect.try({
    try: () => model.contend(multiprocessors, gigabytesPerSecond, MOST_CONTENTION_SECONDS),
    catch: (cause) =>
      new StageError({
        failure: "invalid-input",
        message: `contention: ${cause instanceof Error ? cause.message : String(cause)}`,
        next: "ask for fewer multiprocessors, on a GPU"
      })
  })

const medianOf = (values: ReadonlyArray<number>): number =>
  values.toSorted((a, b) => a - b)[values.length >> 1] ?? Number.NaN

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
