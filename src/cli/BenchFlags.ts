/** What the benchmarks of training ask, and how it becomes a model's options: alone, as one of several ranks, or as one of a world that is not there. */
import { availableParallelism } from "node:os"
import { Effect, Option, Result } from "effect"
import { Flag } from "effect/cli"
import type { ModelOptions } from "../engine/Native.ts"
import type { ModelShape } from "../model/Architecture.ts"
import { UsageError } from "../pipeline/plan/Selection.ts"
import { benchTarget } from "./BenchTarget.ts"

export const positive = (name: string, value: number, describe: string) =>
  Flag.Int(name).pipe(Flag.withDefault(value), Flag.withDescription(describe))

export const sizes = {
  model: Flag.String("model").pipe(
    Flag.withDefault("tinyllama-1.1b"),
    Flag.withDescription("A preset's name, or a pipeline file: the model of its pretrain stage")
  ),
  microBatch: positive("micro-batch", 16, "Sequences per forward and backward pass"),
  length: positive("length", 2048, "Tokens of a sequence"),
  device: Flag.Literals("device", ["auto", "cpu", "cuda"]).pipe(Flag.withDefault("auto")),
  precision: Flag.Literals("precision", ["auto", "fp32", "bf16", "bf16-sr"]).pipe(Flag.withDefault("auto")),
  recompute: Flag.Literals("recompute", ["none", "pointwise", "gate_up", "full"]).pipe(Flag.withDefault("pointwise")),
  threads: positive("threads", availableParallelism(), "Of the CPU")
}

export const sharing = {
  strategy: Flag.Literals("strategy", ["none", "zero2", "fsdp", "hsdp"]).pipe(
    Flag.withDefault("zero2"),
    Flag.withDescription("How several ranks share out the model")
  ),
  shardSize: positive("shard-size", 8, "Of hsdp: ranks that share one copy"),
  shareGradients: Flag.Boolean("share-gradients").pipe(
    Flag.withDefault(false),
    Flag.withDescription("Sum gradients over ranks after every micro-batch, and keep a share of them alone")
  ),
  gradientSum: Flag.Literals("gradient-sum", ["fast", "fixed-order"]).pipe(Flag.withDefault("fast"))
}

export const world = {
  communicator: Flag.Literals("communicator", ["auto", "nccl", "mpi", "host-staged", "fake"]).pipe(
    Flag.withDefault("auto"),
    Flag.withDescription("Between ranks that a launcher started; fake: one rank of --world alone")
  ),
  world: positive("world", 1, "Of a fake world: its ranks"),
  rank: positive("rank", 0, "Of a fake world: which of them this is"),
  contention: Flag.String("contention").pipe(
    Flag.withMetavar("SMs:GB/s"),
    Flag.optional,
    Flag.withDescription("Take this many multiprocessors and this bandwidth of the GPU away, as communication would")
  )
}

export interface Asked {
  readonly model: string
  readonly microBatch: number
  readonly length: number
  readonly device: "auto" | "cpu" | "cuda"
  readonly precision: "auto" | "fp32" | "bf16" | "bf16-sr"
  readonly recompute: NonNullable<ModelOptions["recompute"]>
  readonly threads: number
}

export interface AskedSharing {
  readonly strategy: NonNullable<ModelOptions["strategy"]>
  readonly shardSize: number
  readonly shareGradients: boolean
  readonly gradientSum: "fast" | "fixed-order"
}

interface AskedWorld extends AskedSharing {
  readonly communicator: "auto" | "nccl" | "mpi" | "host-staged" | "fake"
  readonly world: number
  readonly rank: number
}

