/** One stage of a run: decides, takes the key's lock and its resources, tries until it works or must not, publishes. */
import { Clock, Deferred, Duration, Effect, FileSystem, Path, Result, type Schema } from "effect"
import type { ArtifactHandle, Facts } from "../artifacts/Artifact.ts"
import { ArtifactStore, handleOf, type StoredArtifact } from "../artifacts/ArtifactStore.ts"
import { storageFailure, temporaryName, writeJsonAtomic } from "../artifacts/DurableFile.ts"
import type { Capacity, GroupLimits } from "./Capacity.ts"
import { checkFailure, failedChecks } from "./Checks.ts"
import { decide, describeReason, type PreviousResult, type Reason, type Run, type Use } from "./Decision.ts"
import { Executor, type Job, type WorkerEvent } from "./Executor.ts"
import { heldResult, holdResult } from "./HeldResult.ts"
import { timestamp } from "./Journal.ts"
import { decodeParams } from "./Parameters.ts"
import { type StagePlan, willRun } from "./Plan.ts"
import type { ResolvedPipeline, ResolvedStage } from "./ResolvedPipeline.ts"
import { retryDelay } from "./Retry.ts"
import type { RunEvent } from "./RunEvent.ts"
import { acquireLock, awaitLock, type Lock } from "./RunLock.ts"
import { forecastOf } from "./Estimate.ts"
import { type KeyHistory, KeyLedger } from "./KeyLedger.ts"
import { type RunInfo, stageFolder } from "./Runs.ts"
import type { Secrets } from "./Secrets.ts"
import { removeAttemptOutputs } from "./Sweep.ts"
import type { KeyParts } from "./StageKey.ts"
import { stopFailure } from "./StopRules.ts"
import { Preempted, StageError } from "./StageType.ts"

/** What all stages of one run share. */
export interface RunContext {
  readonly pipeline: ResolvedPipeline
  readonly run: RunInfo
  readonly capacity: Capacity
  readonly groups: GroupLimits
  readonly secrets: Secrets
  readonly emit: (event: RunEvent) => Effect.Effect<void>
  /** The keys that stages had before this run. */
  readonly history: KeyHistory
  /** Completes when the run shall stop. */
  readonly stop: Effect.Effect<void>
  readonly stopping: Effect.Effect<boolean>
  /** The first stage that failed. */
  readonly failed: Deferred.Deferred<string>
  readonly keepGoing: boolean
  /** What a saved plan says of each stage, where the run keeps to one. */
  readonly promised: ReadonlyMap<string, StagePlan> | undefined
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
  /** Another stage failed before this one began. */
  | { readonly _tag: "Halted"; readonly message: string }

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
    past: context.history.get(stage.name) ?? [],
    inputs: inputs === undefined ? undefined : digestsOf(inputs),
    observed,
    satisfied: (record) => record.run === context.run.id && record.at >= context.forcedSince
  })
  switch (decision._tag) {
    case "Unavailable":
      return { _tag: "Unavailable", message: decision.message } satisfies StageResult
    case "Use":
      return yield* useResult(context, stage, decision)
    case "Run": {
      const promised = context.promised?.get(stage.name)
      if (promised !== undefined && !willRun(promised)) return yield* brokenPromise(context, stage, promised, decision)
      // Waits for its turn without the key's lock: meanwhile another process may make the same.
      return yield* context.groups.within(stage, makeResult(context, { ...assignment, inputs: inputs ?? {} }, decision))
    }
  }
})

/** The store changed after the plan was checked: better no result than one that nobody agreed to. */
const brokenPromise = Effect.fnUntraced(function* (
  context: RunContext,
  stage: ResolvedStage,
  promised: StagePlan,
  { reasons }: Run
) {
  const error = new StageError({
    failure: "invalid-input",
    message: `the plan promised that ${stage.name} is ${promised.status}, but it would run: ${reasons.map(describeReason).join("; ")}`,
    next: "make a new plan"
  })
  yield* announceFailure(context, stage, 0, error, undefined)
  return { _tag: "Failed", error, attempts: 0 } satisfies StageResult
})

const digestsOf = (inputs: Readonly<Record<string, ReadonlyArray<ArtifactHandle>>>) =>
  Object.fromEntries(Object.entries(inputs).map(([port, handles]) => [port, handles.map((handle) => handle.digest)]))

