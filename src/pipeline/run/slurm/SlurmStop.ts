/** Ends the jobs of a run that no runner follows: they save, as when their runner ends them. The next run goes on from there. */
import { Duration, Effect, Option, Schedule } from "effect"
import { ArtifactStore } from "../../../artifacts/ArtifactStore.ts"
import { allJobs, type ClusterJob, forgetJob } from "../ClusterJob.ts"
import { SlurmQueue } from "./SlurmQueue.ts"
import { hasEnded, isRunning } from "./SlurmState.ts"
import { leaveStop } from "./SlurmSubmission.ts"

export interface StoppedJob {
  readonly stage: string
  readonly id: string
  /** cancelled: it had not begun, or did not save in time. */
  readonly how: "saved" | "cancelled"
}

const slack = Duration.seconds(15)

/** Those that were not at their end already. `now`: without letting them save. */
export const stopJobs = Effect.fn("slurm.stopJobs")(function* (
  run: string,
  options: { readonly now: boolean; readonly grace: Duration.Duration }
) {
  const { root } = yield* ArtifactStore
  const jobs = (yield* allJobs(root)).filter((job) => job.run === run)
  const stopped = yield* Effect.forEach(jobs, (job) => stopJob(job, options), { concurrency: 8 })
  return stopped.filter((one) => one !== undefined)
})

const stopJob = Effect.fnUntraced(function* (
  job: ClusterJob,
  { grace, now }: { readonly now: boolean; readonly grace: Duration.Duration }
) {
  const queue = yield* SlurmQueue
  const alive = Effect.map(queue.find(job.name), (states) => states.filter((state) => !hasEnded(state)))
  const states = yield* alive
  if (states.length === 0) return undefined
  const id = job.id ?? states[0]?.id ?? job.name
  const ended = Effect.repeat(alive, { until: (left) => left.length === 0, schedule: Schedule.spaced("500 millis") })
  yield* leaveStop(job)
  let how: StoppedJob["how"] = "cancelled"
  if (!now && states.some(isRunning)) {
    yield* queue.askToSave(id)
    if (Option.isSome(yield* Effect.timeoutOption(ended, Duration.sum(grace, slack)))) how = "saved"
  }
  if (how === "cancelled") {
    yield* queue.cancel(id)
    yield* ended
  }
  // The next run begins a new attempt, from what was saved.
  yield* forgetJob((yield* ArtifactStore).root, job.key)
  const stopped: StoppedJob = { stage: job.stage, id, how }
  return stopped
})
