/** Training fits the GPUs that a stage asks for, with its strategy and its ranks: known before it starts. */
import { Effect, Result } from "effect"
import type { ModelOptions } from "../../engine/Native.ts"
import type { Rule } from "../../pipeline/plan/Preflight.ts"
import { formatBytes } from "../../pipeline/file/Quantity.ts"
import type { pretrainStage } from "../Pretrain.ts"
import { type ExaminedAs, missing, numberIn, ok, stagesOf, type Verdict } from "./StageRule.ts"

type Pretraining = ExaminedAs<typeof pretrainStage>

/** Of this machine's first GPU; undefined where the stage's are a cluster's. */
interface Gpu {
  readonly name: string
  readonly memory: number
  readonly count: number
}

export const gpuMemory: Rule = {
  cost: "cheap",
  check: (context) =>
    Effect.gen(function* () {
      const stages = stagesOf<typeof pretrainStage>(context, "pretrain").filter(
        ({ params, stage }) =>
          params.device !== "cpu" &&
          stage.resources.gpus > 0 &&
          (context.machine.gpus > 0 || stage.executor.kind === "slurm")
      )
      if (stages.length === 0) return []
      const { load } = yield* Effect.promise(() => import("../../engine/Native.ts"))
      const native = yield* Effect.option(load)
      if (native._tag === "None") return []
      const local = context.machine.gpus > 0 ? native.value.gpus().gpus : []
      const [first] = local
      return yield* Effect.forEach(stages, (examined) =>
        Effect.map(
          verdictOf(
            examined,
            examined.stage.executor.kind === "local" && first !== undefined
              ? { ...first, count: local.length }
              : undefined
          ),
          (verdict) => ({ subject: "GPU memory", stage: examined.stage.name, ...verdict })
        )
      )
    })
}

const verdictOf = Effect.fnUntraced(function* ({ inputs, params, stage }: Pretraining, gpu: Gpu | undefined) {
  const [{ load }, { cheapestChange, doesNotFit, gpuTrainingBytes }, { sharedOut }] = yield* Effect.promise(() =>
    Promise.all([
      import("../../engine/Native.ts"),
      import("../../engine/GpuMemory.ts"),
      import("../../engine/World.ts")
    ])
  )
  const native = yield* Effect.orDie(load)
  const size = stage.resources.ranks
  const options: ModelOptions = sharedOut(
    params,
    { rank: 0, size },
    {
      threads: 1,
      device: "cuda",
      precision: params.precision === "fp32" ? "fp32" : "bf16",
      state: params.precision === "bf16-sr" ? "bf16" : "fp32",
      recompute: params.recompute
    }
  )
  // auto takes what fits: one sequence must.
  const batch = params.micro_batch === "auto" ? 1 : params.micro_batch
  const length = numberIn(inputs["data"]?.[0], "seq_len") ?? params.model.max_position_embeddings
  const bytes = Result.try(() => gpuTrainingBytes(native, params.model, options, { batch, length }))
  if (Result.isFailure(bytes))
    return missing(
      bytes.failure instanceof Error ? bytes.failure.message : String(bytes.failure),
      "set shard_size to a number that divides resources.ranks, or strategy to fsdp"
    )
  const among = size === 1 ? "" : ` on each of ${size} GPUs (strategy ${params.strategy})`
  const verdict: Verdict = ok(
    `training takes ${formatBytes(bytes.success)}${among}${gpu === undefined ? "" : `; ${gpu.name} has ${formatBytes(gpu.memory)}`}`
  )
  if (gpu === undefined || bytes.success <= gpu.memory) return verdict
  return missing(
    doesNotFit(options, { batch, length }, bytes.success, gpu),
    cheapestChange(native, params.model, options, { batch, length }, gpu) ??
      "choose a smaller model, or a GPU with more memory"
  )
})
