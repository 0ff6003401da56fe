/** Runs a pipeline: one fiber per stage, each waiting for those above it; siblings go on when one fails; everything complete is kept. */
import { hostname } from "node:os"
import { Cause, Clock, Deferred, Effect, FileSystem, Path, Result, Runtime, Schema, Semaphore } from "effect"
import type { ArtifactHandle } from "../../artifacts/Artifact.ts"
import { digestOf } from "../../artifacts/CanonicalJson.ts"
import { makeCapacity, makeGroupLimits, thisMachine } from "./Capacity.ts"
import type { Decision } from "../plan/Decision.ts"
import { KeyLedger } from "../plan/KeyLedger.ts"
import { describeReason, type Plan, plan, type StagePlan } from "../plan/Plan.ts"
import { checkPromise, type PlanDocument, planDocument } from "../plan/PlanDocument.ts"
import { journalFile, openJournal, timestamp } from "../runs/Journal.ts"
import { requirePreflight } from "../plan/Preflight.ts"
import type { ResolvedPipeline, ResolvedStage } from "../file/ResolvedPipeline.ts"
import type { RunEvent, RunStatus, StageOutcome } from "../runs/RunEvent.ts"
import { acquireLock, type Claim, removeDeadClaims } from "../runs/RunLock.ts"
import { type RunInfo, Runs, storageError, type StorageError } from "../runs/Runs.ts"
import { readSecrets, type Secrets } from "../file/Secrets.ts"
import { resolveSelection, type Roles, type Selection, UsageError } from "../plan/Selection.ts"
import { useStore } from "../runs/StoreLock.ts"
import { sweep } from "./Sweep.ts"
import type { Outputs, RunContext } from "./RunContext.ts"
import { runStage, type StageResult } from "./StageRun.ts"
import { type FailureClass, type Share, StageError } from "../StageType.ts"

export { LockHeld } from "../runs/RunLock.ts"
export { UsageError } from "../plan/Selection.ts"

export interface RunOptions extends Selection {
  /** Cores to share among stages that run at the same time; all of the machine's by default. */
  readonly cpus?: number
  /** "new": a new run folder even if the latest run did not finish; else the id of the run to go on with. */
  readonly run?: string
  /** After a failure, go on with what does not need the failed stage; without it nothing more is begun. */
  readonly keepGoing?: boolean
  /** A saved plan: the run does just this, or refuses. */
  readonly promise?: { readonly file: string; readonly document: PlanDocument }
  /** Does one share of the one selected stage, which must be of a type with `shares`, in a run of its own. */
  readonly share?: Share
  /** Look the pipeline over first, and fail with PreflightFailed for what cannot work; false by default. */
  readonly preflight?: boolean
  /** Completes when the run shall stop: workers get SIGTERM, save within their grace, and the run ends as preempted. */
  readonly stop?: Effect.Effect<void>
}

export interface StageSummary {
  readonly stage: string
  readonly uses: string
  readonly outcome: StageOutcome
  readonly seconds: number
  readonly attempts: number
  readonly outputs: Outputs
  /** Of a stage of which this run did a share: how much of the whole is done. */
  readonly note?: string
  readonly failure?: { readonly failure: FailureClass; readonly message: string; readonly next: string }
}

export interface RunSummary {
  readonly run: string
  /** Absolute. */
  readonly folder: string
  /** partial: a share of a stage is done, not the whole. */
  readonly status: RunStatus
  readonly seconds: number
  /** The selected stages and the reused ones above them, in topological order. */
  readonly stages: ReadonlyArray<StageSummary>
  readonly warnings: ReadonlyArray<string>
}

/** 0 complete, or a share of it done; 1 failed, 75 preempted. Errors carry theirs as Runtime.errorExitCode. */
export const exitCodeOf = (summary: RunSummary): number =>
  summary.status === "complete" || summary.status === "partial" ? 0 : summary.status === "failed" ? 1 : 75

