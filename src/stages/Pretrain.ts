/**
 * pretrain: trains a Llama-architecture model from random weights on a packed dataset. It resumes inside the stage, bit for bit: where a run was
 * interrupted, and how often, cannot be seen in what it leaves.
 */
import { Effect, FileSystem, Path, Schema } from "effect"
import { type ArtifactHandle, countIn } from "../artifacts/Artifact.ts"
import { openLoader, type Rows, type SampleLoader } from "../data/SampleLoader.ts"
import { publishCheckpoint } from "../engine/CheckpointGather.ts"
import { newestState } from "../engine/Checkpoints.ts"
import { secondsOfArithmetic } from "../engine/MachineSpeed.ts"
import { storageFailure } from "../engine/StorageFailure.ts"
import { train, type TrainingData, type TrainingOutcome } from "../engine/Trainer.ts"
import { ownIndices, type TrainingBatch } from "../engine/TrainingStep.ts"
import { openModel } from "../engine/TrainingModel.ts"
import { largestMicroBatch, requireGpuMemory } from "../engine/GpuMemory.ts"
import * as Native from "../engine/Native.ts"
import {
  digestOf,
  divisorsOf,
  openWorld,
  ranksOf,
  shard_size,
  share_gradients,
  sharedOut,
  strategy,
  worldParameters
} from "../engine/World.ts"
import { withFewerRanks } from "../engine/FewerRanks.ts"
import { chooseCompute, recompute, trainingParameters } from "../engine/Compute.ts"
import { Model, type ModelShape, parameterCount, trainingFlops } from "../model/Architecture.ts"
import { passVocabulary } from "../model/CarriedVocabulary.ts"
import { toHfConfig } from "../model/HfConfig.ts"
import { defineStage, parameter, StageError } from "../pipeline/StageType.ts"
import { budgetChange, keepChange, milestonesChange } from "./TrainingChange.ts"
import { forecastPretrain, milestonesOf, scheduleOf } from "./TrainingForecast.ts"
import {
  AtLeast,
  Fraction,
  LearningRate,
  NotNegative,
  CPU_MICRO_BATCH,
  LARGEST_MICRO_BATCH,
  MicroBatch,
  Positive,
  bad_steps,
  clip,
  log_every,
  save_every_seconds,
  withDefault
} from "./TrainingParameters.ts"
import { version } from "../version.ts"
import { extentOf, noteTotal } from "./WorkExtent.ts"

/** AdamW; the defaults are TinyLlama's. `decay: all` takes norm gains and embeddings along, as TinyLlama does. */
const Optimizer = Schema.Struct({
  beta1: withDefault(Fraction, 0.9),
  beta2: withDefault(Fraction, 0.95),
  epsilon: withDefault(Positive, 1e-8),
  weight_decay: withDefault(NotNegative, 0.1),
  decay: withDefault(Schema.Literals(["all", "matrices"]), "all")
})

const invalid = (message: string, next: string) => new StageError({ failure: "invalid-input", message, next })

