/** One attempt of a stage: works in folders of its own, then publishes what they hold. */
import { Cause, Clock, Deferred, Duration, Effect, FileSystem, Path } from "effect"
import type { Facts } from "../../artifacts/Artifact.ts"
import { ArtifactStore, handleOf, type Lookup, type StoredArtifact } from "../../artifacts/ArtifactStore.ts"
import { checkFailure, failedChecks } from "../file/Checks.ts"
import type { PreviousResult, Run } from "../plan/Decision.ts"
import { forecastOf } from "../plan/Estimate.ts"
import { findJob, forgetJob } from "./ClusterJob.ts"
import { Executor, type Job, type WorkerEvent } from "./Executor.ts"
import { heldResult, holdResult } from "./HeldResult.ts"
import { timestamp } from "../runs/Journal.ts"
import { decodeParams } from "../file/Parameters.ts"
import type { ResolvedStage, Resources } from "../file/ResolvedPipeline.ts"
import { folderOf, linkOutputs, type Ready, type RunContext, warn } from "./RunContext.ts"
import type { Lock } from "../runs/RunLock.ts"
import { stopFailure } from "../file/StopRules.ts"
import { Preempted, type Share, type ShareDone, type StageError } from "../StageType.ts"

export interface AttemptError {
  readonly error: StageError | Preempted | ShareDone
  readonly number: number
}

/** Work that is done and waits to be published. */
export interface Executed {
  readonly _tag: "Executed"
  readonly number: number
  readonly folders: Readonly<Record<string, string>>
  readonly facts: Readonly<Record<string, Facts>>
  readonly effort: Effort
}

interface Effort {
  readonly seconds: number
  readonly cpus: number
  readonly amount?: number
  readonly unit?: string
}

export const executeAttempt = Effect.fnUntraced(function* (
  context: RunContext,
  assignment: Ready,
  decision: Run,
  {
    cpus,
    lock,
    number: next,
    resources,
    share
  }: {
    readonly lock: Lock
    readonly number: number
    readonly cpus: number
    /** The stage's, or less where ranks were lost. */
    readonly resources: Resources
    readonly share: Share | undefined
  }
) {
  const path = yield* Path.Path
  const { stage } = assignment
  const outputs: Record<string, string> = {}
  const store = yield* ArtifactStore
  // Those who share the work hold locks of their own instead of the key's, and folders under the same names, which stay empty.
  const maker = share === undefined ? decision.key : `${decision.key}-shares-${share.index}-of-${share.of}`
  let number = next
  return yield* Effect.gen(function* () {
    const executor = yield* Executor
    // A cluster's job that an earlier runner submitted: its folders are filled as we speak.
    const job = yield* findJob(store.root, maker)
    if (job?.run === context.run.id) number = job.attempt
    const folder = job?.folder ?? path.join(folderOf(path, context, stage), "attempts", String(number))
    for (const port of Object.keys(stage.type.outputs))
      outputs[port] = yield* job === undefined
        ? store.openOutput(maker, port)
        : Effect.succeed(store.outputPath(maker, port))
    const resumes = yield* store.hasWork(decision.key)
    const work = store.workPath(decision.key)
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
    const held = assignment.forced || !resumes ? undefined : yield* heldResult(work, Object.keys(outputs))
    if (held !== undefined) {
      yield* checked(stage, held.facts)
      const line = "publishes the finished result that a check refused before: the work is not done again"
      yield* context.emit({ _tag: "Log", at: yield* timestamp, stage: stage.name, attempt: number, line })
      const { effort, facts, folders } = held
      return { _tag: "Executed", number, folders, facts, effort } satisfies Executed
    }
    const diverged = yield* Deferred.make<StageError>()
    const secrets = context.secrets.of(stage)
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
        threads: threadsOf({ ...stage, resources }, cpus),
        ...(resources.elastic === undefined ? {} : { wantedRanks: stage.resources.ranks }),
        ...(share === undefined ? {} : { share }),
        ...(secrets.granted.size === 0 ? {} : { secrets: Array.from(secrets.granted.keys()) })
      },
      secrets,
      runsIn: stage.type.runsIn ?? "worker",
      resources,
      key: maker,
      run: context.run.id,
      number,
      executor: stage.executor,
      shares: stage.type.shares === true,
      timeout: stage.timeout,
      grace: stage.grace,
      patience: yield* patienceOf(stage),
      stop: Effect.raceFirst(context.stop, Effect.asVoid(Deferred.await(diverged))),
      onStart: lock.setWorkers,
      onEvent: (event) => Effect.andThen(relay(context, stage, number, event), watch(stage, event, diverged))
    })
    const ended = yield* Effect.result(execution)
    if (yield* Deferred.isDone(diverged)) return yield* yield* Deferred.await(diverged)
    const facts = yield* Effect.fromResult(ended)
    const seconds = ((yield* Clock.currentTimeMillis) - started) / 1000
    const spent: Effort = { seconds, cpus, ...effort }
    yield* checked(stage, facts).pipe(Effect.tapError(() => holdResult(work, outputs, { facts, effort: spent })))
    return { _tag: "Executed", number, folders: outputs, facts, effort: spent } satisfies Executed
  }).pipe(
    // What an unfinished attempt wrote to its outputs is of no use; what can be resumed lies in the work folder.
    Effect.onError((cause) => Effect.ignore(giveUp(store.root, maker, outputs, cause))),
    Effect.mapError((error): AttemptError => ({ error, number }))
  )
})

