/** quantize: a model as GGUF files of fewer bits per weight, with the error of each type against the weights it was made from. */
import { Effect, Schema } from "effect"
import { ChatFormat } from "../model/ChatTemplate.ts"
import { defineStage, parameter, StageError } from "../pipeline/StageType.ts"
import { secondsOfBytes } from "../engine/MachineSpeed.ts"
import { ggufHeadline, ggufResumePoint, GgufTypes, makeGgufFiles, REWRITE_RATE } from "./GgufFiles.ts"
import { forecastQuantize } from "./ModelForecast.ts"
import { openModelArtifact, vocabularyOf } from "./ModelArtifact.ts"

const decodeChat = Schema.decodeUnknownEffect(Schema.NullOr(ChatFormat))

export const quantizeStage = defineStage({
  name: "quantize",
  version: 2,
  describe: "Writes a model as GGUF files of fewer bits per weight.",
  params: {
    types: parameter(GgufTypes.check(Schema.isMinLength(1, { message: "name at least one type" })), {
      change: "additive",
      default: ["Q8_0", "Q4_0"],
      describe: "F32, F16, Q8_0 (8.5 bits per weight), Q4_0 (4.5, its output projection in Q8_0)."
    })
  },
  inputs: { model: { type: "HfModel", describe: "The model to quantize; its chat format goes along." } },
  outputs: { gguf: { type: "GgufModel", describe: "model-TYPE.gguf for llama.cpp." } },
  headline: ({ gguf }) => ggufHeadline(gguf),
  resumePoint: (work, { types }) => ggufResumePoint(work, types, 0),
  forecast: ({ types }, { model }, previous) => forecastQuantize(types, model[0], previous?.outputs["gguf"]),
  modelSeconds: ({ amount }) => secondsOfBytes(amount, REWRITE_RATE),
  run: Effect.fn("quantize")(function* (context) {
    const input = context.inputs.model
    const source = yield* openModelArtifact(input)
    const vocabulary = yield* vocabularyOf(input)
    const chat = yield* decodeChat(input.facts["chat"] ?? null).pipe(
      Effect.mapError(
        () =>
          new StageError({
            failure: "invalid-input",
            message: `${input.origin} has the chat format ${JSON.stringify(input.facts["chat"])}, which is unknown here`,
            next: `use one of ${ChatFormat.literals.join(", ")}`
          })
      )
    )
    const gguf = yield* makeGgufFiles(context, context.output("gguf"), {
      source: input,
      content: source,
      vocabulary,
      chat,
      types: context.params.types,
      earlier: { result: context.previous?.outputs["gguf"], work: context.previous?.work }
    })
    return { gguf }
  })
})
