/** Ranks that share out a tiny model, all in this process: each holds its own part, and they agree by promises. */
import { Effect } from "effect"
import { alone, type TrainingRanks } from "../../src/engine/TrainingRanks.ts"
import { saveCheckpoint } from "../../src/engine/CheckpointSave.ts"
import type { ModelOptions, NativeModel, SavedKind } from "../../src/engine/Native.ts"
import type { TrainingProgress } from "../../src/engine/TrainingProgress.ts"
import { tinyModel } from "./tiny-model.ts"

export const savedKinds: ReadonlyArray<SavedKind> = ["weights", "firstMoment", "secondMoment"]

export interface Rank {
  readonly model: NativeModel
  readonly ranks: TrainingRanks
}

/** Values that all ranks have given, when all have. */
const meeting = (size: number) => {
  let round = Promise.withResolvers<Float64Array>()
  let given: Array<ReadonlyArray<number>> = []
  return (rank: number) =>
    (values: Float64Array): Promise<Float64Array> => {
      const { promise, resolve } = round
      given[rank] = [...values]
      if (Object.keys(given).length === size) {
        resolve(Float64Array.from(given.flat()))
        round = Promise.withResolvers()
        given = []
      }
      return promise
    }
}

/** Whose weights and moments differ from element to element, and by the seed. */
export const refill = (model: NativeModel, seed: number) => {
  model.initialize(seed)
  for (const [index, kind] of savedKinds.entries())
    for (const { count, offset } of model.shares) {
      const values = Float32Array.from({ length: count }, (_, i) => Math.sin((offset + i) * (index + 1) + seed))
      model.write(kind, offset, values)
    }
}

/** `size` ranks, for the time of the scope. */
export const rankModels = Effect.fnUntraced(function* (
  size: number,
  seed: number,
  options: Pick<ModelOptions, "strategy" | "shardSize" | "state"> = {}
) {
  const meet = meeting(size)
  return yield* Effect.forEach(
    Array.from({ length: size }, (_, rank) => rank),
    (rank) =>
      Effect.map(
        tinyModel(seed, size === 1 ? options : { ...options, world: { rank, size, communicator: "fake" } }),
        (model): Rank => {
          refill(model, seed)
          return { model, ranks: size === 1 ? alone : { rank, worldSize: size, agree: meet(rank) } }
        }
      )
  )
})

/** What each rank does at the same time. */
export const together = <A, E, R>(all: ReadonlyArray<Rank>, act: (rank: Rank) => Effect.Effect<A, E, R>) =>
  Effect.forEach(all, act, { concurrency: "unbounded" })

export const saveTogether = (root: string, all: ReadonlyArray<Rank>, state: TrainingProgress) =>
  together(all, ({ model, ranks }) => saveCheckpoint(root, model, state, ranks))

/** All that a rank holds, by kind and place. */
export const heldBy = (model: NativeModel) =>
  model.shares.flatMap(({ count, offset }) =>
    savedKinds.map((kind) => ({ kind, offset, values: model.read(kind, offset, count) }))
  )

export const progressAt = (step: number): TrainingProgress => ({
  version: 1,
  step,
  tokens: 64 * step,
  next_sample: 4 * step,
  seed: 7,
  training_loss: 2.5,
  first_validation_loss: 4.125,
  validation: { step, loss: 3.25 },
  best: { step, loss: 3.25 },
  metrics_bytes: 100 * step
})
