/** Run folders: `<runs>/<date-time-words>/`, and what their journals say. */
import { Context, Effect, type FileSystem, Layer, type Path, Runtime, Schema } from "effect"
import type { RunEvent } from "./RunEvent.ts"

export class RunNotFound extends Schema.TaggedError<RunNotFound>()("RunNotFound", {
  query: Schema.String,
  known: Schema.Array(Schema.String)
}) {
  override readonly [Runtime.errorExitCode] = 2
  override get message(): string {
    return this.known.length === 0
      ? `no run "${this.query}": there are no runs yet. Next: tinyllama run pipeline.yaml`
      : `no run "${this.query}". Next: tinyllama runs ls shows the ${this.known.length} there are`
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
  finishedAt: Schema.optionalKey(Schema.String)
})
export type RunRecord = typeof RunRecord.Type

export interface RunInfo extends RunRecord {
  /** Absolute. */
  readonly folder: string
  /** running, but nobody holds the run's lock: its runner died. */
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

export class Runs extends Context.Service<
  Runs,
  {
    /** Absolute path of the runs folder. */
    readonly root: string
    /** Newest first. */
    readonly list: Effect.Effect<ReadonlyArray<RunInfo>, StorageError>
    /** By id, unambiguous prefix, or "latest". */
    readonly find: (query: string) => Effect.Effect<RunInfo, RunNotFound | StorageError>
    readonly readEvents: (run: RunInfo) => Effect.Effect<ReadonlyArray<RunEvent>, StorageError>
    readonly outputs: (run: RunInfo) => Effect.Effect<ReadonlyArray<RunOutput>, StorageError>
  }
>()("tinyllama/pipeline/Runs") {
  static readonly layer = (_root: string): Layer.Layer<Runs, never, FileSystem.FileSystem | Path.Path> =>
    Layer.effect(Runs, Effect.die(new Error("first typed version")))
}
