/**
 * Very long texts are read and tokenized in parts, so that memory is bounded whatever a document's size. Parts are cut where no token can lie across:
 * behind a line feed, else in front of a space that follows something else. Both hold for every SentencePiece vocabulary that has no piece with
 * a line feed, or with a space inside; the parts' tokens in a row are then the tokens of the whole.
 */

/** Bytes of the longest part. */
export const longestPart = 2 ** 22

const isContinuation = (byte: number): boolean => (byte & 0xc0) === 0x80

/** Where to cut `bytes`, which is longer than `limit`: at most `limit`, above 0. */
export const cutAt = (bytes: Uint8Array, limit: number): { readonly at: number; readonly exact: boolean } => {
  const lineFeed = bytes.lastIndexOf(0x0a, limit - 1)
  if (lineFeed >= 0) return { at: lineFeed + 1, exact: true }
  for (let at = limit; at > 0; at--) if (bytes[at] === 0x20 && bytes[at - 1] !== 0x20) return { at, exact: true }
  let at = limit
  while (at > limit - 4 && at > 1 && isContinuation(bytes[at] ?? 0)) at--
  return { at, exact: false }
}

export interface Part {
  readonly bytes: Uint8Array
  readonly last: boolean
  /** False: it was cut inside a word, for want of a better place, and a token there may differ. */
  readonly exact: boolean
}

/** The parts of a text in memory, as views. */
export function* partsOf(bytes: Uint8Array, limit = longestPart): Generator<Part> {
  let rest = bytes
  while (rest.length > limit) {
    const { at, exact } = cutAt(rest, limit)
    yield { bytes: rest.subarray(0, at), last: false, exact }
    rest = rest.subarray(at)
  }
  yield { bytes: rest, last: true, exact: true }
}

/** The parts of a text that arrives in pieces, the same as those of the whole; each is valid until the next is asked for. */
export async function* partsOfStream(
  pieces: AsyncIterable<{ readonly bytes: Uint8Array; readonly consumed: number }>,
  limit = longestPart
): AsyncGenerator<Part & { readonly consumed: number }> {
  let buffer = Buffer.allocUnsafe(2 ** 21)
  let filled = 0
  let consumed = 0
  for await (const piece of pieces) {
    const needed = filled + piece.bytes.length
    if (needed > buffer.length) {
      const grown = Buffer.allocUnsafe(Math.max(needed, 2 * buffer.length))
      grown.set(buffer.subarray(0, filled))
      buffer = grown
    }
    buffer.set(piece.bytes, filled)
    filled = needed
    consumed = piece.consumed
    while (filled > limit) {
      const { at, exact } = cutAt(buffer.subarray(0, filled), limit)
      yield { bytes: buffer.subarray(0, at), last: false, exact, consumed }
      buffer.copyWithin(0, at, filled)
      filled -= at
    }
  }
  yield { bytes: buffer.subarray(0, filled), last: true, exact: true, consumed }
}
