/** Where a stage's model computes, and how exactly: the stage's wish, held against what this machine has. */
import { Effect, Schema } from "effect"
import { parameter, StageError } from "../pipeline/StageType.ts"
import * as Native from "./Native.ts"

export const DeviceWish = Schema.Literals(["auto", "cpu", "cuda"])
export const PrecisionWish = Schema.Literals(["auto", "fp32", "bf16"])
/** bf16-sr: weights and moments are bf16 too, rounded stochastically; the CPU computes with them in fp32. */
export const TrainingPrecisionWish = Schema.Literals(["auto", "fp32", "bf16", "bf16-sr"])
export const Recompute = Schema.Literals(["none", "pointwise", "gate_up", "full"])

/** Parameters of every stage that runs a model. */
export const computeParameters = {
  device: parameter(DeviceWish, {
    change: "operational",
    default: "auto",
    describe: "Where the model computes: auto takes a GPU where one can be used. CPU and GPU differ by rounding."
  }),
  gpu: parameter(Schema.Int.check(Schema.isGreaterThanOrEqualTo(0)), {
    change: "operational",
    default: 0,
    describe: "Which GPU, where there are several."
  }),
  precision: parameter(PrecisionWish, {
    change: "identity",
    default: "auto",
    describe: "auto: bf16 on a GPU, fp32 on the CPU. Weights, moments and gradients are fp32 either way."
  })
}

/** For stages that train: the same, but for what weights and moments are. */
export const trainingParameters = {
  ...computeParameters,
  precision: parameter(TrainingPrecisionWish, {
    change: "identity",
    default: "auto",
    describe:
      "auto: bf16 on a GPU, fp32 on the CPU; weights, moments and gradients are fp32 in either. bf16-sr: weights and moments are bf16 alone, rounded stochastically: 10 bytes a parameter on a GPU instead of 18, on the CPU 14 instead of 16."
  })
}

/** For stages that train. */
export const recompute = parameter(Recompute, {
  change: "operational",
  default: "pointwise",
  describe:
    "What the backward pass computes again instead of keeping it: pointwise costs about 1 % of the time, gate_up 12 %, full 20 %. The results are the same. On the CPU pointwise keeps everything."
})

export interface ComputeWish {
  readonly device: typeof DeviceWish.Type
  readonly gpu: number
  readonly precision: typeof TrainingPrecisionWish.Type
  readonly recompute?: typeof Recompute.Type
}

/** What can be had of the wish here. Fails where a GPU was asked for by name and cannot be used. */
export const chooseCompute = Effect.fn("chooseCompute")(function* (wish: ComputeWish, threads: number) {
  const { gpu, precision } = wish
  const options: Native.ModelOptions = {
    threads,
    recompute: wish.recompute ?? "none",
    state: precision === "bf16-sr" ? "bf16" : "fp32"
  }
  // A CPU's memory is rarely what is short, its time always.
  const cpuRecompute = wish.recompute === "pointwise" ? "none" : (wish.recompute ?? "none")
  const cpu: Native.ModelOptions = { ...options, recompute: cpuRecompute, device: "cpu", precision: "fp32" }
  if (wish.device === "cpu") {
    if (precision !== "bf16") return cpu
    return yield* refusal(
      "precision: bf16 was asked for, and the CPU computes in fp32",
      "set precision to auto or fp32"
    )
  }
  const native = yield* Effect.mapError(
    Native.load,
    (error) => new StageError({ failure: "internal", message: error.message, next: "npm run build:native" })
  )
  const { gpus, obstacle } = native.gpus()
  if (gpus.length === 0) {
    if (wish.device === "auto" && precision !== "bf16") return cpu
    return yield* refusal(
      `${wish.device === "cuda" ? "device: cuda" : "precision: bf16"} was asked for, and there is no GPU: ${obstacle}`,
      "mend that, or set device to cpu and precision to fp32"
    )
  }
  if (gpu >= gpus.length)
    return yield* refusal(
      `gpu: ${gpu} was asked for; this machine has ${gpus.length}`,
      `choose 0 to ${gpus.length - 1}`
    )
  return {
    ...options,
    device: "cuda",
    gpu,
    precision: precision === "fp32" ? "fp32" : "bf16"
  } satisfies Native.ModelOptions
})

const refusal = (message: string, next: string) =>
  Effect.fail(new StageError({ failure: "invalid-input", message, next }))
