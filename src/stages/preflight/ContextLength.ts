/** Sequences fit into the context of the model that is to read them. */
import type { pretrainStage } from "../Pretrain.ts"
import type { sftStage } from "../Sft.ts"
import { missing, numberIn, ok, originOf, stageRule, warning } from "./StageRule.ts"

export const pretraining = stageRule<typeof pretrainStage>("pretrain", "context", (examined) => {
  const [data] = examined.inputs["data"] ?? []
  const length = numberIn(data, "seq_len")
  const context = examined.params.model.max_position_embeddings
  const origin = originOf(examined, "data")
  if (length === undefined)
    return ok(`the model reads ${context} tokens; the length of ${origin} is known once it is made`)
  if (length > context)
    return missing(
      `${origin} has sequences of ${length} tokens, the model reads ${context}`,
      `set seq_len of the pack stage to at most ${context}, or raise model.max_position_embeddings`
    )
  return ok(`sequences of ${length} tokens for a model that reads ${context}`)
})

export const fineTuning = stageRule<typeof sftStage>("sft", "context", (examined) => {
  const [base] = examined.inputs["base"] ?? []
  const context = numberIn(base, "context_length")
  const length = examined.params.seq_len
  if (context === undefined)
    return ok(
      `conversations of up to ${length} tokens; what ${originOf(examined, "base")} reads is known once it is made`
    )
  return length > context
    ? warning(
        `seq_len ${length} exceeds what ${originOf(examined, "base")} reads: conversations are cut at ${context} tokens`,
        `set seq_len to ${context}, or train a base model with a longer context`
      )
    : ok(`conversations of up to ${length} tokens for a model that reads ${context}`)
})
