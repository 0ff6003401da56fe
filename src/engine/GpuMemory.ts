/** Whether training fits a GPU, from the engine's own plan of its memory, and the smallest change that makes it fit. */
import { Effect, Result } from "effect"
import { type ModelShape, toModelConfig } from "../model/Architecture.ts"
import { StageError } from "../pipeline/StageType.ts"
import * as Native from "./Native.ts"

type Recompute = NonNullable<Native.ModelOptions["recompute"]>
type Strategy = NonNullable<Native.ModelOptions["strategy"]>

/** Levels, cheapest first, with the share of time each costs: docs/gpu.md. */
const levels: ReadonlyArray<{ readonly recompute: Recompute; readonly cost: number }> = [
  { recompute: "none", cost: 0 },
  { recompute: "pointwise", cost: 0.01 },
  { recompute: "gate_up", cost: 0.12 },
  { recompute: "full", cost: 0.2 }
]
/** Strategies by what they keep on a rank, most first; fsdp and hsdp gather weights again for each pass: docs/distributed.md. */
const strategies: ReadonlyArray<{ readonly strategy: Strategy; readonly cost: number }> = [
  { strategy: "none", cost: 0 },
  { strategy: "zero2", cost: 0.001 },
  { strategy: "hsdp", cost: 0.02 },
  { strategy: "fsdp", cost: 0.03 }
]
/** Time that a halved micro-batch costs: smaller products, and the optimizer's share stays. */
const HALVING_COST = 0.02
/** Sums over ranks after every micro-batch instead of once a step. */
const SHARED_GRADIENTS_COST = 0.03
/** Twice as many ranks finish sooner, but want GPUs: after all that costs less than this, and last where this machine has no more. */
const MORE_GPUS_COST = 0.05
const MORE_MACHINES_COST = 0.5
const MOST_RANKS = 64

/** The driver's context, the code of kernels, and recorded graphs, which no plan knows: docs/gpu.md. */
export const CONTEXT_BYTES = 0.75 * 2 ** 30
/** NCCL's buffers and code for one communicator: what its documentation and others report are some hundreds of megabytes. */
export const NCCL_BYTES = 0.5 * 2 ** 30

/** hsdp has one of the world, one of those who share a copy, and one of those who hold the same share. */
const communicatorsOf = ({ shardSize = 1, strategy, world }: Native.ModelOptions): number => {
  if (world === undefined || world.size === 1) return 0
  return strategy === "hsdp" && shardSize > 1 && shardSize < world.size ? 3 : 1
}

export interface TrainingSize {
  readonly batch: number
  readonly length: number
}

/** Bytes on one rank's device, by purpose. */
export interface MemoryForecast {
  readonly weights: number
  readonly gradients: number
  readonly moments: number
  readonly activations: number
  /** What the engine's operations hold for themselves: scratch memory and workspaces. */
  readonly overhead: number
  /** Of a GPU: the driver's, and NCCL's. */
  readonly context: number
  readonly communicator: number
  /** All but the last two: what the engine itself takes. */
  readonly planned: number
  readonly total: number
}

/** Throws an Error where the strategy does not fit the number of ranks. */
export const forecastMemory = (
  native: Pick<Native.Native, "planTrainingMemory">,
  shape: ModelShape,
  options: Native.ModelOptions,
  { batch, length }: TrainingSize
): MemoryForecast => {
  const plan = native.planTrainingMemory(toModelConfig(shape), options, batch, length)
  const planned = plan.weights + plan.gradients + plan.moments + plan.activations + plan.overhead
  const gpu = options.device === "cuda"
  const context = gpu ? CONTEXT_BYTES : 0
  const communicator = gpu && options.world?.communicator !== "host-staged" ? NCCL_BYTES * communicatorsOf(options) : 0
  return { ...plan, context, communicator, planned, total: planned + context + communicator }
}

