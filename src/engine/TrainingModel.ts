/** A native model for the time of a scope. */
import { Effect, type Scope } from "effect"
import { type ModelShape, toModelConfig } from "../model/Architecture.ts"
import { StageError } from "../pipeline/StageType.ts"
import * as Native from "./Native.ts"

/** What the engine puts in front of what keeps ranks from joining: native/distributed/open_communicator.cpp. */
const CANNOT_BEGIN = "the ranks cannot begin: "

/** A rank that did not come in time may come another time; all else is to be mended first. */
const cannotBegin = (reason: string): StageError => {
  const [message = reason, next] = reason.split(". Next: ")
  const late = /\bwithin [\d.]+ s\b/u.test(reason)
  return new StageError({
    failure: late ? "worker-lost" : "invalid-input",
    message,
    next: next ?? (late ? "see in the logs of those ranks why, then run again" : "mend that, then run again")
  })
}

/** Turns what native code throws, or rejects a promise with, into a StageError. Want of memory is never tried again unchanged. */
export const nativeFailure =
  (doing: string, memoryAdvice: string) =>
  (cause: unknown): StageError => {
    const reason = cause instanceof Error ? cause.message : String(cause)
    if (/outside the vocabulary/u.test(reason))
      return new StageError({
        failure: "corrupt",
        message: `${doing}: ${reason}`,
        next: "the data hold ids that the model does not have: tokenize and pack them anew, or verify them: tinyllama verify"
      })
    if (reason.startsWith(CANNOT_BEGIN)) return cannotBegin(reason)
    if (/\bMPI_\w+.* failed: |^NCCL .* failed: /u.test(reason))
      return new StageError({
        failure: "worker-lost",
        message: `${doing}: the ranks lost each other: ${reason}`,
        next: "run again: it goes on from the last checkpoint, which is intact. If it comes back: look at the network between the machines"
      })
    if (reason.startsWith("CUDA: "))
      return new StageError({
        failure: "worker-lost",
        message: `${doing}: the GPU failed: ${reason}`,
        next: "run again: it goes on from the last checkpoint, which is intact. If it comes back: nvidia-smi -q shows memory errors, dmesg the driver's"
      })
    return /bad_alloc|out of memory|cannot allocate/iu.test(reason)
      ? new StageError({ failure: "out-of-memory", message: `${doing}: out of memory (${reason})`, next: memoryAdvice })
      : new StageError({
          failure: "internal",
          message: `${doing}: ${reason}`,
          next: "this is a fault of the engine: report it with the stage's log"
        })
  }

/** A model of this shape without weights: initialize it, load them, or restore a checkpoint. */
export const openModel: (
  shape: ModelShape,
  options: Native.ModelOptions
) => Effect.Effect<Native.NativeModel, StageError, Scope.Scope> = Effect.fn("TrainingModel.open")(
  function* (shape, options) {
    const native = yield* Effect.mapError(
      Native.load,
      (error) => new StageError({ failure: "internal", message: error.message, next: "npm run build:native" })
    )
    return yield* Effect.acquireRelease(
      Effect.try({
        try: () => new native.Model(toModelConfig(shape), options),
        catch: nativeFailure("making the model", "choose a smaller model, or a machine with more memory")
      }),
      (model) => Effect.sync(() => model.dispose())
    )
  }
)
