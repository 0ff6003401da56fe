/** Forecasts of the stages that train: arithmetic, checkpoints and memory follow from the model's shape and the budget. */
import type { Facts } from "../artifacts/Artifact.ts"
import type { TrainingPrecisionWish } from "../engine/Compute.ts"
import { keptBranch, retainedSteps, type RetentionPlan } from "../engine/Retention.ts"
import { agreedSteps, canBeContinued, type LearningRateSchedule } from "../engine/Schedule.ts"
import { type ModelShape, parameterCount, trainingFlops } from "../model/Architecture.ts"
import {
  checkpointBytes,
  hfModelBytes,
  type SharedTraining,
  type StateType,
  trainingMemory
} from "../model/ModelSizes.ts"
import type { Extent, Forecast } from "../pipeline/StageType.ts"
import { formatBytes, formatCount } from "../pipeline/file/Quantity.ts"
import { factsOf, numberIn, passedOn, shapeIn } from "./KnownFacts.ts"
import { outlook } from "./Outlook.ts"
import { BYTES_PER_TOKEN } from "./TextForecast.ts"
import { CPU_MICRO_BATCH } from "./TrainingParameters.ts"

/** A line of metrics.jsonl. */
const METRICS_LINE_BYTES = 150
/** Beside those that stay: one saved for resuming alone, and the one that is being written. */
const TRANSIENT_CHECKPOINTS = 2
/** The best of all, and what a continuation needs: the best one that a longer run shares, and that of the decay's start. */
const BEST_CHECKPOINTS = 1
const CONTINUATION_CHECKPOINTS = 2
const flopsPerToken = trainingFlops["6(N - E) + 6LAT"]
/** A forward pass is a third of a forward and backward pass. */
const SCORING_SHARE = 1 / 3

export const forwardFlops = (shape: ModelShape, length: number): number => flopsPerToken(shape, length) * SCORING_SHARE

const stateOf = (precision: typeof TrainingPrecisionWish.Type): StateType => (precision === "bf16-sr" ? "bf16" : "fp32")

interface PretrainParams extends Omit<SharedTraining, "ranks"> {
  readonly model: ModelShape
  readonly max_tokens: number
  readonly batch_tokens: number
  readonly micro_batch: number | "auto"
  readonly document_mask: boolean
  readonly precision: typeof TrainingPrecisionWish.Type
  readonly validate_every: number
  readonly validation_blocks: number
  readonly save_every: number
  readonly keep: number
  readonly keep_every_tokens: number
  readonly lr: {
    readonly peak: number
    readonly min: number
    readonly warmup_steps: number
    readonly schedule: LearningRateSchedule["kind"]
    readonly decay_fraction: number
  }
}

/** Steps, and tokens of each, that a budget gives; undefined where not even one step fits. */
const stepsOf = ({ batch_tokens, max_tokens }: PretrainParams, seqLen: number) => {
  const tokensPerStep = Math.floor(batch_tokens / seqLen) * seqLen
  const totalSteps = tokensPerStep > 0 ? Math.floor(max_tokens / tokensPerStep) : 0
  return totalSteps > 0 ? { tokensPerStep, totalSteps } : undefined
}

export const scheduleOf = ({ lr }: Pick<PretrainParams, "lr">, totalSteps: number): LearningRateSchedule => ({
  kind: lr.schedule,
  peak: lr.peak,
  minimum: lr.min,
  warmupSteps: lr.warmup_steps,
  totalSteps,
  decayFraction: lr.decay_fraction
})

export const milestonesOf = (
  { keep_every_tokens }: Pick<PretrainParams, "keep_every_tokens">,
  perStep: number
): RetentionPlan["milestones"] => (keep_every_tokens > 0 ? { tokens: keep_every_tokens, perStep } : undefined)

const retentionOf = (params: PretrainParams, totalSteps: number, tokensPerStep: number): RetentionPlan => ({
  totalSteps,
  schedule: scheduleOf(params, totalSteps),
  saveEvery: params.save_every,
  validateEvery: params.validate_every,
  keep: params.keep,
  milestones: milestonesOf(params, tokensPerStep)
})

/** The step that a finished older run is continued from: its last, that of its decay's start, or none of its steps. */
const continuedAt = (
  params: PretrainParams,
  totalSteps: number,
  previous: { readonly params: PretrainParams; readonly steps: number } | undefined
): Extent | undefined => {
  if (previous === undefined) return undefined
  const before = { schedule: scheduleOf(previous.params, previous.steps) }
  const common = Math.min(agreedSteps(before.schedule, scheduleOf(params, totalSteps)), totalSteps)
  const step = [previous.steps, keptBranch(before)].find((saved) => saved !== undefined && saved <= common)
  return { done: step ?? 0, total: totalSteps, unit: "steps" }
}

