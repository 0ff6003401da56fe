/**
 * `tinyllama bench train` and `bench kernels`: what this machine's engine does with a model's training step, on random tokens, without data or runner.
 * The last line is JSON.
 */
import { availableParallelism } from "node:os"
import { Console, Effect } from "effect"
import { Command, Flag } from "effect/cli"
import type { ModelOptions } from "../../engine/Native.ts"
import { presets } from "../../model/Architecture.ts"
import * as Format from "../Format.ts"

const positive = (name: string, value: number, describe: string) =>
  Flag.Int(name).pipe(Flag.withDefault(value), Flag.withDescription(describe))

const names = Object.keys(presets) as ReadonlyArray<keyof typeof presets>
const flags = {
  model: Flag.Literals("model", names).pipe(Flag.withDefault("tinyllama-1.1b" as const)),
  microBatch: positive("micro-batch", 16, "Sequences per forward and backward pass"),
  length: positive("length", 2048, "Tokens of a sequence"),
  device: Flag.Literals("device", ["auto", "cpu", "cuda"]).pipe(Flag.withDefault("auto")),
  precision: Flag.Literals("precision", ["auto", "fp32", "bf16", "bf16-sr"]).pipe(Flag.withDefault("auto")),
  recompute: Flag.Literals("recompute", ["none", "pointwise", "gate_up", "full"]).pipe(Flag.withDefault("pointwise")),
  threads: positive("threads", availableParallelism(), "Of the CPU")
}
type Asked = {
  readonly model: keyof typeof presets
  readonly microBatch: number
  readonly length: number
  readonly device: "auto" | "cpu" | "cuda"
  readonly precision: "auto" | "fp32" | "bf16" | "bf16-sr"
  readonly recompute: NonNullable<ModelOptions["recompute"]>
  readonly threads: number
}

const prepared = Effect.fn("bench.prepared")(function* (asked: Asked) {
  const { chooseCompute } = yield* Effect.promise(() => import("../../engine/Compute.ts"))
  const { requireGpuMemory } = yield* Effect.promise(() => import("../../engine/GpuMemory.ts"))
  const shape = presets[asked.model]
  const options = yield* chooseCompute({ ...asked, gpu: 0 }, asked.threads)
  yield* requireGpuMemory(shape, options, { batch: asked.microBatch, length: asked.length })
  return { shape, options }
})

const train = Command.make(
  "train",
  {
    ...flags,
    accumulate: positive("accumulate", 2, "Micro-batches of a step"),
    steps: positive("steps", 20, "Steps that are timed, after three that are not")
  },
  Effect.fn(function* (asked) {
    const { measureTraining } = yield* Effect.promise(() => import("../../engine/TrainingSpeed.ts"))
    const { options, shape } = yield* prepared(asked)
    const result = yield* measureTraining(shape, options, asked)
    const percent = (share: number) => `${(100 * share).toFixed(1)} %`
    const { mfu } = result
    yield* Console.log(
      [
        `${result.device}: ${asked.model}, ${asked.accumulate} × ${asked.microBatch} × ${asked.length} tokens a step, recompute ${asked.recompute}`,
        `${Math.round(result.tokensPerSecond)} tokens/s; a step ${result.stepMillis.median.toFixed(1)} ms (${result.stepMillis.fastest.toFixed(1)} to ${result.stepMillis.slowest.toFixed(1)})`,
        ...(mfu === undefined
          ? []
          : [
              `of 989 TFLOP/s: ${percent(mfu.causal)} counting causal attention, ${percent(mfu.fullAttention)} the whole T × T, ${percent(mfu.litgpt)} by lit-gpt's estimate`
            ]),
        `first step done ${result.firstStepSeconds.toFixed(2)} s after the program began; ${result.deviceMemory > 0 ? `${Format.bytes(result.deviceMemory)} of GPU memory` : "memory of the process"}`,
        JSON.stringify(result)
      ].join("\n")
    )
  })
).pipe(Command.withDescription("Tokens a second, share of the peak, and memory of whole training steps"))

const kernels = Command.make(
  "kernels",
  { ...flags, accumulate: positive("accumulate", 2, "Micro-batches of a step, for the shares") },
  Effect.fn(function* (asked) {
    const { measureKernels } = yield* Effect.promise(() => import("../../engine/TrainingSpeed.ts"))
    const { options, shape } = yield* prepared(asked)
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
  Command.withSubcommands([train, kernels])
)
