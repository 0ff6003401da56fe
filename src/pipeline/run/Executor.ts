/** Executes one attempt of one stage somewhere. LocalExecutor starts a worker process on this machine. */
import { Context, type Duration, type Effect, Schema } from "effect"
import { ArtifactHandle, Facts } from "../../artifacts/Artifact.ts"
import type { ExecutorChoice } from "../file/ExecutorBlock.ts"
import type { Resources } from "../file/ResolvedPipeline.ts"
import type { AttemptSecrets } from "../file/Secrets.ts"
import type { Preempted, ShareDone, StageError } from "../StageType.ts"

/** All a worker must know. Written to the attempt's job.json; starting the worker on that file repeats the attempt by hand. */
export const Job = Schema.Struct({
  stage: Schema.String,
  /** A registered type's name, or a plugin as the file names it, relative to `baseDirectory`. */
  type: Schema.String,
  /** Digest of the plugin's code when the key was made: other code must not run under that key. */
  code: Schema.optionalKey(Schema.String),
  params: Schema.Record(Schema.String, Schema.Json),
  inputs: Schema.Record(Schema.String, Schema.Array(ArtifactHandle)),
  /** Output port → empty folder to fill. */
  outputs: Schema.Record(Schema.String, Schema.String),
  work: Schema.String,
  /** What `continuation` and `additive` changes leave to build on. */
  previous: Schema.NullOr(
    Schema.Struct({
      params: Schema.Record(Schema.String, Schema.Json),
      outputs: Schema.Record(Schema.String, ArtifactHandle),
      work: Schema.NullOr(Schema.String)
    })
  ),
  baseDirectory: Schema.String,
  /** 0: as many as the machine that it turns out to run on gives each of its ranks. */
  threads: Schema.Int,
  /** How many ranks the file asks for, where an attempt may have fewer. */
  wantedRanks: Schema.optionalKey(Schema.Int),
  /** To do this share of the work alone. */
  share: Schema.optionalKey(Schema.Struct({ index: Schema.Int, of: Schema.Int })),
  /** Names of the environment variables whose values must not stand in anything the worker says, where it writes that to files itself. */
  secrets: Schema.optionalKey(Schema.Array(Schema.String)),
  /** Ends itself once the file names a newer attempt than this one. */
  fence: Schema.optionalKey(Schema.Struct({ file: Schema.String, counter: Schema.Int }))
})
export type Job = typeof Job.Type

/** What a worker says on fd 3 or in its events file, one JSON object a line. Exactly one of the last four ends the attempt. */
export const WorkerEvent = Schema.TaggedUnion({
  /** Of a cluster's job, each time that it begins: what was said before is of an earlier start. */
  Started: { host: Schema.String, restart: Schema.Int },
  Progress: {
    done: Schema.Finite,
    total: Schema.Finite,
    unit: Schema.String,
    metrics: Schema.Record(Schema.String, Schema.NullOr(Schema.Finite))
  },
  Log: { line: Schema.String },
  Warning: { line: Schema.String },
  Shared: { done: Schema.Int, total: Schema.Int, unit: Schema.String },
  Completed: { facts: Schema.Record(Schema.String, Facts) },
  Failed: { failure: Schema.String, message: Schema.String, next: Schema.String },
  Preempted: { message: Schema.String }
})
export type WorkerEvent = typeof WorkerEvent.Type

export interface Attempt {
  /** The attempt's folder: job.json, stdout.log, stderr.log and exit.json lie there. */
  readonly folder: string
  readonly job: Job
  /** What the worker may know of the environment, and what must not stand in anything it says. */
  readonly secrets: AttemptSecrets
  /** Where the stage type says that it runs. */
  readonly runsIn: "worker" | "runner"
  /** What a cluster's job does outlives the run: the stage's key, or that of a share of it. */
  readonly key: string
  readonly run: string
  readonly number: number
  readonly executor: ExecutorChoice
  /** Whether the stage type's work can be done in shares. */
  readonly shares?: boolean
  /** What it may take, and of how many ranks it is. */
  readonly resources: Resources
  readonly timeout: Duration.Duration | undefined
  readonly grace: Duration.Duration
  /** How long ranks wait for one that does not move. */
  readonly patience?: Duration.Duration | undefined
  /** Completes when the attempt shall save and stop. */
  readonly stop: Effect.Effect<void>
  readonly onEvent: (event: WorkerEvent) => Effect.Effect<void>
  /** Called with the processes that do the work, again when more are known, so that a lock can name them. */
  readonly onStart: (pids: ReadonlyArray<number>) => Effect.Effect<void>
}

export class Executor extends Context.Service<
  Executor,
  {
    readonly execute: (
      attempt: Attempt
    ) => Effect.Effect<Readonly<Record<string, Facts>>, StageError | Preempted | ShareDone>
  }
>()("tinyllama/pipeline/Executor") {}
