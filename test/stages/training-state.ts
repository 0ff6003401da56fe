/** Training states and checkpoints of a random model, as pretraining and the checkpoint stage leave them. */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { Effect, FileSystem } from "effect"
import { saveCheckpoint } from "../../src/engine/Checkpoints.ts"
import type { StateKind } from "../../src/engine/Native.ts"
import { type ModelShape, tensorShapes } from "../../src/model/Architecture.ts"
import { toHfConfig } from "../../src/model/HfConfig.ts"
import { writeWeights } from "../../src/model/HuggingFace.ts"
import { loadVocabulary } from "../../src/model/Vocabulary.ts"
import { elementsOf, randomWeights } from "../model/random-model.ts"
import { artifactOf, temporaryFolder } from "./stage-fixture.ts"

/** The engine's buffers without the engine: weights in the flat order, moments of 1. */
const buffersOf = (shape: ModelShape, weights: ReadonlyMap<string, Float32Array>) => {
  let offset = 0
  const parameters = tensorShapes(shape).map((tensor) => {
    const parameter = { ...tensor, offset }
    offset += elementsOf(tensor.shape)
    return parameter
  })
  const flat = new Float32Array(offset)
  for (const parameter of parameters) flat.set(weights.get(parameter.name)!, parameter.offset)
  return {
    parameters,
    stateType: "fp32" as const,
    read: (kind: StateKind, at: number, length: number) =>
      kind === "weights" ? flat.slice(at, at + length) : new Float32Array(length).fill(1),
    write: () => undefined
  }
}

export interface Saved {
  readonly step: number
  /** null: the step was not validated. */
  readonly loss: number | null
}

/** Weights of `step` are `randomWeights(shape, step)`. */
export const trainingState = (shape: ModelShape, saved: ReadonlyArray<Saved>) =>
  Effect.gen(function* () {
    const fs = yield* FileSystem.FileSystem
    const folder = yield* temporaryFolder
    for (const { loss, step } of saved) {
      yield* saveCheckpoint(`${folder}/checkpoints`, buffersOf(shape, randomWeights(shape, step)), {
        version: 1,
        step,
        tokens: step * 100,
        next_sample: step * 4,
        seed: 1,
        training_loss: 3,
        first_validation_loss: 5,
        validation: loss === null ? { step: 0, loss: 5 } : { step, loss },
        best: null,
        metrics_bytes: 0
      })
    }
    yield* fs.writeFileString(`${folder}/config.json`, JSON.stringify(toHfConfig(shape)))
    const { digest } = yield* loadVocabulary("llama-2")
    return artifactOf("TrainingState", folder, { tokenizer: "llama-2", tokenizer_digest: digest }, "base.state")
  }).pipe(Effect.provide(NodeServices.layer))

/** A Checkpoint artifact with the given weights. */
export const checkpointOf = (shape: ModelShape, weights: ReadonlyMap<string, Float32Array>) =>
  Effect.gen(function* () {
    const folder = yield* temporaryFolder
    const sources = tensorShapes(shape).map((tensor) => ({
      ...tensor,
      values: Effect.succeed(weights.get(tensor.name)!)
    }))
    yield* writeWeights(folder, { shape, precision: "fp32", weights: sources })
    const { digest } = yield* loadVocabulary("llama-2")
    return artifactOf("Checkpoint", folder, { tokenizer: "llama-2", tokenizer_digest: digest }, "final.checkpoint")
  }).pipe(Effect.provide(NodeServices.layer))
