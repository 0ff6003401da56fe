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

/** The learning rate of optimizer step `step` (1-based). Steps after the last keep the last one's rate. */
export const learningRateAt = (schedule: LearningRateSchedule, step: number): number => {
  const { decayFraction, kind, minimum, peak, totalSteps, warmupSteps } = schedule
  if (step < warmupSteps) return (peak * step) / warmupSteps
  if (kind === "constant") return peak
  const decaySteps = kind === "wsd" ? Math.ceil(decayFraction * totalSteps) : totalSteps - warmupSteps
  const decayStart = kind === "wsd" ? Math.max(warmupSteps, totalSteps - decaySteps) : warmupSteps
  if (step <= decayStart) return peak
  const ratio = Math.min(1, (step - decayStart) / (totalSteps - decayStart))
  const share = kind === "cosine" ? 0.5 * (1 + Math.cos(Math.PI * ratio)) : 1 - ratio
  return minimum + share * (peak - minimum)
}
