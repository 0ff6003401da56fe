/** One stage of a run: decides, takes the key's lock and its resources, tries until it works or must not, publishes. */
import { Clock, Duration, Effect, FileSystem, Path, Result, type Schema } from "effect"
import type { ArtifactHandle, Facts } from "../artifacts/Artifact.ts"
import { ArtifactStore, handleOf, type StoredArtifact } from "../artifacts/ArtifactStore.ts"
import { storageFailure, writeJsonAtomic } from "../artifacts/DurableFile.ts"
import type { Capacity } from "./Capacity.ts"
import { decide, describeReason, type Reason, type Run, type Use } from "./Decision.ts"
import { Executor, type WorkerEvent } from "./Executor.ts"
import { timestamp } from "./Journal.ts"
import type { ResolvedPipeline, ResolvedStage } from "./ResolvedPipeline.ts"
import { retryDelay } from "./Retry.ts"
import type { RunEvent } from "./RunEvent.ts"
import { acquireLock, awaitLock, type Lock } from "./RunLock.ts"
import { type RunInfo, stageFolder } from "./Runs.ts"
import type { KeyParts } from "./StageKey.ts"
import { Preempted, StageError } from "./StageType.ts"

/** What all stages of one run share. */
export interface RunContext {
  readonly pipeline: ResolvedPipeline
  readonly run: RunInfo
  readonly capacity: Capacity
  readonly emit: (event: RunEvent) => Effect.Effect<void>
  /** Completes when the run shall stop. */
  readonly stop: Effect.Effect<void>
  readonly stopping: Effect.Effect<boolean>
  /** Forced stages whose result is of this time or later, and of this run, have been rerun already. */
  readonly forcedSince: string
}

export interface Assignment {
  readonly stage: ResolvedStage
  readonly role: "run" | "reuse"
  readonly forced: boolean
  /** undefined when a stage above has nothing to give: then only an older result serves. */
  readonly inputs: Readonly<Record<string, ReadonlyArray<ArtifactHandle>>> | undefined
  readonly observed: Result.Result<Schema.Json, StageError>
}

export type Outputs = Readonly<Record<string, ArtifactHandle>>

export type StageResult =
  | { readonly _tag: "Cached"; readonly outputs: Outputs }
  /** `seconds` from the first attempt's start: waiting for inputs, locks and cores is not in it. */
  | { readonly _tag: "Done"; readonly outputs: Outputs; readonly attempts: number; readonly seconds: number }
  | { readonly _tag: "Failed"; readonly error: StageError; readonly attempts: number; readonly seconds?: number }
  | { readonly _tag: "Preempted"; readonly message: string; readonly attempts: number }
  /** A stage kept as it is that has no result to give. */
  | { readonly _tag: "Unavailable"; readonly message: string }

export const runStage = Effect.fn("runStage")(function* (context: RunContext, assignment: Assignment) {
  const { forced, inputs, observed, role, stage } = assignment
  if (role === "run" && Result.isFailure(observed)) {
    yield* announceFailure(context, stage, 0, observed.failure, undefined)
    return { _tag: "Failed", error: observed.failure, attempts: 0 } satisfies StageResult
  }
  const decision = yield* decide({
    pipeline: context.pipeline,
    stage,
    role,
    forced,
    inputs: inputs === undefined ? undefined : digestsOf(inputs),
    observed,
    satisfied: (record) => record.run === context.run.id && record.at >= context.forcedSince
  })
  switch (decision._tag) {
    case "Unavailable":
      return { _tag: "Unavailable", message: decision.message } satisfies StageResult
    case "Use":
      return yield* useResult(context, stage, decision)
    case "Run":
      return yield* makeResult(context, { ...assignment, inputs: inputs ?? {} }, decision)
  }
})

const digestsOf = (inputs: Readonly<Record<string, ReadonlyArray<ArtifactHandle>>>) =>
  Object.fromEntries(Object.entries(inputs).map(([port, handles]) => [port, handles.map((handle) => handle.digest)]))

