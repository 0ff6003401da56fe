/**
 * A step's micro-batches, and a validation's, shared out among ranks: micro-batch i is rank (i modulo their number)'s. Sums run in the micro-batches'
 * global order, so they have the same bits on any number of ranks.
 */
import { Effect } from "effect"
import type { Preempted, StageError } from "../pipeline/StageType.ts"
import { type TrainingRanks, everyRank } from "./TrainingRanks.ts"
import type { Batch, NativeModel } from "./Native.ts"

/** A micro-batch; `inputTokens` counts its inputs without padding. */
export interface TrainingBatch extends Batch {
  readonly inputTokens: number
}

/** What all ranks know of a step before they compute. */
export interface StepShape {
  /** Scored targets of all micro-batches. */
  readonly scored: number
  readonly inputTokens: number
  /** How many micro-batches each rank has. */
  readonly counts: ReadonlyArray<number>
}

/** Micro-batches handed to the engine's thread before the oldest has answered: one computes, the others are at hand. */
const MICRO_BATCHES_AHEAD = 32

/** What a rank computes when it has no micro-batch in a round and the others have: nothing is scored. */
export const nothing: Batch = { tokens: Int32Array.of(0), targets: Int32Array.of(-1), batch: 1, length: 1 }

const scoredTargets = ({ targets }: Batch): number =>
  targets.reduce((count, target) => count + (target >= 0 ? 1 : 0), 0)
const total = (values: ReadonlyArray<number>): number => values.reduce((sum, value) => sum + value, 0)

/** Which of `count` micro-batches are this rank's. */
export const ownIndices = ({ rank, worldSize }: TrainingRanks, count: number): ReadonlyArray<number> =>
  Array.from({ length: Math.max(0, Math.ceil((count - rank) / worldSize)) }, (_, round) => round * worldSize + rank)

export const agreeOnStep = Effect.fnUntraced(function* (ranks: TrainingRanks, own: ReadonlyArray<TrainingBatch>) {
  const inputTokens = total(own.map((batch) => batch.inputTokens))
  const said = yield* everyRank(ranks, [total(own.map(scoredTargets)), inputTokens, own.length])
  return {
    scored: total(said.map(([scored = 0]) => scored)),
    inputTokens: total(said.map(([, tokens = 0]) => tokens)),
    counts: said.map(([, , count = 0]) => count)
  } satisfies StepShape
})

export interface StepSurroundings {
  readonly inEngine: <A>(call: () => Promise<A>) => Effect.Effect<A, StageError>
  readonly stopRequested: () => boolean
}

/**
 * The sum of all micro-batches' losses; undefined when this rank, alone, shall stop. The engine's thread has the next micro-batches at hand while one
 * computes: no device waits for JavaScript.
 */
export const accumulateStep = Effect.fnUntraced(function* (
  model: Pick<NativeModel, "accumulate" | "discard">,
  ranks: TrainingRanks,
  own: ReadonlyArray<TrainingBatch>,
  { counts, scored }: StepShape,
  { inEngine, stopRequested }: StepSurroundings
) {
  const rounds = Math.max(...counts)
  const begin = (round: number) => {
    const contributors = counts.filter((count) => count > round).length
    const running = model.accumulate(own[round] ?? nothing, 1 / scored, { last: round + 1 === rounds, contributors })
    // It may fail while one before is still waited for.
    running.catch(() => undefined)
    return running
  }
  const handedOver: Array<ReturnType<typeof begin>> = []
  const losses: Array<number> = []
  for (let round = 0; round < rounds; round++) {
    if (stopRequested()) {
      yield* inEngine(() => model.discard())
      return undefined
    }
    while (handedOver.length < Math.min(rounds, round + MICRO_BATCHES_AHEAD)) handedOver.push(begin(handedOver.length))
    const { lossSum } = yield* inEngine(() => handedOver[round]!)
    losses.push(lossSum)
  }
  return total(inOrder(yield* everyRank(ranks, losses), counts))
})

/** Values by rank and round, as they follow each other over all ranks. */
const inOrder = (byRank: ReadonlyArray<ArrayLike<number>>, counts: ReadonlyArray<number>): ReadonlyArray<number> =>
  Array.from({ length: Math.max(0, ...counts) }, (_, round) => round).flatMap((round) =>
    byRank.flatMap((values, rank) => (round < counts[rank]! ? [values[round]!] : []))
  )

/** Mean loss of the scored targets of all batches, of which every rank has the same list; undefined where nothing is scored. */
export const scoreAll = Effect.fnUntraced(function* (
  model: Pick<NativeModel, "score">,
  ranks: TrainingRanks,
  batches: ReadonlyArray<Batch>,
  inEngine: StepSurroundings["inEngine"],
  interrupt: Effect.Effect<void, StageError | Preempted>
) {
  const counts = Array.from(
    { length: ranks.worldSize },
    (_, rank) => ownIndices({ ...ranks, rank }, batches.length).length
  )
  const own = ownIndices(ranks, batches.length)
  const losses: Array<number> = []
  for (let round = 0; round < Math.max(0, ...counts); round++) {
    yield* interrupt
    const batch = batches[own[round] ?? -1] ?? nothing
    const { logProbabilities } = yield* inEngine(() => model.score(batch))
    losses.push(-logProbabilities.reduce((sum, value, index) => (batch.targets[index]! < 0 ? sum : sum + value), 0))
  }
  const sum = total(inOrder(yield* everyRank(ranks, losses), counts))
  const scored = total(batches.map(scoredTargets))
  return scored === 0 ? undefined : sum / scored
})
