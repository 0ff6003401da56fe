/** What `bench scaling` measures on this machine, as far as it has devices, and what it leaves out and why. */
import { availableParallelism } from "node:os"
import { Effect, Option, Result } from "effect"
import type { ModelOptions, Native } from "../engine/Native.ts"
import { overlapPenalty, type Strategy } from "../engine/ScalingModel.ts"
import { type ModelShape, trainingFlops } from "../model/Architecture.ts"
import { contentionOf } from "./BenchFlags.ts"
import type { BenchTarget } from "./BenchTarget.ts"
import type { RanksRow, SweepRow, WorldRow } from "./ScalingReport.ts"
import { measure, type Workload } from "./ScalingRuns.ts"

const GPU_MICRO_BATCH = 16
const CPU_MICRO_BATCH = 2
/** A micro-batch on a CPU that takes longer than this is not waited for. */
const MOST_CPU_SECONDS = 20

/** What a run on this machine would be; `obstacle`: why none is made. */
export interface Place {
  readonly workload: Workload
  readonly cores: number
  readonly gpus: number
  readonly obstacle: string | undefined
}

interface Wanted {
  readonly device: "auto" | "cpu" | "cuda"
  readonly microBatch: Option.Option<number>
  readonly length: Option.Option<number>
  readonly shardSize: number
  readonly shareGradients: boolean
  readonly steps: number
}

export const placeOf = Effect.fnUntraced(function* (
  model: string,
  target: BenchTarget,
  wanted: Wanted,
  native: Native
) {
  const { chooseCompute } = yield* Effect.promise(() => import("../engine/Compute.ts"))
  const cores = availableParallelism()
  const precision = target.precision ?? "auto"
  const recompute = target.recompute ?? "pointwise"
  const chosen = yield* chooseCompute({ device: wanted.device, gpu: 0, precision: "auto", recompute }, cores)
  const device = chosen.device ?? "cpu"
  // Without a GPU, and unless the CPU is asked for, the question is about GPUs: their usual micro-batch.
  const usual = target.microBatch ?? (device === "cuda" || wanted.device === "auto" ? GPU_MICRO_BATCH : CPU_MICRO_BATCH)
  const workload: Workload = {
    model,
    microBatch: Option.getOrElse(wanted.microBatch, () => usual),
    length: Option.getOrElse(wanted.length, () => target.shape.max_position_embeddings),
    device,
    precision: device === "cpu" ? "fp32" : precision,
    recompute,
    shardSize: wanted.shardSize,
    shareGradients: wanted.shareGradients,
    steps: wanted.steps
  }
  const obstacle = device === "cuda" ? undefined : yield* tooMuchForCpu(target.shape, workload, cores, native)
  return { workload, cores, gpus: native.gpus().gpus.length, obstacle } satisfies Place
})

const tooMuchForCpu = Effect.fnUntraced(function* (
  shape: ModelShape,
  workload: Workload,
  cores: number,
  native: Native
) {
  const { secondsOfArithmetic } = yield* Effect.promise(() => import("../engine/MachineSpeed.ts"))
  const { forecastMemory } = yield* Effect.promise(() => import("../engine/GpuMemory.ts"))
  const { length, microBatch } = workload
  const flop = microBatch * length * trainingFlops["6(N - E) + 6LAT"](shape, length)
  const seconds = yield* secondsOfArithmetic(flop, cores)
  const { total } = forecastMemory(native, shape, { threads: cores, device: "cpu" }, { batch: microBatch, length })
  const much = [
    ...(seconds !== undefined && seconds > MOST_CPU_SECONDS
      ? [`a micro-batch takes about ${Math.round(seconds)} s`]
      : []),
    ...(total > process.availableMemory() ? [`it takes ${(total / 2 ** 30).toFixed(1)} GiB of memory`] : [])
  ]
  return much.length === 0
    ? undefined
    : `nothing is measured on this CPU, where ${much.join(" and ")}: choose a smaller model, --micro-batch or --length`
})