const useResult = Effect.fnUntraced(function* (context: RunContext, stage: ResolvedStage, use: Use) {
  if (use.parts !== undefined) yield* writeKey(context, stage, use.key, use.parts)
  if (use.status === "reuse" && use.reasons.length > 0) {
    const changes = use.reasons.map(describeReason).join("; ")
    yield* warn(context, stage, `kept as it is, though the file now says otherwise: ${changes}`)
  }
  if (use.status === "fresh") yield* tidyWork(use.key)
  return yield* cached(context, stage, use.key, use.record.run, use.artifacts)
})

const cached = Effect.fnUntraced(function* (
  context: RunContext,
  stage: ResolvedStage,
  key: string,
  from: string,
  artifacts: Readonly<Record<string, StoredArtifact>>
) {
  const outputs = yield* linkOutputs(context, stage, artifacts)
  const digests = Object.fromEntries(Object.entries(outputs).map(([port, handle]) => [port, handle.digest]))
  yield* context.emit({ _tag: "StageCached", at: yield* timestamp, stage: stage.name, key, from, outputs: digests })
  return { _tag: "Cached", outputs } satisfies StageResult
})

/** A crash between publication and clean-up leaves a work folder that nothing needs. */
const tidyWork = Effect.fnUntraced(function* (key: string) {
  const store = yield* ArtifactStore
  if (!(yield* store.hasWork(key))) return
  yield* Effect.ignore(
    Effect.scoped(Effect.andThen(acquireLock(store.lockPath(key), "the stage"), store.clearWork(key)))
  )
})

type Ready = Assignment & { readonly inputs: Readonly<Record<string, ReadonlyArray<ArtifactHandle>>> }

const makeResult = Effect.fnUntraced(function* (context: RunContext, assignment: Ready, decision: Run) {
  const store = yield* ArtifactStore
  const { stage } = assignment
  const { key, reasons, resumes } = decision
  yield* writeKey(context, stage, key, decision.parts)
  const damage = reasons.find((reason): reason is Reason & { readonly _tag: "Damaged" } => reason._tag === "Damaged")
  if (damage !== undefined) yield* warn(context, stage, `${describeReason(damage)}; it is made again`)
  yield* context.emit({
    _tag: "StagePlanned",
    at: yield* timestamp,
    stage: stage.name,
    key,
    reasons: reasons.map(describeReason),
    resumes
  })
  const lock = yield* awaitLock(store.lockPath(key), `stage ${stage.name}`, (holder) =>
    Effect.flatMap(timestamp, (at) => {
      const line = `waits: process ${holder.pid} on ${holder.host} is making the same since ${holder.since}`
      return context.emit({ _tag: "Warning", at, stage: stage.name, line })
    })
  ).pipe(Effect.catchTag("PlatformError", (error) => Effect.fail(storageFailure(store.lockPath(key))(error))))
  for (const dead of lock.takenOver) {
    yield* warn(context, stage, `takes over from process ${dead.pid} on ${dead.host}, which ended without finishing`)
  }
  // Whoever held the lock before may have made what we want.
  const found = yield* store.lookup(key)
  if (found._tag === "Complete" && !reasons.some((reason) => reason._tag === "Forced")) {
    return yield* cached(context, stage, key, found.record.run, found.artifacts)
  }
  return yield* context.capacity.withResources(stage.resources, ({ cpus }) =>
    attempts(context, assignment, decision, lock, cpus)
  )
}, Effect.scoped)

/** Seconds since a time in milliseconds. */
const since = (began: number) => Effect.map(Clock.currentTimeMillis, (now) => (now - began) / 1000)

