/** What an attempt's end means: its last word, why it was told to stop, and how its process ended. */
import { Duration, Effect, Schema } from "effect"
import type { Attempt, WorkerEvent } from "./Executor.ts"
import { FailureClass, Preempted, ShareDone, StageError } from "../StageType.ts"
import { type Exit, lost } from "./WorkerLost.ts"

/** Why the runner told the worker to stop; undefined when it did not. */
export type Ended = "stop" | "timeout" | undefined

const isFailureClass = Schema.is(FailureClass)

/** The facts, or the failure. */
export const conclude = Effect.fnUntraced(function* (
  attempt: Attempt,
  ended: Ended,
  last: WorkerEvent | undefined,
  exit: Exit
) {
  if (last?._tag === "Completed") return last.facts
  if (last?._tag === "Shared") return yield* new ShareDone({ done: last.done, total: last.total, unit: last.unit })
  if (ended === "timeout") return yield* tookTooLong(attempt)
  if (last?._tag === "Preempted") return yield* new Preempted({ message: last.message })
  if (last?._tag === "Failed") {
    const failure = isFailureClass(last.failure) ? last.failure : "internal"
    return yield* new StageError({ failure, message: last.message, next: last.next })
  }
  if (ended === "stop") {
    const message =
      exit.signal === "SIGKILL"
        ? `did not save within ${Duration.format(attempt.grace)} and was ended; it goes on from its last checkpoint`
        : "stopped before it had begun"
    return yield* new Preempted({ message })
  }
  return yield* lost(attempt.folder, exit)
})

export const tookTooLong = ({ timeout }: Pick<Attempt, "timeout">): StageError =>
  new StageError({
    failure: "timeout",
    message: `took longer than its timeout of ${timeout === undefined ? "?" : Duration.format(timeout)}`,
    next: "raise the stage's timeout and run again: it goes on from where it saved"
  })
