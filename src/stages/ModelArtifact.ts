/** What the stages that pass models on have in common: opening a model's folder and tokenizer, and what each failure means for a user. */
import { Effect } from "effect"
import type { ArtifactHandle } from "../artifacts/Artifact.ts"
import { isDiskFull } from "../engine/StorageFailure.ts"
import { readHfModel } from "../model/HuggingFace.ts"
import { vocabularyIn } from "../model/CarriedVocabulary.ts"
import { Preempted, StageError } from "../pipeline/StageType.ts"

export const stageOf = ({ origin }: ArtifactHandle): string => origin.split(".")[0] ?? origin

/** What makes an artifact anew, for `next`. */
export const makeAnew = (handle: ArtifactHandle): string =>
  `make it anew: tinyllama run FILE --force ${stageOf(handle)}`

/** A folder with config.json and weights: an HfModel or a Checkpoint. */
export const openModelArtifact = Effect.fn("openModelArtifact")(function* (handle: ArtifactHandle) {
  return yield* readHfModel(handle.folder).pipe(
    Effect.mapError(
      (error) =>
        new StageError({
          failure: "corrupt",
          message: `${handle.origin}: the model cannot be read: ${error.message}`,
          next: makeAnew(handle)
        })
    )
  )
})

/** The vocabulary that a model was trained with, by the name and the digest in its facts. */
export const vocabularyOf = Effect.fn("vocabularyOf")(function* (handle: ArtifactHandle) {
  const { facts, origin } = handle
  const vocabulary = yield* vocabularyIn(handle).pipe(
    Effect.mapError((error) =>
      error._tag === "VocabularyFileError"
        ? new StageError({
            failure: "invalid-input",
            message: `${origin} was made with the tokenizer ${JSON.stringify(facts["tokenizer"])}, which it does not hold: ${error.message}`,
            next: makeAnew(handle)
          })
        : new StageError({ failure: "internal", message: error.message, next: "npm ci && npm run build:native" })
    )
  )
  if (facts["tokenizer_digest"] !== vocabulary.digest) {
    return yield* new StageError({
      failure: "invalid-input",
      message: `${origin} was made with another vocabulary of ${JSON.stringify(facts["tokenizer"])} (digest ${JSON.stringify(facts["tokenizer_digest"])}) than is here (${vocabulary.digest})`,
      next: "tokenize and train again with this installation, or use the one that made it"
    })
  }
  return vocabulary
})

/** Errors of reading and writing models, told apart by their tag. */
type ModelFailure = Error & { readonly _tag: string }

/** `doing` says what was being made. StageError and Preempted pass through. */
export const modelFailure =
  (doing: string, source: ArtifactHandle) =>
  (error: ModelFailure): StageError | Preempted => {
    if (error instanceof StageError || error instanceof Preempted) return error
    if (isDiskFull(error)) {
      return new StageError({
        failure: "disk-full",
        message: `${doing}: no room left on the disk (${error.message})`,
        next: "free space on that disk, then give the same command again"
      })
    }
    if (error._tag === "CannotQuantize") {
      return new StageError({
        failure: "invalid-input",
        message: `${doing}: ${error.message}`,
        next: `${source.origin} has weights that are not numbers: choose an earlier checkpoint, or train again with a lower learning rate`
      })
    }
    if (error._tag === "NativeUnavailable") {
      return new StageError({ failure: "internal", message: error.message, next: "npm run build:native" })
    }
    return new StageError({
      failure: "internal",
      message: `${doing}: ${error.message}`,
      next: "see that the folder can be read and written, then give the same command again"
    })
  }

/** Ends the attempt where it stands if it was asked to stop. */
export const stopIfRequested = (stopRequested: () => boolean, message: string): Effect.Effect<void, Preempted> =>
  Effect.suspend(() => (stopRequested() ? Effect.fail(new Preempted({ message })) : Effect.void))
