/** Runs a pipeline: decides what is stale, executes it in workers, and publishes what they make. */
import { Effect, type FileSystem, type Path, Runtime, Schema } from "effect"
import type { ArtifactHandle } from "../artifacts/Artifact.ts"
import type { ArtifactStore } from "../artifacts/ArtifactStore.ts"
import type { Executor } from "./Executor.ts"
import type { ResolvedPipeline } from "./ResolvedPipeline.ts"
import type { RunEvents, RunStatus, StageOutcome } from "./RunEvent.ts"
import type { Runs, StorageError } from "./Runs.ts"
import type { Selection } from "./Selection.ts"
import type { FailureClass } from "./StageType.ts"

/** The command asks for something that the pipeline has not, say an unknown stage in --from-stage. Exit code 2. */
export class UsageError extends Schema.TaggedError<UsageError>()("UsageError", { message: Schema.String }) {
  override readonly [Runtime.errorExitCode] = 2
}

/** Another process writes this run. Exit code 5. */
export class LockHeld extends Schema.TaggedError<LockHeld>()("LockHeld", {
  what: Schema.String,
  pid: Schema.Int,
  host: Schema.String,
  since: Schema.String
}) {
  override readonly [Runtime.errorExitCode] = 5
  override get message(): string {
    return (
      `${this.what} is being written by process ${this.pid} on ${this.host} since ${this.since}. ` +
      "Next: wait for it (tinyllama status shows how far it is), or stop it with Ctrl-C where it runs; what is complete is kept."
    )
  }
}

export interface RunOptions extends Selection {
  /** Cores to share among stages that run at the same time; all of the machine's by default. */
  readonly cpus?: number
  /** A new run folder even if the latest run did not finish. */
  readonly fresh?: boolean
  /** Completes when the run shall stop: workers get SIGTERM, save within their grace, and the run ends as preempted. */
  readonly stop?: Effect.Effect<void>
}

export interface StageSummary {
  readonly stage: string
  readonly uses: string
  readonly outcome: StageOutcome
  readonly seconds: number
  readonly attempts: number
  readonly outputs: Readonly<Record<string, ArtifactHandle>>
  readonly failure?: { readonly failure: FailureClass; readonly message: string; readonly next: string }
}

export interface RunSummary {
  readonly run: string
  /** Absolute. */
  readonly folder: string
  readonly status: RunStatus
  readonly seconds: number
  /** The selected stages and the reused ones above them, in topological order. */
  readonly stages: ReadonlyArray<StageSummary>
  readonly warnings: ReadonlyArray<string>
}

export type RunError = UsageError | LockHeld | StorageError

/** 0 complete, 1 failed, 75 preempted. Errors carry theirs as Runtime.errorExitCode. */
export const exitCodeOf = (summary: RunSummary): number =>
  summary.status === "complete" ? 0 : summary.status === "failed" ? 1 : 75

/** A failed stage is no failure of this effect: read `status`. */
export const run: (
  pipeline: ResolvedPipeline,
  options?: RunOptions
) => Effect.Effect<
  RunSummary,
  RunError,
  FileSystem.FileSystem | Path.Path | ArtifactStore | Runs | RunEvents | Executor
> = () => Effect.die(new Error("first typed version"))
