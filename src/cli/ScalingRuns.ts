/** The runs of `bench train` that `bench scaling` is made of: as several ranks, as one of a world that is not there, and beside contention. */
import { Effect, Schema } from "effect"
import type { ModelOptions } from "../engine/Native.ts"
import { StageError } from "../pipeline/StageType.ts"

/** What of a run's last line is used. */
const Speed = Schema.Struct({
  device: Schema.String,
  ranks: Schema.Int,
  tokensPerSecond: Schema.Finite,
  stepMillis: Schema.Struct({ median: Schema.Finite }),
  microBatchMillis: Schema.Finite,
  updateMillis: Schema.Finite,
  memory: Schema.Struct({
    held: Schema.Finite,
    forecast: Schema.Finite,
    context: Schema.Finite,
    communicator: Schema.Finite
  }),
  contention: Schema.optionalKey(Schema.Struct({ multiprocessors: Schema.Int, gigabytesPerSecond: Schema.Finite }))
})
export type Speed = typeof Speed.Type

export interface Workload {
  /** As `bench train --model` takes it. */
  readonly model: string
  readonly microBatch: number
  readonly length: number
  readonly device: "cpu" | "cuda"
  readonly precision: "auto" | "fp32" | "bf16" | "bf16-sr"
  readonly recompute: NonNullable<ModelOptions["recompute"]>
  readonly shardSize: number
  readonly shareGradients: boolean
  readonly steps: number
}

type Strategy = NonNullable<ModelOptions["strategy"]>

export interface Variant {
  readonly strategy: Strategy
  readonly threads: number
  readonly accumulate: number
  /** Processes that are started; 1 where it is left out. */
  readonly ranks?: number
  /** The size of a world of which one rank runs alone. */
  readonly world?: number
  readonly contention?: string
}

const argumentsOf = (workload: Workload, variant: Variant): ReadonlyArray<string> => {
  const { device, length, microBatch, model, precision, recompute, shardSize, shareGradients, steps } = workload
  const { accumulate, contention, ranks = 1, strategy, threads, world } = variant
  const size = world ?? ranks
  // hsdp with copies of one machine's ranks alone is fsdp.
  const shards = Math.min(shardSize, size)
  const flags: Readonly<Record<string, string | number>> = {
    model,
    device,
    precision,
    recompute,
    length,
    "micro-batch": microBatch,
    accumulate,
    steps,
    threads,
    strategy,
    "shard-size": shards,
    ...(world === undefined ? {} : { communicator: "fake", world, rank: 0 }),
    ...(contention === undefined ? {} : { contention })
  }
  return [
    "bench",
    "train",
    ...Object.entries(flags).flatMap(([name, value]) => [`--${name}`, String(value)]),
    ...(shareGradients ? ["--share-gradients"] : [])
  ]
}

export const measure = Effect.fn("ScalingRuns.measure")(function* (workload: Workload, variant: Variant) {
  const { runRanked } = yield* Effect.promise(() => import("../pipeline/run/RankedCommand.ts"))
  const command = argumentsOf(workload, variant)
  const printed = yield* runRanked({
    ranks: variant.ranks ?? 1,
    launcher: workload.device === "cuda" ? "processes" : "mpirun",
    command
  })
  const last = printed.trimEnd().split("\n").at(-1) ?? ""
  return yield* Schema.decodeEffect(Schema.fromJsonString(Speed))(last).pipe(
    Effect.mapError(
      () =>
        new StageError({
          failure: "internal",
          message: `bench train ended without its figures; it printed: ${printed.trim().slice(-500)}`,
          next: `see what it says alone: tinyllama ${command.join(" ")}`
        })
    )
  )
})
