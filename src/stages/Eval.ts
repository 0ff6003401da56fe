/**
 * eval: how good models are. Perplexity and bits per byte on a dataset's validation split, and multiple-choice questions by log-likelihood, each model on
 * the same requests, side by side in one report.
 */
import { Clock, Effect, FileSystem, Option, Path, Schema } from "effect"
import type { ArtifactHandle } from "../artifacts/Artifact.ts"
import { parameterCount } from "../model/Architecture.ts"
import { readShape } from "../model/HuggingFace.ts"
import { secondsOfArithmetic } from "../engine/MachineSpeed.ts"
import { chooseCompute, computeParameters } from "../engine/Compute.ts"
import { openScorer } from "../engine/Scorer.ts"
import { loadTokenizer, tokenizerOf } from "../engine/Tokenizer.ts"
import { noScores, readEarlierScores } from "../evaluation/EarlierScores.ts"
import { Profile } from "../evaluation/LogLikelihood.ts"
import { markdown, type ModelScores, type Report } from "../evaluation/Report.ts"
import { rowsInLog, scoreSequences } from "../evaluation/Scoring.ts"
import type { Metrics, Task, TaskError } from "../evaluation/Task.ts"
import { defineStage, parameter, Preempted, StageError } from "../pipeline/StageType.ts"
import { internal, invalid, perplexitySubject, questionSubjects, select, type Subject } from "./EvalSubjects.ts"
import { makeAnew, vocabularyOf } from "./ModelArtifact.ts"
import { forecastEval } from "./ModelForecast.ts"
import { AtLeast } from "./TrainingParameters.ts"
import { extentOf, namesIn, noteTotal, textOf } from "./WorkExtent.ts"

const params = {
  ...computeParameters,
  tasks: parameter(Schema.Union([Schema.Literal("all"), Schema.NonEmptyArray(Schema.String)]), {
    change: "additive",
    describe: "perplexity, and the names of the questions' files without .jsonl; all: whatever the inputs hold",
    default: "all"
  }),
  profile: parameter(Profile, {
    // Perplexity does not depend on it; questions are asked again.
    change: "additive",
    describe:
      "current: BOS before each prompt, as lm-evaluation-harness does now; legacy: none, as in TinyLlama's table",
    default: "current"
  }),
  max_blocks: parameter(Schema.Union([Schema.Literal("all"), AtLeast(1)]), {
    // Answers to questions stay; perplexity is measured again.
    change: "additive",
    describe: "blocks of the validation split for perplexity, spread evenly over it",
    default: "all"
  }),
  batch_tokens: parameter(AtLeast(1), {
    change: "operational",
    describe: "most tokens that go through the model at once, padding included: memory against speed",
    default: 2048
  })
}

/** The tokenizer of the first model, which the others must share; one that does not say has Llama 2's. */
const tokenizerFor = (models: ReadonlyArray<ArtifactHandle>) =>
  Effect.gen(function* () {
    const named = models.find(({ facts }) => typeof facts["tokenizer"] === "string")
    return named === undefined ? yield* loadTokenizer("llama-2") : yield* tokenizerOf(yield* vocabularyOf(named))
  }).pipe(
    Effect.mapError((error) =>
      error instanceof StageError
        ? error
        : new StageError({ failure: "internal", message: error.message, next: "npm ci && npm run build:native" })
    )
  )

const shapeOf = (model: ArtifactHandle) =>
  Effect.mapError(
    readShape(model.folder),
    (error) =>
      new StageError({
        failure: "corrupt",
        message: `${model.origin}: the model cannot be read: ${error.message}`,
        next: makeAnew(model)
      })
  )

const questionsAdvice = 'correct that line: a question is {"query": text, "choices": [texts], "gold": index}'

