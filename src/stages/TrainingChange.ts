/**
 * What a changed parameter of a training run does to runs that exist. A result is the same bytes only when every step before was the same; so a
 * run is continued where old and new learning rates agree up to a step whose checkpoint the old run keeps, and made anew everywhere else.
 */
import { Option, Schema } from "effect"
import { agreedSteps, branchStep, type LearningRateSchedule } from "../engine/Schedule.ts"
import type { Change, ChangeClass, EncodedParams } from "../pipeline/StageType.ts"
import { LearningRate } from "./TrainingParameters.ts"

const PretrainBudget = Schema.Struct({
  lr: LearningRate,
  max_tokens: Schema.Finite,
  batch_tokens: Schema.Finite
})
const decodeBudget = Schema.decodeUnknownOption(PretrainBudget)

/** How far a run goes, in steps that need not be whole: how many sequences fit into one is known with the data only. */
const scheduleOf = (params: EncodedParams): Option.Option<LearningRateSchedule> =>
  Option.map(decodeBudget(params), ({ batch_tokens, lr, max_tokens }) => ({
    kind: lr.schedule,
    peak: lr.peak,
    minimum: lr.min,
    warmupSteps: lr.warmup_steps,
    totalSteps: max_tokens / batch_tokens,
    decayFraction: lr.decay_fraction
  }))

/**
 * For max_tokens and lr of pretrain: continuation where the new run is no shorter, and has the old one's learning rates up to the checkpoint that the
 * old one keeps: its last under constant, that of the decay's start under wsd. More tokens move every step's rate under cosine and linear.
 */
export const budgetChange = ({ paramsAfter, paramsBefore }: Change): ChangeClass =>
  Option.match(Option.all([scheduleOf(paramsBefore), scheduleOf(paramsAfter)]), {
    onNone: () => "identity",
    onSome: ([before, after]) =>
      after.totalSteps >= before.totalSteps && agreedSteps(before, after) >= branchStep(before)
        ? "continuation"
        : "identity"
  })

/** For keep: fewer checkpoints are among those that stayed; more would ask for some that are gone. */
export const keepChange = ({ after, before }: Change): ChangeClass =>
  typeof after === "number" && typeof before === "number" && after < before ? "continuation" : "identity"

/** For keep_every_tokens: where each of the new milestones is an old one, or there are none, those that stay are there already. */
export const milestonesChange = ({ after, before }: Change): ChangeClass =>
  typeof after === "number" && typeof before === "number" && (after === 0 || (before > 0 && after % before === 0))
    ? "continuation"
    : "identity"

/** For epochs of sft: more of them leave the steps before as they are where the learning rate does not depend on the number of steps. */
export const epochsChange = ({ after, before, paramsAfter }: Change): ChangeClass =>
  typeof after === "number" && typeof before === "number" && after > before && paramsAfter["schedule"] === "constant"
    ? "continuation"
    : "identity"
