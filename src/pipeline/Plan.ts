/** What a run would do, and why: one entry for each stage. `run` decides by the same function. */
import { Effect } from "effect"
import type { FileSystem, Path, Schema } from "effect"
import type { ArtifactStore } from "../artifacts/ArtifactStore.ts"
import type { ResolvedPipeline } from "./ResolvedPipeline.ts"
import type { Runs, StorageError } from "./Runs.ts"
import type { UsageError } from "./Runner.ts"
import type { Selection } from "./Selection.ts"

export type Reason =
  | { readonly _tag: "NoResult" }
  | {
      readonly _tag: "ParameterChanged"
      readonly path: string
      readonly before: Schema.Json
      readonly after: Schema.Json
    }
  | { readonly _tag: "InputChanged"; readonly port: string; readonly origin: string }
  | { readonly _tag: "ObservationChanged" }
  | { readonly _tag: "VersionChanged"; readonly before: number; readonly after: number }
  | { readonly _tag: "TypeChanged"; readonly before: string; readonly after: string }
  | { readonly _tag: "Damaged"; readonly detail: string }
  | { readonly _tag: "Forced" }
  /** A stage above runs first; whether this one must run depends on what that gives. */
  | { readonly _tag: "Upstream"; readonly stage: string }

export interface StagePlan {
  readonly stage: string
  readonly uses: string
  /**
   * fresh: a complete result serves; reuse: an older result serves because the selection keeps this stage as it is; stale: will run;
   * pending: runs if what is above changes its inputs; blocked: cannot run, `message` says why; excluded: not selected, not needed.
   */
  readonly status: "fresh" | "reuse" | "stale" | "pending" | "blocked" | "excluded"
  readonly key: string | undefined
  /** The run that made the result, for fresh and reuse. */
  readonly from: string | undefined
  readonly reasons: ReadonlyArray<Reason>
  /** Unfinished work with this key exists: the stage goes on from there. */
  readonly resumes: boolean
  /** Seconds that the newest complete result took. */
  readonly lastSeconds: number | undefined
  readonly message?: string
}

/** A reason in words: "lr.peak: 0.0004 → 0.001". */
export declare const describeReason: (reason: Reason) => string

export const plan: (
  pipeline: ResolvedPipeline,
  selection?: Selection
) => Effect.Effect<
  ReadonlyArray<StagePlan>,
  UsageError | StorageError,
  FileSystem.FileSystem | Path.Path | ArtifactStore | Runs
> = () => Effect.die(new Error("first typed version"))
