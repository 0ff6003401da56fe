/** Tokens to train on against the budget of pretraining. */
import type { pretrainStage } from "../Pretrain.ts"
import { grouped, missing, numberIn, ok, originOf, stageRule, warning } from "./StageRule.ts"

/** Past this many epochs, repeating data gives little (arXiv:2305.16264). */
const worthwhileEpochs = 4

export const budget = stageRule<typeof pretrainStage>("pretrain", "tokens", (examined) => {
  const [data] = examined.inputs["data"] ?? []
  const blocks = numberIn(data, "train_blocks")
  const length = numberIn(data, "seq_len")
  const origin = originOf(examined, "data")
  const asked = examined.params.max_tokens
  if (blocks === undefined || length === undefined)
    return ok(`a budget of ${grouped(asked)}; how many ${origin} has is known once it is made`)
  const tokens = blocks * length
  if (tokens === 0) {
    const step = "give it more text, or pack with a smaller seq_len"
    return examined.inputsMade
      ? missing(`${origin} has no training block`, step)
      : warning(`${origin} will hardly have a training block`, step)
  }
  const epochs = asked / tokens
  const detail = `${examined.inputsMade ? "" : "about "}${grouped(tokens)} in ${origin} for a budget of ${grouped(asked)}`
  if (epochs <= 1) return ok(detail)
  const times = `${detail}: each is trained on ${epochs.toFixed(1)} times`
  return warning(
    epochs > worthwhileEpochs ? `${times}, and past ${worthwhileEpochs} times repeating gives little` : times,
    `add text, or lower max_tokens to ${grouped(tokens)}`
  )
})
