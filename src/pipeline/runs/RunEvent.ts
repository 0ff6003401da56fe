/** What happens in a run, as the journal keeps it and as the live display sees it: one vocabulary for both. */
import { Context, Effect, Layer, PubSub, Schema } from "effect"
import { ArtifactType } from "../../artifacts/Artifact.ts"
import { ChangeClass, FailureClass } from "../StageType.ts"

/** ISO 8601 in UTC. */
const at = Schema.String
const stage = Schema.String
const attempt = Schema.Int

export const StageOutcome = Schema.Literals(["cached", "done", "partial", "failed", "skipped", "preempted"])
export type StageOutcome = typeof StageOutcome.Type
export const RunStatus = Schema.Literals(["complete", "partial", "failed", "preempted"])
export type RunStatus = typeof RunStatus.Type

export const RunEvent = Schema.TaggedUnion({
  RunStarted: {
    at,
    run: Schema.String,
    pipeline: Schema.String,
    file: Schema.String,
    host: Schema.String,
    pid: Schema.Int,
    /** True when this invocation goes on with a run that an earlier one did not finish. */
    continued: Schema.Boolean,
    /** The selected stages in topological order. */
    stages: Schema.Array(Schema.String)
  },
  /** The stage's key is known and no complete result serves: it will run, for these reasons. */
  StagePlanned: {
    at,
    stage,
    key: Schema.String,
    reasons: Schema.Array(Schema.String),
    resumes: Schema.Boolean,
    /** The older result that it builds on, of which `change` tells what is kept. */
    previous: Schema.optionalKey(Schema.Struct({ run: Schema.String, key: Schema.String, change: ChangeClass }))
  },
  /** A complete result was taken from the store; `from` is the run that made it. */
  StageCached: {
    at,
    stage,
    key: Schema.String,
    from: Schema.String,
    outputs: Schema.Record(Schema.String, Schema.String)
  },
  AttemptStarted: { at, stage, attempt, key: Schema.String, cpus: Schema.Int, resumes: Schema.Boolean },
  Progress: {
    at,
    stage,
    attempt,
    done: Schema.Finite,
    total: Schema.Finite,
    unit: Schema.String,
    metrics: Schema.Record(Schema.String, Schema.NullOr(Schema.Finite))
  },
  Log: { at, stage, attempt, line: Schema.String },
  /** `stage` is absent for warnings of the runner itself. */
  Warning: { at, stage: Schema.optionalKey(stage), line: Schema.String },
  AttemptFailed: {
    at,
    stage,
    attempt,
    failure: FailureClass,
    message: Schema.String,
    next: Schema.String,
    /** Present when the stage is tried again after this delay. */
    retryInSeconds: Schema.optionalKey(Schema.Finite)
  },
  ArtifactPublished: {
    at,
    stage,
    port: Schema.String,
    type: ArtifactType,
    digest: Schema.String,
    files: Schema.Int,
    bytes: Schema.Int,
    reused: Schema.Boolean
  },
  StageFinished: {
    at,
    stage,
    outcome: StageOutcome,
    seconds: Schema.Finite,
    /** Why it failed or was skipped. */
    message: Schema.optionalKey(Schema.String),
    next: Schema.optionalKey(Schema.String)
  },
  RunFinished: { at, run: Schema.String, status: RunStatus, seconds: Schema.Finite }
})
export type RunEvent = typeof RunEvent.Type

/** The events of the run in this process, for live displays. Sliding: a slow reader loses old events and never holds up the work. */
export class RunEvents extends Context.Service<RunEvents, PubSub.PubSub<RunEvent>>()("tinyllama/pipeline/RunEvents") {
  static readonly layer = Layer.effect(
    RunEvents,
    Effect.acquireRelease(PubSub.sliding<RunEvent>({ capacity: 4096, replay: 256 }), PubSub.shutdown)
  )
}