export const evalStage = defineStage({
  name: "eval",
  version: 2,
  describe: "Measures models: perplexity and bits per byte of held-out text, multiple-choice accuracy.",
  params,
  inputs: {
    models: {
      type: "HfModel",
      many: true,
      change: "additive",
      describe: "The models to measure; the first is what the others are compared with."
    },
    data: {
      type: "PackedDataset",
      optional: true,
      change: "additive",
      describe: "Its validation split gives perplexity and bits per byte."
    },
    questions: {
      type: "Documents",
      optional: true,
      change: "additive",
      describe: "jsonl files of {query, choices, gold}."
    }
  },
  outputs: { report: { type: "EvalReport", describe: "report.json and report.md: every model on every task." } },
  cpus: "all",
  headline: ({ report }) => (Array.isArray(report["models"]) ? report["models"].map(modelHeadline).join("; ") : ""),
  forecast: (asked, { data, models, questions }) => forecastEval(asked, { data, models, questions }),
  modelSeconds: ({ amount }, _, threads, gpus) => secondsOfArithmetic(amount, threads, gpus),
  resumePoint: Effect.fn("eval.resumePoint")(function* (work) {
    let rows = 0
    for (const name of yield* namesIn(work))
      if (/^scores-.*\.jsonl$/u.test(name)) rows += rowsInLog(yield* textOf(`${work}/${name}`))
    return yield* extentOf(work, rows)
  }),
  run: Effect.fn("eval")(function* (context) {
    const { inputs, log, params, threads } = context
    const fs = yield* FileSystem.FileSystem
    const path = yield* Path.Path
    if (inputs.models.length === 0)
      return yield* invalid("no model is connected to port models", "connect at least one")
    const tokenizer = yield* tokenizerFor(inputs.models)
    const badQuestions = (error: TaskError) => invalid(error.message, questionsAdvice)
    const subjects = yield* Effect.gen(function* () {
      const { data, questions } = inputs
      return [
        ...(data === undefined ? [] : [yield* perplexitySubject(data, tokenizer, params.max_blocks)]),
        ...(questions === undefined ? [] : yield* questionSubjects(questions, tokenizer, params.profile))
      ]
    }).pipe(
      Effect.catchTag("TaskError", (error) => badQuestions(error)),
      Effect.flatMap((all) => select(all, params.tasks))
    )
    if (subjects.length === 0)
      return yield* invalid("there is nothing to measure", "connect data, questions or both to this stage")

    const { previous } = context
    const earlierReport = previous?.outputs["report"]
    const earlier = earlierReport === undefined ? noScores : yield* readEarlierScores(earlierReport)
    const known = ({ input, name, sameUnder }: Subject, model: ArtifactHandle): Metrics | undefined =>
      previous !== undefined && sameUnder(previous.params)
        ? earlier({ model: model.digest, task: name, source: input.digest })
        : undefined

    const started = yield* Clock.currentTimeMillis
    let done = 0
    let total = 0
    let tokens = 0
    const requests = new Map<string, number>()
    /** Of all that is not known already, by the number of rows that each task had for the models so far. */
    const countRequests = Effect.fnUntraced(function* () {
      const counted = inputs.models
        .flatMap((model) => subjects.filter((subject) => known(subject, model) === undefined))
        .reduce((sum, { name }) => sum + (requests.get(name) ?? 0), 0)
      if (counted !== total) yield* noteTotal(context.work, counted, "requests")
      total = counted
    })
    const compute = yield* chooseCompute(params, threads)
    const scores: Array<ModelScores> = []
    for (const handle of inputs.models) {
      const open = subjects.filter((subject) => known(subject, handle) === undefined)
      const model = yield* Effect.gen(function* () {
        const shape = yield* shapeOf(handle)
        const { max_position_embeddings: contextLength, vocab_size: vocabularySize } = shape
        const digest = handle.facts["tokenizer_digest"]
        if (vocabularySize < tokenizer.vocabularySize || (digest !== undefined && digest !== tokenizer.digest))
          return yield* invalid(
            `${handle.origin} was made with the tokenizer ${JSON.stringify(handle.facts["tokenizer"] ?? null)}, not with ${tokenizer.name}`,
            "evaluate it in a stage of its own"
          )
        const tasks: Record<string, Metrics> = {}
        const scorer =
          open.length === 0 ? undefined : yield* openScorer({ folder: handle.folder, origin: handle.origin, compute })
        const prepared = new Map<string, Task>()
        for (const subject of open) {
          const task = yield* Effect.catchTag(subject.prepare(contextLength, handle.origin), "TaskError", badQuestions)
          prepared.set(subject.name, task)
          requests.set(subject.name, task.sequences.length)
        }
        yield* countRequests()
        for (const subject of subjects) {
          const task = prepared.get(subject.name)
          if (scorer === undefined || task === undefined) {
            tasks[subject.name] = known(subject, handle) ?? {}
            log(`${handle.origin}, ${subject.name}: taken from an earlier result`)
            continue
          }
          const logName = `scores-${handle.digest.slice(0, 16)}-${task.name.replaceAll(/[^\w.-]/gu, "_")}.jsonl`
          const results = yield* scoreSequences({
            task: task.name,
            owner: handle.digest,
            sequences: task.sequences,
            batchTokens: params.batch_tokens,
            log: path.join(context.work, logName),
            earlierLog: previous?.work === undefined ? undefined : path.join(previous.work, logName),
            score: scorer.score,
            stopRequested: context.stopRequested,
            onScored: (rows, added, fromLog) => {
              done += rows
              tokens += added
              if (fromLog) log(`${handle.origin}, ${task.name}: ${rows} requests were scored by an earlier attempt`)
            },
            afterBatch: Effect.map(Clock.currentTimeMillis, (now) =>
              context.progress({
                done,
                total,
                unit: "requests",
                metrics: { tokens_per_second: Math.round((1000 * tokens) / Math.max(1, now - started)) }
              })
            )
          })
          tasks[task.name] = task.metrics(results)
        }
        const model: ModelScores = {
          model: handle.origin,
          digest: handle.digest,
          parameters: parameterCount(shape),
          context_length: contextLength,
          tasks
        }
        return model
      }).pipe(
        Effect.scoped,
        Effect.catchTags({
          NotFinite: (error) =>
            new StageError({
              failure: "diverged",
              message: `${handle.origin}: ${error.message}`,
              next: "look at the loss of the stage that trained it, and train again with a lower learning rate"
            }),
          Stopped: () =>
            new Preempted({
              message: `stopped after ${done} of ${total} requests; the rest is done when it runs again`
            }),
          PlatformError: internal
        })
      )
      scores.push(model)
      for (const { name } of subjects) log(`${handle.origin}, ${name}: ${summary(model.tasks[name] ?? {})}`)
    }

    const report: Report = {
      format: "tinyllama-evaluation",
      version: 1,
      profile: params.profile,
      tasks: subjects.map(({ input, name }) => ({ name, source: input.origin, digest: input.digest })),
      models: scores
    }
    const folder = context.output("report")
    yield* fs
      .writeFileString(path.join(folder, "report.json"), `${JSON.stringify(report, null, 2)}\n`)
      .pipe(
        Effect.andThen(fs.writeFileString(path.join(folder, "report.md"), markdown(report))),
        Effect.mapError(internal)
      )
    return { report: { profile: report.profile, models: scores.map(factsOf) } }
  })
})

