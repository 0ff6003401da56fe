/** Follows a submitted job, whoever submitted it: relays its events, tells of its states, until it has ended or shall be left. */
import { readFileSync, renameSync, writeFileSync } from "node:fs"
import { Clock, Deferred, Duration, Effect, Fiber, Option, Path, Result, Stream } from "effect"
import type { SlurmOptions } from "../../file/ExecutorBlock.ts"
import type { Ended as Told } from "../AttemptEnd.ts"
import type { ClusterJob } from "../ClusterJob.ts"
import { eventsFile, followEvents, isLast } from "../EventsFile.ts"
import type { Attempt, WorkerEvent } from "../Executor.ts"
import { SlurmQueue } from "./SlurmQueue.ts"
import { describeState, hasEnded, isRunning, type JobState, vanished } from "./SlurmState.ts"
import { leaveStop, placesOf } from "./SlurmSubmission.ts"

export type Followed =
  | { readonly _tag: "Ended"; readonly told: Told; readonly states: ReadonlyArray<JobState> }
  /** It goes on without us. */
  | { readonly _tag: "Left" }

/** How long a cancelled job may take beyond its grace until Slurm is asked to kill it. */
const slack = Duration.seconds(10)

export const follow = Effect.fn("slurm.follow")(function* (job: ClusterJob, attempt: Attempt, options: SlurmOptions) {
  const watch = new Watch()
  const relaying = yield* Effect.forkScoped(relay(job, attempt, watch))
  const watching = yield* Effect.forkScoped(watchUntilEnded(job, attempt, options, watch))
  const told: Told = yield* Effect.raceFirst(
    Effect.as(Fiber.await(watching), undefined),
    Effect.raceFirst(
      Effect.as(attempt.stop, "stop" as const),
      Effect.as(Deferred.await(watch.timedOut), "timeout" as const)
    )
  )
  if (told === "stop" && options.onInterrupt === "detach") return { _tag: "Left" } satisfies Followed
  if (told !== undefined) yield* end(job, attempt, watch, Fiber.await(watching))
  const states = yield* Fiber.join(watching)
  watch.over = true
  yield* Fiber.await(relaying)
  const followed: Followed = { _tag: "Ended", told, states }
  return followed
}, Effect.scoped)

/** What is known of the job while it is followed. */
class Watch {
  over = false
  /** Something was said that makes a look at the queue worth while. */
  nudged = false
  /** Milliseconds in which it ran. */
  running = 0
  readonly timedOut = Deferred.makeUnsafe<void>()
  readonly states = new Map<string, JobState>()

  get alive(): ReadonlyArray<JobState> {
    return Array.from(this.states.values()).filter((state) => !hasEnded(state))
  }
}

const end = Effect.fnUntraced(function* (
  job: ClusterJob,
  attempt: Attempt,
  watch: Watch,
  ended: Effect.Effect<unknown>
) {
  const queue = yield* SlurmQueue
  const id = job.id ?? job.name
  yield* leaveStop(job)
  watch.nudged = true
  // A job that has not begun has nothing to save.
  const begun = watch.alive.some(isRunning)
  yield* Effect.ignore(begun ? queue.askToSave(id) : queue.cancel(id))
  const line = begun
    ? `Slurm job ${id} is asked to save and end within ${Duration.format(attempt.grace)}`
    : `Slurm job ${id}, which has not begun, is cancelled`
  yield* attempt.onEvent({ _tag: "Log", line })
  if (Option.isSome(yield* Effect.timeoutOption(ended, Duration.sum(attempt.grace, slack)))) return
  yield* Effect.ignore(queue.cancel(id))
  yield* ended
})

const firstLook = 300

/** The last states of the job, or of all of its tasks; none where Slurm does not know it any more. */
const watchUntilEnded = Effect.fnUntraced(function* (
  job: ClusterJob,
  attempt: Attempt,
  options: SlurmOptions,
  watch: Watch
) {
  const expected = Math.max(1, job.tasks)
  let [interval, last, silent] = [firstLook, "", false]
  let missing = 0
  let before = yield* Clock.currentTimeMillis
  for (;;) {
    const found = yield* Effect.result((yield* SlurmQueue).find(job.name))
    const now = yield* Clock.currentTimeMillis
    if (Result.isFailure(found)) {
      if (!silent)
        yield* attempt.onEvent({
          _tag: "Warning",
          line: `Slurm does not answer; the job goes on: ${found.failure.message}`
        })
      silent = true
    } else {
      silent = false
      if (watch.alive.some(isRunning)) watch.running += now - before
      for (const state of found.success) watch.states.set(state.id, state)
      const known = new Set(found.success.map(({ id }) => id))
      const missed = watch.alive.filter(({ id }) => !known.has(id))
      missing = watch.states.size < expected || missed.length > 0 ? missing + 1 : 0
      // Just submitted ones may take a moment to be listed.
      if (missing >= 5) for (const state of missed) watch.states.set(state.id, { ...state, state: vanished })
      if (watch.alive.length === 0 && (watch.states.size >= expected || missing >= 5)) break
      const said = summaryOf(job, watch)
      if (said !== last && said !== "") {
        yield* attempt.onEvent({ _tag: "Log", line: said })
        interval = firstLook
      }
      last = said
    }
    before = now
    if (attempt.timeout !== undefined && watch.running > Duration.toMillis(attempt.timeout))
      yield* Deferred.succeed(watch.timedOut, undefined)
    yield* rest(interval, watch)
    interval = Math.min(interval * 1.5, Math.max(firstLook, Duration.toMillis(options.poll)))
    if (watch.nudged) interval = firstLook
    watch.nudged = false
  }
  const states = Array.from(watch.states.values())
  return yield* Effect.forEach(states, withExit)
})