export const forecastPretrain = (
  params: PretrainParams,
  data: Facts | undefined,
  previous: { readonly params: PretrainParams; readonly state: Facts | undefined } | undefined,
  ranks = 1
): Forecast | undefined => {
  const { model: shape } = params
  const seqLen = numberIn(data, "seq_len")
  const steps = seqLen === undefined || seqLen < 1 ? undefined : stepsOf(params, seqLen)
  if (seqLen === undefined || steps === undefined) return undefined
  const { tokensPerStep, totalSteps } = steps
  const heldOut = Math.min(params.validation_blocks, numberIn(data, "validation_blocks") ?? params.validation_blocks)
  const validations = 2 + (params.validate_every > 0 ? Math.floor(totalSteps / params.validate_every) : 0)
  const tokens = totalSteps * tokensPerStep
  // Of the causal half in full: what document_mask spares depends on the documents' lengths, and is a part of attention, the smaller part.
  const training = tokens * flopsPerToken(shape, seqLen)
  const validating = validations * heldOut * seqLen * forwardFlops(shape, seqLen)
  const retention = retentionOf(params, totalSteps, tokensPerStep)
  const state = stateOf(params.precision)
  const scheduled = retainedSteps(retention, totalSteps, []).length
  const checkpoints = Math.min(
    totalSteps,
    scheduled +
      TRANSIENT_CHECKPOINTS +
      (heldOut > 0 ? BEST_CHECKPOINTS : 0) +
      (canBeContinued(retention.schedule) ? CONTINUATION_CHECKPOINTS : 0)
  )
  const blockBytes = 2 * (seqLen + 1)
  const blocks = numberIn(data, "train_blocks")
  const epochs = blocks === undefined || blocks === 0 ? undefined : tokens / (blocks * seqLen)
  const roughly = Array.isArray(data?.["estimated"]) && data["estimated"].includes("train_blocks") ? "~" : ""
  const resumesAt = continuedAt(params, totalSteps, previousSteps(previous))
  return {
    amount: training + validating,
    unit: "FLOP",
    ...outlook(
      `${formatCount(parameterCount(shape))} parameters`,
      `${formatCount(tokens)} tokens in ${formatCount(totalSteps)} steps of ${formatCount(tokensPerStep)}`,
      epochs === undefined ? undefined : `${roughly}${epochs.toFixed(2)} epochs`,
      `${scheduled} checkpoint${scheduled === 1 ? "" : "s"} of ${formatBytes(checkpointBytes(shape, state))} kept`
    ),
    bytes: checkpoints * checkpointBytes(shape, state) + 2 * METRICS_LINE_BYTES * (totalSteps + validations),
    // The dataset is mapped, which costs no memory of its own; the held-out batches stay.
    memory:
      trainingMemory(shape, (params.micro_batch === "auto" ? CPU_MICRO_BATCH : params.micro_batch) * seqLen, state, {
        ...params,
        ranks
      }) +
      heldOut * (blockBytes + (params.document_mask ? 12 : 8) * seqLen),
    ...(resumesAt === undefined ? {} : { resumesAt }),
    outputs: {
      state: {
        steps: totalSteps,
        tokens,
        parameters: parameterCount(shape),
        shape,
        ...passedOn(data, ["tokenizer", "tokenizer_digest"])
      }
    }
  }
}

const previousSteps = (
  previous: { readonly params: PretrainParams; readonly state: Facts | undefined } | undefined
) => {
  const steps = numberIn(previous?.state, "steps")
  return previous === undefined || steps === undefined ? undefined : { params: previous.params, steps }
}

export const forecastSft = (
  params: {
    readonly epochs: number
    readonly micro_batch: number
    readonly seq_len: number
    readonly precision: typeof TrainingPrecisionWish.Type
  },
  base: Facts | undefined,
  conversations: Facts | undefined,
  previous: { readonly params: { readonly epochs: number }; readonly model: Facts | undefined } | undefined,
  ranks = 1
): Forecast | undefined => {
  const shape = shapeIn(base)
  if (shape === undefined) return undefined
  const length = Math.min(params.seq_len, shape.max_position_embeddings)
  const bytes = numberIn(conversations, "bytes")
  const before = numberIn(previous?.model, "steps")
  // Half the longest row: attention is the smaller part at these lengths.
  const flops = flopsPerToken(shape, length / 2)
  return {
    amount: bytes === undefined ? undefined : params.epochs * (bytes / BYTES_PER_TOKEN) * flops,
    unit: "FLOP",
    bytes:
      (1 + BEST_CHECKPOINTS + TRANSIENT_CHECKPOINTS) * checkpointBytes(shape, stateOf(params.precision)) +
      hfModelBytes(shape, "fp32"),
    memory: trainingMemory(shape, params.micro_batch * length, stateOf(params.precision), { ranks, strategy: "none" }),
    // A finished run left no optimizer state: all steps are made anew.
    ...(previous === undefined || before === undefined
      ? {}
      : {
          resumesAt: {
            done: 0,
            total: Math.round((before * params.epochs) / previous.params.epochs),
            unit: "steps"
          }
        }),
    outputs: {
      model: factsOf({
        parameters: parameterCount(shape),
        dtype: "fp32",
        context_length: shape.max_position_embeddings,
        chat: "guanaco",
        shape,
        ...passedOn(base, ["tokenizer", "tokenizer_digest"])
      })
    }
  }
}
