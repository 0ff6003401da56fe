/**
 * sft: fine-tunes all weights of a checkpoint on conversations in openassistant-guanaco's form, and writes a Hugging Face folder that chats. It
 * resumes inside the stage, bit for bit.
 */
import { Effect, Path } from "effect"
import { countIn, type ArtifactHandle } from "../artifacts/Artifact.ts"
import {
  type ConversationRow,
  encodeConversation,
  EndOfText,
  hasScoredTarget,
  LossOn,
  readConversations,
  truncateRow
} from "../data/Conversations.ts"
import { sampleAt } from "../data/SampleOrder.ts"
import { ScheduleKind } from "../engine/Schedule.ts"
import { newestState } from "../engine/Checkpoints.ts"
import { secondsOfArithmetic } from "../engine/MachineSpeed.ts"
import { storageFailure } from "../engine/StorageFailure.ts"
import { tokenizerOf } from "../engine/Tokenizer.ts"
import { train } from "../engine/Trainer.ts"
import { ownIndices, type TrainingBatch } from "../engine/TrainingStep.ts"
import * as Native from "../engine/Native.ts"
import { openModel } from "../engine/TrainingModel.ts"
import { digestOf, openWorld, ranksOfModel, worldParameters } from "../engine/World.ts"
import { chooseCompute, recompute, trainingParameters } from "../engine/Compute.ts"
import { trainingFlops } from "../model/Architecture.ts"
import { loadWeights, readHfModel, weightsOf, writeHfModel } from "../model/HuggingFace.ts"
import { defineStage, parameter, StageError } from "../pipeline/StageType.ts"
import { vocabularyOf } from "./ModelArtifact.ts"
import { forecastSft } from "./TrainingForecast.ts"
import { epochsChange } from "./TrainingChange.ts"
import {
  AtLeast,
  Fraction,
  NotNegative,
  Positive,
  bad_steps,
  clip,
  log_every,
  save_every_seconds
} from "./TrainingParameters.ts"
import { version } from "../version.ts"
import { extentOf, noteTotal } from "./WorkExtent.ts"

const stageOf = ({ origin }: ArtifactHandle): string => origin.split(".")[0] ?? origin

const invalid = (message: string, next: string) => new StageError({ failure: "invalid-input", message, next })

/** The tokenizer that the base model was trained with. */
const tokenizerFor = Effect.fnUntraced(function* (base: ArtifactHandle) {
  const vocabulary = yield* vocabularyOf(base)
  return yield* Effect.mapError(
    tokenizerOf(vocabulary),
    (error) => new StageError({ failure: "internal", message: error.message, next: "npm ci && npm run build:native" })
  )
})

/** Rows of equal length in one batch: shorter ones are filled at the right with `padding`, which is neither scored nor seen by what is. */
export const paddedBatch = (rows: ReadonlyArray<ConversationRow>, padding: number): TrainingBatch => {
  const length = Math.max(...rows.map(({ tokens }) => tokens.length - 1))
  const tokens = new Int32Array(rows.length * length).fill(padding)
  const targets = new Int32Array(rows.length * length).fill(-1)
  for (const [index, row] of rows.entries()) {
    const inputs = row.tokens.length - 1
    tokens.set(row.tokens.subarray(0, inputs), index * length)
    for (let i = 0; i < inputs; i++) if (row.scored[i + 1] === 1) targets[index * length + i] = row.tokens[i + 1]!
  }
  const inputTokens = rows.reduce((sum, row) => sum + row.tokens.length - 1, 0)
  return { tokens, targets, batch: rows.length, length, inputTokens }
}

/** Micro-batches of rows with like lengths, which keeps padding small; the order within a step changes nothing but rounding. */
export const inMicroBatches = (
  rows: ReadonlyArray<ConversationRow>,
  size: number,
  padding: number
): ReadonlyArray<TrainingBatch> => {
  const sorted = rows.toSorted((a, b) => a.tokens.length - b.tokens.length)
  return Array.from({ length: Math.ceil(rows.length / size) }, (_, index) =>
    paddedBatch(sorted.slice(index * size, (index + 1) * size), padding)
  )
}

const range = (first: number, count: number): ReadonlyArray<number> =>
  Array.from({ length: count }, (_, i) => first + i)

/** Takes a seeded sample of `fraction` of the rows away for validation; both parts keep the rows' order. */
const holdOut = <A>(rows: ReadonlyArray<A>, fraction: number, seed: number) => {
  const count = Math.min(rows.length - 1, Math.round(fraction * rows.length))
  const chosen = new Set(range(0, count).map((index) => sampleAt(index, rows.length, seed)))
  return {
    training: rows.filter((_, index) => !chosen.has(index)),
    validation: rows.filter((_, index) => chosen.has(index))
  }
}