/** Sleeps, but not on when something happened. */
const rest = Effect.fnUntraced(function* (millis: number, watch: Watch) {
  for (let left = millis; left > 0 && !watch.nudged; left -= firstLook) yield* Effect.sleep(Math.min(left, firstLook))
})

/** squeue does not tell exit codes. */
const withExit = Effect.fnUntraced(function* (state: JobState) {
  if (state.exit !== undefined || state.state === "COMPLETED") return state
  const detail = yield* Effect.orElseSucceed((yield* SlurmQueue).detail(state.id), () => undefined)
  return detail === undefined ? state : { ...state, ...(detail.exit === undefined ? {} : { exit: detail.exit }) }
})

/** "Slurm job 12: running on node7"; of an array "Slurm job 12: 3 tasks running on a,b; 5 tasks pending (Resources)". */
const summaryOf = (job: ClusterJob, watch: Watch): string => {
  const states = Array.from(watch.states.values(), describeState)
  if (job.tasks === 0) return states[0] === undefined ? "" : `Slurm job ${job.id}: ${states[0]}`
  const counts = Map.groupBy(states, (state) => state)
  return `Slurm job ${job.id}: ${Array.from(counts, ([state, all]) => `${all.length} ${all.length === 1 ? "task" : "tasks"} ${state}`).join("; ")}`
}

/** Events from where an earlier runner stopped listening. Shares add up to one progress. */
const relay = (job: ClusterJob, attempt: Attempt, watch: Watch) =>
  Effect.gen(function* () {
    const path = yield* Path.Path
    const shares = new Map<number, WorkerEvent & { readonly _tag: "Progress" }>()
    yield* Effect.forEach(
      placesOf(job).entries(),
      ([index, place]) => {
        const mark = path.join(place, "relayed")
        const told = readOffset(mark)
        let written = told
        return Stream.runForEach(
          followEvents(path.join(place, eventsFile), {
            offset: told,
            ended: Effect.sync(() => watch.over),
            onOffset: (offset) => {
              if (offset === written) return
              written = offset
              writeOffset(mark, offset)
            },
            pollMillis: 250
          }),
          (event) => {
            if (isLast(event)) watch.nudged = true
            const passed = job.tasks === 0 ? ofWhole(event) : ofShare(event, index, job.tasks, shares)
            return passed === undefined ? Effect.void : attempt.onEvent(passed)
          }
        )
      },
      { concurrency: "unbounded", discard: true }
    )
  })

const ofWhole = (event: WorkerEvent): WorkerEvent | undefined =>
  event._tag === "Started"
    ? {
        _tag: "Log",
        line: `begins on ${event.host}${event.restart === 0 ? "" : `, for the ${event.restart + 1}. time`}`
      }
    : event

const ofShare = (
  event: WorkerEvent,
  index: number,
  tasks: number,
  shares: Map<number, WorkerEvent & { readonly _tag: "Progress" }>
): WorkerEvent | undefined => {
  if (event._tag === "Log" || event._tag === "Warning")
    return { ...event, line: `share ${index + 1}/${tasks}: ${event.line}` }
  if (event._tag !== "Progress") return undefined
  shares.set(index, event)
  const all = Array.from(shares.values())
  const sum = (of: (one: (typeof all)[number]) => number) => all.reduce((total, one) => total + of(one), 0)
  return { ...event, done: sum(({ done }) => done), total: sum(({ total }) => total), metrics: {} }
}

const readOffset = (file: string): number =>
  Number(
    Result.getOrElse(
      Result.try(() => readFileSync(file, "utf8")),
      () => "0"
    )
  ) || 0

/** Lost at worst: then some lines are told twice. */
const writeOffset = (file: string, offset: number): void => {
  try {
    writeFileSync(`${file}.tmp`, String(offset))
    renameSync(`${file}.tmp`, file)
  } catch {
    // A full disk; the next one may work.
  }
}
