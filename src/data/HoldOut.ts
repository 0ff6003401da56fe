/**
 * Which documents are held out for validation: those whose hash lies below the fraction. When that does not fill one block in any source, documents
 * follow in the order of their hashes until it does. Decided in one pass, with a bounded list of candidates.
 */
import type { Native } from "../engine/Native.ts"
import type { Source } from "./DocumentStore.ts"
interface Candidate {
  readonly source: number
  readonly index: number
  readonly hash: number
  readonly length: number
}

/** Candidates that are kept before the list is cut back to those that can still be needed. */
const mostCandidates = 2 ** 16

export class HoldOut {
  readonly #sources: ReadonlyArray<Source>
  readonly #fraction: number
  readonly #blockLength: number
  #candidates: Array<Candidate> = []

  constructor(sources: ReadonlyArray<Source>, fraction: number, blockLength: number) {
    this.#sources = sources
    this.#fraction = fraction
    this.#blockLength = blockLength
  }

  /**
   * To be called once for every document, in any order. `value`, in [0, 1), comes from the document's content alone: equal texts, wherever they come from and
   * however they are called, fall on the same side, so that no copy of a validation text is trained on.
   */
  see(source: number, index: number, value: number, length: number): void {
    if (this.#fraction === 0) return
    if (value < this.#fraction) this.#sources[source]?.holdOut(index, length)
    else if (!this.#isFilled()) {
      this.#candidates.push({ source, index, hash: value, length })
      if (this.#candidates.length >= mostCandidates) this.#candidates = this.#needed()
    }
  }

  #isFilled(): boolean {
    return this.#sources.some(({ tokensHeldOut }) => tokensHeldOut >= this.#blockLength)
  }

  /** Candidates in order, up to where a source would be filled; copies of a document, which share its hash, go along with it. */
  #needed(): Array<Candidate> {
    const sorted = this.#candidates.toSorted((a, b) => a.hash - b.hash || a.source - b.source || a.index - b.index)
    const filled = this.#sources.map(({ tokensHeldOut }) => tokensHeldOut)
    let last = -1
    for (const [at, { hash: value, length, source }] of sorted.entries()) {
      if (value !== last && filled.some((tokens) => tokens >= this.#blockLength)) return sorted.slice(0, at)
      filled[source] = (filled[source] ?? 0) + length
      last = value
    }
    return sorted
  }

  /** Settles it; returns how many documents were held out beyond the fraction. */
  finish(): number {
    if (this.#fraction === 0 || this.#isFilled()) return 0
    const needed = this.#needed()
    for (const { index, length, source } of needed) this.#sources[source]?.holdOut(index, length)
    return needed.length
  }
}

/** The same for sources that are complete; returns how many were added. */
export const holdOut = (
  native: Native,
  sources: ReadonlyArray<Source>,
  fraction: number,
  blockLength: number
): number => {
  const decision = new HoldOut(sources, fraction, blockLength)
  for (const [s, source] of sources.entries())
    for (let i = 0; i < source.documents; i++) {
      const tokens = source.document(i)
      decision.see(s, i, native.documentHashes(tokens, Int32Array.of(0, tokens.length))[0] ?? 0, tokens.length)
    }
  return decision.finish()
}
