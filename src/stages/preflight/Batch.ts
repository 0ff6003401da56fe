/** A training step divides into sequences, micro-batches and devices. */
import type { pretrainStage } from "../Pretrain.ts"
import { grouped, missing, numberIn, ok, originOf, stageRule, type Verdict, warning } from "./StageRule.ts"

export const batch = stageRule<typeof pretrainStage>("pretrain", "batch", (examined): Verdict => {
  const { batch_tokens, max_tokens, micro_batch } = examined.params
  const [data] = examined.inputs["data"] ?? []
  const length = numberIn(data, "seq_len")
  if (length === undefined)
    return ok(
      `${grouped(batch_tokens)} tokens a step; the length of ${originOf(examined, "data")} is known once it is made`
    )
  const devices = Math.max(1, examined.stage.resources.gpus)
  const sequences = Math.floor(batch_tokens / length)
  const step = sequences * length
  if (sequences === 0)
    return missing(
      `batch_tokens ${grouped(batch_tokens)} is less than one sequence of ${length} tokens`,
      `set batch_tokens to ${length} or more`
    )
  if (step > max_tokens)
    return missing(
      `one step takes ${grouped(step)} tokens, the budget is ${grouped(max_tokens)}`,
      "raise max_tokens, or lower batch_tokens"
    )
  if (sequences < devices)
    return missing(
      `a step of ${sequences} sequences leaves some of ${devices} GPUs without work`,
      `set batch_tokens to at least ${grouped(devices * length)}`
    )
  // auto takes what divides the step where it can.
  const share = (micro_batch === "auto" ? 1 : micro_batch) * devices
  const form = `${sequences} sequences a step in micro-batches of ${micro_batch}${devices > 1 ? ` on ${devices} GPUs` : ""}`
  if (sequences % devices !== 0)
    return warning(
      `${form}: ${devices} does not divide ${sequences}, so some GPUs wait`,
      `set batch_tokens to a multiple of ${grouped(devices * length)}`
    )
  if (sequences > share && sequences % share !== 0)
    return warning(
      `${form}: the last micro-batch of each step is not full`,
      `set batch_tokens to a multiple of ${grouped(share * length)}, or another micro_batch`
    )
  return ok(step === batch_tokens ? form : `${form}: ${grouped(step)} of batch_tokens ${grouped(batch_tokens)}`)
})