/** Bytes on the GPU, the driver's and the libraries' own included. */
export const gpuTrainingBytes = (
  native: Pick<Native.Native, "planTrainingMemory">,
  shape: ModelShape,
  options: Native.ModelOptions,
  size: TrainingSize
): number => forecastMemory(native, shape, options, size).total

const gibibytes = (bytes: number): string => `${(bytes / 2 ** 30).toFixed(1)} GiB`

interface Change {
  readonly recompute: Recompute
  readonly batch: number
  readonly strategy: Strategy
  readonly shareGradients: boolean
  readonly ranks: number
  /** Share of the time, roughly. */
  readonly cost: number
}

const doublings = (from: number, to: number): ReadonlyArray<number> => {
  const counts: Array<number> = []
  for (let count = from; count <= to; count *= 2) counts.push(count)
  return counts
}

/** Ways to share a model out among `ranks` that keep no more on each than now, with what they cost beside now. */
const ways = (options: Native.ModelOptions, ranks: number) => {
  const now = strategies.findIndex(({ strategy }) => strategy === (options.strategy ?? "none"))
  const shares = options.shareGradients ?? false
  const { shardSize = 1 } = options
  return strategies
    .slice(now, ranks === 1 ? now + 1 : strategies.length)
    .filter(({ strategy }, index) => index === 0 || strategy !== "hsdp" || shardSize < ranks)
    .flatMap(({ cost, strategy }) =>
      (shares || strategy === "none" || ranks === 1 ? [shares] : [false, true]).map((shareGradients) => ({
        strategy,
        shareGradients,
        cost: cost - (strategies[now]?.cost ?? 0) + (shareGradients && !shares ? SHARED_GRADIENTS_COST : 0)
      }))
    )
}

/** All weaker demands on memory, by what they cost in time. `gpus`: of this machine. */
const changes = (options: Native.ModelOptions, { batch }: TrainingSize, gpus: number): ReadonlyArray<Change> => {
  const level = levels.findIndex(({ recompute }) => recompute === (options.recompute ?? "none"))
  const ranks = options.world?.size ?? 1
  // A rank that computes through the host's memory shares its GPU with the others: more of them make it no better.
  const counts = options.world?.communicator === "host-staged" ? [ranks] : doublings(ranks, MOST_RANKS)
  const rankCost = (count: number) => Math.log2(count / ranks) * (count <= gpus ? MORE_GPUS_COST : MORE_MACHINES_COST)
  return doublings(1, batch)
    .flatMap((divisor, halvings) =>
      levels.slice(level).flatMap(({ cost, recompute }) =>
        counts.flatMap((count) =>
          ways(options, count).map(({ cost: sharing, shareGradients, strategy }) => ({
            recompute,
            batch: Math.floor(batch / divisor),
            strategy,
            shareGradients,
            ranks: count,
            cost: cost - (levels[level]?.cost ?? 0) + halvings * HALVING_COST + sharing + rankCost(count)
          }))
        )
      )
    )
    .sort((a, b) => a.cost - b.cost)
}

const changed = (options: Native.ModelOptions, change: Change): Native.ModelOptions => ({
  ...options,
  recompute: change.recompute,
  strategy: change.strategy,
  shareGradients: change.shareGradients,
  ...(change.ranks === 1
    ? {}
    : {
        world: {
          rank: 0,
          communicator: options.world?.communicator === "host-staged" ? "host-staged" : "nccl",
          size: change.ranks
        }
      })
})

/** What to write into the file. */
const wordsOf = (change: Change, options: Native.ModelOptions, size: TrainingSize): string => {
  const ranks = options.world?.size ?? 1
  const steps = [
    ...(change.ranks === ranks ? [] : [`share the model among ${change.ranks} GPUs (resources.ranks, resources.gpus)`]),
    ...(change.strategy === (options.strategy ?? "none") ? [] : [`set strategy to ${change.strategy}`]),
    ...(change.shareGradients === (options.shareGradients ?? false) ? [] : ["set share_gradients to true"]),
    ...(change.batch === size.batch ? [] : [`set micro_batch to ${change.batch} (batch_tokens keeps the step's size)`]),
    ...(change.recompute === (options.recompute ?? "none") ? [] : [`set recompute to ${change.recompute}`])
  ].join(" and ")
  return change.ranks === ranks
    ? `${steps}: the cheapest change that fits, at about ${Math.round(100 * change.cost)} % of the time`
    : `${steps}: no cheaper change fits`
}

