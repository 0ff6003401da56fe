/**
 * convert: a checkpoint as a Hugging Face folder, which transformers loads, and as GGUF files, which llama.cpp loads. What was written is read
 * again and compared tensor by tensor.
 */
import { createHash } from "node:crypto"
import { Effect } from "effect"
import { Precision } from "../model/HfConfig.ts"
import { dtypeOf, readHfModel, writeHfModel } from "../model/HuggingFace.ts"
import { encodeFloats } from "../model/Safetensors.ts"
import { defineStage, parameter, StageError } from "../pipeline/StageType.ts"
import { secondsOfBytes } from "../engine/MachineSpeed.ts"
import { ggufHeadline, ggufResumePoint, GgufTypes, makeGgufFiles, REWRITE_RATE } from "./GgufFiles.ts"
import { forecastConvert } from "./ModelForecast.ts"
import { modelFailure, openModelArtifact, stopIfRequested, vocabularyOf } from "./ModelArtifact.ts"

/** Largest magnitude that fp16 rounds to a number. */
const FP16_LIMIT = 65_520

const sha256 = (bytes: Uint8Array): string => createHash("sha256").update(bytes).digest("hex")

/** Why the values cannot be stored in `precision`, and what helps. */
const flaw = (values: Float32Array, precision: Precision) => {
  const limit = precision === "fp16" ? FP16_LIMIT : Infinity
  for (let i = 0; i < values.length; i++) {
    const value = values[i]!
    if (Math.abs(value) < limit) continue
    return Number.isFinite(value)
      ? { reason: `${value}, beyond the range of fp16`, next: "set dtype to bf16 or fp32" }
      : { reason: `${value}`, next: "choose an earlier checkpoint, or train again with a lower learning rate" }
  }
  return undefined
}

export const convertStage = defineStage({
  name: "convert",
  version: 2,
  describe: "Writes a checkpoint as a Hugging Face folder and as GGUF files, and verifies what it wrote.",
  params: {
    dtype: parameter(Precision, {
      // GGUF files are made from the fp32 weights: another dtype leaves them as they are.
      change: "additive",
      default: "fp32",
      describe: "Precision of model.safetensors: fp32, fp16 or bf16, rounded to nearest."
    }),
    gguf: parameter(GgufTypes, {
      change: "additive",
      default: ["F16"],
      describe: "GGUF types to write as well: F32, F16, Q8_0, Q4_0; made from the fp32 weights, whatever dtype is."
    })
  },
  inputs: { checkpoint: { type: "Checkpoint", describe: "fp32 weights and config.json." } },
  outputs: {
    model: { type: "HfModel", describe: "The folder that transformers' from_pretrained takes." },
    gguf: { type: "GgufModel", describe: "model-TYPE.gguf for llama.cpp." }
  },
  headline: ({ gguf, model }) =>
    [...(typeof model["dtype"] === "string" ? [`safetensors in ${model["dtype"]}`] : []), ggufHeadline(gguf)]
      .filter((part) => part !== "")
      .join(", "),
  resumePoint: (work, { gguf }) => ggufResumePoint(work, gguf, 1),
  forecast: (params, { checkpoint }, previous) => forecastConvert(params, checkpoint[0], previous?.outputs["gguf"]),
  modelSeconds: ({ amount }) => secondsOfBytes(amount, REWRITE_RATE),
  run: Effect.fn("convert")(function* (context) {
    const { inputs, params } = context
    const input = inputs.checkpoint
    const source = yield* openModelArtifact(input)
    const vocabulary = yield* vocabularyOf(input)
    const { shape } = source
    const folder = context.output("model")
    const failed = modelFailure(`the model in ${folder}`, input)
    const written = new Map<string, string>()
    const total = source.tensors.size
    const weights = [...source.tensors.values()].map((tensor, index) => ({
      name: tensor.name,
      shape: tensor.shape,
      values: Effect.gen(function* () {
        yield* stopIfRequested(
          context.stopRequested,
          "stopped while the model was written; it is written anew next time"
        )
        context.progress({ done: index, total, unit: "tensors" })
        const values = yield* tensor.toFloat32()
        const found = flaw(values, params.dtype)
        if (found !== undefined) {
          return yield* new StageError({
            failure: "invalid-input",
            message: `${input.origin}: ${tensor.name} holds ${found.reason}`,
            next: found.next
          })
        }
        const bytes = encodeFloats(values, dtypeOf[params.dtype])
        written.set(tensor.name, sha256(bytes))
        return bytes
      })
    }))
    const model = yield* Effect.mapError(
      writeHfModel(folder, { shape, precision: params.dtype, weights, vocabulary, chat: null }),
      failed
    )

    const back = yield* Effect.mapError(readHfModel(folder), failed)
    for (const tensor of back.tensors.values()) {
      const [expected, actual] = [written.get(tensor.name), sha256(yield* Effect.mapError(tensor.bytes(), failed))]
      if (actual !== expected) {
        return yield* new StageError({
          failure: "corrupt",
          message: `${folder}: ${tensor.name} reads back with sha256 ${actual}, ${expected} was written`,
          next: "check the disk, then give the same command again"
        })
      }
    }
    context.log(`${total} tensors in ${params.dtype}, read back and compared`)

    const gguf = yield* makeGgufFiles(context, context.output("gguf"), {
      source: input,
      content: source,
      vocabulary,
      chat: null,
      types: params.gguf,
      earlier: { result: context.previous?.outputs["gguf"], work: context.previous?.work }
    })
    return { model: { ...model, shape }, gguf }
  })
})