const useResult = Effect.fnUntraced(function* (context: RunContext, stage: ResolvedStage, use: Use) {
  if (use.parts !== undefined) yield* writeKey(context, stage, use.key, use.parts)
  if (use.status === "reuse" && use.reasons.length > 0) {
    const changes = use.reasons.map(describeReason).join("; ")
    yield* warn(context, stage, `kept as it is, though the file now says otherwise: ${changes}`)
  }
  if (use.acceptance !== undefined) {
    const { because, by } = use.acceptance
    yield* warn(context, stage, `accepted by ${by} as what the file asks for, and not made: ${because}`)
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
  const facts = Object.fromEntries(Object.entries(artifacts).map(([port, { manifest }]) => [port, manifest.facts]))
  const refused = failedChecks(stage, facts)
  if (refused.length > 0) {
    const error = checkFailure(refused, true)
    yield* announceFailure(context, stage, 0, error, undefined)
    return { _tag: "Failed", error, attempts: 0 } satisfies StageResult
  }
  const outputs = yield* linkOutputs(context, stage, artifacts)
  const digests = Object.fromEntries(Object.entries(outputs).map(([port, handle]) => [port, handle.digest]))
  yield* context.emit({ _tag: "StageCached", at: yield* timestamp, stage: stage.name, key, from, outputs: digests })
  return { _tag: "Cached", outputs } satisfies StageResult
})

/** A crash between publication and clean-up leaves a work folder that nothing needs. */
const tidyWork = Effect.fnUntraced(function* (key: string) {
  const store = yield* ArtifactStore
  const fs = yield* FileSystem.FileSystem
  if (!(yield* Effect.orElseSucceed(fs.exists(store.workPath(key)), () => false))) return
  yield* Effect.ignore(
    Effect.scoped(Effect.andThen(acquireLock(store.lockPath(key), "the stage"), store.clearWork(key)))
  )
})

type Ready = Assignment & { readonly inputs: Readonly<Record<string, ReadonlyArray<ArtifactHandle>>> }

const makeResult = Effect.fnUntraced(function* (context: RunContext, assignment: Ready, decision: Run) {
  const store = yield* ArtifactStore
  const { stage } = assignment
  const { key, previous, reasons, resumes } = decision
  yield* writeKey(context, stage, key, decision.parts)
  const damage = reasons.find((reason): reason is Reason & { readonly _tag: "Damaged" } => reason._tag === "Damaged")
  if (damage !== undefined) yield* warn(context, stage, `${describeReason(damage)}; it is made again`)
  yield* context.emit({
    _tag: "StagePlanned",
    at: yield* timestamp,
    stage: stage.name,
    key,
    reasons: reasons.map(describeReason),
    resumes,
    ...(previous === undefined ? {} : { previous: { run: previous.run, key: previous.key, change: previous.change } })
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
  // A runner that was killed left what its attempts had written: room that this attempt may need.
  yield* removeAttemptOutputs(folderOf(yield* Path.Path, context, stage))
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
  if (!context.keepGoing && (yield* Deferred.isDone(context.failed))) {
    const message = `${yield* Deferred.await(context.failed)} failed before it began; --keep-going goes on with what does not need it`
    return { _tag: "Halted", message } satisfies StageResult
  }
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
    if (delay === undefined) {
      // Before what this attempt held goes to the next stage, which must not begin any more.
      yield* Deferred.succeed(context.failed, stage.name)
      return { _tag: "Failed", error, attempts: failures, seconds: yield* since(began) } satisfies StageResult
    }
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
    const effort = yield* effortOf(assignment, decision, resumes)
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
    const held = assignment.forced ? undefined : yield* heldResult(work, Object.keys(outputs))
    if (held !== undefined) {
      yield* checked(stage, held.facts)
      const line = "publishes the finished result that a check refused before: the work is not done again"
      yield* context.emit({ _tag: "Log", at: yield* timestamp, stage: stage.name, attempt: number, line })
      return yield* publish(context, stage, decision, { number, ...held.effort }, held.folders, held.facts)
    }
    const diverged = yield* Deferred.make<StageError>()
    const execution = executor.execute({
      folder,
      job: {
        stage: stage.name,
        type: stage.type.plugin?.uses ?? stage.type.name,
        ...(stage.type.plugin === undefined ? {} : { code: stage.type.plugin.code }),
        params: stage.params,
        inputs: assignment.inputs,
        outputs,
        work,
        previous: previousJob(stage, decision.previous),
        baseDirectory: context.pipeline.baseDirectory,
        threads: cpus
      },
      secrets: context.secrets.of(stage),
      runsIn: stage.type.runsIn ?? "worker",
      timeout: stage.timeout,
      grace: stage.grace,
      stop: Effect.raceFirst(context.stop, Effect.asVoid(Deferred.await(diverged))),
      onStart: lock.setWorker,
      onEvent: (event) => Effect.andThen(relay(context, stage, number, event), watch(stage, event, diverged))
    })
    const ended = yield* Effect.result(execution)
    if (yield* Deferred.isDone(diverged)) return yield* yield* Deferred.await(diverged)
    const facts = yield* Effect.fromResult(ended)
    const spent = { seconds: yield* since(started), cpus, ...effort }
    yield* checked(stage, facts).pipe(
      Effect.tapError(() => holdResult(work, path.join(folder, "output"), { facts, effort: spent }))
    )
    return yield* publish(context, stage, decision, { number, ...spent }, outputs, facts)
  }).pipe(
    // What an unfinished attempt wrote to its outputs is of no use; what can be resumed lies in the work folder.
    Effect.onError(() => removeOutputs(path.join(folder, "output"))),
    Effect.mapError((error): AttemptError => ({ error, number }))
  )
})

/** Fails where the result does not meet the stage's checks. */
const checked = (stage: ResolvedStage, facts: Readonly<Record<string, Facts>>): Effect.Effect<void, StageError> => {
  const refused = failedChecks(stage, facts)
  return refused.length === 0 ? Effect.void : Effect.fail(checkFailure(refused, false))
}

/** Holds each reading against the stage's `stop_if`; the first rule that holds stops the attempt. */
const watch = (
  stage: ResolvedStage,
  event: WorkerEvent,
  diverged: Deferred.Deferred<StageError>
): Effect.Effect<void> => {
  const failure = event._tag === "Progress" ? stopFailure(stage.stopIf, event) : undefined
  return failure === undefined ? Effect.void : Effect.asVoid(Deferred.succeed(diverged, failure))
}

/** What this attempt has to do, for the times of later plans: the whole work less what is done already. */
const effortOf = Effect.fnUntraced(function* (assignment: Ready, decision: Run, resumes: boolean) {
  const store = yield* ArtifactStore
  const { inputs, stage } = assignment
  const facts = new Map<string, Record<string, Facts>>()
  for (const [port, edges] of Object.entries(stage.inputs)) {
    for (const [index, edge] of edges.entries()) {
      const known = inputs[port]?.[index]?.facts
      if (known !== undefined) facts.set(edge.stage, { ...facts.get(edge.stage), [edge.port]: known })
    }
  }
  const forecast = yield* forecastOf(stage, facts, decision.previous, assignment.observed)
  if (forecast?.amount === undefined) return {}
  const params = yield* Effect.orDie(decodeParams(stage.type, stage.params))
  const at = resumes
    ? yield* stage.type.resumePoint?.(store.workPath(decision.key), params) ?? Effect.undefined
    : undefined
  const { done, total } = at ?? forecast.resumesAt ?? { done: 0, total: 1 }
  return { amount: forecast.amount * (total > 0 ? Math.max(0, 1 - done / total) : 1), unit: forecast.unit }
})

const previousJob = (stage: ResolvedStage, previous: PreviousResult | undefined): Job["previous"] =>
  previous === undefined
    ? null
    : {
        params: { ...stage.params, ...previous.parts.params },
        outputs: Object.fromEntries(
          Object.entries(previous.artifacts ?? {}).map(([port, artifact]) => [
            port,
            handleOf(artifact, `${stage.name}.${port}`)
          ])
        ),
        work: previous.work ?? null
      }

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

interface AttemptRecord {
  readonly number: number
  readonly seconds: number
  readonly cpus: number
  readonly amount?: number
  readonly unit?: string
}

/** Artifacts first, then the key record that makes them the stage's result; only then may the work folder go. */
const publish = Effect.fnUntraced(function* (
  context: RunContext,
  stage: ResolvedStage,
  decision: Run,
  attempt: AttemptRecord,
  folders: Readonly<Record<string, string>>,
  facts: Readonly<Record<string, Facts>>
) {
  const store = yield* ArtifactStore
  const { key } = decision
  const { number, ...effort } = attempt
  const before = yield* store.lookup(key)
  const madeBy = {
    stageType: stage.type.name,
    stageVersion: stage.type.version,
    stageKey: key,
    run: context.run.id,
    stage: stage.name,
    attempt: attempt.number
  }
  // One time for all of it, and never before the selection's, also when the clock was set back in between.
  const now = yield* timestamp
  const at = now < context.forcedSince ? context.forcedSince : now
  const artifacts: Record<string, StoredArtifact> = {}
  for (const [port, { type }] of Object.entries(stage.type.outputs)) {
    const published = yield* store.publish({ type, folder: folders[port] ?? "", facts: facts[port] ?? {}, madeBy })
    artifacts[port] = published
    const { digest, files } = published.manifest
    yield* context.emit({
      _tag: "ArtifactPublished",
      at,
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
    attempt: number,
    ...effort,
    at
  })
  yield* store.clearWork(key)
  return yield* linkOutputs(context, stage, artifacts)
})

const folderOf = (path: Path.Path, context: RunContext, stage: ResolvedStage): string =>
  path.join(context.run.folder, "stages", stageFolder(stage.index, stage.name))

const writeKey = Effect.fnUntraced(function* (context: RunContext, stage: ResolvedStage, key: string, parts: KeyParts) {
  const ledger = yield* KeyLedger
  yield* ledger.record({ pipeline: context.pipeline.name, run: context.run.id, stage: stage.name, key, parts })
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
      const temporary = temporaryName(path.join(out, port))
      yield* fs.symlink(path.relative(out, artifact.folder), temporary)
      yield* fs
        .rename(temporary, path.join(out, port))
        .pipe(Effect.onError(() => Effect.ignore(fs.remove(temporary, { force: true }))))
    }
  }).pipe(Effect.mapError(storageFailure(out)))
  return handles
})

const warn = Effect.fnUntraced(function* (context: RunContext, stage: ResolvedStage, line: string) {
  yield* context.emit({ _tag: "Warning", at: yield* timestamp, stage: stage.name, line })
})
