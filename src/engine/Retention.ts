/**
 * Which checkpoints of a training run stay: a function of the plan, the step, and the validations so far, so that interrupted and undisturbed runs
 * keep the same ones.
 */
import { branchStep, canBeContinued, type LearningRateSchedule } from "./Schedule.ts"

/** A validation loss and the step after which it was measured. */
export interface Measured {
  readonly step: number
  readonly loss: number
}

export interface RetentionPlan {
  readonly totalSteps: number
  readonly schedule: LearningRateSchedule
  /** In steps; 0: only the last step's. */
  readonly saveEvery: number
  /** In steps; 0: only before the first and after the last. */
  readonly validateEvery: number
  /** Checkpoints of scheduled steps that stay, counted from the newest. */
  readonly keep: number
  /** Besides, that of the first step at or past each multiple of so many tokens stays; a step takes `perStep` of them. */
  readonly milestones?: { readonly tokens: number; readonly perStep: number } | undefined
}

/** Multiples of the milestones' tokens that are reached once `step` steps are done; with fewer tokens than a step has, each step is one. */
const milestonesReached = ({ milestones }: RetentionPlan, step: number): number =>
  milestones === undefined
    ? 0
    : Math.floor((step * milestones.perStep) / Math.max(milestones.tokens, milestones.perStep))

const isMilestone = (plan: RetentionPlan, step: number): boolean =>
  milestonesReached(plan, step) > milestonesReached(plan, step - 1)

const milestonesUpTo = (plan: RetentionPlan, step: number): ReadonlyArray<number> => {
  const { perStep, tokens } = plan.milestones ?? { tokens: 1, perStep: 1 }
  return Array.from({ length: milestonesReached(plan, step) }, (_, index) =>
    Math.ceil(((index + 1) * Math.max(tokens, perStep)) / perStep)
  )
}

/** Saved whatever happens: multiples of saveEvery, milestones, and the last step. */
export const isScheduled = (plan: RetentionPlan, step: number): boolean =>
  step === plan.totalSteps || (plan.saveEvery > 0 && step % plan.saveEvery === 0) || isMilestone(plan, step)

/** The newest `keep` scheduled steps up to `step`. */
const newestScheduled = ({ keep, saveEvery, totalSteps }: RetentionPlan, step: number): ReadonlyArray<number> => {
  const steps: Array<number> = step === totalSteps && step > 0 ? [step] : []
  if (saveEvery > 0)
    for (let at = step - (step % saveEvery); at > 0 && steps.length < keep; at -= saveEvery)
      if (at !== totalSteps) steps.push(at)
  return steps
}

/** Whether a run validates after `step` whatever its length. */
export const isRegularValidation = (validateEvery: number, step: number): boolean =>
  step === 0 || (validateEvery > 0 && step % validateEvery === 0)

/** The checkpoint that a longer run goes on from; undefined where it has none besides the last step's. */
export const keptBranch = ({ schedule }: Pick<RetentionPlan, "schedule">): number | undefined =>
  schedule.kind === "wsd" && branchStep(schedule) >= 1 ? branchStep(schedule) : undefined

/** The first of the lowest losses after step 0. */
const best = (validations: ReadonlyArray<Measured>): Measured | undefined =>
  validations.reduce<Measured | undefined>(
    (lowest, measured) =>
      measured.step > 0 && (lowest === undefined || measured.loss < lowest.loss) ? measured : lowest,
    undefined
  )

/**
 * Steps whose checkpoints stay once `step` steps are done, in rising order: the newest `keep` scheduled ones, the milestones, and the one of the best
 * validation loss. A run that can be continued keeps besides what its continuation needs: the checkpoint of the decay's start (wsd), and the best one of those
 * validations that the longer run makes too.
 */
export const retainedSteps = (
  plan: RetentionPlan,
  step: number,
  validations: ReadonlyArray<Measured>
): ReadonlyArray<number> => {
  const steps = new Set([...newestScheduled(plan, step), ...milestonesUpTo(plan, step)])
  const own = best(validations)
  if (own !== undefined) steps.add(own.step)
  if (canBeContinued(plan.schedule)) {
    const branch = branchStep(plan.schedule)
    const shared = best(
      validations.filter(
        (measured) => measured.step <= branch && isRegularValidation(plan.validateEvery, measured.step)
      )
    )
    if (shared !== undefined) steps.add(shared.step)
    const kept = keptBranch(plan)
    if (kept !== undefined && kept <= step) steps.add(kept)
  }
  return Array.from(steps).sort((a, b) => a - b)
}
