/**
 * Run folders. One run of a pipeline is
 *
 *   <runs>/<date-time-words>/run.json                 what ran, and how it stands
 *   <runs>/<date-time-words>/pipeline.yaml            the file, verbatim
 *   <runs>/<date-time-words>/pipeline.resolved.json   every value with its origin
 *   <runs>/<date-time-words>/events.jsonl             the journal
 *   <runs>/<date-time-words>/stages/<nn-name>/attempts/<n>/…, out/<port> → the store
 *
 * and <runs>/latest points to the newest; tags/ and pins/ beside them hold what people say of runs.
 */
import { Clock, Context, Effect, FileSystem, Layer, Option, Path, PlatformError, Runtime, Schema } from "effect"
import {
  errorCode,
  storageFailure,
  sync,
  temporaryName,
  writeFileAtomic,
  writeJsonAtomic
} from "../../artifacts/DurableFile.ts"
import { journalFile, timestamp } from "./Journal.ts"
import { type JournalContents, readContents } from "./JournalReader.ts"
import type { ResolvedPipeline } from "../file/ResolvedPipeline.ts"
import type { RunEvent } from "./RunEvent.ts"
import { acquireLock, lockHolder, type LockHeld } from "./RunLock.ts"
import { type MarkRefused, type Marks, pinRun, readMarks, tagRun, unpinRun, untagRun } from "./RunMarks.ts"
import { runName } from "./RunName.ts"
import { describeOrigins } from "../file/ResolvedPipeline.ts"

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

