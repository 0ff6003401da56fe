/**
 * pretrain: trains a Llama-architecture model from random weights on a packed dataset. It resumes inside the stage, bit for bit: where a run was
 * interrupted, and how often, cannot be seen in what it leaves.
 */
import { Effect, FileSystem, Path, Schema } from "effect"
import { type ArtifactHandle, countIn } from "../artifacts/Artifact.ts"
import { openLoader } from "../data/SampleLoader.ts"
import { publishCheckpoint } from "../engine/CheckpointGather.ts"
import { newestState } from "../engine/Checkpoints.ts"
import { secondsOfArithmetic } from "../engine/MachineSpeed.ts"
import { storageFailure } from "../engine/StorageFailure.ts"
import { train, type TrainingOutcome } from "../engine/Trainer.ts"
import { openModel } from "../engine/TrainingModel.ts"
import { requireGpuMemory } from "../engine/GpuMemory.ts"
import type { NativeModel } from "../engine/Native.ts"
import { ranksOfModel, shard_size, share_gradients, strategy, worldParameters } from "../engine/World.ts"
import { recompute, trainingParameters } from "../engine/Compute.ts"
import { Model, type ModelShape, parameterCount, trainingFlops } from "../model/Architecture.ts"
import { passVocabulary } from "../model/CarriedVocabulary.ts"
import { toHfConfig } from "../model/HfConfig.ts"
import { defineStage, parameter } from "../pipeline/StageType.ts"
import { checkFit, shareOut, sizesOf, trainingDataOf } from "./PretrainWork.ts"
import { budgetChange, keepChange, milestonesChange } from "./TrainingChange.ts"
import { forecastPretrain, milestonesOf, scheduleOf } from "./TrainingForecast.ts"
import {
  AtLeast,
  Fraction,
  LearningRate,
  NotNegative,
  MicroBatch,
  Positive,
  bad_steps,
  clip,
  log_every,
  save_every_seconds,
  withDefault
} from "./TrainingParameters.ts"
import { extentOf, noteTotal } from "./WorkExtent.ts"

/** AdamW; the defaults are TinyLlama's. `decay: all` takes norm gains and embeddings along, as TinyLlama does. */
const Optimizer = Schema.Struct({
  beta1: withDefault(Fraction, 0.9),
  beta2: withDefault(Fraction, 0.95),
  epsilon: withDefault(Positive, 1e-8),
  weight_decay: withDefault(NotNegative, 0.1),
  decay: withDefault(Schema.Literals(["all", "matrices"]), "all")
})

interface Trained {
  readonly shape: ModelShape
  readonly stateType: NativeModel["stateType"]
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
    const { inputs, log, params, ranks, warn } = context
    const { model: shape, seed } = params
    const documents = params.document_mask
    const data = yield* openLoader(inputs.data, "train", seed, { documents })
    const heldOut = yield* openLoader(inputs.data, "validation", seed, { documents })
    yield* checkFit(shape, data, inputs.data.origin)

    const sizes = yield* sizesOf(params, data.seqLen)
    const { samplesPerStep, tokensPerStep, totalSamples, totalSteps } = sizes
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

    if (ranks.rank === 0) yield* noteTotal(context.work, totalSteps, "steps")
    const { compute, microBatch, strategy: used } = yield* shareOut(params, context, shape, data, sizes)
    const fit = yield* requireGpuMemory(shape, compute, { batch: microBatch, length: data.seqLen })
    if (fit !== undefined)
      log(
        `${(fit.bytes / 2 ** 30).toFixed(1)} of ${(fit.memory / 2 ** 30).toFixed(1)} GiB of GPU memory, in micro-batches of ${microBatch}`
      )
    const model = yield* openModel(shape, compute)
    const world = ranksOfModel(model, ranks)
    log(`computes on ${model.deviceName}${ranks.size > 1 ? `, ${ranks.size} ranks, ${used}` : ""}`)
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
      yield* trainingDataOf(data, heldOut, { microBatch, validationBlocks: params.validation_blocks }, world),
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
