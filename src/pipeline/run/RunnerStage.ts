/**
 * Executes an attempt in the runner's own process, for stage types that say `runsIn: "runner"`: work so light that starting a worker would cost
 * more. Failures, stop and timeout read as a worker's do. No job.json and no exit.json: nothing here can die alone, so there is nothing to
 * repeat by hand or to explain.
 */
import { Cause, Duration, Effect, Exit, Fiber, FileSystem, Option, Path, Queue, Stream } from "effect"
import type { Attempt, WorkerEvent } from "./Executor.ts"
import { runJob } from "./StageJob.ts"
import { Preempted, ShareDone, StageError } from "../StageType.ts"

export const executeHere = Effect.fnUntraced(function* (attempt: Attempt) {
  const stop = { requested: false }
  const events = yield* Queue.unbounded<WorkerEvent, Cause.Done>()
  const listening = yield* Effect.forkScoped(Stream.runForEach(Stream.fromQueue(events), attempt.onEvent))
  const working = yield* Effect.forkScoped(
    runJob(
      attempt.job,
      (event) => void Queue.offerUnsafe(events, event),
      () => stop.requested
    )
  )
  const ended = yield* Effect.raceAllFirst([
    Effect.as(Fiber.await(working), undefined),
    Effect.as(attempt.stop, "stop" as const),
    ...(attempt.timeout === undefined ? [] : [Effect.as(Effect.sleep(attempt.timeout), "timeout" as const)])
  ])
  let inTime = true
  if (ended !== undefined) {
    stop.requested = true
    inTime = Option.isSome(yield* Effect.timeoutOption(Fiber.await(working), attempt.grace))
    if (!inTime) yield* Fiber.interrupt(working)
  }
  const exit = yield* Fiber.await(working)
  Queue.endUnsafe(events)
  yield* Fiber.await(listening)
  if (Exit.isSuccess(exit)) return exit.value
  if (ended === "timeout") {
    return yield* new StageError({
      failure: "timeout",
      message: `took longer than its timeout of ${attempt.timeout === undefined ? "?" : Duration.format(attempt.timeout)}`,
      next: "raise the stage's timeout and run again: it goes on from where it saved"
    })
  }
  if (!inTime) {
    return yield* new Preempted({
      message: `did not save within ${Duration.format(attempt.grace)} and was ended; it goes on from what it saved last`
    })
  }
  const error = Cause.squash(exit.cause)
  if (error instanceof StageError || error instanceof Preempted || error instanceof ShareDone) return yield* error
  return yield* defect(attempt, exit.cause, error)
})

/** The stack goes where a worker's would, so that it is found in the same place. */
const defect = Effect.fnUntraced(function* (attempt: Attempt, cause: Cause.Cause<unknown>, error: unknown) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  yield* Effect.ignore(
    Effect.andThen(
      fs.makeDirectory(attempt.folder, { recursive: true }),
      fs.writeFileString(path.join(attempt.folder, "stderr.log"), `${Cause.pretty(cause)}\n`)
    )
  )
  return yield* new StageError({
    failure: "internal",
    message: `a defect: ${error instanceof Error ? error.message : String(error)}`,
    next: "the stack is in the attempt's stderr.log; please report it to whoever wrote the stage"
  })
})