/** Tries until one attempt works, a failure is final, or the run stops. */
const attempts = Effect.fnUntraced(function* (
  context: RunContext,
  assignment: Ready,
  decision: Run,
  lock: Lock,
  cpus: number
) {
  const { stage } = assignment
  const began = yield* Clock.currentTimeMillis
  for (let failures = 0; ;) {
    if (yield* context.stopping)
      return { _tag: "Preempted", message: "stopped before it began", attempts: failures } satisfies StageResult
    const result = yield* Effect.result(attemptOnce(context, assignment, decision, lock, cpus))
    if (Result.isSuccess(result))
      return {
        _tag: "Done",
        outputs: result.success,
        attempts: failures + 1,
        seconds: yield* since(began)
      } satisfies StageResult
    const { error, number } = result.failure
    failures++
    if (error._tag === "Preempted")
      return { _tag: "Preempted", message: error.message, attempts: failures } satisfies StageResult
    const delay = (yield* context.stopping) ? undefined : yield* retryDelay(stage.retry, error.failure, failures)
    yield* announceFailure(context, stage, number, error, delay === undefined ? undefined : Duration.toSeconds(delay))
    if (delay === undefined)
      return { _tag: "Failed", error, attempts: failures, seconds: yield* since(began) } satisfies StageResult
    yield* Effect.timeoutOption(context.stop, delay)
  }
})

const announceFailure = Effect.fnUntraced(function* (
  context: RunContext,
  stage: ResolvedStage,
  attempt: number,
  error: StageError,
  retryInSeconds: number | undefined
) {
  const { failure, message, next } = error
  const retry = retryInSeconds === undefined ? {} : { retryInSeconds }
  yield* context.emit({
    _tag: "AttemptFailed",
    at: yield* timestamp,
    stage: stage.name,
    attempt,
    failure,
    message,
    next,
    ...retry
  })
})

interface AttemptError {
  readonly error: StageError | Preempted
  readonly number: number
}

const attemptOnce = Effect.fnUntraced(function* (
  context: RunContext,
  assignment: Ready,
  decision: Run,
  lock: Lock,
  cpus: number
) {
  const path = yield* Path.Path
  const { stage } = assignment
  const attemptsFolder = path.join(folderOf(path, context, stage), "attempts")
  const number = yield* nextAttempt(attemptsFolder)
  const folder = path.join(attemptsFolder, String(number))
  const outputs = Object.fromEntries(
    Object.keys(stage.type.outputs).map((port) => [port, path.join(folder, "output", port)])
  )
  return yield* Effect.gen(function* () {
    const fs = yield* FileSystem.FileSystem
    const store = yield* ArtifactStore
    const executor = yield* Executor
    for (const output of Object.values(outputs)) {
      yield* fs.makeDirectory(output, { recursive: true }).pipe(Effect.mapError(storageFailure(output)))
    }
    const work = yield* store.openWork(decision.key)
    const resumes = yield* store.hasWork(decision.key)
    const started = yield* Clock.currentTimeMillis
    yield* context.emit({
      _tag: "AttemptStarted",
      at: yield* timestamp,
      stage: stage.name,
      attempt: number,
      key: decision.key,
      cpus,
      resumes
    })
    const facts = yield* executor.execute({
      folder,
      job: {
        stage: stage.name,
        type: stage.type.name,
        params: stage.params,
        inputs: assignment.inputs,
        outputs,
        work,
        previous: null,
        baseDirectory: context.pipeline.baseDirectory,
        threads: cpus
      },
      timeout: stage.timeout,
      grace: stage.grace,
      stop: context.stop,
      onStart: lock.setWorker,
      onEvent: (event) => relay(context, stage, number, event)
    })
    const seconds = yield* since(started)
    return yield* publish(context, stage, decision, number, seconds, outputs, facts)
  }).pipe(
    // What an unfinished attempt wrote to its outputs is of no use; what can be resumed lies in the work folder.
    Effect.onError(() => removeOutputs(path.join(folder, "output"))),
    Effect.mapError((error): AttemptError => ({ error, number }))
  )
})

const removeOutputs = (folder: string) =>
  Effect.flatMap(FileSystem.FileSystem, (fs) => Effect.ignore(fs.remove(folder, { recursive: true, force: true })))

/** Attempts of a continued run go on counting. */
const nextAttempt = Effect.fnUntraced(function* (folder: string) {
  const fs = yield* FileSystem.FileSystem
  const names = yield* fs.readDirectory(folder).pipe(Effect.orElseSucceed(() => []))
  return Math.max(0, ...names.map(Number).filter(Number.isInteger)) + 1
})

