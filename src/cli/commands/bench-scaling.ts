/**
 * `tinyllama bench scaling FILE|MODEL`: what more ranks give. Measured as far as there are devices, by ranks that it starts itself; one rank of larger
 * worlds is measured alone; what then remains is modelled. Every figure says which it is.
 */
import { Console, Effect, Option } from "effect"
import { Argument, Command, Flag } from "effect/cli"
import { forecastScaling, type Strategy, usualLinks, USUAL_PENALTY } from "../../engine/ScalingModel.ts"
import { embeddingParameters, type ModelShape, parameterCount, trainingFlops } from "../../model/Architecture.ts"
import { UsageError } from "../../pipeline/plan/Selection.ts"
import { positive, sharing } from "../BenchFlags.ts"
import { benchTarget } from "../BenchTarget.ts"
import { lookAtWorlds, measureRanks, placeOf, sweepContention } from "../ScalingMeasure.ts"
import { type Figure, type ForecastRow, reportText, type SweepRow, type WorldRow } from "../ScalingReport.ts"
import type { Workload } from "../ScalingRuns.ts"

const DATASHEET_FLOPS = 989e12
/** Of the datasheet's bf16, causal attention counted, on an H200: docs/performance.md. */
const SHARE_OF_DATASHEET = 0.552
const MOST_MEASURED_RANKS = 8
const forecastGpus = [8, 16, 32, 64]
const every: ReadonlyArray<Strategy> = ["zero2", "fsdp", "hsdp", "none"]

const listFlag = (name: string, metavar: string, describe: string) =>
  Flag.String(name).pipe(Flag.withMetavar(metavar), Flag.optional, Flag.withDescription(describe))

const rate = (name: string, value: number, describe: string) =>
  Flag.Finite(name).pipe(Flag.withDefault(value), Flag.withDescription(describe))

const flags = {
  target: Argument.String("model").pipe(
    Argument.withDefault("tinyllama-1.1b"),
    Argument.withDescription("A preset's name, or a pipeline file: the model of its pretrain stage")
  ),
  ranks: listFlag("ranks", "1,2,4,8", "Ranks to start on this machine (as many as it has GPUs, else cores)"),
  world: listFlag("world", "8,16,64", "Worlds of which one rank is looked at alone"),
  strategy: listFlag("strategy", "zero2,hsdp", "Strategies to look at; ranks are started with the first"),
  shardSize: positive("shard-size", 8, "Of hsdp: ranks that share one copy"),
  shareGradients: sharing.shareGradients,
  accumulate: listFlag("accumulate", "1,8", "Micro-batches of a rank's step, for the forecast"),
  microBatch: Flag.Int("micro-batch").pipe(
    Flag.optional,
    Flag.withDescription("Sequences per pass (the file's; else 16 on a GPU, 2 on a CPU)")
  ),
  length: Flag.Int("length").pipe(Flag.optional, Flag.withDescription("Tokens of a sequence (the model's context)")),
  device: Flag.Literals("device", ["auto", "cpu", "cuda"]).pipe(Flag.withDefault("auto")),
  steps: positive("steps", 8, "Steps that are timed"),
  contention: listFlag(
    "contention",
    "8:300,16:600",
    "On a GPU: multiprocessors and GB/s to take away for the penalty c; none: do not measure it"
  ),
  penalty: Flag.Finite("penalty").pipe(Flag.optional, Flag.withDescription("c, instead of measuring it")),
  microMillis: Flag.Finite("micro-ms").pipe(
    Flag.optional,
    Flag.withDescription("A micro-batch's milliseconds on one GPU, instead of measuring it")
  ),
  nvlink: rate("nvlink", usualLinks.nvlink / 1e9, "GB/s of each GPU within a node, as NCCL's bus bandwidth"),
  network: rate("network", usualLinks.network / 1e9, "GB/s of each GPU across nodes"),
  gpusPerNode: positive("gpus-per-node", usualLinks.gpusPerNode, "GPUs that NVLink joins")
}

/** "1,2,4", in rising order, each once. */
const countsIn = (name: string, text: Option.Option<string>, otherwise: ReadonlyArray<number>) => {
  if (Option.isNone(text)) return Effect.succeed(otherwise)
  const counts = text.value.split(",").map((part) => Number(part.trim()))
  return counts.every((count) => Number.isInteger(count) && count >= 1)
    ? Effect.succeed(Array.from(new Set(counts)).sort((a, b) => a - b))
    : Effect.fail(
        new UsageError({ message: `--${name} is whole numbers of at least 1, as in 1,2,4; not ${text.value}` })
      )
}

const strategiesIn = (text: Option.Option<string>, file: Strategy | undefined) => {
  if (Option.isNone(text))
    return Effect.succeed(file === undefined ? every : [file, ...every.filter((one) => one !== file)])
  const names = text.value.split(",").map((part) => part.trim())
  const known = names.flatMap((name) => every.filter((one) => one === name))
  return known.length === names.length && known.length > 0
    ? Effect.succeed(known)
    : Effect.fail(new UsageError({ message: `--strategy is of ${every.join(", ")}; not ${text.value}` }))
}

const doublings = (most: number): ReadonlyArray<number> =>
  Array.from({ length: Math.floor(Math.log2(Math.max(1, most))) + 1 }, (_, power) => 2 ** power)

