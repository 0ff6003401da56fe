/** Runs an oracle case on several ranks, each sequence a micro-batch of its own, and measures how far its trajectory is from the recorded one. */
import { Effect } from "effect"
import { nothing, ownIndices } from "../../src/engine/TrainingStep.ts"
import type { ModelOptions, Native, NativeModel } from "../../src/engine/Native.ts"
import { openModel } from "../../src/engine/TrainingModel.ts"
import { openWorld, ranksOfModel, type Strategy } from "../../src/engine/World.ts"
import type { Ranks } from "../../src/pipeline/StageType.ts"
import { type Deviation, limits, relative, stepOf, toBatch, worst } from "./compare.ts"
import type { OracleCase } from "./OracleCase.ts"

/** Calls `use` for each part of a tensor that this rank holds: elements [from, to) of it. */
const forOwnParts = (
  { shares }: Pick<NativeModel, "shares">,
  { count, offset }: { readonly offset: number; readonly count: number },
  use: (from: number, to: number) => void
) => {
  for (const share of shares) {
    const [from, to] = [Math.max(share.offset, offset), Math.min(share.offset + share.count, offset + count)]
    if (from < to) use(from - offset, to - offset)
  }
}

/** Of each tensor |actual − expected| / |expected|, over the parts of all ranks. Ranks that hold the same part count it as often in both. */
const finalWeights = async (model: NativeModel, oracle: OracleCase, size: number): Promise<Deviation> => {
  const sums = model.parameters.flatMap(({ name, offset }) => {
    const expected = oracle.final.get(name)!
    let [difference, norm] = [0, 0]
    forOwnParts(model, { offset, count: expected.length }, (from, to) => {
      model.read("weights", offset + from, to - from).forEach((value, index) => {
        difference += (value - expected[from + index]!) ** 2
        norm += expected[from + index]! ** 2
      })
    })
    return [difference, norm]
  })
  const all = await model.exchange(Float64Array.from(sums))
  const total = (index: number) =>
    Array.from({ length: size }, (_, rank) => all[rank * sums.length + index]!).reduce((sum, value) => sum + value, 0)
  const errors = model.parameters.map(({ name }, index) => ({
    where: name,
    error: Math.sqrt(total(2 * index) / total(2 * index + 1))
  }))
  return { quantity: "final weights", limit: limits.finalWeights, ...worst(errors) }
}

const runCase = async (model: NativeModel, oracle: OracleCase, ranks: Ranks): Promise<ReadonlyArray<Deviation>> => {
  const { batches, trajectory, weights } = oracle
  for (const { name, offset } of model.parameters) {
    const values = weights.get(name)!
    forOwnParts(model, { offset, count: values.length }, (from, to) =>
      model.write("weights", offset + from, values.subarray(from, to))
    )
  }
  const { agree, worldSize } = ranksOfModel(model, ranks)
  const steps = []
  for (const [index, expected] of trajectory.steps.entries()) {
    const sequences = batches[index]!.flat().map((row) => toBatch([row]))
    const scored = sequences.reduce((sum, { targets }) => sum + targets.length, 0)
    const rounds = Math.ceil(sequences.length / worldSize)
    const own = ownIndices({ rank: ranks.rank, worldSize, agree }, sequences.length)
    let lossSum = 0
    for (let round = 0; round < rounds; round++) {
      const sequence = own[round]
      const batch = sequence === undefined ? nothing : sequences[sequence]!
      const contributors = Math.min(worldSize, sequences.length - round * worldSize)
      const result = await model.accumulate(batch, 1 / scored, { last: round + 1 === rounds, contributors })
      if (sequence !== undefined) lossSum += result.lossSum
    }
    const loss = (await agree(Float64Array.of(lossSum))).reduce((sum, value) => sum + value, 0) / scored
    const { gradientNorm } = await model.step(stepOf(trajectory, expected))
    const where = `step ${expected.step}`
    steps.push({ where, loss: relative(loss, expected.loss), norm: relative(gradientNorm, expected.grad_norm) })
  }
  return [
    { quantity: "step loss", limit: limits.stepLoss, ...worst(steps.map((s) => ({ error: s.loss, where: s.where }))) },
    {
      quantity: "gradient norm",
      limit: limits.gradientNorm,
      ...worst(steps.map((s) => ({ error: s.norm, where: s.where })))
    },
    await finalWeights(model, oracle, worldSize)
  ]
}

/** Largest relative errors, the same on every rank. `work`: a folder that all ranks share. */
export const compareOnRanks = Effect.fn("compareOnRanks")(function* (
  native: Native,
  oracle: OracleCase,
  options: ModelOptions,
  { ranks, strategy, work }: { readonly ranks: Ranks; readonly strategy: typeof Strategy.Type; readonly work: string }
) {
  const wish = { strategy, shard_size: 2, gradient_sum: "fast", communicator: "auto", watchdog_seconds: 45 } as const
  const world = yield* openWorld(wish, ranks, options, native, { work, agreement: {} })
  const model = yield* openModel(oracle.shape, world)
  return yield* Effect.promise(() => runCase(model, oracle, ranks))
}, Effect.scoped)
