/**
 * Submits an attempt's job so that no death in between loses it or does it twice: its name is recorded before sbatch is asked, its id after. A job
 * whose id nobody wrote down is found by its name; one that turns up after its successor ends itself at the fence.
 */
import { randomBytes } from "node:crypto"
import { mkdirSync, rmSync } from "node:fs"
import { Duration, Effect, FileSystem, Option, Path } from "effect"
import { ArtifactStore } from "../../../artifacts/ArtifactStore.ts"
import { storageFailure, writeFileAtomic, writeJsonAtomic } from "../../../artifacts/DurableFile.ts"
import type { SlurmOptions } from "../../file/ExecutorBlock.ts"
import { timestamp } from "../../runs/Journal.ts"
import { Preempted, StageError } from "../../StageType.ts"
import { type ClusterJob, fenceFile, forgetJob, readFence, saveJob, writeFence } from "../ClusterJob.ts"
import { eventsFile } from "../EventsFile.ts"
import type { Attempt, Job } from "../Executor.ts"
import { launcherOf } from "../RankProcesses.ts"
import { workerEnvironment, workerFlags } from "../WorkerProcess.ts"
import { type SlurmError, SlurmQueue } from "./SlurmQueue.ts"
import { placeOf, type RankLauncher, slurmScript } from "./SlurmScript.ts"

export interface Submission {
  readonly attempt: Attempt
  readonly options: SlurmOptions
  /** The worker's entry, absolute. */
  readonly worker: string
  /** 0: one job for the whole; else an array of so many shares. */
  readonly tasks: number
}

/** In the attempt's folder: which file the job was submitted from. */
export const scriptFile = (tasks: number): string => (tasks === 0 ? "job.sh" : "array.sh")

/** The places that a job's tasks have their files at. */
export const placesOf = ({ folder, tasks }: Pick<ClusterJob, "folder" | "tasks">): ReadonlyArray<string> =>
  tasks === 0 ? [placeOf(folder)] : Array.from({ length: tasks }, (_, index) => placeOf(folder, index + 1))

/** Writes what the job needs and hands it to Slurm; the job with its id. */
export const submit = Effect.fn("slurm.submit")(function* (submission: Submission) {
  const { attempt, tasks } = submission
  const path = yield* Path.Path
  const queue = yield* SlurmQueue
  const { root } = yield* ArtifactStore
  const cluster = yield* queue.clusterName.pipe(Effect.mapError(refused))
  const launcher = yield* rankLauncher(submission)
  const fence = fenceFile(path, root, attempt.key)
  const job: ClusterJob = {
    version: 1,
    key: attempt.key,
    name: "",
    cluster,
    id: null,
    tasks,
    run: attempt.run,
    stage: attempt.job.stage,
    attempt: attempt.number,
    folder: attempt.folder,
    counter: (readFence(fence)?.counter ?? 0) + 1,
    submittedAt: yield* timestamp
  }
  const named: ClusterJob = { ...job, name: nameOf(job) }
  yield* Effect.try({
    try: () => {
      mkdirSync(path.dirname(fence), { recursive: true })
      writeFence(fence, { counter: named.counter, restart: 0 })
    },
    catch: (error) =>
      new StageError({
        failure: "disk-full",
        message: `${fence} cannot be written: ${error instanceof Error ? error.message : String(error)}`,
        next: "free some space, or check who may write there, then run again"
      })
  })
  yield* writeFiles(submission, named, { file: fence, counter: named.counter }, launcher)
  yield* saveJob(root, named)
  const id = yield* sendOff(submission, named)
  const submitted: ClusterJob = { ...named, id }
  yield* saveJob(root, submitted)
  yield* attempt.onEvent({
    _tag: "Log",
    line: `submitted as Slurm job ${id}: ${path.join(job.folder, scriptFile(tasks))}`
  })
  return submitted
})

/** "tl-base-3f2a9c1b-2-9fd01c": readable in squeue, and unlike any other, of other stores too. */
const nameOf = ({ counter, key, stage }: ClusterJob): string =>
  `tl-${stage.replaceAll(/[^\w-]+/gu, "_").slice(0, 40)}-${key.slice(0, 8)}-${counter}-${randomBytes(3).toString("hex")}`

/** A job whose id was not written down, if Slurm has it. An sbatch that outlived its runner may be a moment late. */
export const findLost = Effect.fnUntraced(function* (job: ClusterJob) {
  const queue = yield* SlurmQueue
  const { root } = yield* ArtifactStore
  for (let look = 0; look < 3; look++) {
    const [found] = yield* queue.find(job.name).pipe(Effect.mapError(refused))
    if (found !== undefined) {
      const known: ClusterJob = { ...job, id: found.id.split("_")[0] ?? found.id }
      yield* saveJob(root, known)
      return known
    }
    yield* Effect.sleep("1 second")
  }
  return undefined
})