const summary = (metrics: Metrics): string =>
  ["perplexity", "bits_per_byte", "acc", "acc_norm"]
    .flatMap((metric) => (metrics[metric] === undefined ? [] : [`${metric} ${metrics[metric].toPrecision(4)}`]))
    .join(", ")

/** A model's scores as the runner's summary shows them: perplexity beside the multiple-choice tasks. */
const factsOf = ({ model, tasks }: ModelScores) => {
  const { perplexity, ...rest } = tasks
  return {
    model,
    ...(perplexity === undefined
      ? {}
      : { perplexity: perplexity["perplexity"] ?? null, bits_per_byte: perplexity["bits_per_byte"] ?? null }),
    tasks: rest
  }
}

const ModelFacts = Schema.Struct({
  model: Schema.String,
  perplexity: Schema.optionalKey(Schema.Finite),
  tasks: Schema.Record(Schema.String, Schema.Struct({ acc: Schema.Finite }))
})

/** "chat.model: perplexity 245, questions 0.39" from a model's entry in the facts. */
const modelHeadline = (facts: Schema.Json): string =>
  Option.match(Schema.decodeUnknownOption(ModelFacts)(facts), {
    onNone: () => "",
    onSome: ({ model, perplexity, tasks }) =>
      `${model}: ${[...(perplexity === undefined ? [] : [`perplexity ${perplexity.toPrecision(3)}`]), ...Object.entries(tasks).map(([task, { acc }]) => `${task} ${acc.toFixed(2)}`)].join(", ")}`
  })
