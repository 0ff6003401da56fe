/** Runs an oracle case through the native engine and measures how far the two are apart. */
import { Effect } from "effect"
import type { AdamWStep, Batch, ModelOptions, Native, NativeModel } from "../../src/engine/Native.ts"
import { toModelConfig } from "../../src/model/Architecture.ts"
import type { OracleCase } from "./OracleCase.ts"

/** One quantity: its largest relative error, where it was found, and the most it may be. */
export interface Deviation {
  readonly quantity: string
  readonly error: number
  readonly limit: number
  readonly where: string
}

export const limits = {
  firstLoss: 1e-5,
  logits: 1e-4,
  gradient: 1e-4,
  stepLoss: 1e-4,
  gradientNorm: 1e-4,
  finalWeights: 1e-3
} as const

/** What bf16 must reach: per tensor 1 - the cosine between the gradients, and absolute differences of losses. */
export const bf16Limits = { loss: 0.01, gradientDirection: 1e-3 } as const

const squaredNorm = (values: Float32Array): number => values.reduce((sum, value) => sum + value * value, 0)

/**
 * |actual − expected| / |expected| in the Euclidean norm. A tensor that is zero in the reference but for rounding (queries and keys of sequences
 * of one token) is measured against `total`, the norm of all tensors together.
 */
const relativeNorm = (actual: Float32Array, expected: Float32Array, total: number): number => {
  let difference = 0
  for (let index = 0; index < expected.length; index++) difference += (actual[index]! - expected[index]!) ** 2
  const norm = Math.sqrt(squaredNorm(expected))
  return difference === 0 ? 0 : Math.sqrt(difference) / (norm > 1e-8 * total ? norm : total)
}

/** 1 - cosine. A tensor that is zero in the reference but for rounding has no direction. */
const turn = (actual: Float32Array, expected: Float32Array, total: number): number => {
  let [product, own] = [0, 0]
  for (let index = 0; index < expected.length; index++) {
    product += actual[index]! * expected[index]!
    own += actual[index]! ** 2
  }
  const norm = Math.sqrt(squaredNorm(expected))
  return norm > 1e-8 * total ? 1 - product / (Math.sqrt(own) * norm) : Math.sqrt(own) / total
}

export const relative = (actual: number, expected: number): number => Math.abs(actual - expected) / Math.abs(expected)

/** NaN counts as the worst. */
export const worst = (errors: ReadonlyArray<{ readonly error: number; readonly where: string }>) =>
  errors.reduce((a, b) => (b.error > a.error || Number.isNaN(b.error) ? b : a))

export const toBatch = (rows: ReadonlyArray<ReadonlyArray<number>>): Batch => ({
  tokens: Int32Array.from(rows.flatMap((row) => row.slice(0, -1))),
  targets: Int32Array.from(rows.flatMap((row) => row.slice(1))),
  batch: rows.length,
  length: rows[0]!.length - 1
})

/** The optimizer's step as it was recorded. */
export const stepOf = (
  { hyper }: OracleCase["trajectory"],
  { lr, step }: OracleCase["trajectory"]["steps"][number]
): AdamWStep => ({
  step,
  learningRate: lr,
  beta1: hyper.betas[0],
  beta2: hyper.betas[1],
  epsilon: hyper.eps,
  weightDecay: hyper.weight_decay,
  decay: "all",
  clip: hyper.clip
})

const compareTensors = (
  model: NativeModel,
  kind: "gradients" | "weights",
  expected: ReadonlyMap<string, Float32Array>,
  distance = relativeNorm
) => {
  const total = Math.sqrt([...expected.values()].reduce((sum, values) => sum + squaredNorm(values), 0))
  return worst(
    model.parameters.map(({ name, offset }) => {
      const values = expected.get(name)!
      return { where: name, error: distance(model.read(kind, offset, values.length), values, total) }
    })
  )
}