/** Each rank has its part of the stage's cores. 0: all that the cluster's machine turns out to have. */
const threadsOf = ({ executor, resources, type }: ResolvedStage, cpus: number): number =>
  executor.kind === "slurm" && resources.cpus === "all" && type.runsIn !== "runner"
    ? 0
    : Math.max(1, Math.floor(cpus / resources.ranks))

const patienceOf = ({ params, type }: ResolvedStage) =>
  type.patience === undefined
    ? Effect.undefined
    : Effect.map(Effect.orDie(decodeParams(type, params)), (decoded) => Duration.seconds(type.patience?.(decoded) ?? 0))

/** A cluster's job that goes on without us keeps its folders, and its record for the next runner. */
const giveUp = Effect.fnUntraced(function* (
  store: string,
  maker: string,
  outputs: Readonly<Record<string, string>>,
  cause: Cause.Cause<StageError | Preempted | ShareDone>
) {
  const reason = Cause.squash(cause)
  const left = Cause.hasInterruptsOnly(cause) || (reason instanceof Preempted && reason.detached === true)
  if (left && (yield* findJob(store, maker)) !== undefined) return
  yield* removeOutputs(outputs)
  yield* forgetJob(store, maker)
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

const removeOutputs = (outputs: Readonly<Record<string, string>>) =>
  Effect.flatMap(FileSystem.FileSystem, (fs) =>
    Effect.forEach(
      Object.values(outputs),
      (folder) => Effect.ignore(fs.remove(folder, { recursive: true, force: true })),
      { discard: true }
    )
  )

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
export const publishAttempt = (
  context: RunContext,
  stage: ResolvedStage,
  decision: Run,
  executed: Executed,
  before: Lookup
) =>
  publish(context, stage, decision, executed, before).pipe(
    Effect.onError(() => removeOutputs(executed.folders)),
    Effect.mapError((error): AttemptError => ({ error, number: executed.number }))
  )

const publish = Effect.fnUntraced(function* (
  context: RunContext,
  stage: ResolvedStage,
  decision: Run,
  { effort, facts, folders, number }: Executed,
  before: Lookup
) {
  const store = yield* ArtifactStore
  const { key } = decision
  const madeBy = {
    stageType: stage.type.name,
    stageVersion: stage.type.version,
    stageKey: key,
    run: context.run.id,
    stage: stage.name,
    attempt: number
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
  yield* forgetJob(store.root, key)
  return yield* linkOutputs(context, stage, artifacts)
})
