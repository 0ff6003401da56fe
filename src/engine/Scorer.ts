/** Log-probabilities of given targets under a model in a Hugging Face folder. The weights live as long as the surrounding scope. */
import { Effect, type FileSystem, type Path, type Scope } from "effect"
import { type ModelShape, parameterCount, toModelConfig } from "../model/Architecture.ts"
import { loadWeights, readHfModel } from "../model/HuggingFace.ts"
import { StageError } from "../pipeline/StageType.ts"
import * as Native from "./Native.ts"

/** Per position of the batch, row by row; positions whose target is below 0 hold 0. */
export interface Scores {
  /** Natural logarithm. */
  readonly logProbabilities: Float32Array
  /** 1 where the target is the most probable id. */
  readonly greedy: Uint8Array
}

export interface Scorer {
  readonly shape: ModelShape
  readonly parameters: number
  readonly score: (batch: Native.Batch) => Effect.Effect<Scores, StageError>
}

/** Turns a failure of the engine into a StageError; a shortage of memory is never tried again unchanged. */
const engineFailure = (doing: string) => (cause: unknown) => {
  const reason = cause instanceof Error ? cause.message : String(cause)
  return /bad_alloc|out of memory|cannot allocate/iu.test(reason)
    ? new StageError({
        failure: "out-of-memory",
        message: `${doing}: out of memory (${reason})`,
        next: "lower batch_tokens"
      })
    : new StageError({
        failure: "internal",
        message: `${doing}: ${reason}`,
        next: "report this fault of the engine with the stage's log"
      })
}

/** Loads the model of `folder`; `origin` ("stage.port") names it in messages. */
export const openScorer: (options: {
  readonly folder: string
  readonly origin: string
  readonly compute: Native.ModelOptions
}) => Effect.Effect<Scorer, StageError, FileSystem.FileSystem | Path.Path | Scope.Scope> = Effect.fn("openScorer")(
  function* ({ folder, origin, compute }) {
    const unreadable = (error: Error) =>
      new StageError({
        failure: "corrupt",
        message: `${origin}: the model cannot be read: ${error.message}`,
        next: `make it anew: tinyllama run FILE --force ${origin.split(".")[0]}`
      })
    const native = yield* Native.load.pipe(
      Effect.mapError(
        (error) => new StageError({ failure: "internal", message: error.message, next: "npm run build:native" })
      )
    )
    const source = yield* readHfModel(folder).pipe(Effect.mapError(unreadable))
    const model = yield* Effect.acquireRelease(
      Effect.try({
        try: () => new native.Model(toModelConfig(source.shape), compute),
        catch: engineFailure(`${origin}: making the model`)
      }),
      (model) => Effect.sync(() => model.dispose())
    )
    yield* loadWeights(model, source).pipe(Effect.mapError(unreadable))
    return {
      shape: source.shape,
      parameters: parameterCount(source.shape),
      score: (batch) =>
        Effect.tryPromise({
          try: () => model.score(batch),
          catch: engineFailure(`${origin}: scoring ${batch.batch} rows of ${batch.length} tokens`)
        })
    }
  }
)
