/** How many bytes of text a token stands for: the denominator of bits per byte. */
import { pieceType, type Vocabulary } from "../model/Vocabulary.ts"

/** SentencePiece's mark for a space, U+2581. */
const space = "▁"

/**
 * UTF-8 bytes that `id` adds to the text after `previous`: 1 for a byte token, none for BOS and EOS. The first piece of a document has a space in front that
 * is the tokenizer's and not the text's; documents are told apart by BOS or EOS before them, so without either each adds one byte too many.
 */
export const tokenBytes = (vocabulary: Vocabulary): ((previous: number, id: number) => number) => {
  const lengths = vocabulary.pieces.map((piece, id) => {
    const type = vocabulary.types[id]
    return type === pieceType.byte ? 1 : type === pieceType.normal ? Buffer.byteLength(piece.replaceAll(space, " ")) : 0
  })
  const startsWithSpace = vocabulary.pieces.map((piece) => piece.startsWith(space))
  return (previous, id) =>
    (lengths[id] ?? 0) - (startsWithSpace[id] && (previous === vocabulary.bos || previous === vocabulary.eos) ? 1 : 0)
}
