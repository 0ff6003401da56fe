/** Whether a failed attempt is tried again, and after how long. */
import { Duration, Effect, Random } from "effect"
import type { RetryPolicy } from "../file/ResolvedPipeline.ts"
import type { FailureClass } from "../StageType.ts"

/** The delay before the next try after `failures` failed ones (1 for the first), or undefined when there is none. */
export const retryDelay = Effect.fn("retryDelay")(function* (
  policy: RetryPolicy,
  failure: FailureClass,
  failures: number
) {
  if (failures > policy.times || !policy.for.includes(failure)) return undefined
  const base = Duration.toMillis(policy.base)
  const grown = policy.backoff === "exponential" ? base * 2 ** (failures - 1) : base
  const capped = Math.min(grown, Duration.toMillis(policy.max))
  // Spread, so that many clients of one overloaded server do not come back together.
  const spread = policy.jitter ? 0.8 + 0.4 * (yield* Random.next) : 1
  return Duration.millis(Math.round(capped * spread))
})
