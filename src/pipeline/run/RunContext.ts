/** What the stages of one run share, what each is told, and how it writes to the run's folder and journal. */
import { type Deferred, Effect, FileSystem, Path, type Result, type Schema, type Semaphore } from "effect"
import type { ArtifactHandle } from "../../artifacts/Artifact.ts"
import { handleOf, type StoredArtifact } from "../../artifacts/ArtifactStore.ts"
import { storageFailure, temporaryName } from "../../artifacts/DurableFile.ts"
import type { Capacity, GroupLimits } from "./Capacity.ts"
import type { Decision } from "../plan/Decision.ts"
import { timestamp } from "../runs/Journal.ts"
import type { KeyHistory } from "../plan/KeyLedger.ts"
import type { StagePlan } from "../plan/Plan.ts"
import type { ResolvedPipeline, ResolvedStage } from "../file/ResolvedPipeline.ts"
import type { RunEvent } from "../runs/RunEvent.ts"
import { type RunInfo, stageFolder } from "../runs/Runs.ts"
import type { Secrets } from "../file/Secrets.ts"
import type { Share, StageError } from "../StageType.ts"

/** What all stages of one run share. */
export interface RunContext {
  readonly pipeline: ResolvedPipeline
  readonly run: RunInfo
  readonly capacity: Capacity
  readonly groups: GroupLimits
  /** Stages that may hold their key's lock at a time, working, publishing or waiting for cores. */
  readonly begun: Semaphore.Semaphore
  readonly secrets: Secrets
  readonly emit: (event: RunEvent) => Effect.Effect<void>
  /** The last attempt of each stage that an earlier runner of this run began: attempts go on counting. */
  readonly earlierAttempts: ReadonlyMap<string, number>
  /** The keys that stages had before this run. */
  readonly history: KeyHistory
  /** Completes when the run shall stop. */
  readonly stop: Effect.Effect<void>
  readonly stopping: Effect.Effect<boolean>
  /** The first stage that failed. */
  readonly failed: Deferred.Deferred<string>
  readonly keepGoing: boolean
  /** The selected stage is done in shares, of which this run does one. */
  readonly share: Share | undefined
  /** What a saved plan says of each stage, where the run keeps to one. */
  readonly promised: ReadonlyMap<string, StagePlan> | undefined
  /** Forced stages whose result is of this time or later, and of this run, have been rerun already. */
  readonly forcedSince: string
}

export interface Assignment {
  readonly stage: ResolvedStage
  readonly role: "run" | "reuse"
  readonly forced: boolean
  /** undefined when a stage above has nothing to give: then only an older result serves. */
  readonly inputs: Readonly<Record<string, ReadonlyArray<ArtifactHandle>>> | undefined
  readonly observed: Result.Result<Schema.Json, StageError>
  /** What the plan decided just before the run, where the inputs were known then. */
  readonly planned?: Decision
}

export type Outputs = Readonly<Record<string, ArtifactHandle>>

/** A stage whose inputs are all there. */
export type Ready = Assignment & { readonly inputs: Readonly<Record<string, ReadonlyArray<ArtifactHandle>>> }

export const folderOf = (path: Path.Path, context: RunContext, stage: ResolvedStage): string =>
  path.join(context.run.folder, "stages", stageFolder(stage.index, stage.name))

/** stages/<nn-name>/out/<port> → the store, by a relative link, so that the runs folder can be moved as a whole. */
export const linkOutputs = Effect.fnUntraced(function* (
  context: RunContext,
  stage: ResolvedStage,
  artifacts: Readonly<Record<string, StoredArtifact>>
) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const out = path.join(folderOf(path, context, stage), "out")
  const handles: Record<string, ArtifactHandle> = {}
  yield* Effect.gen(function* () {
    yield* fs.makeDirectory(out, { recursive: true })
    for (const [port, artifact] of Object.entries(artifacts)) {
      handles[port] = handleOf(artifact, `${stage.name}.${port}`)
      yield* link(path.relative(out, artifact.folder), path.join(out, port))
    }
  }).pipe(Effect.mapError(storageFailure(out)))
  return handles
})

/** Makes a symbolic link, or replaces the one that is there. */
const link = Effect.fnUntraced(function* (target: string, place: string) {
  const fs = yield* FileSystem.FileSystem
  const replace = Effect.gen(function* () {
    const temporary = temporaryName(place)
    yield* fs.symlink(target, temporary)
    yield* fs.rename(temporary, place).pipe(Effect.onError(() => Effect.ignore(fs.remove(temporary, { force: true }))))
  })
  yield* Effect.catchIf(
    fs.symlink(target, place),
    (error) => error.reason._tag === "AlreadyExists",
    () => replace
  )
})

export const warn = Effect.fnUntraced(function* (context: RunContext, stage: ResolvedStage, line: string) {
  yield* context.emit({ _tag: "Warning", at: yield* timestamp, stage: stage.name, line })
})
