/**
 * How documents become blocks: the order of documents, the mixture of sources. All of it is a function of the documents, the weights and the seed,
 * and every token is accounted for.
 */
import { bestFitBlocks, type Piece } from "./BestFit.ts"
import type { Source } from "./DocumentStore.ts"
import type { Accounting } from "./PackedDataset.ts"
import { permutation } from "./SampleOrder.ts"
import type { TokenArray } from "./TokenShards.ts"

/** Fills blocks one after the other. */
export interface BlockStream {
  /**
   * Fills `block`, and says where in it documents begin, other than at 0, and how many tokens it has. A RangeError when there is no more.
   */
  fill(block: TokenArray): { readonly boundaries: ReadonlyArray<number>; readonly length: number }
}

/** Reads the documents of one side of a source end to end, in seeded shuffled order, as one stream of tokens. */
export class TokenStream implements BlockStream {
  readonly #source: Source
  readonly #side: boolean
  readonly #order: (position: number) => number
  #position = 0
  #document: TokenArray = new Uint16Array(0)
  #at = 0

  /** `index` tells sources apart: each has an order of its own under one seed. */
  constructor(source: Source, index: number, heldOut: boolean, seed: number) {
    this.#source = source
    this.#side = heldOut
    this.#order = permutation(Math.max(1, source.documents), seed, index)
  }

