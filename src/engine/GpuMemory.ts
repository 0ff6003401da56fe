/** Whether training fits a GPU, from the engine's own plan of its memory, and the smallest change that makes it fit. */
import { Effect } from "effect"
import { type ModelShape, toModelConfig } from "../model/Architecture.ts"
import { StageError } from "../pipeline/StageType.ts"
import * as Native from "./Native.ts"

type Recompute = NonNullable<Native.ModelOptions["recompute"]>

/** Levels, cheapest first, with the share of time each costs: docs/gpu.md. */
const levels: ReadonlyArray<{ readonly recompute: Recompute; readonly cost: number }> = [
  { recompute: "none", cost: 0 },
  { recompute: "pointwise", cost: 0.01 },
  { recompute: "gate_up", cost: 0.12 },
  { recompute: "full", cost: 0.2 }
]
/** Time that a halved micro-batch costs: smaller products, and the optimizer's share stays. */
const HALVING_COST = 0.02
/** The driver's context, the products' workspace, and scratch: attention's partial sums and a chunk of logits. */
const OVERHEAD_BYTES = 2.5 * 2 ** 30

export interface TrainingSize {
  readonly batch: number
  readonly length: number
}

/** Bytes on the GPU, the driver's and the libraries' own included. */
export const gpuTrainingBytes = (
  native: Native.Native,
  shape: ModelShape,
  options: Native.ModelOptions,
  { batch, length }: TrainingSize
): number => {
  const plan = native.planTrainingMemory(toModelConfig(shape), options, batch, length)
  return plan.weights + plan.gradients + plan.moments + plan.activations + OVERHEAD_BYTES
}

const gibibytes = (bytes: number): string => `${(bytes / 2 ** 30).toFixed(1)} GiB`

/** All weaker demands on memory, by what they cost in time. */
const changes = (options: Native.ModelOptions, { batch, length }: TrainingSize) => {
  const at = levels.findIndex(({ recompute }) => recompute === (options.recompute ?? "none"))
  const halvings = Array.from({ length: Math.floor(Math.log2(batch)) + 1 }, (_, count) => count)
  return halvings
    .flatMap((count) =>
      levels.slice(at).map(({ cost, recompute }) => ({
        recompute,
        batch: batch >> count,
        length,
        cost: cost - (levels[at]?.cost ?? 0) + count * HALVING_COST
      }))
    )
    .sort((a, b) => a.cost - b.cost)
}

/** Fails before anything is computed when the model does not fit; the error names the cheapest change that does. Gives the bytes it will hold. */
export const requireGpuMemory = Effect.fn("requireGpuMemory")(function* (
  shape: ModelShape,
  options: Native.ModelOptions,
  size: TrainingSize
) {
  const native = yield* Effect.orDie(Native.load)
  const gpu = native.gpus().gpus[options.gpu ?? 0]
  if (options.device !== "cuda" || gpu === undefined) return undefined
  const bytes = gpuTrainingBytes(native, shape, options, size)
  if (bytes <= gpu.memory) return { bytes, memory: gpu.memory, name: gpu.name }
  const way = changes(options, size).find(
    (change) => gpuTrainingBytes(native, shape, { ...options, recompute: change.recompute }, change) <= gpu.memory
  )
  const next =
    way === undefined
      ? "choose a smaller model, or a GPU with more memory"
      : `${[
          ...(way.batch === size.batch ? [] : [`set micro_batch to ${way.batch} (batch_tokens keeps the step's size)`]),
          ...(way.recompute === options.recompute ? [] : [`set recompute to ${way.recompute}`])
        ].join(" and ")}: the cheapest change that fits, at about ${Math.round(100 * way.cost)} % of the time`
  return yield* new StageError({
    failure: "out-of-memory",
    message: `training takes ${gibibytes(bytes)} with micro-batches of ${size.batch} × ${size.length} tokens; ${gpu.name} has ${gibibytes(gpu.memory)}`,
    next
  })
})

/** The largest power of two, up to `most` sequences, whose micro-batch fits the GPU. */
export const largestMicroBatch = Effect.fn("largestMicroBatch")(function* (
  shape: ModelShape,
  options: Native.ModelOptions,
  length: number,
  most: number
) {
  const native = yield* Effect.orDie(Native.load)
  const memory = native.gpus().gpus[options.gpu ?? 0]?.memory ?? 0
  let batch = 2 ** Math.floor(Math.log2(most))
  while (batch > 1 && gpuTrainingBytes(native, shape, options, { batch, length }) > memory) batch /= 2
  return batch
})
