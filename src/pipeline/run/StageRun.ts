/** One stage of a run: decides, takes the key's lock and its turn, tries until it works or must not. */
import { Clock, Deferred, Duration, Effect, FileSystem, Result } from "effect"
import type { ArtifactHandle } from "../../artifacts/Artifact.ts"
import { ArtifactStore, type Lookup, type StoredArtifact } from "../../artifacts/ArtifactStore.ts"
import { canonicalJson } from "../../artifacts/CanonicalJson.ts"
import { storageFailure } from "../../artifacts/DurableFile.ts"
import { checkFailure, failedChecks } from "../file/Checks.ts"
import {
  type Decision,
  decide,
  describeReason,
  type InputDigests,
  type Reason,
  type Run,
  type Use
} from "../plan/Decision.ts"
import { timestamp } from "../runs/Journal.ts"
import type { Grant } from "./Capacity.ts"
import { findJob } from "./ClusterJob.ts"
import { KeyLedger } from "../plan/KeyLedger.ts"
import { type StagePlan, willRun } from "../plan/Plan.ts"
import type { ResolvedStage } from "../file/ResolvedPipeline.ts"
import { afterFailed, fullStrength, withRanks } from "./Elastic.ts"
import { retryDelay } from "./Retry.ts"
import { type Assignment, linkOutputs, type Outputs, type Ready, type RunContext, warn } from "./RunContext.ts"
import { acquireLock, type Claim, liveClaims, type Lock, LockHeld, lockHolder, shareLock } from "../runs/RunLock.ts"
import { type AttemptError, type Executed, executeAttempt, publishAttempt } from "./StageAttempt.ts"
import type { KeyParts } from "../plan/StageKey.ts"
import { type FailureClass, type Share, StageError } from "../StageType.ts"

export type StageResult =
  | { readonly _tag: "Cached"; readonly outputs: Outputs }
  /** `seconds` from the first attempt's start: waiting for inputs, locks and cores is not in it. */
  | { readonly _tag: "Done"; readonly outputs: Outputs; readonly attempts: number; readonly seconds: number }
  | { readonly _tag: "Failed"; readonly error: StageError; readonly attempts: number; readonly seconds?: number }
  | { readonly _tag: "Preempted"; readonly message: string; readonly attempts: number }
  /** One share of the work is done; `message` says what of the whole is. */
  | {
      readonly _tag: "Shared"
      readonly message: string
      readonly complete: boolean
      readonly attempts: number
      readonly seconds: number
    }
  /** A stage kept as it is that has no result to give. */
  | { readonly _tag: "Unavailable"; readonly message: string }
  /** Another stage failed before this one began. */
  | { readonly _tag: "Halted"; readonly message: string }