/** The change that costs least and fits `memory` bytes, in words; undefined where none does. */
export const cheapestChange = (
  native: Pick<Native.Native, "planTrainingMemory">,
  shape: ModelShape,
  options: Native.ModelOptions,
  size: TrainingSize,
  gpu: { readonly memory: number; readonly count: number }
): string | undefined => {
  const fits = (change: Change) =>
    Result.getOrElse(
      Result.try(
        () => gpuTrainingBytes(native, shape, changed(options, change), { ...size, batch: change.batch }) <= gpu.memory
      ),
      () => false // hsdp, where shard_size does not divide the ranks
    )
  const found = changes(options, size, gpu.count).find(fits)
  return found === undefined ? undefined : wordsOf(found, options, size)
}

const misfit = (cause: unknown) =>
  new StageError({
    failure: "invalid-input",
    message: cause instanceof Error ? cause.message : String(cause),
    next: "set shard_size to a number that divides the ranks, or strategy to fsdp"
  })

/** Fails before anything is computed when the model does not fit; the error names the cheapest change that does. Gives the bytes it will hold. */
export const requireGpuMemory = Effect.fn("requireGpuMemory")(function* (
  shape: ModelShape,
  options: Native.ModelOptions,
  size: TrainingSize
) {
  const native = yield* Effect.orDie(Native.load)
  const { gpus } = native.gpus()
  const gpu = gpus[options.gpu ?? 0]
  if (options.device !== "cuda" || gpu === undefined) return undefined
  const bytes = yield* Effect.try({ try: () => gpuTrainingBytes(native, shape, options, size), catch: misfit })
  // Ranks that speak through the host's memory may share a GPU.
  const sharers = options.world?.communicator === "host-staged" ? Math.ceil(options.world.size / gpus.length) : 1
  const memory = gpu.memory / sharers
  if (bytes <= memory) return { bytes, memory: gpu.memory, name: gpu.name }
  const { name } = gpu
  return yield* new StageError({
    failure: "out-of-memory",
    message: doesNotFit(options, size, bytes, { memory, name }),
    next:
      cheapestChange(native, shape, options, size, { memory, count: gpus.length }) ??
      "choose a smaller model, or a GPU with more memory"
  })
})

export const doesNotFit = (
  { strategy = "none", world }: Native.ModelOptions,
  { batch, length }: TrainingSize,
  bytes: number,
  gpu: { readonly memory: number; readonly name: string }
): string => {
  const ranks = world?.size ?? 1
  const among = ranks === 1 ? "" : ` on each of ${ranks} ranks (strategy ${strategy})`
  return `training takes ${gibibytes(bytes)}${among} with micro-batches of ${batch} × ${length} tokens; ${gpu.name} has ${gibibytes(gpu.memory)}`
}

/** The largest power of two, up to `most` sequences, whose micro-batch fits the GPU. */
export const largestMicroBatch = Effect.fn("largestMicroBatch")(function* (
  shape: ModelShape,
  options: Native.ModelOptions,
  length: number,
  most: number
) {
  const native = yield* Effect.orDie(Native.load)
  const memory = native.gpus().gpus[options.gpu ?? 0]?.memory ?? 0
  const bytesOf = (batch: number) =>
    Effect.try({ try: () => gpuTrainingBytes(native, shape, options, { batch, length }), catch: misfit })
  let batch = 2 ** Math.floor(Math.log2(Math.max(1, most)))
  while (batch > 1 && (yield* bytesOf(batch)) > memory) batch /= 2
  return batch
})