/** Refuses a dataset that this model cannot be trained on. */
const checkFit = Effect.fnUntraced(function* (shape: ModelShape, data: SampleLoader, origin: string) {
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

interface Trained {
  readonly shape: ModelShape
  readonly stateType: Native.NativeModel["stateType"]
}

/** Fills the output folder. */
const publish = Effect.fnUntraced(
  function* (folder: string, { shape, stateType }: Trained, data: ArtifactHandle, outcome: TrainingOutcome) {
    const fs = yield* FileSystem.FileSystem
    const path = yield* Path.Path
    for (const checkpoint of outcome.checkpoints) {
      const target = path.join(folder, "checkpoints", path.basename(checkpoint))
      yield* publishCheckpoint(checkpoint, target, shape, stateType)
    }
    yield* passVocabulary(data, folder)
    yield* fs.copyFile(outcome.metricsPath, path.join(folder, "metrics.jsonl"))
    yield* fs.writeFileString(path.join(folder, "config.json"), `${JSON.stringify(toHfConfig(shape), null, 2)}\n`)
  },
  (effect, folder) =>
    Effect.mapError(
      effect,
      storageFailure(`the training state in ${folder}`, "the training itself is saved", "only this is done again")
    )
)

export const pretrainStage = defineStage({
  name: "pretrain",
  version: 3,
  describe: "Trains a Llama-architecture model from random weights on a packed dataset; resumes bit for bit.",
  cpus: "all",
  ranks: true,
  patience: ({ watchdog_seconds }) => watchdog_seconds,
  params: {
    model: parameter(Model, {
      change: "identity",
      describe: "A preset's name, or a shape in Hugging Face's names (hidden_size, intermediate_size, …)."
    }),
    max_tokens: parameter(AtLeast(1), {
      change: budgetChange,
      describe: "Token budget; training takes the whole steps that fit into it."
    }),
    micro_batch: parameter(MicroBatch, {
      // Not operational: gradients are summed in another order, and floating-point sums depend on it.
      change: "identity",
      default: 8,
      describe:
        "Sequences per forward and backward pass: what fits into memory. Changes rounding, hence the result. auto: on a GPU the largest power of two that fits, else 8."
    }),
    batch_tokens: parameter(AtLeast(1), {
      change: "identity",
      default: 524_288,
      describe: "Tokens per optimizer step, accumulated over micro-batches; rounded down to whole sequences."
    }),
    document_mask: parameter(Schema.Boolean, {
      change: "identity",
      default: false,
      describe:
        "Whether tokens attend to their own document alone; needs attention_reset of pack. false: to all of the block before them, as TinyLlama."
    }),
    lr: parameter(LearningRate, {
      change: budgetChange,
      default: {},
      describe:
        "Learning rate: peak, min, warmup_steps, schedule (cosine, linear, constant, wsd), decay_fraction (wsd)."
    }),
    optimizer: parameter(Optimizer, {
      change: "identity",
      default: {},
      describe: "AdamW: beta1, beta2, epsilon, weight_decay, decay (all, or matrices: not the norm gains)."
    }),
    clip,
    bad_steps,
    seed: parameter(AtLeast(0), {
      change: "identity",
      default: 3407,
      describe: "Of the first weights and of the order of samples."
    }),
    validate_every: parameter(AtLeast(0), {
      change: "identity",
      default: 1000,
      describe: "Steps between validations, besides before the first step and after the last; 0: only those."
    }),
    validation_blocks: parameter(AtLeast(1), {
      change: "identity",
      default: 800,
      describe: "Most validation blocks to score each time."
    }),
    save_every: parameter(AtLeast(0), {
      change: "identity",
      default: 1000,
      describe: "Steps between checkpoints that stay, besides after the last step; 0: only that."
    }),
    keep: parameter(AtLeast(1), {
      change: keepChange,
      default: 2,
      describe:
        "How many of those stay, counted from the last; the one of the best validation loss stays besides, and under wsd that of the decay's start, for runs with more tokens."
    }),
    keep_every_tokens: parameter(AtLeast(0), {
      change: milestonesChange,
      default: 0,
      describe: "Besides, the checkpoint of the first step at or past each multiple of so many tokens stays; 0: none."
    }),
    ...trainingParameters,
    recompute,
    strategy,
    shard_size,
    share_gradients,
    ...worldParameters,
    save_every_seconds,
    log_every
  },
  inputs: { data: { type: "PackedDataset", describe: "Blocks of tokens to train on and to validate with." } },
  outputs: {
    state: { type: "TrainingState", describe: "Checkpoints with optimizer state, and the metrics of every step." }
  },
  headline: ({ state }) => {
    const first = state["first_validation_loss"]
    const last = state["validation_loss"]
    const fall =
      typeof first === "number" && typeof last === "number"
        ? `, validation loss ${first.toFixed(2)} → ${last.toFixed(2)} (−${((1 - last / first) * 100).toFixed(0)} %)`
        : ""
    return `${countIn(state, "parameters")} parameters, ${countIn(state, "tokens")} tokens${fall}`
  },
  resumePoint: Effect.fn("pretrain.resumePoint")(function* (work) {
    const path = yield* Path.Path
    const state = yield* newestState(path.join(work, "checkpoints"))
    return state === undefined ? undefined : yield* extentOf(work, state.step)
  }),
  forecast: (params, { data }, previous, _, __, ranks) =>
    forecastPretrain(
      params,
      data[0],
      previous === undefined ? undefined : { params: previous.params, state: previous.outputs["state"] },
      ranks
    ),
  modelSeconds: ({ amount }, _, threads, gpus) => secondsOfArithmetic(amount, threads, gpus),
  run: Effect.fn("pretrain")(function* (context) {
    const { inputs, log, params, threads, warn } = context
    const { model: shape, seed } = params
    const documents = params.document_mask
    const data = yield* openLoader(inputs.data, "train", seed, { documents })
    const heldOut = yield* openLoader(inputs.data, "validation", seed, { documents })
    yield* checkFit(shape, data, inputs.data.origin)

    const samplesPerStep = Math.floor(params.batch_tokens / data.seqLen)
    if (samplesPerStep === 0)
      return yield* invalid(
        `batch_tokens is ${params.batch_tokens}, less than one sequence of ${data.seqLen} tokens`,
        `set batch_tokens to ${data.seqLen} or more`
      )
    const tokensPerStep = samplesPerStep * data.seqLen
    const totalSteps = Math.floor(params.max_tokens / tokensPerStep)
    if (totalSteps === 0)
      return yield* invalid(
        `max_tokens is ${params.max_tokens}, less than the ${tokensPerStep} tokens of one step`,
        "raise max_tokens, or lower batch_tokens"
      )
    const totalSamples = totalSteps * samplesPerStep
    const epochs = totalSamples / data.blocks
    log(
      `${parameterCount(shape)} parameters, ${totalSteps} steps of ${samplesPerStep} × ${data.seqLen} tokens, ` +
        `${data.blocks} blocks, ${epochs.toFixed(2)} epochs${documents ? "; tokens attend to their own document alone" : ""}`
    )
    if (epochs > 1)
      warn(
        `the budget is ${epochs.toFixed(1)} times the data: every block is trained on that often, in a new order each time`
      )
    if (heldOut.blocks === 0) warn(`${inputs.data.origin} has no validation block: no validation loss is measured`)

    const { ranks } = context
    if (ranks.rank === 0) yield* noteTotal(context.work, totalSteps, "steps")
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
      work: context.work,
      agreement: {
        "version of tinyllama": version,
        "parameters of the stage": digestOf({ ...params, device: chosen.device, precision: chosen.precision }),
        seed: String(seed),
        "packed data": digestOf(data.facts),
        micro_batch: String(microBatch)
      }
    })
    const fit = yield* requireGpuMemory(shape, compute, { batch: microBatch, length: data.seqLen })
    if (fit !== undefined)
      log(
        `${(fit.bytes / 2 ** 30).toFixed(1)} of ${(fit.memory / 2 ** 30).toFixed(1)} GiB of GPU memory, in micro-batches of ${microBatch}`
      )
    const model = yield* openModel(shape, compute)
    const world = ranksOf(model, ranks)
    log(`computes on ${model.deviceName}${ranks.size > 1 ? `, ${ranks.size} ranks, ${wish.strategy}` : ""}`)
    const validation = inBatches(
      yield* heldOut.inOrder(0, Math.min(params.validation_blocks, heldOut.blocks)),
      data.seqLen,
      microBatch
    )
    const trainingData: TrainingData = {
      batches: (first, count) =>
        Effect.forEach(ownIndices(world, Math.ceil(count / microBatch)), (index) =>
          Effect.map(
            data.samples(first + index * microBatch, Math.min(microBatch, count - index * microBatch)),
            (rows) => inBatches(rows, data.seqLen, microBatch)
          )
        ).pipe(Effect.map((batches) => batches.flat())),
      validation: Effect.succeed(validation)
    }
    const { optimizer } = params
    const outcome = yield* train(
      model,
      {
        totalSamples,
        samplesPerStep,
        schedule: scheduleOf(params, totalSteps),
        optimizer: {
          beta1: optimizer.beta1,
          beta2: optimizer.beta2,
          epsilon: optimizer.epsilon,
          weightDecay: optimizer.weight_decay,
          decay: optimizer.decay,
          clip: params.clip
        },
        seed,
        validateEvery: params.validate_every,
        saveEvery: params.save_every,
        keep: params.keep,
        milestones: milestonesOf(params, tokensPerStep),
        saveEverySeconds: params.save_every_seconds,
        badSteps: params.bad_steps,
        logEvery: params.log_every,
        flopsPerToken: trainingFlops["6(N - E) + 6LAT"](shape, data.seqLen),
        flopsFormula:
          "6 × (parameters - input embedding) + 6 × layers × heads × head size × seq_len (causal attention" +
          (documents ? " over whole blocks, also what document_mask leaves out)" : ")"),
        advice: {
          diverged: "lower lr.peak or raise lr.warmup_steps, and look at the loss before that step in the log",
          memory: "lower micro_batch: batch_tokens keeps the step's size"
        }
      },
      trainingData,
      Effect.sync(() => model.initialize(seed)),
      { ...context, world, earlier: context.previous?.outputs["state"]?.folder ?? context.previous?.work }
    )
    if (ranks.rank === 0)
      yield* publish(context.output("state"), { shape, stateType: model.stateType }, inputs.data, outcome)
    const { state } = outcome
    return {
      state: {
        steps: state.step,
        tokens: state.tokens,
        first_validation_loss: state.first_validation_loss,
        validation_loss: state.validation?.loss ?? null,
        parameters: parameterCount(shape),
        shape,
        tokenizer: data.facts.tokenizer,
        tokenizer_digest: data.facts.tokenizer_digest
      }
    }
  }, Effect.scoped)
})