/** A failed stage is no failure of this effect: read `status`. */
export const run = Effect.fn("run")(function* (pipeline: ResolvedPipeline, options: RunOptions = {}) {
  const roles = yield* Effect.fromResult(resolveSelection(pipeline, options))
  const running = pipeline.stages.filter((stage) => roles.of(stage.name) === "run")
  if (options.share !== undefined) yield* canShare(running, options)
  // Before the plan: what it counts on must not be collected.
  yield* useStore(({ host, pid }) => Effect.logInfo(`waits until gc (process ${pid} on ${host}) has ended`))
  const planned = yield* plan(pipeline, options, { estimates: false })
  if (options.promise !== undefined) yield* keepsPromise(pipeline, options, options.promise, planned.stages)
  if (options.reuseStale !== true) yield* refuseStaleReuse(planned.stages)
  if (options.preflight === true) yield* requirePreflight(pipeline, planned, options.cpus)
  const secrets = yield* readSecrets(pipeline, running)
  return yield* execute(pipeline, options, { roles, planned, secrets }, yield* openRun(pipeline, options))
}, Effect.scoped)

const canShare = (running: ReadonlyArray<ResolvedStage>, { force, run, share }: RunOptions) => {
  const [stage] = running
  const asked = `--shard ${share?.index}/${share?.of}`
  const fault =
    running.length !== 1 || stage === undefined
      ? `${asked}: ${running.length} stages are selected. Next: choose one by --only`
      : stage.type.shares !== true
        ? `${asked}: ${stage.name} is of type ${stage.type.name}, whose work cannot be shared. Next: run it without --shard`
        : force !== undefined && force.length > 0
          ? `${asked} and --force: shares that are done already would be done again by each. Next: leave --force out`
          : run !== undefined && run !== "new"
            ? `${asked} and --run: each share is a run of its own. Next: leave --run out`
            : undefined
  return fault === undefined ? Effect.void : Effect.fail(new UsageError({ message: fault }))
}

const keepsPromise = (
  pipeline: ResolvedPipeline,
  selection: Selection,
  { document, file }: NonNullable<RunOptions["promise"]>,
  stages: ReadonlyArray<StagePlan>
) => checkPromise(file, document, planDocument(pipeline, selection, stages, document.totals))

/** A stage kept as it is that the file asks otherwise of. Exit code 6. */
export class StaleReuse extends Schema.TaggedError<StaleReuse>()("StaleReuse", {
  changes: Schema.Array(
    Schema.Struct({ stage: Schema.String, from: Schema.String, changes: Schema.Array(Schema.String) })
  ),
  next: Schema.String
}) {
  override readonly [Runtime.errorExitCode] = 6
  override get message(): string {
    const lines = this.changes.map(
      ({ changes, from, stage }) => `  ${stage} (result of ${from}): ${changes.join("; ")}`
    )
    return `the stages above are to be reused, but the file has changed since their results were made:\n${lines.join("\n")}`
  }
}

const refuseStaleReuse = (stages: ReadonlyArray<StagePlan>): Effect.Effect<void, StaleReuse> => {
  const stale = stages.filter(({ reasons, status }) => status === "reuse" && reasons.length > 0)
  const [first] = stale
  if (first === undefined) return Effect.void
  return Effect.fail(
    new StaleReuse({
      changes: stale.map(({ from, reasons, stage }) => ({
        stage,
        from: from ?? "an earlier run",
        changes: reasons.map(describeReason)
      })),
      next: `--reuse-stale takes the old results all the same; or bring them up to date: --from-stage ${first.stage}`
    })
  )
}

/**
 * The run folder, locked until the scope closes: the latest run of this very file if it did not finish, else a new one. A file that was edited
 * since gets a new folder, so that a run stays the record of one pipeline; what is complete is taken from the store either way.
 */
const openRun = Effect.fnUntraced(function* (pipeline: ResolvedPipeline, options: RunOptions) {
  const runs = yield* Runs
  const latest =
    options.run === "new" || options.share !== undefined
      ? undefined
      : options.run === undefined
        ? yield* unfinished(pipeline)
        : yield* namedRun(pipeline, options.run)
  const found = latest ?? (yield* runs.create(pipeline))
  const lock = yield* acquireLock(runs.lockPath(found), `run ${found.id}`).pipe(
    Effect.catchTag("PlatformError", (error) => Effect.fail(storageError(found.folder)(error)))
  )
  const digest = digestOf({
    from: options.fromStage ?? null,
    to: options.toStage ?? null,
    only: options.only ?? [],
    force: options.force ?? []
  })
  const since = found.selection?.digest === digest ? found.selection.since : yield* afterAllOf(found)
  const { finishedAt: _, ...open } = found
  if (latest !== undefined && options.run === undefined) yield* runs.pointLatest(found)
  const info = yield* runs.update(open, { status: "running", selection: { digest, since } })
  const opened: OpenRun = {
    info: { ...info, abandoned: false },
    continued: latest !== undefined,
    takenOver: lock.takenOver
  }
  return opened
})

