/** What a pretraining computes in each step, and which part of it is this rank's. */
import { Effect } from "effect"
import type { Rows, SampleLoader } from "../data/SampleLoader.ts"
import type { TrainingRanks } from "../engine/TrainingRanks.ts"
import { chooseCompute, type ComputeWish } from "../engine/Compute.ts"
import { withFewerRanks } from "../engine/FewerRanks.ts"
import { largestMicroBatch } from "../engine/GpuMemory.ts"
import * as Native from "../engine/Native.ts"
import type { TrainingData } from "../engine/Trainer.ts"
import { ownIndices, type TrainingBatch } from "../engine/TrainingStep.ts"
import { digestOf, divisorsOf, openWorld, sharedOut, type WorldWish } from "../engine/World.ts"
import type { ModelShape } from "../model/Architecture.ts"
import { type Ranks, StageError } from "../pipeline/StageType.ts"
import { version } from "../version.ts"
import { CPU_MICRO_BATCH, LARGEST_MICRO_BATCH, type MicroBatch } from "./TrainingParameters.ts"

const invalid = (message: string, next: string) => new StageError({ failure: "invalid-input", message, next })

/** Refuses a dataset that this model cannot be trained on. */
export const checkFit = Effect.fnUntraced(function* (shape: ModelShape, data: SampleLoader, origin: string) {
  if (data.facts.vocabulary_size !== shape.vocab_size)
    return yield* invalid(
      `${origin} holds tokens of a vocabulary of ${data.facts.vocabulary_size}, the model's is ${shape.vocab_size}`,
      `set model.vocab_size to ${data.facts.vocabulary_size}, or tokenize with another tokenizer`
    )
  if (data.seqLen > shape.max_position_embeddings)
    return yield* invalid(
      `${origin} has sequences of ${data.seqLen} tokens, the model's context is ${shape.max_position_embeddings}`,
      `set seq_len of the pack stage to at most ${shape.max_position_embeddings}, or raise model.max_position_embeddings`
    )
  if (data.blocks === 0)
    return yield* invalid(`${origin} has no training block`, "give it more text, or pack with a smaller seq_len")
})

export interface StepSizes {
  readonly samplesPerStep: number
  readonly tokensPerStep: number
  readonly totalSteps: number
  readonly totalSamples: number
}

/** Whole steps of whole sequences, as many as the budget holds. */
export const sizesOf = Effect.fnUntraced(function* (
  params: { readonly batch_tokens: number; readonly max_tokens: number },
  seqLen: number
) {
  const samplesPerStep = Math.floor(params.batch_tokens / seqLen)
  if (samplesPerStep === 0)
    return yield* invalid(
      `batch_tokens is ${params.batch_tokens}, less than one sequence of ${seqLen} tokens`,
      `set batch_tokens to ${seqLen} or more`
    )
  const tokensPerStep = samplesPerStep * seqLen
  const totalSteps = Math.floor(params.max_tokens / tokensPerStep)
  if (totalSteps === 0)
    return yield* invalid(
      `max_tokens is ${params.max_tokens}, less than the ${tokensPerStep} tokens of one step`,
      "raise max_tokens, or lower batch_tokens"
    )
  return { samplesPerStep, tokensPerStep, totalSteps, totalSamples: totalSteps * samplesPerStep } satisfies StepSizes
})

const microBatchOf = (
  asked: typeof MicroBatch.Type,
  shape: ModelShape,
  compute: Native.ModelOptions,
  length: number,
  samplesPerStep: number
) =>
  asked !== "auto"
    ? Effect.succeed(asked)
    : compute.device === "cuda"
      ? largestMicroBatch(shape, compute, length, Math.min(samplesPerStep, LARGEST_MICRO_BATCH))
      : Effect.succeed(CPU_MICRO_BATCH)