const relay = (context: RunContext, stage: ResolvedStage, attempt: number, event: WorkerEvent): Effect.Effect<void> =>
  Effect.flatMap(timestamp, (at) => {
    switch (event._tag) {
      case "Progress":
        return context.emit({ ...event, at, stage: stage.name, attempt })
      case "Log":
        return context.emit({ _tag: "Log", at, stage: stage.name, attempt, line: event.line })
      case "Warning":
        return context.emit({ _tag: "Warning", at, stage: stage.name, line: event.line })
      default:
        return Effect.void
    }
  })

/** Artifacts first, then the key record that makes them the stage's result; only then may the work folder go. */
const publish = Effect.fnUntraced(function* (
  context: RunContext,
  stage: ResolvedStage,
  decision: Run,
  attempt: number,
  seconds: number,
  folders: Readonly<Record<string, string>>,
  facts: Readonly<Record<string, Facts>>
) {
  const store = yield* ArtifactStore
  const { key } = decision
  const before = yield* store.lookup(key)
  const madeBy = {
    stageType: stage.type.name,
    stageVersion: stage.type.version,
    stageKey: key,
    run: context.run.id,
    stage: stage.name,
    attempt
  }
  const artifacts: Record<string, StoredArtifact> = {}
  for (const [port, { type }] of Object.entries(stage.type.outputs)) {
    const published = yield* store.publish({ type, folder: folders[port] ?? "", facts: facts[port] ?? {}, madeBy })
    artifacts[port] = published
    const { digest, files } = published.manifest
    yield* context.emit({
      _tag: "ArtifactPublished",
      at: yield* timestamp,
      stage: stage.name,
      port,
      type,
      digest,
      files: files.length,
      bytes: files.reduce((sum, file) => sum + file.bytes, 0),
      reused: published.reused
    })
    if (before._tag === "Complete" && before.record.outputs[port] !== digest) {
      yield* warn(
        context,
        stage,
        `${port} differs from what the same parameters and inputs gave in run ${before.record.run}`
      )
    }
  }
  const outputs = Object.fromEntries(Object.entries(artifacts).map(([port, { manifest }]) => [port, manifest.digest]))
  yield* store.commit({
    version: 1,
    key,
    outputs,
    run: context.run.id,
    stage: stage.name,
    attempt,
    seconds,
    at: yield* timestamp
  })
  yield* store.clearWork(key)
  return yield* linkOutputs(context, stage, artifacts)
})

const folderOf = (path: Path.Path, context: RunContext, stage: ResolvedStage): string =>
  path.join(context.run.folder, "stages", stageFolder(stage.index, stage.name))

const writeKey = Effect.fnUntraced(function* (context: RunContext, stage: ResolvedStage, key: string, parts: KeyParts) {
  const file = (yield* Path.Path).join(folderOf(yield* Path.Path, context, stage), "key.json")
  yield* writeJsonAtomic(file, { version: 1, key, parts }).pipe(Effect.mapError(storageFailure(file)))
})

/** stages/<nn-name>/out/<port> → the store, by a relative link, so that the runs folder can be moved as a whole. */
const linkOutputs = Effect.fnUntraced(function* (
  context: RunContext,
  stage: ResolvedStage,
  artifacts: Readonly<Record<string, StoredArtifact>>
) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const out = path.join(folderOf(path, context, stage), "out")
  const handles: Record<string, ArtifactHandle> = {}
  yield* Effect.gen(function* () {
    yield* fs.makeDirectory(out, { recursive: true })
    for (const [port, artifact] of Object.entries(artifacts)) {
      handles[port] = handleOf(artifact, `${stage.name}.${port}`)
      const temporary = path.join(out, `.${port}-${process.pid}`)
      yield* Effect.ignore(fs.remove(temporary, { force: true }))
      yield* fs.symlink(path.relative(out, artifact.folder), temporary)
      yield* fs.rename(temporary, path.join(out, port))
    }
  }).pipe(Effect.mapError(storageFailure(out)))
  return handles
})

const warn = Effect.fnUntraced(function* (context: RunContext, stage: ResolvedStage, line: string) {
  yield* context.emit({ _tag: "Warning", at: yield* timestamp, stage: stage.name, line })
})
