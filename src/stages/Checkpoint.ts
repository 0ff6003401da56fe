/**
 * checkpoint: chooses weights from a training run and makes them portable: every digest is checked, the optimizer's state is left behind, and the
 * weights come out in fp32 under Hugging Face's names.
 */
import { Effect, Path, Schema } from "effect"
import { readCompletion } from "../engine/CheckpointManifest.ts"
import { folderName, stepsBelow, verifyCheckpoint } from "../engine/Checkpoints.ts"
import { wholeWeights } from "../engine/CheckpointShards.ts"
import { secondsOfBytes } from "../engine/MachineSpeed.ts"
import type { TrainingProgress } from "../engine/TrainingProgress.ts"
import type { ArtifactHandle } from "../artifacts/Artifact.ts"
import { parameterCount, tensorShapes } from "../model/Architecture.ts"
import { passVocabulary } from "../model/CarriedVocabulary.ts"
import { readShape, tensorsOf, writeWeights } from "../model/HuggingFace.ts"
import { defineStage, parameter, StageError } from "../pipeline/StageType.ts"
import { makeAnew, modelFailure, stageOf, stopIfRequested } from "./ModelArtifact.ts"
import { forecastCheckpoint } from "./ModelForecast.ts"
import { AtLeast } from "./TrainingParameters.ts"

/** Bytes a second, read and hashed or written. */
const CHECKPOINT_RATE = 300e6

const Select = Schema.Union([
  Schema.Literals(["last", "best"]),
  Schema.Struct({ step: AtLeast(0) }),
  Schema.Struct({ average: AtLeast(1) })
])
type Select = typeof Select.Type

const invalid = (message: string, next: string) => new StageError({ failure: "invalid-input", message, next })

interface Verified {
  readonly step: number
  readonly folder: string
  readonly state: TrainingProgress
}

/** The loss on held-out data of just this checkpoint's weights; null when its step was not validated. */
const validationLoss = ({ state, step }: Verified): number | null =>
  state.validation !== null && state.validation.step === step ? state.validation.loss : null

/** Checks the checkpoints of a run one at a time, and says what is wrong with those that cannot be used. */
const reader = (input: ArtifactHandle, root: string) => {
  const verify = Effect.fnUntraced(function* (step: number) {
    const path = yield* Path.Path
    const folder = path.join(root, folderName(step))
    const state = yield* Effect.mapError(verifyCheckpoint(folder), (damage) =>
      damage._tag === "NativeUnavailable"
        ? new StageError({ failure: "internal", message: damage.message, next: "npm run build:native" })
        : new StageError({
            failure: "corrupt",
            message: `${input.origin}: the checkpoint of step ${step} is damaged: ${damage.message}`,
            next: `choose another with select, or ${makeAnew(input)}`
          })
    )
    const verified: Verified = { step, folder, state }
    return verified
  })
  /** Those of `steps` that verify; the others are told to `warn`. */
  const usable = Effect.fnUntraced(function* (
    steps: ReadonlyArray<number>,
    warn: (line: string) => void,
    limit: number
  ) {
    const found: Array<Verified> = []
    for (const step of steps) {
      if (found.length === limit) break
      const verified = yield* verify(step).pipe(
        Effect.catchTag("StageError", (error) => Effect.sync(() => warn(`${error.message}; it is passed over`)))
      )
      if (verified !== undefined) found.push(verified)
    }
    return found
  })
  return { verify, usable }
}

/** The checkpoints to take the weights from: one, or several to average. */
const choose = Effect.fnUntraced(function* (
  select: Select,
  input: ArtifactHandle,
  root: string,
  warn: (line: string) => void
) {
  const steps = yield* Effect.mapError(stepsBelow(root), (error) => modelFailure(`listing ${root}`, input)(error))
  const { usable, verify } = reader(input, root)
  const none = new StageError({
    failure: "corrupt",
    message: `${input.origin}: none of its ${steps.length} checkpoints is complete and undamaged`,
    next: makeAnew(input)
  })
  if (steps.length === 0) return yield* none
  if (select === "last") {
    const found = yield* usable(steps.toReversed(), warn, 1)
    return found.length === 0 ? yield* none : found
  }
  if (select === "best") {
    const found = yield* usable(steps, warn, Infinity)
    if (found.length === 0) return yield* none
    const scored = found.flatMap((one) => {
      const loss = validationLoss(one)
      return loss === null ? [] : [{ one, loss }]
    })
    if (scored.length === 0) {
      return yield* invalid(
        `${input.origin}: no checkpoint has a validation loss to choose the best by`,
        "set select to last, or train with a validation split and validate_every"
      )
    }
    return [scored.reduce((best, next) => (next.loss < best.loss ? next : best)).one]
  }
  const listed = `it has ${steps.join(", ")}`
  if ("step" in select) {
    if (!steps.includes(select.step)) {
      return yield* invalid(
        `${input.origin} has no checkpoint of step ${select.step}`,
        `choose a step that it keeps: ${listed}`
      )
    }
    return [yield* verify(select.step)]
  }
  if (steps.length < select.average) {
    return yield* invalid(
      `${input.origin} has ${steps.length} checkpoints, ${select.average} were to be averaged`,
      `lower average, or train with a larger keep: ${listed}`
    )
  }
  return yield* Effect.forEach(steps.slice(-select.average), verify)
})

