/**
 * Run folders. One run of a pipeline is
 *
 *   <runs>/<date-time-words>/run.json                 what ran, and how it stands
 *   <runs>/<date-time-words>/pipeline.yaml            the file, verbatim
 *   <runs>/<date-time-words>/pipeline.resolved.json   every value with its origin
 *   <runs>/<date-time-words>/events.jsonl             the journal
 *   <runs>/<date-time-words>/stages/<nn-name>/key.json, attempts/<n>/…, out/<port> → the store
 *
 * and <runs>/latest points to the newest.
 */
import { Clock, Context, Effect, FileSystem, Layer, Option, Path, type PlatformError, Runtime, Schema } from "effect"
import { storageFailure, writeFileAtomic, writeJsonAtomic } from "../artifacts/DurableFile.ts"
import { journalFile, readJournal, timestamp } from "./Journal.ts"
import type { ResolvedPipeline } from "./ResolvedPipeline.ts"
import type { RunEvent } from "./RunEvent.ts"
import { lockHolder } from "./RunLock.ts"
import { runName } from "./RunName.ts"
import { KeyParts } from "./StageKey.ts"
import { describeOrigins } from "./ResolvedPipeline.ts"

export class RunNotFound extends Schema.TaggedError<RunNotFound>()("RunNotFound", {
  query: Schema.String,
  /** Runs that the query fits, when it fits several. */
  candidates: Schema.Array(Schema.String)
}) {
  override readonly [Runtime.errorExitCode] = 2
  override get message(): string {
    return this.candidates.length > 0
      ? `"${this.query}" fits ${this.candidates.length} runs: ${this.candidates.join(", ")}. Next: write more of the id`
      : `no run "${this.query}". Next: tinyllama runs ls lists those there are`
  }
}

/** The runs folder cannot be read or written. Exit code 1. */
export class StorageError extends Schema.TaggedError<StorageError>()("StorageError", {
  path: Schema.String,
  message: Schema.String,
  next: Schema.String
}) {}

export const RunRecord = Schema.Struct({
  version: Schema.Literal(1),
  id: Schema.String,
  pipeline: Schema.String,
  /** Absolute path of the pipeline file. */
  file: Schema.String,
  profiles: Schema.Array(Schema.String),
  overrides: Schema.Array(Schema.String),
  createdAt: Schema.String,
  status: Schema.Literals(["running", "complete", "failed", "preempted"]),
  finishedAt: Schema.optionalKey(Schema.String),
  /** What the last invocation selected, and since when invocations select just that: a repeated one need not force anew what it forced. */
  selection: Schema.optionalKey(Schema.Struct({ digest: Schema.String, since: Schema.String }))
})
export type RunRecord = typeof RunRecord.Type

export interface RunInfo extends RunRecord {
  /** Absolute. */
  readonly folder: string
  /** Its record says running, but nobody holds its lock: the runner died. */
  readonly abandoned: boolean
}

/** An output of a stage in a run, as `runs show` and `chat` need it. */
export interface RunOutput {
  readonly stage: string
  readonly port: string
  readonly digest: string
  /** Absolute folder in the store. */
  readonly folder: string
}

/** stages/<nn-name>/key.json: what the stage's key was made of, so that a later plan can say what changed. */
export const StageKeyFile = Schema.Struct({ version: Schema.Literal(1), key: Schema.String, parts: KeyParts })
export type StageKeyFile = typeof StageKeyFile.Type

export class Runs extends Context.Service<
  Runs,
  {
    /** Absolute path of the runs folder. */
    readonly root: string
    /** Newest first. */
    readonly list: Effect.Effect<ReadonlyArray<RunInfo>, StorageError>
    /** By id, unambiguous prefix or part of the words, or "latest". */
    readonly find: (query: string) => Effect.Effect<RunInfo, RunNotFound | StorageError>
    readonly readEvents: (run: RunInfo) => Effect.Effect<ReadonlyArray<RunEvent>, StorageError>
    /** What the run's stages gave, in the order of its stages. */
    readonly outputs: (run: RunInfo) => Effect.Effect<ReadonlyArray<RunOutput>, StorageError>
    /** Makes a new run folder for the pipeline, and points `latest` at it. */
    readonly create: (pipeline: ResolvedPipeline) => Effect.Effect<RunInfo, StorageError>
    readonly update: (run: RunInfo, change: Partial<RunRecord>) => Effect.Effect<RunInfo, StorageError>
    /** Common prefix of the run's lock files. */
    readonly lockPath: (run: RunInfo) => string
  }
>()("tinyllama/pipeline/Runs") {
  static readonly layer = (root: string) => Layer.effect(Runs, make(root))
}

/** "03-base", and "03-base@lr=0.001" for an instance of a matrix: what a shell takes without quotes. */
export const stageFolder = (index: number, stage: string): string =>
  `${String(index + 1).padStart(2, "0")}-${stage.replace("[", "@").replace(/\]$/u, "")}`

/** The stage that a folder under `stages/` belongs to. */
export const stageOfFolder = (folder: string): string =>
  folder.replace(/^\d+-/u, "").replace(/^([^@]*)@(.*)$/u, "$1[$2]")

const decodeRecord = Schema.decodeEffect(Schema.fromJsonString(RunRecord))