/** NCCL on NVLink runs 16 to 24 blocks: the middle of what was measured. */
const COLLECTIVE_MULTIPROCESSORS = 16

const penaltyOf = (given: Option.Option<number>, sweep: ReadonlyArray<SweepRow>): Figure => {
  if (Option.isSome(given)) return { value: given.value, source: "given", of: "--penalty" }
  const [row] = sweep.toSorted(
    (a, b) =>
      Math.abs(a.multiprocessors - COLLECTIVE_MULTIPROCESSORS) -
      Math.abs(b.multiprocessors - COLLECTIVE_MULTIPROCESSORS)
  )
  return row === undefined
    ? { value: USUAL_PENALTY, source: "modelled", of: "a usual value; a GPU can measure it" }
    : {
        value: row.penalty,
        source: "measured",
        of: `beside ${row.multiprocessors} multiprocessors and ${row.gigabytesPerSecond.toFixed(0)} GB/s taken away`
      }
}

const microBatchOf = (
  given: Option.Option<number>,
  shape: ModelShape,
  { device, length, microBatch }: Workload,
  worlds: ReadonlyArray<WorldRow>
): Figure => {
  if (Option.isSome(given)) return { value: given.value, source: "given", of: "--micro-ms" }
  const measured = device === "cuda" ? worlds.find(({ microBatchMillis }) => microBatchMillis !== undefined) : undefined
  if (measured?.microBatchMillis !== undefined)
    return {
      value: measured.microBatchMillis,
      source: "measured",
      of: `rank 0 of ${measured.world}, strategy ${measured.strategy}, alone on this GPU`
    }
  const flop = microBatch * length * trainingFlops["6(N - E) + 6LAT"](shape, length)
  return {
    value: (1000 * flop) / (SHARE_OF_DATASHEET * DATASHEET_FLOPS),
    source: "modelled",
    of: `its arithmetic at ${(100 * SHARE_OF_DATASHEET).toFixed(1)} % of an H200's 989 TFLOP/s`
  }
}

export const scalingCommand = Command.make(
  "scaling",
  flags,
  Effect.fn(function* (asked) {
    const { load } = yield* Effect.promise(() => import("../../engine/Native.ts"))
    const native = yield* load
    const target = yield* benchTarget(asked.target)
    const { shape } = target
    const strategies = yield* strategiesIn(asked.strategy, target.strategy)
    const worlds = yield* countsIn("world", asked.world, [8, 16, 64])
    const accumulations = yield* countsIn("accumulate", asked.accumulate, [1, 8])
    const place = yield* placeOf(
      asked.target,
      target,
      { ...asked, shardSize: target.shardSize ?? asked.shardSize },
      native
    )
    const { cores, gpus, obstacle, workload } = place
    const most = Math.min(MOST_MEASURED_RANKS, workload.device === "cuda" ? gpus : cores)
    const counts = yield* countsIn("ranks", asked.ranks, doublings(most))
    const [strategy = "zero2"] = strategies
    const ranks =
      obstacle === undefined ? yield* measureRanks(place, counts, strategy) : { rows: [], notes: [obstacle] }
    const world = yield* lookAtWorlds(place, shape, worlds, strategies, native)
    const sweep = yield* sweepContention(place, asked.contention)
    const microBatchMillis = microBatchOf(asked.microMillis, shape, workload, world.rows)
    const penalty = penaltyOf(asked.penalty, sweep.rows)
    const links = { gpusPerNode: asked.gpusPerNode, nvlink: asked.nvlink * 1e9, network: asked.network * 1e9 }
    const forecast = forecastGpus.flatMap((count) =>
      strategies.flatMap((strategy) =>
        accumulations.map((accumulate): ForecastRow => ({
          gpus: count,
          strategy,
          accumulate,
          source: "modelled",
          ...forecastScaling({
            strategy,
            shardSize: Math.min(workload.shardSize, count),
            shareGradients: workload.shareGradients,
            gpus: count,
            accumulate,
            microBatchSeconds: microBatchMillis.value / 1000,
            parameters: parameterCount(shape),
            embeddingParameters: embeddingParameters(shape),
            weightBytes: 2,
            gradientBytes: 4,
            penalty: penalty.value,
            links
          })
        }))
      )
    )
    yield* Console.log(
      reportText({
        version: 1,
        model: target.name,
        device: workload.device === "cuda" ? (native.gpus().gpus[0]?.name ?? "cuda") : `cpu-${native.instructionSet()}`,
        microBatch: workload.microBatch,
        length: workload.length,
        recompute: workload.recompute,
        strategy,
        ranks: ranks.rows,
        world: world.rows,
        sweep: sweep.rows,
        microBatchMillis,
        penalty,
        links,
        forecast,
        notes: [...ranks.notes, ...world.notes, ...sweep.notes]
      })
    )
  })
).pipe(
  Command.withDescription("What more ranks give: measured where there are devices, modelled where there are none"),
  Command.withExamples([
    { command: "tinyllama bench scaling tinyllama-1.1b" },
    { command: "tinyllama bench scaling tinyllama-demo --device cpu --ranks 1,2 --length 256" }
  ])
)