/** The mean, summed in double precision in the order of `all`. */
const average = (all: ReadonlyArray<Float32Array>): Float32Array => {
  const [first] = all
  if (first === undefined || all.length === 1) return first ?? new Float32Array(0)
  return first.map((_, i) => all.reduce((sum, values) => sum + values[i]!, 0) / all.length)
}

export const checkpointStage = defineStage({
  name: "checkpoint",
  version: 2,
  describe: "Chooses weights from a training run, verifies them, and leaves the optimizer's state behind.",
  params: {
    select: parameter(Select, {
      change: "identity",
      default: "last",
      describe: "last, best (lowest validation loss), {step: n}, or {average: k}: the mean of the last k checkpoints."
    })
  },
  inputs: { state: { type: "TrainingState", describe: "The training run to choose from." } },
  outputs: { checkpoint: { type: "Checkpoint", describe: "fp32 weights and config.json." } },
  headline: ({ checkpoint }) =>
    `step ${JSON.stringify(checkpoint["step"])}` +
    (typeof checkpoint["validation_loss"] === "number"
      ? `, validation loss ${checkpoint["validation_loss"].toFixed(3)}`
      : ""),
  forecast: ({ select }, { state }) => forecastCheckpoint(select, state[0]),
  modelSeconds: ({ amount }) => secondsOfBytes(amount, CHECKPOINT_RATE),
  run: Effect.fn("checkpoint")(function* (context) {
    const { inputs, log, params, warn } = context
    const input = inputs.state
    const path = yield* Path.Path
    const failed = modelFailure(`the checkpoint of ${input.origin}`, input)
    const corrupt = (error: Error) =>
      new StageError({ failure: "corrupt", message: `${input.origin}: ${error.message}`, next: makeAnew(input) })
    const shape = yield* Effect.mapError(readShape(input.folder), corrupt)
    const chosen = yield* choose(params.select, input, path.join(input.folder, "checkpoints"), warn)
    const last = chosen.at(-1)!
    const names = chosen.map(({ step }) => step).join(", ")
    log(
      `${typeof params.select === "string" ? params.select : Object.keys(params.select)[0]}: step ${names} of ${stageOf(input)}, every digest verified`
    )

    const sources = yield* Effect.forEach(chosen, ({ folder }) =>
      readCompletion(folder).pipe(
        Effect.flatMap((completion) => wholeWeights(folder, completion, tensorShapes(shape))),
        Effect.flatMap((tensors) => tensorsOf(folder, tensors, shape)),
        Effect.mapError(corrupt)
      )
    )
    const total = sources[0]!.size
    const weights = [...sources[0]!.values()].map(({ name, shape: size }, index) => ({
      name,
      shape: size,
      values: Effect.gen(function* () {
        yield* stopIfRequested(
          context.stopRequested,
          "stopped while the checkpoint was written; it is written anew next time"
        )
        context.progress({ done: index, total, unit: "tensors" })
        return average(
          yield* Effect.forEach(sources, (tensors) => Effect.mapError(tensors.get(name)!.toFloat32(), corrupt))
        )
      })
    }))
    yield* Effect.mapError(passVocabulary(input, context.output("checkpoint")), failed)
    yield* Effect.mapError(writeWeights(context.output("checkpoint"), { shape, precision: "fp32", weights }), failed)
    return {
      checkpoint: {
        step: last.step,
        tokens: last.state.tokens,
        // The mean of several has not been validated.
        validation_loss: chosen.length === 1 ? validationLoss(last) : null,
        parameters: parameterCount(shape),
        selected: params.select,
        steps: chosen.map(({ step }) => step),
        tokenizer: input.facts["tokenizer"] ?? null,
        tokenizer_digest: input.facts["tokenizer_digest"] ?? null,
        context_length: shape.max_position_embeddings,
        shape
      }
    }
  })
})