/** Every rank makes as many micro-batches of a step as every other. */
const checkRounds = (microBatches: number, size: number, ranks: number) =>
  microBatches % ranks === 0
    ? Effect.void
    : invalid(
        `a step has ${microBatches} micro-batches of ${size} sequences, which ${ranks} ranks cannot share evenly`,
        `start ${divisorsOf(microBatches).join(", ")} ranks, or choose batch_tokens and micro_batch so that ${ranks} divides them`
      )

interface ShareWish extends ComputeWish, WorldWish {
  readonly micro_batch: typeof MicroBatch.Type
  readonly seed: number
}

/** This rank's model options, the size of a micro-batch, and the strategy in use, which fewer ranks than wanted may have changed. */
export const shareOut = Effect.fn("pretrain.shareOut")(function* (
  params: ShareWish,
  context: {
    readonly ranks: Ranks
    readonly threads: number
    readonly work: string
    readonly warn: (line: string) => void
  },
  shape: ModelShape,
  data: SampleLoader,
  { samplesPerStep }: StepSizes
) {
  const { ranks, threads, warn, work } = context
  const chosen = yield* chooseCompute(params, threads)
  // Of what the file asks for: the step stays what it is when an attempt has fewer ranks.
  const wanted = ranks.wanted ?? ranks.size
  const microBatch = yield* microBatchOf(
    params.micro_batch,
    shape,
    sharedOut(params, { rank: 0, size: wanted }, chosen),
    data.seqLen,
    samplesPerStep / wanted
  )
  const microBatches = Math.ceil(samplesPerStep / microBatch)
  yield* checkRounds(microBatches, microBatch, wanted)
  const { said, wish } = withFewerRanks(params, ranks, microBatches)
  if (ranks.rank === 0) said.forEach(warn)
  const compute = yield* openWorld(wish, ranks, chosen, yield* Effect.orDie(Native.load), {
    work,
    agreement: {
      "version of tinyllama": version,
      "parameters of the stage": digestOf({ ...params, device: chosen.device, precision: chosen.precision }),
      seed: String(params.seed),
      "packed data": digestOf(data.facts),
      micro_batch: String(microBatch)
    }
  })
  return { compute, microBatch, strategy: wish.strategy }
})

/** Micro-batches of at most `size` rows of `length` tokens, as views. Every row counts in full, padding too: it is computed like all else. */
const inBatches = (
  { firstKeys, targets, tokens }: Rows,
  length: number,
  size: number
): ReadonlyArray<TrainingBatch> => {
  const rows = tokens.length / length
  return Array.from({ length: Math.ceil(rows / size) }, (_, index) => {
    const [first, end] = [index * size, Math.min(rows, (index + 1) * size)]
    const part = (ids: Int32Array) => ids.subarray(first * length, end * length)
    const batch = end - first
    return {
      tokens: part(tokens),
      targets: part(targets),
      ...(firstKeys === undefined ? {} : { firstKeys: part(firstKeys) }),
      batch,
      length,
      inputTokens: batch * length
    }
  })
}

/** This rank's micro-batches, read when they are asked for, and the held-out blocks, which all ranks have whole. */
export const trainingDataOf = Effect.fnUntraced(function* (
  data: SampleLoader,
  heldOut: SampleLoader,
  { microBatch, validationBlocks }: { readonly microBatch: number; readonly validationBlocks: number },
  ranks: TrainingRanks
) {
  const blocks = yield* heldOut.inOrder(0, Math.min(validationBlocks, heldOut.blocks))
  const validation = inBatches(blocks, data.seqLen, microBatch)
  const read = (first: number, count: number) =>
    Effect.map(data.samples(first, count), (rows) => inBatches(rows, data.seqLen, microBatch))
  return {
    batches: (first, count) =>
      Effect.forEach(ownIndices(ranks, Math.ceil(count / microBatch)), (index) =>
        read(first + index * microBatch, Math.min(microBatch, count - index * microBatch))
      ).pipe(Effect.map((batches) => batches.flat())),
    validation: Effect.succeed(validation)
  } satisfies TrainingData
})
