/** A document mask asks that the blocks tell where documents begin. */
import type { pretrainStage } from "../Pretrain.ts"
import { missing, ok, originOf, stageRule } from "./StageRule.ts"

export const documentMask = stageRule<typeof pretrainStage>("pretrain", "documents", (examined) => {
  if (!examined.params.document_mask) return undefined
  const [data] = examined.inputs["data"] ?? []
  const origin = originOf(examined, "data")
  // Known only with the rest of the dataset: its absence alone tells nothing.
  if (data?.["seq_len"] === undefined)
    return ok(`whether ${origin} tells where documents begin is known once it is made`)
  return data["attention_reset"] === true
    ? ok(`${origin} tells where documents begin`)
    : missing(
        `document_mask is true, but ${origin} does not tell where documents begin`,
        `set attention_reset: true on ${origin.split(".")[0]}, or document_mask: false`
      )
})