/** "16:600" or "16": bandwidth as so many multiprocessors of a collective commonly move, where it is not said. */
export const contentionOf = (text: string) => {
  const [, multiprocessors, rate] = /^(\d+)(?::(\d+(?:\.\d+)?))?$/u.exec(text.trim()) ?? []
  return multiprocessors === undefined
    ? Result.fail(
        new UsageError({ message: `contention is SMs:GB/s, as in 16:600, or SMs alone; "${text}" is neither` })
      )
    : Result.succeed({
        multiprocessors: Number(multiprocessors),
        gigabytesPerSecond: rate === undefined ? GIGABYTES_PER_MULTIPROCESSOR * Number(multiprocessors) : Number(rate)
      })
}

/** A ring at 370 GB/s reads and writes the memory about three times as fast, with the 32 blocks that NCCL has at most. */
const GIGABYTES_PER_MULTIPROCESSOR = 37.5

export const contention = (asked: Option.Option<string>) =>
  Option.isNone(asked)
    ? Effect.succeed({})
    : Effect.map(Effect.fromResult(contentionOf(asked.value)), (contention) => ({ contention }))

const chosen = Effect.fn("bench.chosen")(function* (asked: Asked) {
  const { chooseCompute } = yield* Effect.promise(() => import("../engine/Compute.ts"))
  const { shape } = yield* benchTarget(asked.model)
  return { shape, options: yield* chooseCompute({ ...asked, gpu: 0 }, asked.threads) }
})

const requireMemory = Effect.fnUntraced(function* (shape: ModelShape, options: ModelOptions, asked: Asked) {
  const { requireGpuMemory } = yield* Effect.promise(() => import("../engine/GpuMemory.ts"))
  yield* requireGpuMemory(shape, options, { batch: asked.microBatch, length: asked.length })
})

/** A model of the shape that is asked for, alone on its device. */
export const prepared = Effect.fn("bench.prepared")(function* (asked: Asked) {
  const { options, shape } = yield* chosen(asked)
  yield* requireMemory(shape, options, asked)
  return { shape, options }
})

/** The same as a rank: one of those that the environment tells of, or of a fake world. `speaks`: whether this one prints. */
export const preparedRank = Effect.fn("bench.preparedRank")(function* (asked: Asked & AskedWorld) {
  const { options, shape, speaks } = yield* asRank(asked)
  yield* requireMemory(shape, options, asked)
  return { shape, options, speaks }
})

const asRank = Effect.fnUntraced(function* (asked: Asked & AskedWorld) {
  const { shape, options: alone } = yield* chosen(asked)
  const { ranksOf } = yield* Effect.promise(() => import("../pipeline/run/Ranks.ts"))
  const ranks = yield* Effect.fromResult(ranksOf(process.env))
  const { gradientSum, shardSize, shareGradients, strategy } = asked
  const wish = {
    strategy,
    shard_size: shardSize,
    share_gradients: shareGradients,
    gradient_sum: gradientSum,
    watchdog_seconds: 45
  }
  if (asked.communicator === "fake") {
    if (asked.rank < 0 || asked.rank >= asked.world)
      return yield* new UsageError({ message: `--rank ${asked.rank} is not below --world ${asked.world}` })
    const world = { rank: asked.rank, size: asked.world, communicator: "fake" as const }
    return { shape, options: { ...alone, strategy, shardSize, shareGradients, gradientSum, world }, speaks: true }
  }
  if (ranks.size === 1) return { shape, options: alone, speaks: true }
  const { openWorld } = yield* Effect.promise(() => import("../engine/World.ts"))
  const { load } = yield* Effect.promise(() => import("../engine/Native.ts"))
  const native = yield* Effect.orDie(load)
  const options: ModelOptions = yield* openWorld({ ...wish, communicator: asked.communicator }, ranks, alone, native, {
    agreement: { model: JSON.stringify(shape), "micro-batch": `${asked.microBatch} x ${asked.length}` },
    work: ""
  })
  const { logFolder: _, ...world } = options.world ?? { rank: 0, size: 1, communicator: "single" as const }
  return { shape, options: { ...options, world }, speaks: ranks.rank === 0 }
})