interface OpenRun {
  readonly info: RunInfo
  readonly continued: boolean
  /** Runners that had this run and ended without finishing it. */
  readonly takenOver: ReadonlyArray<Claim>
}

/** Now, or just after the run's last event where the clock was set back since: what was made before must not look newer than this. */
const afterAllOf = Effect.fnUntraced(function* (run: RunInfo) {
  const runs = yield* Runs
  const now = yield* timestamp
  const last = (yield* runs.readEvents(run)).reduce((latest, { at }) => (at > latest ? at : latest), "")
  return last < now ? now : new Date(Date.parse(last) + 1).toISOString()
})

/** The run that the user names, if it is one of this very pipeline. */
const namedRun = Effect.fnUntraced(function* (pipeline: ResolvedPipeline, name: string) {
  const found = yield* (yield* Runs).find(name)
  if (yield* isRunOf(pipeline, found)) return found
  return yield* new UsageError({
    message:
      `--run ${name}: ${found.id} is a run of another pipeline, or of an earlier text of ${pipeline.file}, other profiles or overrides. ` +
      `Next: leave --run out for a new run: what is complete is taken from the store; tinyllama diff ${found.id} ${pipeline.file} shows what changed`
  })
})

/** Whether the run is a record of this very file, profiles and overrides. */
const isRunOf = Effect.fnUntraced(function* (pipeline: ResolvedPipeline, run: RunInfo) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const text = yield* Effect.orElseSucceed(fs.readFileString(path.join(run.folder, "pipeline.yaml")), () => undefined)
  return (
    run.file === path.resolve(pipeline.file) &&
    run.pipeline === pipeline.name &&
    text === pipeline.text &&
    JSON.stringify([run.profiles, run.overrides]) === JSON.stringify([pipeline.profiles, pipeline.overrides])
  )
})

const unfinished = Effect.fnUntraced(function* (pipeline: ResolvedPipeline) {
  const file = (yield* Path.Path).resolve(pipeline.file)
  const latest = yield* (yield* Runs).newest((run) => run.file === file && run.pipeline === pipeline.name)
  if (latest === undefined) return undefined
  if (latest.status === "complete") {
    // Its runner may have been killed after its very last step.
    yield* Effect.ignore(removeDeadClaims(latest.folder))
    return undefined
  }
  return (yield* isRunOf(pipeline, latest)) ? latest : undefined
})

const execute = Effect.fnUntraced(function* (
  pipeline: ResolvedPipeline,
  options: RunOptions,
  { planned, roles, secrets }: { readonly roles: Roles; readonly planned: Plan; readonly secrets: Secrets },
  { continued, info, takenOver }: OpenRun
) {
  const runs = yield* Runs
  const path = yield* Path.Path
  const began = yield* Clock.currentTimeMillis
  const journalPath = path.join(info.folder, journalFile)
  const journal = yield* openJournal(journalPath).pipe(
    Effect.catchTag("PlatformError", (error) => Effect.fail(storageError(journalPath)(error)))
  )
  const warnings: Array<string> = []
  const emit = (said: RunEvent) => {
    const event = secrets.scrubEvent(said)
    if (event._tag === "Warning")
      warnings.push(event.stage === undefined ? event.line : `${event.stage}: ${event.line}`)
    return journal.emit(event)
  }
  const stages = pipeline.stages.filter((stage) => roles.of(stage.name) !== "excluded")
  yield* emit({
    _tag: "RunStarted",
    at: yield* timestamp,
    run: info.id,
    pipeline: pipeline.name,
    file: pipeline.file,
    host: hostname(),
    pid: process.pid,
    continued,
    stages: stages.map((stage) => stage.name)
  })
  for (const dead of takenOver) {
    const line = `takes over from process ${dead.pid} on ${dead.host}, which ended without finishing`
    yield* emit({ _tag: "Warning", at: yield* timestamp, line })
  }
  const stopRequested = yield* Deferred.make<void>()
  if (options.stop !== undefined)
    yield* Effect.forkScoped(Effect.andThen(options.stop, Deferred.succeed(stopRequested, undefined)))
  const context: RunContext = {
    pipeline,
    run: info,
    emit,
    earlierAttempts: continued ? lastAttempts(yield* runs.readEvents(info)) : new Map(),
    history: yield* (yield* KeyLedger).history(pipeline.name),
    begun: yield* Semaphore.make(mostBegun),
    capacity: yield* makeCapacity(thisMachine(runs.root, options.cpus)),
    groups: makeGroupLimits(stages),
    secrets,
    stop: Deferred.await(stopRequested),
    stopping: Deferred.isDone(stopRequested),
    failed: yield* Deferred.make<string>(),
    keepGoing: options.keepGoing === true,
    share: options.share,
    promised: options.promise === undefined ? undefined : new Map(planned.stages.map((entry) => [entry.stage, entry])),
    forcedSince: info.selection?.since ?? info.createdAt
  }
  const finish = Effect.fnUntraced(function* (status: RunStatus) {
    const seconds = ((yield* Clock.currentTimeMillis) - began) / 1000
    yield* emit({ _tag: "RunFinished", at: yield* timestamp, run: info.id, status, seconds })
    yield* runs.update(info, { status, finishedAt: yield* timestamp })
    return seconds
  })
  const summaries = yield* runStages(context, stages, roles, planned).pipe(
    Effect.onInterrupt(() => Effect.ignore(finish("preempted")))
  )
  const status = statusOf(summaries)
  // What ran to its end in this process left nothing half done.
  yield* Effect.ignore(sweep(runs.root, continued || status !== "complete" ? info.folder : undefined))
  const summary: RunSummary = {
    run: info.id,
    folder: info.folder,
    status,
    seconds: yield* finish(status),
    stages: summaries,
    warnings
  }
  return summary
})

