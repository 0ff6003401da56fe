/**
 * How documents become blocks: the split into train and validation, the order of documents, the mixture of sources. All of it is a function of the
 * documents, the fraction, the weights and the seed, and every token is accounted for.
 */
import { createHash } from "node:crypto"
import type { Accounting } from "./PackedDataset.ts"
import { permutation } from "./SampleOrder.ts"
import type { ShardRows } from "./TokenShards.ts"

/** All documents of one input, and which of them are held out for validation. */
export class Source {
  readonly name: string
  readonly documents: number
  readonly tokens: number
  readonly heldOut: Uint8Array
  readonly #parts: ReadonlyArray<ShardRows>
  /** #starts[p] is the number of documents before part p. */
  readonly #starts: ReadonlyArray<number>

  constructor(name: string, parts: ReadonlyArray<ShardRows>) {
    this.name = name
    this.#parts = parts
    let documents = 0
    this.#starts = parts.map((part) => (documents += part.documents) - part.documents)
    this.documents = documents
    this.tokens = parts.reduce((sum, { offsets }) => sum + (offsets.at(-1) ?? 0) - (offsets[0] ?? 0), 0)
    this.heldOut = new Uint8Array(documents)
  }

  /** The tokens of a document, a view. */
  document(index: number): Uint16Array {
    let low = 0
    for (let high = this.#starts.length; high - low > 1;) {
      const middle = (low + high) >>> 1
      if ((this.#starts[middle] ?? 0) <= index) low = middle
      else high = middle
    }
    const part = this.#parts[low]
    const row = index - (this.#starts[low] ?? 0)
    return part === undefined ? new Uint16Array(0) : part.tokens.subarray(part.offsets[row], part.offsets[row + 1])
  }

  tokensHeldOut(): number {
    let sum = 0
    for (let i = 0; i < this.documents; i++) if (this.heldOut[i] === 1) sum += this.document(i).length
    return sum
  }
}

/**
 * A number in [0, 1) from a document's content alone: equal texts, wherever they come from and however they are called, fall on the same side, so
 * that no copy of a validation text is trained on.
 */
const contentHash = (tokens: Uint16Array): number =>
  createHash("sha256")
    .update(new Uint8Array(tokens.buffer, tokens.byteOffset, tokens.byteLength))
    .digest()
    .readUIntBE(0, 6) /
  2 ** 48

/**
 * Marks the documents to hold out: those whose hash lies below `fraction`. When that does not fill one block of `blockLength` in any
 * source, documents follow in the order of their hashes until it does. Returns how many were added so.
 */
export const holdOut = (sources: ReadonlyArray<Source>, fraction: number, blockLength: number): number => {
  if (fraction === 0) return 0
  const hashes = sources.map((source) =>
    Float64Array.from({ length: source.documents }, (_, i) => contentHash(source.document(i)))
  )
  for (const [s, source] of sources.entries())
    for (let i = 0; i < source.documents; i++) source.heldOut[i] = (hashes[s]?.[i] ?? 1) < fraction ? 1 : 0
  const filled = sources.map((source) => source.tokensHeldOut())
  if (filled.some((tokens) => tokens >= blockLength)) return 0
  const rest = sources
    .flatMap((source, s) =>
      Array.from({ length: source.documents }, (_, i) => ({ source, s, i, hash: hashes[s]?.[i] ?? 1 }))
    )
    .filter(({ source, i }) => source.heldOut[i] === 0)
    .sort((a, b) => a.hash - b.hash || a.s - b.s || a.i - b.i)
  let added = 0
  let last = -1
  for (const { source, s, i, hash } of rest) {
    // copies of a document, which share its hash, go along with it
    if (hash !== last && filled.some((tokens) => tokens >= blockLength)) break
    source.heldOut[i] = 1
    filled[s] = (filled[s] ?? 0) + source.document(i).length
    last = hash
    added++
  }
  return added
}

/** Reads the documents of one side of a source end to end, in seeded shuffled order, as one stream of tokens. */
export class TokenStream {
  readonly #source: Source
  readonly #side: number
  readonly #order: (position: number) => number
  #position = 0
  #document: Uint16Array = new Uint16Array(0)
  #at = 0

  /** `index` tells sources apart: each has an order of its own under one seed. */
  constructor(source: Source, index: number, heldOut: boolean, seed: number) {
    this.#source = source
    this.#side = heldOut ? 1 : 0
    this.#order = permutation(Math.max(1, source.documents), seed, index)
  }

  /** Fills `block` with the next tokens, which must be there. */
  fill(block: Uint16Array): void {
    for (let filled = 0; filled < block.length;) {
      while (this.#at === this.#document.length) {
        if (this.#position === this.#source.documents) throw new RangeError("the token stream is at its end")
        const next = this.#order(this.#position++)
        if (this.#source.heldOut[next] !== this.#side) continue
        this.#document = this.#source.document(next)
        this.#at = 0
      }
      const piece = this.#document.subarray(this.#at, this.#at + block.length - filled)
      block.set(piece, filled)
      this.#at += piece.length
      filled += piece.length
    }
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

/** Decides how many blocks each source gives, after `holdOut`. A source of weight 0 gives nothing to validation either. */
export const shareOut = (
  sources: ReadonlyArray<Source>,
  weights: ReadonlyArray<number> | undefined,
  blockLength: number
): ReadonlyArray<Share> => {
  const sides = sources.map((source) => {
    const validation = source.tokensHeldOut()
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
    return {
      source,
      trainBlocks,
      validationBlocks,
      accounting: {
        source: source.name,
        documents: source.documents,
        tokens: source.tokens,
        train: trainBlocks * blockLength,
        validation: validationBlocks * blockLength,
        tail: unused ? 0 : (train % blockLength) + (validation % blockLength),
        left_out: unused ? source.tokens : (blocks - trainBlocks) * blockLength
      }
    }
  })
}