  fill(block: TokenArray): { readonly boundaries: ReadonlyArray<number>; readonly length: number } {
    const boundaries: Array<number> = []
    for (let filled = 0; filled < block.length;) {
      while (this.#at === this.#document.length) {
        if (this.#position === this.#source.documents) throw new RangeError("the token stream is at its end")
        const next = this.#order(this.#position++)
        if (this.#source.isHeldOut(next) !== this.#side) continue
        this.#document = this.#source.document(next)
        this.#at = 0
      }
      if (this.#at === 0 && filled > 0) boundaries.push(filled)
      const piece = this.#document.subarray(this.#at, this.#at + block.length - filled)
      block.set(piece, filled)
      this.#at += piece.length
      filled += piece.length
    }
    return { boundaries, length: block.length }
  }
}

/** Gives the blocks of best-fit packing; what stays free in a block is 0. */
export class BestFitStream implements BlockStream {
  readonly #source: Source
  readonly #blocks: Iterator<ReadonlyArray<Piece>>

  constructor(source: Source, index: number, heldOut: boolean, seed: number, blockLength: number) {
    this.#source = source
    this.#blocks = bestFitBlocks(source, index, heldOut, seed, blockLength)
  }

  fill(block: TokenArray): { readonly boundaries: ReadonlyArray<number>; readonly length: number } {
    const next = this.#blocks.next()
    if (next.done === true) throw new RangeError("there are no more blocks")
    const boundaries: Array<number> = []
    let filled = 0
    for (const { document, from, length } of next.value) {
      if (filled > 0) boundaries.push(filled)
      block.set(this.#source.document(document).subarray(from, from + length), filled)
      filled += length
    }
    block.fill(0, filled)
    return { boundaries, length: filled }
  }
}

/**
 * Train blocks to take of each source: all, or, with weights (which sum to 1), as many as give the ratio while the source that limits is used up.
 * A source of weight 0 gives none.
 */
export const mixtureCounts = (
  available: ReadonlyArray<number>,
  weights: ReadonlyArray<number> | undefined
): ReadonlyArray<number> => {
  if (weights === undefined) return available
  const total = Math.min(...available.map((blocks, s) => (weights[s] ? blocks / weights[s] : Infinity)))
  return available.map((blocks, s) => (weights[s] ? Math.min(blocks, Math.round(total * weights[s])) : 0))
}

/** The source of each block in turn: always the one that is furthest behind its share; the first of equals. */
export function* interleave(counts: ReadonlyArray<number>): Generator<number> {
  const total = counts.reduce((sum, count) => sum + count, 0)
  const taken = counts.map(() => 0)
  for (let block = 1; block <= total; block++) {
    let behind = -1
    let most = -Infinity
    for (const [s, count] of counts.entries()) {
      // in units of 1 / total, so that all of it is exact
      const lag = block * count - (taken[s] ?? 0) * total
      if ((taken[s] ?? 0) < count && lag > most) {
        most = lag
        behind = s
      }
    }
    taken[behind] = (taken[behind] ?? 0) + 1
    yield behind
  }
}

/** What is packed of one source. */
export interface Share {
  readonly source: Source
  readonly trainBlocks: number
  readonly validationBlocks: number
  readonly accounting: Accounting
}

const share = (
  source: Source,
  trainBlocks: number,
  validationBlocks: number,
  rest: Omit<Accounting, "source" | "documents" | "tokens">
): Share => ({
  source,
  trainBlocks,
  validationBlocks,
  accounting: { source: source.name, documents: source.documents, tokens: source.tokens, ...rest }
})

/** Decides how many blocks each source gives, documents end to end. A source of weight 0 gives nothing to validation either. */
export const shareOut = (
  sources: ReadonlyArray<Source>,
  weights: ReadonlyArray<number> | undefined,
  blockLength: number
): ReadonlyArray<Share> => {
  const sides = sources.map((source) => {
    const validation = source.tokensHeldOut
    const train = source.tokens - validation
    return { train, validation, blocks: Math.floor(train / blockLength) }
  })
  const counts = mixtureCounts(
    sides.map(({ blocks }) => blocks),
    weights
  )
  return sources.map((source, s): Share => {
    const { train, validation, blocks } = sides[s] ?? { train: 0, validation: 0, blocks: 0 }
    const unused = weights !== undefined && weights[s] === 0
    const trainBlocks = counts[s] ?? 0
    const validationBlocks = unused ? 0 : Math.floor(validation / blockLength)
    return share(source, trainBlocks, validationBlocks, {
      train: trainBlocks * blockLength,
      validation: validationBlocks * blockLength,
      tail: unused ? 0 : (train % blockLength) + (validation % blockLength),
      left_out: unused ? source.tokens : (blocks - trainBlocks) * blockLength
    })
  })
}

/** Blocks and their tokens, the first `most` of them. */
const measure = (
  blocks: Iterable<ReadonlyArray<Piece>>,
  most = Infinity
): { readonly blocks: number; readonly tokens: number } => {
  let count = 0
  let tokens = 0
  if (most > 0)
    for (const block of blocks) {
      for (const { length } of block) tokens += length
      if (++count >= most) break
    }
  return { blocks: count, tokens }
}

/** The same for best-fit packing: blocks are counted by packing lengths, without reading tokens. */
export const shareOutBestFit = (
  sources: ReadonlyArray<Source>,
  weights: ReadonlyArray<number> | undefined,
  blockLength: number,
  seed: number
): ReadonlyArray<Share> => {
  const whole = sources.map((source, s) => measure(bestFitBlocks(source, s, false, seed, blockLength)))
  const counts = mixtureCounts(
    whole.map(({ blocks }) => blocks),
    weights
  )
  return sources.map((source, s): Share => {
    const unused = weights !== undefined && weights[s] === 0
    const available = whole[s] ?? { blocks: 0, tokens: 0 }
    const count = counts[s] ?? 0
    const train =
      count === available.blocks ? available : measure(bestFitBlocks(source, s, false, seed, blockLength), count)
    const validation = unused ? { blocks: 0, tokens: 0 } : measure(bestFitBlocks(source, s, true, 0, blockLength))
    return share(source, train.blocks, validation.blocks, {
      train: train.tokens,
      validation: validation.tokens,
      tail: 0,
      left_out: source.tokens - train.tokens - validation.tokens,
      padding: (train.blocks + validation.blocks) * blockLength - train.tokens - validation.tokens
    })
  })
}
