/** Training states and checkpoints of a random model, as pretraining and the checkpoint stage leave them. */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { Effect, FileSystem } from "effect"
import { alone } from "../../src/engine/TrainingRanks.ts"
import { saveCheckpoint } from "../../src/engine/CheckpointSave.ts"
import type { TrainingProgress } from "../../src/engine/TrainingProgress.ts"
import { openModel } from "../../src/engine/TrainingModel.ts"
import { type ModelShape, tensorShapes } from "../../src/model/Architecture.ts"
import { toHfConfig } from "../../src/model/HfConfig.ts"
import { writeWeights } from "../../src/model/HuggingFace.ts"
import { loadVocabulary } from "../../src/model/Vocabulary.ts"
import { randomWeights } from "../model/random-model.ts"
import { artifactOf, temporaryFolder } from "./stage-fixture.ts"

/** A rank's part of a model with these weights, and moments of 1. */
const modelOf = Effect.fnUntraced(function* (
  shape: ModelShape,
  weights: ReadonlyMap<string, Float32Array>,
  rank: number,
  size: number
) {
  const world = size === 1 ? {} : { strategy: "fsdp" as const, world: { rank, size, communicator: "fake" as const } }
  const model = yield* openModel(shape, { threads: 1, ...world })
  for (const { name, offset } of model.parameters) {
    const values = weights.get(name)!
    model.write("weights", offset, values)
    for (const kind of ["firstMoment", "secondMoment"] as const) model.write(kind, offset, values.slice().fill(1))
  }
  return model
})

/** A checkpoint of as many ranks. */
const saveAll = (
  root: string,
  shape: ModelShape,
  weights: ReadonlyMap<string, Float32Array>,
  progress: TrainingProgress,
  worldSize: number
) =>
  Effect.forEach(
    Array.from({ length: worldSize }, (_, rank) => rank),
    (rank) =>
      modelOf(shape, weights, rank, worldSize).pipe(
        Effect.flatMap((model) => saveCheckpoint(root, model, progress, { ...alone, rank, worldSize })),
        Effect.scoped
      ),
    { concurrency: "unbounded", discard: true }
  )

export interface Saved {
  readonly step: number
  /** null: the step was not validated. */
  readonly loss: number | null
}

/** Weights of `step` are `randomWeights(shape, step)`. */
export const trainingState = (shape: ModelShape, saved: ReadonlyArray<Saved>, worldSize = 1) =>
  Effect.gen(function* () {
    const fs = yield* FileSystem.FileSystem
    const folder = yield* temporaryFolder
    for (const { loss, step } of saved) {
      const progress: TrainingProgress = {
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
      }
      yield* saveAll(`${folder}/checkpoints`, shape, randomWeights(shape, step), progress, worldSize)
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
