/** What log-likelihoods become: the formulas of lm-evaluation-harness (lm_eval/api/metrics.py). Pure functions. */

/** Index of the largest value; the first of equal ones. */
export const argmax = (values: ReadonlyArray<number>): number =>
  values.reduce((best, value, index) => (value > (values[best] ?? -Infinity) ? index : best), 0)

/** Length by which acc_norm divides: Unicode code points, as Python's len counts them (not bytes, though it is often called so). */
export const codePoints = (text: string): number => Array.from(text).length

export const mean = (values: ReadonlyArray<number>): number =>
  values.reduce((sum, value) => sum + value, 0) / values.length

/** Standard error of the mean from the sample deviation; undefined for fewer than two values. */
export const standardError = (values: ReadonlyArray<number>): number | undefined => {
  if (values.length < 2) return undefined
  const center = mean(values)
  const variance = values.reduce((sum, value) => sum + (value - center) ** 2, 0) / (values.length - 1)
  return Math.sqrt(variance) / Math.sqrt(values.length)
}

/** exp of the mean loss per token; `logLikelihood` is the natural logarithm's sum over `tokens`. */
export const perplexity = (logLikelihood: number, tokens: number): number => Math.exp(-logLikelihood / tokens)

/** Loss in bits over the text's UTF-8 bytes: comparable across tokenizers. */
export const bitsPerByte = (logLikelihood: number, bytes: number): number => -logLikelihood / (bytes * Math.LN2)