/** Of each stage, the number of its last attempt. */
const lastAttempts = (events: ReadonlyArray<RunEvent>): ReadonlyMap<string, number> => {
  const last = new Map<string, number>()
  for (const event of events) if (event._tag === "AttemptStarted") last.set(event.stage, event.attempt)
  return last
}

/** Enough to keep cores and disk busy; each holds a lock with a heartbeat. */
const mostBegun = 64

const statusOf = (summaries: ReadonlyArray<StageSummary>): RunStatus =>
  summaries.some(({ outcome }) => outcome === "preempted")
    ? "preempted"
    : summaries.some(({ outcome }) => outcome === "failed")
      ? "failed"
      : summaries.some(({ outcome }) => outcome === "partial")
        ? "partial"
        : "complete"

/** What became of a stage, for those below it. */
interface Settled {
  readonly summary: StageSummary
  readonly result: StageResult | undefined
}

const runStages = Effect.fnUntraced(function* (
  context: RunContext,
  stages: ReadonlyArray<ResolvedStage>,
  roles: Roles,
  { decisions, observed }: Plan
) {
  const settled = new Map(stages.map((stage) => [stage.name, Deferred.makeUnsafe<Settled>()]))
  const settledOf = (names: ReadonlyArray<string>) =>
    Effect.forEach(names, (name) => {
      const deferred = settled.get(name)
      return deferred === undefined
        ? Effect.succeed([])
        : Effect.map(Deferred.await(deferred), (one) => [[name, one] as const])
    }).pipe(Effect.map((pairs) => new Map(pairs.flat())))

  const settle = Effect.fnUntraced(function* (stage: ResolvedStage) {
    const above = yield* settledOf(stage.needs)
    const forced = roles.forced(stage.name)
    const role = roles.of(stage.name) === "run" ? "run" : "reuse"
    const obstacle = role === "run" ? obstacleAbove(stage, above) : undefined
    const result =
      obstacle ??
      (yield* runStage(context, {
        stage,
        role,
        forced,
        inputs: inputsFrom(stage, above),
        observed: observed.get(stage.name) ?? Result.succeed(null),
        ...plannedOf(decisions.get(stage.name))
      }).pipe(Effect.catchCause((cause) => failed(context, stage, cause))))
    const summary = summarize(stage, result)
    if (summary.outcome === "failed") yield* Deferred.succeed(context.failed, stage.name)
    yield* announce(context, summary, result)
    return { summary, result: result._tag === "Skipped" ? undefined : result } satisfies Settled
  })
  yield* Effect.forEach(
    stages,
    (stage) => {
      const deferred = settled.get(stage.name)
      return deferred === undefined ? Effect.void : Deferred.into(settle(stage), deferred)
    },
    { concurrency: "unbounded", discard: true }
  )
  const all = yield* settledOf(stages.map((stage) => stage.name))
  return Array.from(all.values(), ({ summary }) => summary)
})

