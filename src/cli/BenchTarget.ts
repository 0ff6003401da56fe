/** What a benchmark trains: a preset by its name, or the model of a pipeline file's pretrain stage with how that stage trains it. */
import { Effect, FileSystem, Schema } from "effect"
import type { ModelOptions } from "../engine/Native.ts"
import { Model, type ModelShape, presets } from "../model/Architecture.ts"
import { didYouMean } from "../pipeline/file/Diagnostics.ts"
import { loadPipeline } from "../pipeline/file/Pipeline.ts"
import { UsageError } from "../pipeline/plan/Selection.ts"

export interface BenchTarget {
  readonly name: string
  readonly shape: ModelShape
  /** Of the file; absent where it leaves the choice to the machine, and for presets. */
  readonly microBatch?: number
  readonly recompute?: NonNullable<ModelOptions["recompute"]>
  readonly precision?: "auto" | "fp32" | "bf16" | "bf16-sr"
  readonly strategy?: NonNullable<ModelOptions["strategy"]>
  readonly shardSize?: number
}

/** Of pretrain's parameters, as the file's defaults make them. */
const Trained = Schema.Struct({
  model: Model,
  micro_batch: Schema.Union([Schema.Int, Schema.Literal("auto")]),
  recompute: Schema.Literals(["none", "pointwise", "gate_up", "full"]),
  precision: Schema.Literals(["auto", "fp32", "bf16", "bf16-sr"]),
  strategy: Schema.Literals(["none", "zero2", "fsdp", "hsdp"]),
  shard_size: Schema.Int
})

const isPreset = (name: string): name is keyof typeof presets => Object.hasOwn(presets, name)

/** `text` is a preset's name, or a file. */
export const benchTarget = Effect.fn("benchTarget")(function* (text: string) {
  const preset: BenchTarget | undefined = isPreset(text) ? { name: text, shape: presets[text] } : undefined
  if (preset !== undefined) return preset
  const fs = yield* FileSystem.FileSystem
  const names = Object.keys(presets)
  if (!(yield* Effect.orElseSucceed(fs.exists(text), () => false))) {
    const meant = didYouMean(text, names)
    return yield* new UsageError({
      message: `${text} is neither a file nor a model's name; known are ${names.join(", ")}${meant === undefined ? "" : `. Did you mean ${meant}?`}`
    })
  }
  const pipeline = yield* loadPipeline({ file: text, overrides: [], profiles: [] })
  const stage = pipeline.stages.find(({ type }) => type.name === "pretrain" && type.plugin === undefined)
  if (stage === undefined)
    return yield* new UsageError({
      message: `${text} has no pretrain stage: name a model (${names.join(", ")}) instead`
    })
  const params = yield* Effect.orDie(Schema.decodeUnknownEffect(Trained)(stage.params))
  const trained: BenchTarget = {
    name: `${text}: ${stage.name}`,
    shape: params.model,
    ...(params.micro_batch === "auto" ? {} : { microBatch: params.micro_batch }),
    recompute: params.recompute,
    precision: params.precision,
    strategy: params.strategy,
    shardSize: params.shard_size
  }
  return trained
})
