/** Forecasts of the stages that pass models on or measure them: checkpoint, convert, quantize, eval. */
import { Option, Schema } from "effect"
import type { Facts } from "../artifacts/Artifact.ts"
import { type ModelShape, parameterCount } from "../model/Architecture.ts"
import { type GgufType, ggufTypes } from "../model/Gguf.ts"
import type { Precision } from "../model/HfConfig.ts"
import {
  checkpointBytes,
  ggufBytes,
  hfModelBytes,
  rewritingMemory,
  scoringMemory,
  weightsBytes
} from "../model/ModelSizes.ts"
import type { Extent, Forecast } from "../pipeline/StageType.ts"
import { formatBytes } from "../pipeline/file/Quantity.ts"
import { factsOf, numberIn, passedOn, shapeIn, sumKnown } from "./KnownFacts.ts"
import { outlook } from "./Outlook.ts"
import { forwardFlops } from "./TrainingForecast.ts"

const tokenizerFacts = ["tokenizer", "tokenizer_digest"]
/** `best` verifies all that stayed; two stay by default, and the best one. */
const CHECKPOINTS_OF_BEST = 3

export const forecastCheckpoint = (
  select: "last" | "best" | { readonly step: number } | { readonly average: number },
  state: Facts | undefined
): Forecast | undefined => {
  const shape = shapeIn(state)
  if (shape === undefined) return undefined
  const read =
    select === "best" ? CHECKPOINTS_OF_BEST : typeof select === "object" && "average" in select ? select.average : 1
  const isLast = select === "last" || (typeof select === "object" && "average" in select)
  const step = typeof select === "object" && "step" in select ? select.step : numberIn(state, "steps")
  return {
    amount: read * checkpointBytes(shape) + weightsBytes(shape, "fp32"),
    unit: "bytes",
    bytes: weightsBytes(shape, "fp32"),
    memory: rewritingMemory(shape),
    outputs: {
      checkpoint: factsOf({
        step: isLast || typeof select === "object" ? step : undefined,
        tokens: isLast ? numberIn(state, "tokens") : undefined,
        parameters: parameterCount(shape),
        selected: select,
        context_length: shape.max_position_embeddings,
        shape,
        ...passedOn(state, tokenizerFacts)
      })
    }
  }
}

const decodeTypes = Schema.decodeUnknownOption(Schema.Array(Schema.Struct({ type: Schema.Literals(ggufTypes) })))

/** Types that an earlier GgufModel has. */
const typesIn = (gguf: Facts | undefined): ReadonlyArray<GgufType> =>
  Option.getOrElse(decodeTypes(gguf?.["files"]), () => []).map(({ type }) => type)

/** Files are made from all fp32 weights, read once each. */
const ggufWork = (shape: ModelShape, types: ReadonlyArray<GgufType>): number =>
  types.reduce((sum, type) => sum + weightsBytes(shape, "fp32") + ggufBytes(shape, type), 0)

const ggufFacts = (shape: ModelShape, types: ReadonlyArray<GgufType>, chat: Schema.Json): Facts => ({
  files: types.map((type) => ({ type, path: `model-${type}.gguf`, bytes: ggufBytes(shape, type) })),
  chat,
  context_length: shape.max_position_embeddings,
  estimated: ["files"]
})

/** "Q8_0 ~1.17 GB, Q4_0 ~622 MB". */
const fileList = (shape: ModelShape, types: ReadonlyArray<GgufType>): string =>
  types.map((type) => `${type} ~${formatBytes(ggufBytes(shape, type))}`).join(", ")

const fileSizes = (shape: ModelShape, types: ReadonlyArray<GgufType>): number =>
  types.reduce((sum, type) => sum + ggufBytes(shape, type), 0)

/** `made` of the files are there already. */
const spared = (made: number, total: number): { readonly resumesAt?: Extent } =>
  made > 0 ? { resumesAt: { done: made, total, unit: "files" } } : {}