const plannedOf = (planned: Decision | undefined) => (planned === undefined ? {} : { planned })

interface Skipped {
  readonly _tag: "Skipped"
  readonly message: string
}

/** Why a stage that should run cannot: something above failed, was skipped or stopped. */
const obstacleAbove = (
  stage: ResolvedStage,
  above: ReadonlyMap<string, Settled>
): Skipped | StageResult | undefined => {
  for (const [name, { result, summary }] of above) {
    if (summary.outcome === "preempted") return { _tag: "Skipped", message: `the run stopped in ${name}` }
    if (
      result?._tag === "Unavailable" &&
      Object.values(stage.inputs)
        .flat()
        .some((edge) => edge.stage === name)
    ) {
      const error = new StageError({
        failure: "invalid-input",
        message: `${stage.name} needs ${name}, which is not selected and has no complete result`,
        next: result.message.replace(/^.*Next: /su, "")
      })
      return { _tag: "Failed", error, attempts: 0 }
    }
    if (summary.outcome === "failed" || (summary.outcome === "skipped" && result?._tag !== "Unavailable")) {
      return { _tag: "Skipped", message: `${name} ${summary.outcome === "failed" ? "failed" : "was skipped"}` }
    }
  }
  return undefined
}

/** The artifacts that the stages above gave; undefined when one gave none. */
const inputsFrom = (stage: ResolvedStage, above: ReadonlyMap<string, Settled>) => {
  const inputs: Record<string, ReadonlyArray<ArtifactHandle>> = {}
  for (const [port, edges] of Object.entries(stage.inputs)) {
    const handles = edges.flatMap((edge) => above.get(edge.stage)?.summary.outputs[edge.port] ?? [])
    if (handles.length < edges.length) return undefined
    inputs[port] = handles
  }
  return inputs
}

/** Failures outside an attempt (storage, a defect of the runner) fail their stage alone. */
const failed = Effect.fnUntraced(function* (
  context: RunContext,
  stage: ResolvedStage,
  cause: Cause.Cause<StageError | StorageError | { readonly _tag: string; readonly message: string }>
) {
  if (Cause.hasInterruptsOnly(cause)) return yield* Effect.interrupt
  const reason = Cause.squash(cause)
  const error = reason instanceof StageError ? reason : internal(reason, Cause.pretty(cause))
  const { failure, message, next } = error
  yield* context.emit({
    _tag: "AttemptFailed",
    at: yield* timestamp,
    stage: stage.name,
    attempt: 0,
    failure,
    message,
    next
  })
  return { _tag: "Failed", error, attempts: 0 } satisfies StageResult
})

const internal = (reason: unknown, pretty: string): StageError => {
  const next = "run again; if it comes back, please report it"
  const message = reason instanceof Error && "next" in reason ? reason.message : `a defect of the runner: ${pretty}`
  return new StageError({ failure: "internal", message, next })
}

const summarize = (stage: ResolvedStage, result: StageResult | Skipped): StageSummary => {
  const base = {
    stage: stage.name,
    uses: stage.type.name,
    seconds: "seconds" in result ? (result.seconds ?? 0) : 0,
    attempts: "attempts" in result ? result.attempts : 0
  }
  switch (result._tag) {
    case "Cached":
      return { ...base, outcome: "cached", outputs: result.outputs }
    case "Done":
      return { ...base, outcome: "done", outputs: result.outputs }
    case "Failed": {
      const { failure, message, next } = result.error
      return { ...base, outcome: "failed", outputs: {}, failure: { failure, message, next } }
    }
    case "Preempted":
      return { ...base, outcome: "preempted", outputs: {} }
    case "Shared":
      return { ...base, outcome: "partial", outputs: {}, note: result.message }
    default:
      return { ...base, outcome: "skipped", outputs: {} }
  }
}

const announce = Effect.fnUntraced(function* (
  context: RunContext,
  summary: StageSummary,
  result: StageResult | Skipped
) {
  const said =
    summary.failure !== undefined
      ? { message: summary.failure.message, next: summary.failure.next }
      : "message" in result
        ? { message: result.message }
        : {}
  const { outcome, seconds, stage } = summary
  yield* context.emit({ _tag: "StageFinished", at: yield* timestamp, stage, outcome, seconds, ...said })
})
