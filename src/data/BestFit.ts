/**
 * Document-aligned packing: a document is cut only where it is longer than a block; what remains of it goes whole into the block with the least room that
 * takes it (best fit, longest first: Ding et al., Fewer Truncations Improve Language Modeling, 2024). Pieces are placed in windows of the shuffled order,
 * so that memory is bounded; what stays free at the end of a block is padding.
 */
import type { Source } from "./DocumentStore.ts"
import { permutation } from "./SampleOrder.ts"

export interface Piece {
  readonly document: number
  /** Tokens [from, from + length) of the document. */
  readonly from: number
  readonly length: number
}

/** Pieces placed together. */
export const windowPieces = 2 ** 16

/** Blocks by the room that is left in them, to find the fullest one with enough of it. */
class Rooms {
  readonly #blocks: Array<Array<number>>
  /** Bit r of word r / 32: a block with room r is there. */
  readonly #present: Uint32Array

  constructor(capacity: number) {
    this.#blocks = Array.from({ length: capacity + 1 }, () => [])
    this.#present = new Uint32Array((capacity >>> 5) + 1)
  }

  add(block: number, room: number): void {
    this.#blocks[room]?.push(block)
    this.#present[room >>> 5] = (this.#present[room >>> 5] ?? 0) | (1 << (room & 31))
  }

  /** Takes out the block with the least room from `wanted` on, with that room. */
  take(wanted: number): readonly [number, number] | undefined {
    let bits = (this.#present[wanted >>> 5] ?? 0) & (-1 << (wanted & 31))
    for (let word = wanted >>> 5; ; bits = this.#present[word] ?? 0) {
      if (bits !== 0) {
        const room = 32 * word + 31 - Math.clz32(bits & -bits)
        const blocks = this.#blocks[room] ?? []
        const block = blocks.pop() ?? 0
        if (blocks.length === 0) this.#present[word] = (this.#present[word] ?? 0) & ~(1 << (room & 31))
        return [block, room]
      }
      if (++word >= this.#present.length) return undefined
    }
  }
}

/** Blocks of the pieces, each at most `capacity` long; in the order of each block's first piece. */
export const placePieces = (pieces: ReadonlyArray<Piece>, capacity: number): ReadonlyArray<ReadonlyArray<Piece>> => {
  const order = pieces.map((_, i) => i).sort((a, b) => (pieces[b]?.length ?? 0) - (pieces[a]?.length ?? 0) || a - b)
  const rooms = new Rooms(capacity)
  const blocks: Array<Array<number>> = []
  for (const i of order) {
    const length = pieces[i]?.length ?? 0
    const [block, room] = rooms.take(length) ?? [blocks.push([]) - 1, capacity]
    blocks[block]?.push(i)
    if (room > length) rooms.add(block, room - length)
  }
  for (const block of blocks) block.sort((a, b) => a - b)
  blocks.sort((a, b) => (a[0] ?? 0) - (b[0] ?? 0))
  return blocks.map((block) => block.flatMap((i) => pieces[i] ?? []))
}

/** The blocks of one side of a source, the same at every call. */
export function* bestFitBlocks(
  source: Source,
  index: number,
  heldOut: boolean,
  seed: number,
  capacity: number
): Generator<ReadonlyArray<Piece>> {
  const order = permutation(Math.max(1, source.documents), seed, index)
  let window: Array<Piece> = []
  for (let position = 0; position < source.documents; position++) {
    const document = order(position)
    if (source.isHeldOut(document) !== heldOut) continue
    const length = source.length(document)
    let from = 0
    for (; length - from >= capacity; from += capacity) yield [{ document, from, length: capacity }]
    if (length > from) window.push({ document, from, length: length - from })
    if (window.length < windowPieces) continue
    yield* placePieces(window, capacity)
    window = []
  }
  yield* placePieces(window, capacity)
}
