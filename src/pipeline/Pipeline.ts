/** Reads a pipeline file: YAML, profiles, overrides, variables, stage types; all errors at once, each with its place. */
import { Effect, type FileSystem, type Path } from "effect"
import type { PipelineInvalid } from "./Diagnostics.ts"
import type { ResolvedPipeline } from "./ResolvedPipeline.ts"
import type { StageRegistry } from "./StageRegistry.ts"

export interface LoadOptions {
  readonly file: string
  /** Overlays of the file's `profiles`, applied in order. */
  readonly profiles?: ReadonlyArray<string>
  /** "path=value", as -S takes them. */
  readonly overrides?: ReadonlyArray<string>
}

export const loadPipeline: (
  options: LoadOptions
) => Effect.Effect<ResolvedPipeline, PipelineInvalid, FileSystem.FileSystem | Path.Path | StageRegistry> = () =>
  Effect.die(new Error("first typed version"))