/** Weak scaling on GPUs; on CPU ranks the cores are divided, so that all together have as many. */
export const measureRanks = Effect.fnUntraced(function* (
  place: Place,
  counts: ReadonlyArray<number>,
  strategy: Strategy
) {
  const { cores, gpus, workload } = place
  const rows: Array<RanksRow> = []
  const notes: Array<string> = []
  for (const ranks of counts) {
    if (workload.device === "cuda" && ranks > gpus) {
      notes.push(`${ranks} ranks were not started: this machine has ${gpus} ${gpus === 1 ? "GPU" : "GPUs"}`)
      continue
    }
    const threads = Math.max(1, Math.floor(cores / ranks))
    if (workload.device === "cpu" && ranks > cores) notes.push(`${ranks} ranks shared ${cores} cores, one thread each`)
    const run = yield* Effect.result(measure(workload, { strategy, threads, ranks, accumulate: 2 }))
    if (Result.isFailure(run)) {
      if (ranks === 1) return yield* run.failure
      notes.push(`${ranks} ranks: ${run.failure.message}`)
      continue
    }
    const speed = run.success
    const alone = rows.find((row) => row.ranks === 1)
    const fair = alone === undefined ? Number.NaN : alone.tokensPerSecond * (workload.device === "cuda" ? ranks : 1)
    rows.push({
      ranks,
      threads,
      tokensPerSecond: speed.tokensPerSecond,
      efficiency: ranks === 1 ? 1 : speed.tokensPerSecond / fair,
      stepMillis: speed.stepMillis.median,
      held: speed.memory.held,
      forecast: speed.memory.forecast,
      source: "measured"
    })
  }
  return { rows, notes }
})

/** Memory and compute of one rank of each world: measured alone where there is a device for it, else the plan's. */
export const lookAtWorlds = Effect.fnUntraced(function* (
  place: Place,
  shape: ModelShape,
  worlds: ReadonlyArray<number>,
  strategies: ReadonlyArray<Strategy>,
  native: Native
) {
  const { forecastMemory } = yield* Effect.promise(() => import("../engine/GpuMemory.ts"))
  const { cores, obstacle, workload } = place
  const { length, microBatch, recompute, shardSize, shareGradients } = workload
  const rows: Array<WorldRow> = []
  const notes: Array<string> = []
  const planned = (world: number, strategy: Strategy): WorldRow => {
    const options: ModelOptions = {
      ...gpuOptions(workload),
      recompute,
      strategy,
      shardSize: Math.min(shardSize, world),
      shareGradients,
      world: { rank: 0, size: world, communicator: "fake" }
    }
    const forecast = forecastMemory(native, shape, options, { batch: microBatch, length }).planned
    return { world, strategy, forecast, source: "modelled" }
  }
  for (const world of worlds) {
    for (const strategy of strategies) {
      if (strategy === "hsdp" && world % Math.min(shardSize, world) !== 0) {
        notes.push(`hsdp on ${world} ranks was left out: its ${shardSize} ranks a copy do not divide them`)
        continue
      }
      if (obstacle !== undefined) {
        rows.push(planned(world, strategy))
        continue
      }
      const run = yield* Effect.result(
        measure({ ...workload, steps: 3 }, { strategy, threads: cores, world, accumulate: 1 })
      )
      if (Result.isFailure(run)) {
        notes.push(`rank 0 of ${world}, strategy ${strategy}: ${run.failure.message}`)
        rows.push(planned(world, strategy))
        continue
      }
      const { memory, microBatchMillis } = run.success
      rows.push({ world, strategy, forecast: memory.forecast, held: memory.held, microBatchMillis, source: "measured" })
    }
  }
  return { rows, notes }
})

const gpuOptions = ({ precision }: Workload): ModelOptions => ({
  threads: 1,
  device: "cuda",
  precision: "bf16",
  state: precision === "bf16-sr" ? "bf16" : "fp32"
})

/** A micro-batch beside contention of several sizes, on a GPU. */
export const sweepContention = Effect.fnUntraced(function* (place: Place, asked: Option.Option<string>) {
  const levels = Option.getOrElse(asked, () => "4:150,8:300,16:600,24:900")
  const rows: Array<SweepRow> = []
  if (place.workload.device !== "cuda" || levels === "none") return { rows, notes: [] }
  const alone = { strategy: "none", threads: 1, accumulate: 1 } as const
  const free = yield* Effect.result(measure(place.workload, alone))
  if (Result.isFailure(free)) return { rows, notes: [`contention was not measured: ${free.failure.message}`] }
  for (const level of levels.split(",")) {
    const { gigabytesPerSecond, multiprocessors } = yield* Effect.fromResult(contentionOf(level))
    const contention = `${multiprocessors}:${gigabytesPerSecond}`
    const speed = yield* measure(place.workload, { ...alone, contention })
    rows.push({
      multiprocessors,
      gigabytesPerSecond: speed.contention?.gigabytesPerSecond ?? gigabytesPerSecond,
      microBatchMillis: speed.microBatchMillis,
      penalty: overlapPenalty(free.success.microBatchMillis, speed.microBatchMillis),
      source: "measured"
    })
  }
  return { rows, notes: [] }
})
