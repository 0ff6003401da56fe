/** Perplexity and bits per byte of packed blocks, as training cuts them: every target of every block is scored once. */
import type { ScoredSequence } from "../LogLikelihood.ts"
import { bitsPerByte, perplexity } from "../Metrics.ts"
import type { Task } from "../Task.ts"

/** `count` indices spread evenly over `total`, all of them when there are fewer: early blocks may come from one source only. */
export const spread = (total: number, count: number): ReadonlyArray<number> =>
  count >= total
    ? Array.from({ length: total }, (_, index) => index)
    : Array.from({ length: count }, (_, index) => Math.floor((index * total) / count))

/**
 * `blocks` hold context length + 1 ids each. `bytesOf(previous, id)` is the number of UTF-8 bytes that `id` stands for after `previous`.
 */
export const perplexityTask = (
  name: string,
  blocks: ReadonlyArray<ArrayLike<number>>,
  bytesOf: (previous: number, id: number) => number
): Task => {
  let tokens = 0
  let bytes = 0
  const sequences = blocks.map((block): ScoredSequence => {
    const ids = Int32Array.from(block)
    for (let at = 1; at < ids.length; at++) bytes += bytesOf(ids[at - 1] ?? 0, ids[at] ?? 0)
    tokens += ids.length - 1
    return { input: ids.slice(0, -1), targets: ids.slice(1) }
  })
  return {
    name,
    sequences,
    metrics: (results) => {
      const logLikelihood = results.reduce((sum, result) => sum + result.sum, 0)
      return {
        loss: -logLikelihood / tokens,
        perplexity: perplexity(logLikelihood, tokens),
        bits_per_byte: bitsPerByte(logLikelihood, bytes),
        tokens,
        bytes,
        blocks: blocks.length
      }
    }
  }
}
