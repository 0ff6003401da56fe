/**
 * Executes an attempt as a Slurm job: submits it, or finds the one that an earlier runner submitted, follows it to its end, and says what that means.
 * The job needs no runner: it appends its events to files, saves and is requeued by itself.
 */
import { existsSync, readFileSync } from "node:fs"
import { join } from "node:path"
import { Effect, Option, Result, Schema } from "effect"
import { ArtifactStore } from "../../../artifacts/ArtifactStore.ts"
import type { SlurmOptions } from "../../file/ExecutorBlock.ts"
import { Preempted, StageError } from "../../StageType.ts"
import { type Ended as Told, tookTooLong } from "../AttemptEnd.ts"
import { type ClusterJob, findJob } from "../ClusterJob.ts"
import { eventsFile, lastWord } from "../EventsFile.ts"
import type { Attempt } from "../Executor.ts"
import { wordOf } from "../RankWords.ts"
import { lost, watchdogLine } from "../WorkerLost.ts"
import { follow } from "./SlurmFollow.ts"
import { SlurmQueue } from "./SlurmQueue.ts"
import { timeLimit } from "./SlurmScript.ts"
import { describeState, ExitRecord, type JobState, verdictOf } from "./SlurmState.ts"
import { findLost, placesOf, submit, type Submission } from "./SlurmSubmission.ts"

export const execute = Effect.fn("SlurmExecutor.execute")(function* (
  attempt: Attempt,
  options: SlurmOptions,
  worker: string
) {
  let found = yield* earlierJob(attempt)
  // A job for the whole is submitted when the shares are done.
  let shared = options.array === 0 || attempt.shares !== true || attempt.job.share !== undefined || found?.tasks === 0
  for (;;) {
    const tasks = found?.tasks ?? (shared ? 0 : options.array)
    const submission: Submission = { attempt, options, worker, tasks }
    const submitted = found
    const job = submitted ?? (yield* submit(submission))
    found = undefined
    const followed = yield* follow(job, attempt, options)
    if (followed._tag === "Left") {
      return yield* new Preempted({
        message: `Slurm job ${job.id} goes on without this runner; run again to follow it`,
        detached: true
      })
    }
    const { states, told } = followed
    if (tasks > 0) {
      yield* arrayEnded(attempt, job, states, told)
      shared = true
      continue
    }
    const ended = yield* Effect.result(conclude(attempt, job, options, told, states[0]))
    if (Result.isSuccess(ended)) {
      if (submitted === undefined || Object.values(attempt.job.outputs).every(existsSync)) return ended.success
      yield* attempt.onEvent({
        _tag: "Log",
        line: `the result of Slurm job ${job.id} was published already; it is made again`
      })
      continue
    }
    // What an earlier runner, or somebody, had stopped is what this run is there to go on with.
    if (submitted !== undefined && told === undefined && ended.failure instanceof Preempted) {
      yield* attempt.onEvent({ _tag: "Log", line: `Slurm job ${job.id} had stopped: ${ended.failure.message}` })
      continue
    }
    return yield* ended.failure
  }
})

/** The job that is at work on the key, or finished it while nobody looked. */
const earlierJob = Effect.fnUntraced(function* (attempt: Attempt) {
  const { root } = yield* ArtifactStore
  const job = yield* findJob(root, attempt.key)
  if (job === undefined) return undefined
  const queue = yield* SlurmQueue
  const here = yield* queue.clusterName.pipe(
    Effect.mapError(
      (error) =>
        new StageError({
          failure: error.kind === "unreachable" ? "network" : "invalid-input",
          message: `Slurm job ${job.id ?? job.name} on ${job.cluster} may be making this result (run ${job.run}), and cannot be asked about: ${error.message}`,
          next: error.next
        })
    )
  )
  if (here !== job.cluster) {
    return yield* new StageError({
      failure: "invalid-input",
      message: `Slurm job ${job.id ?? job.name} of the cluster ${job.cluster} may be making this result (run ${job.run}); this is ${here}`,
      next: `run on a machine of ${job.cluster}`
    })
  }
  const known = job.id === null ? yield* findLost(job) : job
  if (known === undefined) {
    yield* attempt.onEvent({ _tag: "Log", line: `an earlier runner ended before it had submitted ${job.name}` })
    return undefined
  }
  yield* attempt.onEvent({
    _tag: "Log",
    line: `follows Slurm job ${known.id}, which run ${known.run} submitted at ${known.submittedAt}`
  })
  return known
})

const decodeExit = Schema.decodeUnknownOption(Schema.fromJsonString(ExitRecord))

const exitRecord = (place: string): ExitRecord | undefined =>
  Option.getOrUndefined(
    decodeExit(
      Result.getOrElse(
        Result.try(() => readFileSync(join(place, "exit.json"), "utf8")),
        () => ""
      )
    )
  )

const conclude = Effect.fnUntraced(function* (
  attempt: Attempt,
  job: ClusterJob,
  options: SlurmOptions,
  told: Told,
  state: JobState | undefined
) {
  const { folder } = job
  const limited = options.time === undefined && timeLimit({ options, timeout: attempt.timeout }) !== undefined
  const verdict = verdictOf({ job: state, word: wordOf(folder), record: exitRecord(folder), timeoutIsLimit: limited })
  if (verdict._tag === "Completed") return verdict.word.facts
  if (told === "timeout" || (verdict._tag === "Timeout" && limited)) return yield* tookTooLong(attempt)
  switch (verdict._tag) {
    case "Timeout":
      return yield* new StageError({
        failure: "preempted",
        message: `Slurm job ${job.id} used up its wall time before it had saved; it goes on from its last checkpoint`,
        next: "run again to go on, and give the stage more grace so that it can save in time"
      })
    case "Failure":
      return yield* verdict.error
    case "Lost":
      if (told === "stop") return yield* new Preempted({ message: "was ended; it goes on from its last checkpoint" })
      return yield* lost(folder, verdict.exit, {
        who: `Slurm job ${job.id} (${verdict.how})`,
        watchdog: yield* watchdogLine(attempt.job.work, Date.parse(job.submittedAt))
      })
  }
})

/** Tasks that failed leave their shares to the job that makes the result of all; only where no task did anything the attempt fails here. */
const arrayEnded = Effect.fnUntraced(function* (
  attempt: Attempt,
  job: ClusterJob,
  states: ReadonlyArray<JobState>,
  told: Told
) {
  if (told === "timeout") return yield* tookTooLong(attempt)
  if (told === "stop") return yield* new Preempted({ message: `the shares of Slurm job ${job.id} saved what they had` })
  const verdicts = placesOf(job).map((place, index) => {
    const state = states.find(({ task }) => task === index + 1)
    const word = lastWord(join(place, eventsFile))
    return {
      task: index + 1,
      state,
      word,
      verdict: verdictOf({ job: state, word, record: exitRecord(place), timeoutIsLimit: false })
    }
  })
  const failed = verdicts.filter(({ word }) => word?._tag !== "Shared" && word?._tag !== "Completed")
  for (const { state, task, word } of failed) {
    const why = word?._tag === "Failed" ? word.message : state === undefined ? "unknown to Slurm" : describeState(state)
    yield* attempt.onEvent({
      _tag: "Warning",
      line: `share ${task}/${job.tasks} did not finish (${why}): what it left is done with the rest`
    })
  }
  const [first] = failed
  if (failed.length < verdicts.length || first === undefined || first.verdict._tag !== "Failure") return
  return yield* first.verdict.error
})