/** A run that is pinned is not removed. Exit code 2. */
export class RunPinned extends Schema.TaggedError<RunPinned>()("RunPinned", { run: Schema.String }) {
  override readonly [Runtime.errorExitCode] = 2
  override get message(): string {
    return `run ${this.run} is pinned. Next: tinyllama runs pin ${this.run} --remove, then remove it`
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
  status: Schema.Literals(["running", "complete", "partial", "failed", "preempted"]),
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
  /** Names that people gave it. */
  readonly tags: ReadonlyArray<string>
  /** runs rm refuses it. */
  readonly pinned: boolean
}

/** An output of a stage in a run, as `runs show` and `chat` need it. */
export interface RunOutput {
  readonly stage: string
  readonly port: string
  readonly digest: string
  /** Absolute folder in the store. */
  readonly folder: string
}

export class Runs extends Context.Service<
  Runs,
  {
    /** Absolute path of the runs folder. */
    readonly root: string
    /** Newest first. */
    readonly list: Effect.Effect<ReadonlyArray<RunInfo>, StorageError>
    /** By id, tag, unambiguous prefix or part of the words, or "latest". */
    readonly find: (query: string) => Effect.Effect<RunInfo, RunNotFound | StorageError>
    /** The newest of some runs: the one that `latest` points to if it is among them, else by time, which a clock set back may confuse. */
    readonly newest: (among: (run: RunInfo) => boolean) => Effect.Effect<RunInfo | undefined, StorageError>
    readonly readEvents: (run: RunInfo) => Effect.Effect<ReadonlyArray<RunEvent>, StorageError>
    /** The events, and the lines of the journal that are none. */
    readonly readJournal: (run: RunInfo) => Effect.Effect<JournalContents, StorageError>
    readonly journalPath: (run: RunInfo) => string
    /** What the run's stages gave, in the order of its stages. */
    readonly outputs: (run: RunInfo) => Effect.Effect<ReadonlyArray<RunOutput>, StorageError>
    /** Makes a new run folder for the pipeline, and points `latest` at it. */
    readonly create: (pipeline: ResolvedPipeline) => Effect.Effect<RunInfo, StorageError>
    /** Points `latest` at the run, if it does not yet. */
    readonly pointLatest: (run: RunInfo) => Effect.Effect<void, StorageError>
    readonly update: (run: RunInfo, change: Partial<RunRecord>) => Effect.Effect<RunInfo, StorageError>
    /** Common prefix of the run's lock files. */
    readonly lockPath: (run: RunInfo) => string
    readonly tag: (run: RunInfo, name: string) => Effect.Effect<void, MarkRefused | StorageError>
    readonly untag: (run: RunInfo, name: string) => Effect.Effect<void, MarkRefused | StorageError>
    readonly pin: (run: RunInfo) => Effect.Effect<void, StorageError>
    readonly unpin: (run: RunInfo) => Effect.Effect<void, StorageError>
    /** Removes the runs' folders and tags, all or, where one is pinned or runs, none; artifacts stay in the store until they are collected. */
    readonly remove: (runs: ReadonlyArray<RunInfo>) => Effect.Effect<void, LockHeld | RunPinned | StorageError>
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

/** What a run folder's name looks like; other names in the runs folder are no runs. */
export const runFolderName = /^\d{4}-/u

const decodeRecord = Schema.decodeEffect(Schema.fromJsonString(RunRecord))

const make = Effect.fn("Runs.make")(function* (root: string) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const services = yield* Effect.context<FileSystem.FileSystem | Path.Path>()
  const folderOf = (id: string) => path.join(root, id)
  const lockPath = (run: { readonly folder: string }) => path.join(run.folder, "run")

  const readRun = Effect.fnUntraced(function* (id: string, marks: Marks) {
    const folder = folderOf(id)
    const record = yield* Effect.option(Effect.flatMap(fs.readFileString(path.join(folder, "run.json")), decodeRecord))
    if (Option.isNone(record)) return undefined
    const abandoned = record.value.status === "running" && (yield* lockHolder(lockPath({ folder }))) === undefined
    const tags = Array.from(marks.tags).flatMap(([tag, of]) => (of === id ? [tag] : []))
    const run: RunInfo = { ...record.value, folder, abandoned, tags, pinned: marks.pins.has(id) }
    return run
  }, Effect.provideContext(services))

  const runFolders = fs.readDirectory(root).pipe(
    Effect.map((names) => names.filter((name) => runFolderName.test(name))),
    Effect.catchIf(
      (error) => error.reason._tag === "NotFound",
      () => Effect.succeed<ReadonlyArray<string>>([])
    )
  )

  const latestLink = fs.readLink(path.join(root, "latest")).pipe(
    Effect.map((target) => path.basename(target)),
    Effect.orElseSucceed(() => undefined)
  )

  const list = Effect.gen(function* () {
    const names = yield* runFolders
    const marks = yield* readMarks(root)
    const runs = yield* Effect.forEach(names, (name) => readRun(name, marks), { concurrency: 8 })
    return runs
      .filter((run) => run !== undefined)
      .sort((a, b) => (a.createdAt < b.createdAt ? 1 : a.createdAt > b.createdAt ? -1 : a.id < b.id ? 1 : -1))
  }).pipe(Effect.mapError(storageError(root)), Effect.provideContext(services))

  const newest = Effect.fn("Runs.newest")(function* (among: (run: RunInfo) => boolean) {
    const runs = (yield* list).filter(among)
    const id = yield* latestLink
    return runs.find((run) => run.id === id) ?? runs[0]
  })

  /** Looks at names and reads only the records that fit. */
  const find = Effect.fn("Runs.find")(
    function* (query: string) {
      const marks = yield* readMarks(root)
      const named = query === "latest" ? yield* latestLink : (marks.tags.get(query) ?? query)
      const names = yield* runFolders
      if (named !== undefined && names.includes(named)) {
        const run = yield* readRun(named, marks)
        if (run !== undefined) return run
      }
      // The link is missing or points to nothing.
      const [newest] = query === "latest" ? yield* list : []
      if (newest !== undefined) return newest
      const candidates = names.filter((name) => name.startsWith(query) || name.endsWith(`-${query}`)).sort()
      const fitting = (yield* Effect.forEach(candidates, (name) => readRun(name, marks))).filter(
        (run) => run !== undefined
      )
      const [only] = fitting
      if (only !== undefined && fitting.length === 1) return only
      return yield* new RunNotFound({ query, candidates: fitting.map((run) => run.id) })
    },
    Effect.mapError((error) => (error instanceof PlatformError.PlatformError ? storageError(root)(error) : error)),
    Effect.provideContext(services)
  )

  const journalPath = (run: RunInfo) => path.join(run.folder, journalFile)

  const readJournal = (run: RunInfo) =>
    readContents(journalPath(run)).pipe(Effect.mapError(storageError(run.folder)), Effect.provideContext(services))

  const readEvents = (run: RunInfo) => Effect.map(readJournal(run), ({ events }) => events)

  const outputs = Effect.fn("Runs.outputs")(
    function* (run: RunInfo) {
      const found: Array<RunOutput> = []
      const stages = path.join(run.folder, "stages")
      if (!(yield* fs.exists(stages))) return found
      for (const folder of (yield* fs.readDirectory(stages)).sort()) {
        const out = path.join(stages, folder, "out")
        if (!(yield* fs.exists(out))) continue
        for (const port of (yield* fs.readDirectory(out)).filter((name) => !name.endsWith(".tmp")).sort()) {
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
    const { abandoned: _, folder, pinned: __, tags: ___, ...record } = run
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
      // Filled under another name: a run that can be seen has its record.
      const draft = temporaryName(path.join(root, ".new-run"))
      const run: Omit<RunRecord, "id"> = {
        version: 1,
        pipeline: pipeline.name,
        file: path.resolve(pipeline.file),
        profiles: pipeline.profiles,
        overrides: pipeline.overrides,
        createdAt: yield* timestamp,
        status: "running"
      }
      const fill = Effect.gen(function* () {
        yield* writeFileAtomic(path.join(draft, "pipeline.yaml"), pipeline.text)
        yield* writeJsonAtomic(path.join(draft, "pipeline.resolved.json"), describeOrigins(pipeline))
        return yield* settle(draft, now, run)
      })
      const made = yield* fill.pipe(
        Effect.onError(() => Effect.ignore(fs.remove(draft, { recursive: true, force: true })))
      )
      yield* sync(root)
      yield* pointAt(made.id)
      return made
    },
    Effect.mapError(storageError(root)),
    Effect.provideContext(services)
  )

  /** Gives the filled folder its name, which is drawn again when another run has it. */
  const settle = (
    draft: string,
    now: Date,
    record: Omit<RunRecord, "id">
  ): Effect.Effect<RunInfo, PlatformError.PlatformError, FileSystem.FileSystem | Path.Path> =>
    Effect.suspend(() => {
      const id = runName(now, Math.random)
      const folder = folderOf(id)
      const run: RunInfo = { ...record, id, folder, abandoned: false, tags: [], pinned: false }
      return save({ ...run, folder: draft }).pipe(
        Effect.andThen(fs.rename(draft, folder)),
        Effect.as(run),
        Effect.catchIf(
          (error) => ["ENOTEMPTY", "EEXIST"].includes(errorCode(error) ?? ""),
          () => settle(draft, now, record)
        )
      )
    })

  /** Replaced by rename, so `latest` always points somewhere. */
  const pointAt = Effect.fnUntraced(function* (id: string) {
    if ((yield* latestLink) === id) return
    const temporary = temporaryName(path.join(root, ".latest"))
    yield* fs.symlink(id, temporary)
    yield* fs
      .rename(temporary, path.join(root, "latest"))
      .pipe(Effect.onError(() => Effect.ignore(fs.remove(temporary, { force: true }))))
  })

  const pointLatest = (run: RunInfo) => Effect.mapError(pointAt(run.id), storageError(root))

  const ofStorage = <A, E extends { readonly _tag: string }>(
    effect: Effect.Effect<A, E | PlatformError.PlatformError, FileSystem.FileSystem | Path.Path>
  ): Effect.Effect<A, Exclude<E, PlatformError.PlatformError> | StorageError> =>
    effect.pipe(
      Effect.mapError(
        (error) =>
          error instanceof PlatformError.PlatformError
            ? storageError(root)(error)
            : (error as Exclude<E, PlatformError.PlatformError>) // what is left when it is not the one
      ),
      Effect.provideContext(services)
    )

  /** Out of sight by one rename, under a name that no command lists; what is left of it after a crash is collected later. */
  const remove = Effect.fn("Runs.remove")(function* (runs: ReadonlyArray<RunInfo>) {
    const pinned = runs.find((run) => run.pinned)
    if (pinned !== undefined) return yield* new RunPinned({ run: pinned.id })
    for (const run of runs) yield* acquireLock(lockPath(run), `run ${run.id}`)
    for (const run of runs) {
      const aside = path.join(root, `.removed-${run.id}`)
      yield* fs.remove(aside, { recursive: true, force: true })
      yield* fs.rename(run.folder, aside)
      for (const tag of run.tags) yield* fs.remove(path.join(root, "tags", tag), { force: true })
      yield* relinkLatest(run.id)
      yield* fs.remove(aside, { recursive: true, force: true })
    }
  }, Effect.scoped)

  /** `latest` must not point to a run that is gone. */
  const relinkLatest = Effect.fnUntraced(function* (removed: string) {
    const target = yield* Effect.option(fs.readLink(path.join(root, "latest")))
    if (Option.isNone(target) || path.basename(target.value) !== removed) return
    const [newest] = yield* list
    if (newest === undefined) yield* fs.remove(path.join(root, "latest"), { force: true })
    else yield* pointAt(newest.id)
  })

  return Runs.of({
    root,
    list,
    find,
    newest,
    readEvents,
    readJournal,
    journalPath,
    outputs,
    create,
    pointLatest,
    update,
    lockPath,
    tag: (run, name) => ofStorage(tagRun(root, run.id, name)),
    untag: (run, name) => ofStorage(untagRun(root, run.id, name)),
    pin: (run) => ofStorage(pinRun(root, run.id)),
    unpin: (run) => ofStorage(unpinRun(root, run.id)),
    remove: (runs) => ofStorage(remove(runs))
  })
})

export const storageError =
  (path: string) =>
  (error: PlatformError.PlatformError): StorageError => {
    const { message, next } = storageFailure(path)(error)
    return new StorageError({ path, message, next })
  }
