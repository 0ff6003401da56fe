/** Cuts an answer out of generated text: what may be shown so far, and where it ends. Pure. */

/** What a decoder puts where a character's bytes are not all there yet. */
const incomplete = "\uFFFD"

/** Length of the longest end of `text` that begins `stop`: it may still grow into the stop text. */
const overlap = (text: string, stop: string): number => {
  for (let length = Math.min(stop.length - 1, text.length); length > 0; length--)
    if (text.endsWith(stop.slice(0, length))) return length
  return 0
}

/**
 * The part of an answer that is certain after `text` was generated: without outer white space, up to the first `stop`, and without an end that may
 * become part of `stop` or of a character. `ended`: the stop text was met.
 */
export const certainAnswer = (text: string, stop: string): { readonly answer: string; readonly ended: boolean } => {
  const at = text.indexOf(stop)
  if (at >= 0) return { answer: text.slice(0, at).trim(), ended: true }
  let end = text.length - overlap(text, stop)
  while (text.slice(0, end).endsWith(incomplete)) end -= incomplete.length
  return { answer: text.slice(0, end).trim(), ended: false }
}

/** The whole answer once generation is over. */
export const finalAnswer = (text: string, stop: string): string => (text.split(stop)[0] ?? "").trim()
