/** Token ids mean the same to the data and to the model: as many, of the same tokenizer. */
import type { evalStage } from "../Eval.ts"
import type { pretrainStage } from "../Pretrain.ts"
import { missing, numberIn, ok, originOf, stageRule } from "./StageRule.ts"

export const vocabulary = stageRule<typeof pretrainStage>("pretrain", "vocabulary", (examined) => {
  const [data] = examined.inputs["data"] ?? []
  const ofData = numberIn(data, "vocabulary_size")
  const ofModel = examined.params.model.vocab_size
  if (ofData === undefined)
    return ok(`the model's is ${ofModel}; that of ${originOf(examined, "data")} is known once it is made`)
  return ofData === ofModel
    ? ok(`${ofModel} in the model and in ${originOf(examined, "data")}`)
    : missing(
        `${ofModel} in the model, ${ofData} in ${originOf(examined, "data")}`,
        `set model.vocab_size to ${ofData}, or tokenize with another tokenizer`
      )
})

export const tokenizers = stageRule<typeof evalStage>("eval", "vocabulary", (examined) => {
  const known = Object.entries(examined.inputs).flatMap(([port, all]) =>
    all.flatMap((facts, index) => {
      const digest = facts["tokenizer_digest"]
      const edge = examined.stage.inputs[port]?.[index]
      return typeof digest === "string" && edge !== undefined ? [{ digest, origin: `${edge.stage}.${edge.port}` }] : []
    })
  )
  const [first, ...others] = known
  if (first === undefined || others.length === 0) return undefined
  const other = others.find(({ digest }) => digest !== first.digest)
  return other === undefined
    ? ok(`one tokenizer made ${known.map(({ origin }) => origin).join(", ")}`)
    : missing(
        `${first.origin} and ${other.origin} come from different tokenizers`,
        "evaluate models of one tokenizer in one stage, with data of the same"
      )
})