const compareLogits = (actual: Float32Array, expected: Float32Array, vocabulary: number) => {
  let [low, high, error, at] = [Infinity, -Infinity, 0, 0]
  for (let index = 0; index < expected.length; index++) {
    low = Math.min(low, expected[index]!)
    high = Math.max(high, expected[index]!)
    const difference = Math.abs(actual[index]! - expected[index]!)
    if (difference > error || Number.isNaN(difference)) [error, at] = [difference, index]
  }
  return { error: error / (high - low), where: `row ${Math.floor(at / vocabulary)}, id ${at % vocabulary}` }
}

const runCase = async (
  model: NativeModel,
  oracle: OracleCase,
  precision: "fp32" | "bf16"
): Promise<ReadonlyArray<Deviation>> => {
  const { trajectory, shape } = oracle
  for (const { name, offset } of model.parameters) model.write("weights", offset, oracle.weights.get(name)!)

  const first = toBatch(oracle.batches[0]![0]!)
  const logits = compareLogits(await model.logits(first), oracle.logits, shape.vocab_size)
  const { lossSum, scored } = await model.accumulate(first, 1 / first.targets.length)
  const gradient = compareTensors(model, "gradients", oracle.gradients, precision === "bf16" ? turn : relativeNorm)
  for (const { offset, name } of model.parameters) {
    model.write("gradients", offset, new Float32Array(oracle.gradients.get(name)!.length))
  }

  const steps = []
  for (const [index, expected] of trajectory.steps.entries()) {
    const micro = oracle.batches[index]!.map(toBatch)
    let loss = 0
    for (const batch of micro) {
      const result = await model.accumulate(batch, 1 / (batch.targets.length * micro.length))
      loss += result.lossSum / result.scored / micro.length
    }
    const { gradientNorm } = await model.step(stepOf(trajectory, expected))
    const where = `step ${expected.step}`
    const absolute = Math.abs(loss - expected.loss)
    steps.push({
      where,
      absolute,
      loss: relative(loss, expected.loss),
      norm: relative(gradientNorm, expected.grad_norm)
    })
  }
  if (precision === "bf16") {
    return [
      {
        quantity: "first loss",
        limit: bf16Limits.loss,
        error: Math.abs(lossSum / scored - trajectory.first_loss),
        where: ""
      },
      { quantity: "gradient's turn", limit: bf16Limits.gradientDirection, ...gradient },
      {
        quantity: "step loss",
        limit: bf16Limits.loss,
        ...worst(steps.map((s) => ({ error: s.absolute, where: s.where })))
      }
    ]
  }
  const weights = compareTensors(model, "weights", oracle.final)
  return [
    {
      quantity: "first loss",
      limit: limits.firstLoss,
      error: relative(lossSum / scored, trajectory.first_loss),
      where: "micro-batch 1"
    },
    { quantity: "logits / range", limit: limits.logits, ...logits },
    { quantity: "gradient tensor", limit: limits.gradient, ...gradient },
    { quantity: "step loss", limit: limits.stepLoss, ...worst(steps.map((s) => ({ error: s.loss, where: s.where }))) },
    {
      quantity: "gradient norm",
      limit: limits.gradientNorm,
      ...worst(steps.map((s) => ({ error: s.norm, where: s.where })))
    },
    { quantity: "final weights", limit: limits.finalWeights, ...weights }
  ]
}

/** Largest relative error of each quantity; the case passes when none is over its limit (NaN is over). */
export const compareWithOracle = Effect.fn("compareWithOracle")(function* (
  native: Native,
  oracle: OracleCase,
  options: ModelOptions
) {
  const model = yield* Effect.acquireRelease(
    Effect.sync(() => new native.Model(toModelConfig(oracle.shape), options)),
    (model) => Effect.sync(() => model.dispose())
  )
  return yield* Effect.promise(() => runCase(model, oracle, options.precision ?? "fp32"))
}, Effect.scoped)

export const withinLimit = (deviation: Deviation): boolean => deviation.error <= deviation.limit
