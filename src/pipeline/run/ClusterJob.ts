/**
 * Work that a cluster's job does, so that it outlives the runner: which job makes a stage key's result, and which of its attempts may write.
 *
 *   <store>/jobs/<key>.json    the job; written before it is submitted, again with its id, removed once its result is published or it failed
 *   <store>/jobs/<key>.fence   the newest attempt: a job that wakes up with an older number ends itself
 *
 * Only the holder of the key's lock submits and removes. A record without its lock is a job whose runner is gone: the next one follows it.
 */
import { readFileSync, renameSync, writeFileSync } from "node:fs"
import { Effect, FileSystem, Option, Path, Result, Schema } from "effect"
import { storageFailure, writeJsonAtomic } from "../../artifacts/DurableFile.ts"

export const ClusterJob = Schema.Struct({
  version: Schema.Literal(1),
  key: Schema.String,
  /** Unique among all jobs of the cluster: by it a job is found whose id nobody wrote down. */
  name: Schema.String,
  cluster: Schema.String,
  /** null until sbatch has answered. */
  id: Schema.NullOr(Schema.String),
  /** 0: one job does it all; else the tasks of an array that do a share each. */
  tasks: Schema.Int,
  run: Schema.String,
  stage: Schema.String,
  attempt: Schema.Int,
  /** The attempt's folder, absolute. */
  folder: Schema.String,
  /** What the fence says of it. */
  counter: Schema.Int,
  /** ISO 8601. */
  submittedAt: Schema.String
})
export type ClusterJob = typeof ClusterJob.Type

const decodeJob = Schema.decodeOption(Schema.fromJsonString(ClusterJob))

const placeOf = (path: Path.Path, store: string, key: string) => path.join(store, "jobs", `${key}.json`)

/** The job that makes the key's result, or made it and was not asked yet. */
export const findJob = Effect.fnUntraced(function* (store: string, key: string) {
  const fs = yield* FileSystem.FileSystem
  const file = placeOf(yield* Path.Path, store, key)
  const text = yield* fs.readFileString(file).pipe(
    Effect.catchIf(
      (error) => error.reason._tag === "NotFound",
      () => Effect.succeed("")
    ),
    Effect.mapError(storageFailure(file))
  )
  // Written whole or not at all; one that a later version wrote is not for us to follow, nor to run beside.
  return Option.getOrUndefined(decodeJob(text))
})

export const saveJob = Effect.fnUntraced(function* (store: string, job: ClusterJob) {
  const file = placeOf(yield* Path.Path, store, job.key)
  yield* writeJsonAtomic(file, job).pipe(Effect.mapError(storageFailure(file)))
})

export const forgetJob = Effect.fnUntraced(function* (store: string, key: string) {
  const fs = yield* FileSystem.FileSystem
  yield* Effect.ignore(fs.remove(placeOf(yield* Path.Path, store, key), { force: true }))
})

/** All of them, of every run. */
export const allJobs = Effect.fnUntraced(function* (store: string) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const names = yield* Effect.orElseSucceed(fs.readDirectory(path.join(store, "jobs")), () => [])
  const keys = names.flatMap((name) => (name.endsWith(".json") ? [name.slice(0, -".json".length)] : []))
  const jobs = yield* Effect.forEach(keys, (key) => findJob(store, key))
  return jobs.filter((job) => job !== undefined)
})

/** Which attempt the work folder belongs to. A requeued job is the same attempt with one more restart. */
export const Fence = Schema.Struct({ counter: Schema.Int, restart: Schema.Int })
export type Fence = typeof Fence.Type

const decodeFence = Schema.decodeUnknownOption(Schema.fromJsonString(Fence))

export const fenceFile = (path: Path.Path, store: string, key: string): string =>
  path.join(store, "jobs", `${key}.fence`)

/** Synchronous: the worker asks in between steps, and the answer is a few bytes. undefined where there is no fence. */
export const readFence = (file: string): Fence | undefined =>
  Option.getOrUndefined(
    decodeFence(
      Result.getOrElse(
        Result.try(() => readFileSync(file, "utf8")),
        () => ""
      )
    )
  )

export const writeFence = (file: string, fence: Fence): void => {
  const temporary = `${file}.${process.pid}.tmp`
  writeFileSync(temporary, JSON.stringify(fence))
  renameSync(temporary, file)
}

/** Whether `fence` is of a newer attempt than `own`. */
export const isNewer = (fence: Fence | undefined, own: Fence): boolean =>
  fence !== undefined && (fence.counter > own.counter || (fence.counter === own.counter && fence.restart > own.restart))