const make = Effect.fn("Runs.make")(function* (root: string) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const services = yield* Effect.context<FileSystem.FileSystem | Path.Path>()
  const folderOf = (id: string) => path.join(root, id)
  const lockPath = (run: { readonly folder: string }) => path.join(run.folder, "run")

  const readRun = Effect.fnUntraced(function* (id: string) {
    const folder = folderOf(id)
    const record = yield* Effect.option(Effect.flatMap(fs.readFileString(path.join(folder, "run.json")), decodeRecord))
    if (Option.isNone(record)) return undefined
    const abandoned = record.value.status === "running" && (yield* lockHolder(lockPath({ folder }))) === undefined
    const run: RunInfo = { ...record.value, folder, abandoned }
    return run
  }, Effect.provideContext(services))

  const list = Effect.gen(function* () {
    if (!(yield* fs.exists(root))) return []
    const names = (yield* fs.readDirectory(root)).filter((name) => /^\d{4}-/u.test(name))
    const runs = yield* Effect.forEach(names, readRun, { concurrency: 8 })
    return runs
      .filter((run) => run !== undefined)
      .sort((a, b) => (a.createdAt < b.createdAt ? 1 : a.createdAt > b.createdAt ? -1 : a.id < b.id ? 1 : -1))
  }).pipe(Effect.mapError(storageError(root)))

  const find = Effect.fn("Runs.find")(function* (query: string) {
    const runs = yield* list
    const [newest] = runs
    if (query === "latest" && newest !== undefined) return newest
    const exact = runs.find((run) => run.id === query)
    if (exact !== undefined) return exact
    const fitting = runs.filter((run) => run.id.startsWith(query) || run.id.endsWith(`-${query}`))
    const [only] = fitting
    if (only !== undefined && fitting.length === 1) return only
    return yield* new RunNotFound({ query, candidates: fitting.map((run) => run.id) })
  })

  const readEvents = (run: RunInfo) =>
    readJournal(path.join(run.folder, journalFile)).pipe(
      Effect.mapError(storageError(run.folder)),
      Effect.provideContext(services)
    )

  const outputs = Effect.fn("Runs.outputs")(
    function* (run: RunInfo) {
      const found: Array<RunOutput> = []
      const stages = path.join(run.folder, "stages")
      if (!(yield* fs.exists(stages))) return found
      for (const folder of (yield* fs.readDirectory(stages)).sort()) {
        const out = path.join(stages, folder, "out")
        if (!(yield* fs.exists(out))) continue
        for (const port of (yield* fs.readDirectory(out)).sort()) {
          const target = yield* Effect.option(fs.realPath(path.join(out, port)))
          if (Option.isNone(target)) continue
          found.push({
            stage: stageOfFolder(folder),
            port,
            digest: path.basename(target.value),
            folder: target.value
          })
        }
      }
      return found
    },
    (effect, run) => Effect.mapError(effect, storageError(run.folder))
  )

  const save = (run: RunInfo) => {
    const { abandoned: _, folder, ...record } = run
    return writeJsonAtomic(path.join(folder, "run.json"), record)
  }

  const update = (run: RunInfo, change: Partial<RunRecord>) => {
    const next: RunInfo = { ...run, ...change }
    return save(next).pipe(Effect.as(next), Effect.mapError(storageError(run.folder)), Effect.provideContext(services))
  }

  const create = Effect.fn("Runs.create")(
    function* (pipeline: ResolvedPipeline) {
      yield* fs.makeDirectory(root, { recursive: true })
      const now = new Date(yield* Clock.currentTimeMillis)
      const folder = yield* newFolder(now)
      const run: RunInfo = {
        version: 1,
        id: path.basename(folder),
        pipeline: pipeline.name,
        file: path.resolve(pipeline.file),
        profiles: pipeline.profiles,
        overrides: pipeline.overrides,
        createdAt: yield* timestamp,
        status: "running",
        folder,
        abandoned: false
      }
      yield* writeFileAtomic(path.join(folder, "pipeline.yaml"), pipeline.text)
      yield* writeJsonAtomic(path.join(folder, "pipeline.resolved.json"), describeOrigins(pipeline))
      yield* save(run)
      yield* pointLatest(run.id)
      return run
    },
    Effect.mapError(storageError(root)),
    Effect.provideContext(services)
  )

  /** A folder that was not there before: the name is drawn again when another run has it. */
  const newFolder = (now: Date): Effect.Effect<string, PlatformError.PlatformError> =>
    Effect.suspend(() => {
      const folder = folderOf(runName(now, Math.random))
      return fs.makeDirectory(folder).pipe(
        Effect.as(folder),
        Effect.catchIf(
          (error) => error.reason._tag === "AlreadyExists",
          () => newFolder(now)
        )
      )
    })

  /** Replaced by rename, so `latest` always points somewhere. */
  const pointLatest = Effect.fnUntraced(function* (id: string) {
    const temporary = path.join(root, `.latest-${id}`)
    yield* fs.symlink(id, temporary)
    yield* fs.rename(temporary, path.join(root, "latest"))
  })

  return Runs.of({ root, list, find, readEvents, outputs, create, update, lockPath })
})

export const storageError =
  (path: string) =>
  (error: PlatformError.PlatformError): StorageError => {
    const { message, next } = storageFailure(path)(error)
    return new StorageError({ path, message, next })
  }
