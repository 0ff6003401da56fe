/** `state.json` of a checkpoint: where the run stands. Deterministic: neither times nor the reason of the save are in it. */
import { Effect, FileSystem, Path, Schema } from "effect"
import { DamagedCheckpoint, STATE } from "./CheckpointManifest.ts"

const Count = Schema.Int.check(Schema.isGreaterThanOrEqualTo(0))
const Measured = Schema.Struct({ step: Count, loss: Schema.Finite })

export const TrainingProgress = Schema.Struct({
  version: Schema.Literal(1),
  /** Optimizer steps done. */
  step: Count,
  /** Input tokens seen, padding not counted. */
  tokens: Count,
  /** Global index of the next training sample; the order of samples is a function of it and of the seed. */
  next_sample: Count,
  seed: Count,
  /** Mean loss of the last step's scored targets. */
  training_loss: Schema.NullOr(Schema.Finite),
  first_validation_loss: Schema.NullOr(Schema.Finite),
  /** The latest validation; it belongs to this checkpoint if its step is this checkpoint's. */
  validation: Schema.NullOr(Measured),
  /** The lowest validation loss of any step after the first; that step's checkpoint is kept. */
  best: Schema.NullOr(Measured),
  /** Length of metrics.jsonl at this point: what comes after belongs to steps that a resumed run makes again. */
  metrics_bytes: Count
})
export type TrainingProgress = typeof TrainingProgress.Type

const encodeProgress = Schema.encodeSync(Schema.fromJsonString(TrainingProgress))
const decodeProgress = Schema.decodeUnknownEffect(Schema.fromJsonString(TrainingProgress))

/** Equal texts mean equal checkpoints. */
export const progressText = (state: TrainingProgress): string => `${encodeProgress(state)}\n`

/** The state that a checkpoint folder names, without a look at its other files. */
export const readProgress = Effect.fn("TrainingProgress.read")(function* (folder: string) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  return yield* fs.readFileString(path.join(folder, STATE)).pipe(
    Effect.flatMap(decodeProgress),
    Effect.mapError(
      (error) => new DamagedCheckpoint({ path: folder, reason: `${STATE} is not valid: ${error.message}` })
    )
  )
})