const writeFiles = Effect.fnUntraced(function* (
  { attempt, options, tasks, worker }: Submission,
  job: ClusterJob,
  fence: NonNullable<Job["fence"]>,
  launcher: RankLauncher
) {
  const path = yield* Path.Path
  const store = yield* ArtifactStore
  const { folder } = attempt
  const shareKey = (task: number | string) => `${attempt.key}-shares-${task}-of-${tasks}`
  const ports = Object.keys(attempt.job.outputs)
  for (const [index, place] of placesOf(job).entries()) {
    const share = { index: index + 1, of: tasks }
    const outputs = Object.fromEntries(ports.map((port) => [port, store.outputPath(shareKey(share.index), port)]))
    const file: Job = { ...attempt.job, fence, ...(tasks === 0 ? {} : { share, outputs }) }
    yield* Effect.gen(function* () {
      // What an earlier submission of the same attempt left.
      for (const name of [eventsFile, "exit.json", "stop", "relayed"]) rmSync(path.join(place, name), { force: true })
      yield* writeJsonAtomic(path.join(place, "job.json"), file)
      yield* writeJsonAtomic(path.join(place, "submission.json"), job)
    }).pipe(Effect.mapError(storageFailure(place)))
  }
  const script = slurmScript({
    name: job.name,
    run: attempt.run,
    stage: attempt.job.stage,
    attempt: attempt.number,
    folder,
    resources: attempt.resources,
    options,
    timeout: attempt.timeout,
    grace: attempt.grace,
    launcher: tasks === 0 ? launcher : "none",
    tasks,
    command: { node: process.execPath, flags: workerFlags, worker },
    fence,
    outputs: ports.map((port) =>
      tasks === 0 ? (attempt.job.outputs[port] ?? "") : store.outputPath(shareKey("{task}"), port)
    )
  })
  const file = path.join(folder, scriptFile(tasks))
  yield* writeFileAtomic(file, script).pipe(Effect.mapError(storageFailure(file)))
})

/** How the ranks of the stage find each other on this cluster. */
const rankLauncher = Effect.fnUntraced(function* ({ attempt, options, tasks }: Submission) {
  const { resources } = attempt
  if (tasks > 0 || resources.ranks === 1 || launcherOf(resources) === "processes") return "none" satisfies RankLauncher
  if (options.mpi !== "auto") return options.mpi satisfies RankLauncher
  const plugins = yield* (yield* SlurmQueue).mpiPlugins.pipe(Effect.mapError(refused))
  return plugins.includes("pmix") ? ("pmix" satisfies RankLauncher) : ("mpirun" satisfies RankLauncher)
})

const sendOff = Effect.fnUntraced(function* ({ attempt, tasks }: Submission, job: ClusterJob) {
  const path = yield* Path.Path
  const queue = yield* SlurmQueue
  const { root } = yield* ArtifactStore
  const script = path.join(job.folder, scriptFile(tasks))
  const asking = queue.submit(script, { name: job.name, environment: workerEnvironment(attempt.secrets) })
  for (let tries = 0; ; tries++) {
    const answer = yield* Effect.result(asking)
    if (answer._tag === "Success") return answer.success
    const error = answer.failure
    if (error.kind !== "unreachable") {
      yield* forgetJob(root, job.key)
      return yield* refused(error)
    }
    if (tries === 0)
      yield* attempt.onEvent({
        _tag: "Warning",
        line: `Slurm does not answer, asked again until it does: ${error.message}`
      })
    const stopped = yield* Effect.timeoutOption(attempt.stop, Duration.seconds(Math.min(30, 2 ** tries)))
    // It may have heard and its answer been lost.
    const [found] = yield* Effect.orElseSucceed(queue.find(job.name), () => [])
    if (found !== undefined) return found.id.split("_")[0] ?? found.id
    if (Option.isSome(stopped)) {
      return yield* new Preempted({
        message: "stopped while Slurm did not answer; if the job was submitted after all, the next run finds it",
        detached: true
      })
    }
  }
})

export const refused = (error: SlurmError): StageError =>
  new StageError({
    failure: error.kind === "unreachable" ? "network" : "invalid-input",
    message: `Slurm ${error.kind === "unreachable" ? "does not answer" : error.kind === "absent" ? "is not here" : "refuses the job"}: ${error.message}`,
    next: error.next
  })

/** Says to the job's script that it shall end for good. */
export const leaveStop = Effect.fnUntraced(function* (job: ClusterJob) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  for (const place of placesOf(job)) yield* Effect.ignore(fs.writeFileString(path.join(place, "stop"), ""))
})
