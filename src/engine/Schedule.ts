/**
 * The learning rate as a pure function of the optimizer step, so that a resumed run needs no scheduler state.
 * Steps count from 1, and the last step is `totalSteps`: the rate of step s is the one its update is made with.
 */
import { Schema } from "effect"

export const ScheduleKind = Schema.Literals(["cosine", "linear", "constant", "wsd"])
export type ScheduleKind = typeof ScheduleKind.Type

export interface LearningRateSchedule {
  /**
   * After a linear warmup: cosine falls to `minimum` along half a cosine, linear along a line; constant stays at `peak`; wsd (warmup, stable,
   * decay; Hu et al. 2024, arXiv:2404.06395) stays at `peak` and falls linearly to `minimum` over the last `decayFraction` of all steps.
   */
  readonly kind: ScheduleKind
  readonly peak: number
  readonly minimum: number
  readonly warmupSteps: number
  readonly totalSteps: number
  /** Of `totalSteps`; read by wsd alone. */
  readonly decayFraction: number
}

/** The last step at the peak, after which the rate falls; Infinity for a constant schedule. */
export const decayStart = ({ decayFraction, kind, totalSteps, warmupSteps }: LearningRateSchedule): number =>
  kind === "constant"
    ? Infinity
    : kind === "wsd"
      ? Math.max(warmupSteps, totalSteps - Math.ceil(decayFraction * totalSteps))
      : warmupSteps

/**
 * The last step that a longer run of the same kind has in common with this one: wsd: where the decay starts; else the last step (of which a longer
 * run under cosine or linear has nothing: `agreedSteps` tells).
 */
export const branchStep = (schedule: LearningRateSchedule): number =>
  schedule.kind === "wsd" ? Math.min(decayStart(schedule), schedule.totalSteps) : schedule.totalSteps

/** Whether a longer run of the same kind begins as this one did: under constant and wsd, and where all steps are warmup. */
export const canBeContinued = (schedule: LearningRateSchedule): boolean => branchStep(schedule) <= decayStart(schedule)

/** So many first steps have equal learning rates under both schedules, at least; Infinity: all have. */
export const agreedSteps = (a: LearningRateSchedule, b: LearningRateSchedule): number => {
  if (a.peak !== b.peak || a.warmupSteps !== b.warmupSteps) return 0
  const sameDecay =
    a.kind === b.kind && a.minimum === b.minimum && a.totalSteps === b.totalSteps && decayStart(a) === decayStart(b)
  return sameDecay ? Infinity : Math.min(decayStart(a), decayStart(b))
}

/** The learning rate of optimizer step `step` (1-based). Steps after the last keep the last one's rate. */
export const learningRateAt = (schedule: LearningRateSchedule, step: number): number => {
  const { kind, minimum, peak, totalSteps, warmupSteps } = schedule
  if (step < warmupSteps) return (peak * step) / warmupSteps
  if (kind === "constant") return peak
  const start = decayStart(schedule)
  if (step <= start) return peak
  const ratio = Math.min(1, (step - start) / (totalSteps - start))
  const share = kind === "cosine" ? 0.5 * (1 + Math.cos(Math.PI * ratio)) : 1 - ratio
  return minimum + share * (peak - minimum)
}