export const sftStage = defineStage({
  name: "sft",
  version: 3,
  describe:
    "Fine-tunes a checkpoint on conversations and writes a Hugging Face folder that chats; resumes bit for bit.",
  cpus: "all",
  ranks: true,
  patience: ({ watchdog_seconds }) => watchdog_seconds,
  params: {
    epochs: parameter(Positive, {
      // Of a finished run no optimizer state is left to go on with; an unfinished one goes on.
      change: epochsChange,
      default: 5,
      describe:
        "How often each conversation is trained on. An unfinished run under a constant schedule goes on with more."
    }),
    lr: parameter(Positive, { change: "identity", default: 1e-5, describe: "Peak learning rate." }),
    min_lr: parameter(NotNegative, {
      change: "identity",
      default: 0,
      describe: "Where the learning rate ends; a constant schedule ignores it."
    }),
    schedule: parameter(ScheduleKind, {
      change: "identity",
      default: "constant",
      describe: "constant (TinyLlama's choice), cosine, linear or wsd."
    }),
    warmup_steps: parameter(AtLeast(0), { change: "identity", default: 0, describe: "Steps of linear warmup." }),
    batch_rows: parameter(AtLeast(1), {
      change: "identity",
      default: 16,
      describe: "Conversations per optimizer step."
    }),
    micro_batch: parameter(AtLeast(1), {
      // Not operational: gradients are summed in another order, and floating-point sums depend on it.
      change: "identity",
      default: 4,
      describe:
        "Conversations per forward and backward pass: what fits into memory. Changes rounding, hence the result."
    }),
    seq_len: parameter(AtLeast(2), {
      change: "identity",
      default: 512,
      describe: "Longer conversations are cut at the right; at most the model's context."
    }),
    loss_on: parameter(LossOn, {
      change: "identity",
      default: "assistant",
      describe: "assistant: only the answers are learned; all: questions too, as TinyLlama did."
    }),
    eos: parameter(EndOfText, {
      change: "identity",
      default: "every_turn",
      describe: "Where the end of text is learned: after every answer, or after the last alone."
    }),
    validation: parameter(Fraction, {
      change: "identity",
      default: 0,
      describe:
        "Fraction of the conversations held out; their loss is measured before, after each epoch, and at the end."
    }),
    beta1: parameter(Fraction, { change: "identity", default: 0.9, describe: "AdamW's decay of the first moment." }),
    beta2: parameter(Fraction, { change: "identity", default: 0.999, describe: "AdamW's decay of the second moment." }),
    epsilon: parameter(Positive, { change: "identity", default: 1e-8, describe: "AdamW's epsilon." }),
    weight_decay: parameter(NotNegative, { change: "identity", default: 0, describe: "AdamW's weight decay." }),
    clip,
    bad_steps,
    seed: parameter(AtLeast(0), { change: "identity", default: 3407, describe: "Of the order of conversations." }),
    ...trainingParameters,
    recompute,
    ...worldParameters,
    save_every_seconds,
    log_every
  },
  inputs: {
    base: { type: "Checkpoint", describe: "The model to fine-tune." },
    conversations: { type: "Documents", describe: 'JSON lines {"text": "### Human: …### Assistant: …"}.' }
  },
  outputs: { model: { type: "HfModel", describe: "The fine-tuned model, with its tokenizer and chat template." } },
  headline: ({ model }) => {
    const loss = model["training_loss"]
    return `${countIn(model, "conversations")} conversations, ${countIn(model, "steps")} steps${typeof loss === "number" ? `, loss ${loss.toFixed(3)}` : ""}`
  },
  resumePoint: Effect.fn("sft.resumePoint")(function* (work) {
    const path = yield* Path.Path
    const state = yield* newestState(path.join(work, "checkpoints"))
    return state === undefined ? undefined : yield* extentOf(work, state.step)
  }),
  forecast: (params, { base, conversations }, previous, _, __, ranks) =>
    forecastSft(
      params,
      base[0],
      conversations[0],
      previous === undefined ? undefined : { params: previous.params, model: previous.outputs["model"] },
      ranks
    ),
  modelSeconds: ({ amount }, _, threads, gpus) => secondsOfArithmetic(amount, threads, gpus),
  run: Effect.fn("sft")(function* (context) {
    const { inputs, log, params, threads, warn } = context
    const { seed } = params
    const unreadable = (error: Error) =>
      new StageError({
        failure: "corrupt",
        message: `${inputs.base.origin}: the model cannot be read: ${error.message}`,
        next: `make it anew: tinyllama run FILE --force ${stageOf(inputs.base)}`
      })
    const base = yield* Effect.mapError(readHfModel(inputs.base.folder), unreadable)
    const { shape } = base
    const tokenizer = yield* tokenizerFor(inputs.base)
    const length = Math.min(params.seq_len, shape.max_position_embeddings)
    if (length < params.seq_len) log(`seq_len ${params.seq_len} exceeds the model's context: ${length} is used`)

    const conversations = yield* readConversations(inputs.conversations)
    const whole = conversations.map((conversation) =>
      encodeConversation(tokenizer.encode, conversation, { lossOn: params.loss_on, eos: params.eos })
    )
    const rows = whole.map((row) => truncateRow(row, length)).filter(hasScoredTarget)
    const unanswered = conversations.filter((conversation) => conversation.unanswered).length
    const truncated = whole.filter(({ tokens }) => tokens.length > length + 1).length
    const of = `of ${conversations.length} conversations`
    if (unanswered > 0) warn(`${unanswered} ${of} end with a question: it is left out`)
    if (truncated > 0) warn(`${truncated} ${of} are longer than ${length} tokens: they are cut, without an end of text`)
    if (rows.length < whole.length)
      warn(`${whole.length - rows.length} ${of} have no answer within ${length} tokens: they are left out`)
    if (rows.length === 0)
      return yield* invalid(
        `${inputs.conversations.origin}: no conversation has an answer within ${length} tokens`,
        "raise seq_len, or use a base model with a longer context"
      )

    const { training, validation } = holdOut(rows, params.validation, seed)
    const totalSamples = Math.max(1, Math.round(params.epochs * training.length))
    const totalSteps = Math.ceil(totalSamples / params.batch_rows)
    const rowTokens = training.reduce((sum, row) => sum + row.tokens.length - 1, 0)
    log(
      `${training.length} conversations of ${Math.round(rowTokens / training.length)} tokens on average, ` +
        `${validation.length} held out, ${totalSteps} steps of ${params.batch_rows} for ${params.epochs} epochs`
    )
    const { ranks } = context
    if (ranks.rank === 0) yield* noteTotal(context.work, totalSteps, "steps")
    const chosen = yield* chooseCompute(params, threads)
    // Every rank holds the whole model: what is fine-tuned is small, and rank 0 writes all of it.
    const compute = yield* openWorld({ ...params, strategy: "none" }, ranks, chosen, yield* Effect.orDie(Native.load), {
      work: context.work,
      agreement: {
        "version of tinyllama": version,
        "parameters of the stage": digestOf({ ...params, device: chosen.device, precision: chosen.precision }),
        conversations: digestOf(inputs.conversations.facts),
        "base model": digestOf(inputs.base.facts)
      }
    })
    const model = yield* openModel(shape, compute)
    const world = ranksOfModel(model, ranks)
    log(`computes on ${model.deviceName}${ranks.size > 1 ? `, ${ranks.size} ranks` : ""}`)
    const outcome = yield* train(
      model,
      {
        totalSamples,
        samplesPerStep: params.batch_rows,
        schedule: {
          kind: params.schedule,
          peak: params.lr,
          minimum: params.min_lr,
          warmupSteps: params.warmup_steps,
          totalSteps,
          decayFraction: 0.2
        },
        optimizer: {
          beta1: params.beta1,
          beta2: params.beta2,
          epsilon: params.epsilon,
          weightDecay: params.weight_decay,
          decay: "all",
          clip: params.clip
        },
        seed,
        validateEvery: Math.ceil(training.length / params.batch_rows),
        saveEvery: 0,
        keep: 1,
        saveEverySeconds: params.save_every_seconds,
        badSteps: params.bad_steps,
        logEvery: params.log_every,
        flopsPerToken: trainingFlops["6(N - E) + 6LAT"](shape, rowTokens / training.length),
        flopsFormula:
          "6 × (parameters - input embedding) + 6 × layers × heads × head size × mean length (causal attention)",
        advice: {
          diverged: "lower lr, or give it warmup_steps, and look at the loss before that step in the log",
          memory: "lower micro_batch or seq_len: batch_rows keeps the step's size"
        }
      },
      {
        batches: (first, count) =>
          Effect.sync(() => {
            const chosen = range(first, count).map((index) => training[sampleAt(index, training.length, seed)]!)
            const batches = inMicroBatches(chosen, params.micro_batch, tokenizer.eos)
            return ownIndices(world, batches.length).map((index) => batches[index]!)
          }),
        validation: Effect.sync(() => inMicroBatches(validation, params.micro_batch, tokenizer.eos))
      },
      Effect.mapError(loadWeights(model, base), unreadable),
      { ...context, world, earlier: context.previous?.work }
    )
    if (ranks.rank > 0) return { model: {} }
    const facts = yield* writeHfModel(context.output("model"), {
      shape,
      precision: "fp32",
      weights: weightsOf(model),
      vocabulary: tokenizer.vocabulary,
      chat: "guanaco"
    }).pipe(
      Effect.mapError(
        storageFailure(
          `the model in ${context.output("model")}`,
          "the training itself is saved",
          "only this is done again"
        )
      )
    )
    const { state } = outcome
    return {
      model: {
        ...facts,
        shape,
        conversations: conversations.length,
        truncated,
        steps: state.step,
        tokens: state.tokens,
        training_loss: state.training_loss,
        first_validation_loss: state.first_validation_loss,
        validation_loss: state.validation?.loss ?? null
      }
    }
  }, Effect.scoped)
})