export const forecastConvert = (
  params: { readonly dtype: Precision; readonly gguf: ReadonlyArray<GgufType> },
  checkpoint: Facts | undefined,
  earlier: Facts | undefined
): Forecast | undefined => {
  const shape = shapeIn(checkpoint)
  if (shape === undefined) return undefined
  const there = typesIn(earlier)
  return {
    amount: weightsBytes(shape, "fp32") + hfModelBytes(shape, params.dtype) + ggufWork(shape, params.gguf),
    unit: "bytes",
    ...outlook(
      `safetensors in ${params.dtype} ~${formatBytes(weightsBytes(shape, params.dtype))}`,
      fileList(shape, params.gguf)
    ),
    bytes: hfModelBytes(shape, params.dtype) + fileSizes(shape, params.gguf),
    memory: rewritingMemory(shape),
    ...spared(params.gguf.filter((type) => there.includes(type)).length, params.gguf.length + 1),
    outputs: {
      model: factsOf({
        parameters: parameterCount(shape),
        dtype: params.dtype,
        context_length: shape.max_position_embeddings,
        chat: null,
        shape,
        ...passedOn(checkpoint, tokenizerFacts)
      }),
      gguf: ggufFacts(shape, params.gguf, null)
    }
  }
}

export const forecastQuantize = (
  types: ReadonlyArray<GgufType>,
  model: Facts | undefined,
  earlier: Facts | undefined
): Forecast | undefined => {
  const shape = shapeIn(model)
  if (shape === undefined) return undefined
  const there = typesIn(earlier)
  return {
    amount: ggufWork(shape, types),
    unit: "bytes",
    ...outlook(fileList(shape, types)),
    bytes: fileSizes(shape, types),
    memory: rewritingMemory(shape),
    ...spared(types.filter((type) => there.includes(type)).length, types.length),
    outputs: { gguf: ggufFacts(shape, types, model?.["chat"] ?? null) }
  }
}

/** Tokens that go through a model for each byte of a file of questions: the question is repeated for each choice, four as a rule. */
const TOKENS_PER_QUESTION_BYTE = 0.6
/** A question with its choices as a line, and the rows that it becomes. */
const BYTES_PER_QUESTION = 150
const CHOICES = 4
/** Results of one row in the log of scores; and the report. */
const BYTES_PER_REQUEST = 40
const REPORT_BYTES = 20_000

/** Of what is asked; which of it an earlier report has, only the artifacts' digests tell. */
export const forecastEval = (
  params: {
    readonly tasks: "all" | ReadonlyArray<string>
    readonly max_blocks: "all" | number
    readonly batch_tokens: number
    readonly profile: string
  },
  inputs: {
    readonly models: ReadonlyArray<Facts>
    readonly data: ReadonlyArray<Facts>
    readonly questions: ReadonlyArray<Facts>
  }
): Forecast | undefined => {
  const shapes = inputs.models.map(shapeIn)
  const seqLen = numberIn(inputs.data[0], "seq_len") ?? 0
  const wantsPerplexity = inputs.data.length > 0 && (params.tasks === "all" || params.tasks.includes("perplexity"))
  const heldOut = numberIn(inputs.data[0], "validation_blocks")
  const blocks = !wantsPerplexity
    ? 0
    : params.max_blocks === "all"
      ? heldOut
      : Math.min(params.max_blocks, heldOut ?? params.max_blocks)
  const wantsQuestions = params.tasks === "all" || params.tasks.some((task) => task !== "perplexity")
  const questionBytes = wantsQuestions ? sumKnown(inputs.questions.map((facts) => numberIn(facts, "bytes"))) : 0
  const rows = sumKnown([
    blocks,
    questionBytes === undefined ? undefined : (CHOICES * questionBytes) / BYTES_PER_QUESTION
  ])
  const tokens = sumKnown([
    blocks === undefined ? undefined : blocks * seqLen,
    questionBytes === undefined ? undefined : questionBytes * TOKENS_PER_QUESTION_BYTE
  ])
  const flops = sumKnown(shapes.map((shape) => (shape === undefined ? undefined : forwardFlops(shape, seqLen))))
  const memories = shapes.map((shape) =>
    shape === undefined ? undefined : scoringMemory(shape, Math.max(params.batch_tokens, shape.max_position_embeddings))
  )
  const memory = sumKnown(memories) === undefined ? undefined : Math.max(0, ...memories.map((bytes) => bytes ?? 0))
  return {
    amount: tokens === undefined || flops === undefined ? undefined : tokens * flops,
    unit: "FLOP",
    bytes: rows === undefined ? undefined : Math.ceil(rows * inputs.models.length * BYTES_PER_REQUEST) + REPORT_BYTES,
    ...(memory === undefined ? {} : { memory }),
    outputs: { report: { profile: params.profile } }
  }
}
