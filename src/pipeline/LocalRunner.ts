/** All that a run on this machine needs, over one runs folder; the caller adds Node's platform services and a StageRegistry. */
import { Effect, type FileSystem, Layer, type Path } from "effect"
import type { ArtifactStore } from "../artifacts/ArtifactStore.ts"
import type { Executor } from "./Executor.ts"
import type { RunEvents } from "./RunEvent.ts"
import type { Runs } from "./Runs.ts"

export const layer: (options: {
  /** The runs folder; it is made when missing. */
  readonly runs: string
}) => Layer.Layer<Runs | ArtifactStore | RunEvents | Executor, never, FileSystem.FileSystem | Path.Path> = () =>
  Layer.effectContext(Effect.die(new Error("first typed version")))
