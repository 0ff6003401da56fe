/** The content-addressed store that all runs share. */
import { Context, type Effect, Schema } from "effect"
import type { ArtifactHandle, Manifest } from "./Artifact.ts"
import type { StageError } from "../pipeline/StageType.ts"

/** What the store remembers of a stage key: which artifacts it gave, and who made them. Written last, so it names only complete artifacts. */
export const KeyRecord = Schema.Struct({
  version: Schema.Literal(1),
  key: Schema.String,
  /** Output port → digest. */
  outputs: Schema.Record(Schema.String, Schema.String),
  run: Schema.String,
  stage: Schema.String,
  attempt: Schema.Int,
  seconds: Schema.Finite,
  at: Schema.String
})
export type KeyRecord = typeof KeyRecord.Type

export class ArtifactStore extends Context.Service<
  ArtifactStore,
  {
    readonly root: string
    /** The manifest and folder of a complete artifact; undefined where files are missing or have other sizes. */
    readonly get: (
      digest: string
    ) => Effect.Effect<{ readonly manifest: Manifest; readonly folder: string } | undefined>
    /** Reads every byte; the paths of files that differ from the manifest. */
    readonly verify: (digest: string) => Effect.Effect<ReadonlyArray<string>, StageError>
    readonly handle: (digest: string, origin: string) => Effect.Effect<ArtifactHandle | undefined>
  }
>()("tinyllama/artifacts/ArtifactStore") {}
