/**
 * `tinyllama bench train`, `bench kernels` and `bench scaling`: what this machine's engine does with a model's training step, on random tokens, without
 * data or runner, and what many of them would. The last line is JSON.
 */
import { Console, Effect } from "effect"
import { Command } from "effect/cli"
import * as Bench from "../BenchFlags.ts"
import * as Format from "../Format.ts"
import { scalingCommand } from "./bench-scaling.ts"

const train = Command.make(
  "train",
  {
    ...Bench.sizes,
    ...Bench.sharing,
    ...Bench.world,
    accumulate: Bench.positive("accumulate", 2, "Micro-batches of a step"),
    steps: Bench.positive("steps", 20, "Steps that are timed, after three that are not")
  },
  Effect.fn(function* (asked) {
    const { measureTraining } = yield* Effect.promise(() => import("../../engine/TrainingSpeed.ts"))
    const { options, shape, speaks } = yield* Bench.preparedRank(asked)
    const { accumulate, length, microBatch, steps } = asked
    const size = { accumulate, length, microBatch, steps, ...(yield* Bench.contention(asked.contention)) }
    const result = yield* measureTraining(shape, options, size)
    if (!speaks) return
    const percent = (share: number) => `${(100 * share).toFixed(1)} %`
    const { memory, mfu, ranks } = result
    const fake = asked.communicator === "fake"
    const among = ranks === 1 ? "" : fake ? `, rank ${asked.rank} of ${ranks}, the others made up` : `, ${ranks} ranks`
    yield* Console.log(
      [
        `${result.device}: ${asked.model}, ${accumulate} × ${microBatch} × ${length} tokens a step${ranks > 1 && !fake ? " and rank" : ""}, recompute ${asked.recompute}${among}${ranks === 1 ? "" : `, strategy ${asked.strategy}`}`,
        `${Math.round(result.tokensPerSecond)} tokens/s${fake ? " of this rank, communication left out" : ""}; a step ${result.stepMillis.median.toFixed(1)} ms (${result.stepMillis.fastest.toFixed(1)} to ${result.stepMillis.slowest.toFixed(1)}), a micro-batch ${result.microBatchMillis.toFixed(1)}, the update ${result.updateMillis.toFixed(1)}`,
        ...(mfu === undefined
          ? []
          : [
              `of 989 TFLOP/s: ${percent(mfu.causal)} counting causal attention, ${percent(mfu.fullAttention)} the whole T × T, ${percent(mfu.litgpt)} by lit-gpt's estimate`
            ]),
        ...(result.contention === undefined
          ? []
          : [
              `without ${result.contention.multiprocessors} multiprocessors and ${result.contention.gigabytesPerSecond.toFixed(0)} GB/s, which contention took`
            ]),
        `first step done ${result.firstStepSeconds.toFixed(2)} s after the program began`,
        `${Format.bytes(memory.held)} held, ${Format.bytes(memory.forecast)} forecast (ratio ${(memory.held / memory.forecast).toFixed(3)})${options.device === "cuda" ? `; beside it ${Format.bytes(memory.context)} of the driver's, ${Format.bytes(memory.communicator)} of the communicator's` : ""}`,
        JSON.stringify(result)
      ].join("\n")
    )
  })
).pipe(Command.withDescription("Tokens a second, share of the peak, and memory of whole training steps"))

const kernels = Command.make(
  "kernels",
  { ...Bench.sizes, accumulate: Bench.positive("accumulate", 2, "Micro-batches of a step, for the shares") },
  Effect.fn(function* (asked) {
    const { measureKernels } = yield* Effect.promise(() => import("../../engine/TrainingSpeed.ts"))
    const { options, shape } = yield* Bench.prepared(asked)
    const { device, kernels, peaks } = yield* measureKernels(shape, options, asked)
    const rows = kernels.map((kernel) => [
      kernel.name,
      `${(kernel.seconds * 1e6).toFixed(1)} µs`,
      kernel.operations > 0
        ? `${(kernel.operations / kernel.seconds / 1e12).toFixed(1)} TFLOP/s`
        : `${(kernel.bytes / kernel.seconds / 1e9).toFixed(0)} GB/s`,
      `${Math.round(100 * kernel.shareOfCeiling)} %`,
      `${(100 * kernel.shareOfStep).toFixed(1)} %`
    ])
    const ceilings = `${(peaks.bytes / 1e9).toFixed(0)} GB/s (a gradient norm's reading) and ${(peaks.operations / 1e12).toFixed(1)} TFLOP/s (the fastest product)`
    yield* Console.log(
      [
        device,
        Format.table(["operation", "time", "rate", "of ceiling", "of step"], rows),
        `ceilings measured in this run: ${ceilings}`,
        JSON.stringify({ device, peaks, kernels })
      ].join("\n")
    )
  })
).pipe(
  Command.withDescription("Each operation of a training step alone: time, rate, and share of the measured ceiling")
)

export const benchCommand = Command.make("bench").pipe(
  Command.withDescription("What this machine's engine does with a model's training step"),
  Command.withSubcommands([train, kernels, scalingCommand])
)
