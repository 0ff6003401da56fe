/** The ranks that train together, as the training loop and its checkpoints see them: which one this is, and a way for all to know what each says. */
import { Effect } from "effect"
import { StageError } from "../pipeline/StageType.ts"

export interface TrainingRanks {
  /** From 0. Rank 0 publishes. */
  readonly rank: number
  readonly worldSize: number
  /** The values of all ranks, in the order of ranks. All call it in the same order, with as many values. */
  readonly agree: (values: Float64Array) => Promise<Float64Array>
}

export const alone: TrainingRanks = { rank: 0, worldSize: 1, agree: (values) => Promise.resolve(values) }

/** Each rank's values. */
export const everyRank = Effect.fnUntraced(function* (ranks: TrainingRanks, values: ReadonlyArray<number>) {
  const all = yield* Effect.tryPromise({
    try: () => ranks.agree(Float64Array.from(values)),
    catch: (cause) =>
      new StageError({
        failure: "worker-lost",
        message: `the ranks lost each other: ${cause instanceof Error ? cause.message : String(cause)}`,
        next: "run again: it goes on from the last checkpoint, which is intact"
      })
  })
  return Array.from({ length: ranks.worldSize }, (_, rank) =>
    all.subarray(rank * values.length, (rank + 1) * values.length)
  )
})