export const runStage = Effect.fnUntraced(function* (context: RunContext, assignment: Assignment) {
  const { forced, inputs, observed, role, stage } = assignment
  if (role === "run" && Result.isFailure(observed)) {
    yield* announceFailure(context, stage, 0, observed.failure, undefined)
    return { _tag: "Failed", error: observed.failure, attempts: 0 } satisfies StageResult
  }
  const digests = inputs === undefined ? undefined : digestsOf(inputs)
  const decision = stillHolds(assignment, digests)
    ? assignment.planned
    : yield* decide({
        pipeline: context.pipeline,
        stage,
        role,
        forced,
        past: context.history.get(stage.name) ?? [],
        inputs: digests,
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

type Planned = Assignment & { readonly planned: Decision }

/** Whether what the plan decided moments ago was for just these inputs. Forced stages may have done their duty in this run. */
const stillHolds = (assignment: Assignment, inputs: InputDigests | undefined): assignment is Planned => {
  const { forced, planned } = assignment
  if (forced || planned === undefined || planned._tag === "Unavailable" || inputs === undefined) return false
  return planned.parts !== undefined && canonicalJson(planned.parts.inputs) === canonicalJson(inputs)
}

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
  if (use.parts !== undefined) yield* recordKey(context, stage, use.key, use.parts)
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
  // Forced, a cluster's job may be making it again.
  if ((yield* Effect.orElseSucceed(findJob(store.root, key), () => undefined)) !== undefined) return
  if (!(yield* Effect.orElseSucceed(fs.exists(store.workPath(key)), () => false))) return
  yield* Effect.ignore(
    Effect.scoped(Effect.andThen(acquireLock(store.lockPath(key), "the stage"), store.clearWork(key)))
  )
})

const makeResult = Effect.fnUntraced(function* (context: RunContext, assignment: Ready, decision: Run) {
  const { stage } = assignment
  const { key, previous, reasons, resumes } = decision
  yield* recordKey(context, stage, key, decision.parts)
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
  for (let told = false; ; told = true) {
    const { share } = context
    const making =
      share === undefined ? withKey(context, assignment, decision) : withShare(context, assignment, decision, share)
    const turn = yield* Effect.result(context.begun.withPermit(making))
    if (Result.isSuccess(turn)) return turn.success
    if (turn.failure._tag !== "LockHeld") return yield* turn.failure
    if (!told) {
      const { host, pid, since } = turn.failure
      yield* warn(context, stage, `waits: process ${pid} on ${host} is making the same since ${since}`)
    }
    if (yield* context.stopping) return stoppedBefore(0)
    yield* Effect.timeoutOption(context.stop, "500 millis")
  }
})

const stoppedBefore = (attempts: number): StageResult => ({
  _tag: "Preempted",
  message: "stopped before it began",
  attempts
})

/** Claims of those who do a share of the stage's work. */
const sharers = (key: string) => Effect.map(ArtifactStore, (store) => store.lockPath(`${key}-shares`))

const heldBy = (stage: ResolvedStage, { host, pid, since }: Claim): LockHeld =>
  new LockHeld({ what: `stage ${stage.name}`, host, pid, since })

/**
 * Does a share of the work, beside others that do theirs; fails at once where one process makes the whole. Sharers write their claim first and look for the
 * key's lock second, its holder the other way round, so that of two at least one sees the other. Once all shares are done the result is made of them.
 */
const withShare = Effect.fnUntraced(function* (context: RunContext, assignment: Ready, decision: Run, share: Share) {
  const store = yield* ArtifactStore
  const { stage } = assignment
  const { key } = decision
  const claims = yield* sharers(key)
  const shared = yield* Effect.gen(function* () {
    yield* shareLock(claims)
    const maker = yield* lockHolder(store.lockPath(key))
    if (maker !== undefined) return yield* heldBy(stage, maker)
    const lock = yield* acquireLock(`${claims}-${share.index}-of-${share.of}`, `a share of stage ${stage.name}`)
    const found = yield* store.lookup(key)
    if (found._tag === "Complete") return yield* cached(context, stage, key, found.record.run, found.artifacts)
    return yield* attempts(context, assignment, decision, { lock, before: found, share })
  }).pipe(
    Effect.catchTag("PlatformError", (error) => Effect.fail(storageFailure(store.lockPath(key))(error))),
    Effect.scoped
  )
  return shared._tag === "Shared" && shared.complete ? yield* withKey(context, assignment, decision) : shared
})

/** Makes the result while no other process does, or fails at once with the holder of the key's lock. */
const withKey = Effect.fnUntraced(function* (context: RunContext, assignment: Ready, decision: Run) {
  const store = yield* ArtifactStore
  const { stage } = assignment
  const { key, reasons } = decision
  const lock = yield* acquireLock(store.lockPath(key), `stage ${stage.name}`).pipe(
    Effect.catchTag("PlatformError", (error) => Effect.fail(storageFailure(store.lockPath(key))(error)))
  )
  const [sharer] = yield* liveClaims(yield* sharers(key)).pipe(Effect.mapError(storageFailure(store.lockPath(key))))
  if (sharer !== undefined) return yield* heldBy(stage, sharer)
  for (const dead of lock.takenOver) {
    yield* warn(context, stage, `takes over from process ${dead.pid} on ${dead.host}, which ended without finishing`)
  }
  // Whoever held the lock before may have made what we want.
  const found = yield* store.lookup(key)
  if (found._tag === "Complete" && !reasons.some((reason) => reason._tag === "Forced")) {
    return yield* cached(context, stage, key, found.record.run, found.artifacts)
  }
  return yield* attempts(context, assignment, decision, { lock, before: found })
}, Effect.scoped)

/** Seconds since a time in milliseconds. */
const since = (began: number) => Effect.map(Clock.currentTimeMillis, (now) => (now - began) / 1000)

/** What is known while the key's lock, or that of a share of it, is held. */
interface KeyTurn {
  readonly lock: Lock
  readonly share?: Share
  /** What the store has of the key. */
  readonly before: Lookup
}

/** Tries until one attempt works, a failure is final, or the run stops. Cores are held while the stage works, not while its result is published. */
const attempts = Effect.fnUntraced(function* (context: RunContext, assignment: Ready, decision: Run, turn: KeyTurn) {
  const { stage } = assignment
  const earlier = context.earlierAttempts.get(stage.name) ?? 0
  let began: number | undefined
  let strength = fullStrength(stage.resources)
  for (let failures = 0; ; failures++) {
    const resources = withRanks(stage.resources, strength.ranks)
    const ended = yield* withResources(context, { ...stage, resources }, ({ cpus }) =>
      Effect.gen(function* () {
        const obstacle = yield* obstacleToBegin(context, failures)
        if (obstacle !== undefined) return obstacle
        began ??= yield* Clock.currentTimeMillis
        const { lock, share } = turn
        const number = earlier + failures + 1
        const executed = yield* Effect.result(
          executeAttempt(context, assignment, decision, { lock, number, cpus, resources, share })
        )
        // While the cores are still held: the next stage must not begin any more after a failure.
        return Result.isSuccess(executed)
          ? executed.success
          : yield* afterFailure(context, stage, executed.failure, failures + 1, began)
      })
    )
    const start = began ?? 0
    const settled =
      ended._tag === "Executed" ? yield* published(context, stage, decision, ended, turn, failures, start) : ended
    if (settled._tag !== "TryAgain") return settled
    const before = strength.ranks
    strength = afterFailed(stage.resources, strength, settled.failure)
    if (strength.ranks < before)
      yield* warn(context, stage, `goes on with ${strength.ranks} ranks instead of ${before}: ${fewest(stage)}`)
    yield* Effect.timeoutOption(context.stop, settled.delay)
  }
})

const fewest = ({ resources: { elastic, ranks } }: ResolvedStage): string =>
  `ranks were lost twice, and elastic allows ${elastic?.min ?? ranks} to ${ranks}`

/** A cluster has its own queue: nothing of this machine is taken. */
const withResources: <A, E, R>(
  context: RunContext,
  stage: ResolvedStage,
  use: (grant: Grant) => Effect.Effect<A, E, R>
) => Effect.Effect<A, E | StageError, R> = (context, { executor, resources, type }, use) =>
  executor.kind === "slurm" && type.runsIn !== "runner"
    ? use({ cpus: resources.cpus === "all" ? 1 : resources.cpus })
    : context.capacity.withResources(resources, use)

/** Why the stage must not begin although its turn has come. */
const obstacleToBegin = Effect.fnUntraced(function* (context: RunContext, failures: number) {
  if (yield* context.stopping) return stoppedBefore(failures)
  if (context.keepGoing || failures > 0 || !(yield* Deferred.isDone(context.failed))) return undefined
  const message = `${yield* Deferred.await(context.failed)} failed before it began; --keep-going goes on with what does not need it`
  return { _tag: "Halted", message } satisfies StageResult
})

const published = Effect.fnUntraced(function* (
  context: RunContext,
  stage: ResolvedStage,
  decision: Run,
  executed: Executed,
  { before }: KeyTurn,
  failures: number,
  began: number
) {
  const outputs = yield* Effect.result(publishAttempt(context, stage, decision, executed, before))
  if (Result.isFailure(outputs)) return yield* afterFailure(context, stage, outputs.failure, failures + 1, began)
  return {
    _tag: "Done",
    outputs: outputs.success,
    attempts: failures + 1,
    seconds: yield* since(began)
  } satisfies StageResult
})

interface TryAgain {
  readonly _tag: "TryAgain"
  readonly failure: FailureClass
  readonly delay: Duration.Duration
}

const afterFailure = Effect.fnUntraced(function* (
  context: RunContext,
  stage: ResolvedStage,
  { error, number }: AttemptError,
  failures: number,
  began: number
): Effect.fn.Return<StageResult | TryAgain> {
  if (error._tag === "Preempted") return { _tag: "Preempted", message: error.message, attempts: failures }
  if (error._tag === "ShareDone") {
    const complete = error.done === error.total
    return { _tag: "Shared", message: error.message, complete, attempts: failures, seconds: yield* since(began) }
  }
  const { failure, message } = error
  const delay = (yield* context.stopping) ? undefined : yield* retryDelay(stage.retry, error.failure, failures)
  // Not tried again here: as a stop from outside, which the next run goes on from.
  if (delay === undefined && failure === "preempted") return { _tag: "Preempted", message, attempts: failures }
  yield* announceFailure(context, stage, number, error, delay === undefined ? undefined : Duration.toSeconds(delay))
  if (delay !== undefined) return { _tag: "TryAgain", failure, delay }
  yield* Deferred.succeed(context.failed, stage.name)
  return { _tag: "Failed", error, attempts: failures, seconds: yield* since(began) }
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

const recordKey = Effect.fnUntraced(function* (
  context: RunContext,
  stage: ResolvedStage,
  key: string,
  parts: KeyParts
) {
  const ledger = yield* KeyLedger
  yield* ledger.record({ pipeline: context.pipeline.name, run: context.run.id, stage: stage.name, key, parts })
})
