/**
 * tokenizer.model: SentencePiece's ModelProto (sentencepiece_model.proto), as much of it as says what a BPE tokenizer does. Fields at their
 * defaults are left out, and so is what only tells how the vocabulary was trained.
 */
import type * as Native from "../engine/Native.ts"

/** A varint; negative numbers as protobuf's int32, in 64-bit two's complement. */
const varint = (value: number): ReadonlyArray<number> => {
  const bytes: Array<number> = []
  let rest = BigInt.asUintN(64, BigInt(value))
  for (; rest > 0x7fn; rest >>= 7n) bytes.push(Number(rest & 0x7fn) | 0x80)
  return [...bytes, Number(rest)]
}

const integer = (field: number, value: number): ReadonlyArray<number> => [...varint(field << 3), ...varint(value)]

const float = (field: number, value: number): ReadonlyArray<number> => [
  (field << 3) | 5,
  ...new Uint8Array(new Float32Array([value]).buffer)
]

const delimited = (field: number, content: string | ReadonlyArray<number>): ReadonlyArray<number> => {
  const bytes = typeof content === "string" ? [...new TextEncoder().encode(content)] : content
  return [...varint((field << 3) | 2), ...varint(bytes.length), ...bytes]
}

interface Model extends Native.Vocabulary {
  readonly unknown: number
  readonly bos: number
  readonly eos: number
  readonly dummyPrefix: boolean
}

/** The bytes of tokenizer.model: byte fallback, no normalization, spaces kept as they are. */
export const sentencePieceModel = (vocabulary: Model): Uint8Array => {
  const pieces = vocabulary.pieces.map((piece, id) => {
    const type = vocabulary.types[id]!
    return delimited(1, [
      ...delimited(1, piece),
      ...float(2, vocabulary.scores[id]!),
      ...(type === 1 ? [] : integer(3, type))
    ])
  })
  const trainer = [
    integer(3, 2), // model_type: BPE
    integer(4, vocabulary.pieces.length), // vocab_size
    integer(25, 1), // split_digits
    integer(26, 1), // allow_whitespace_only_pieces
    integer(35, 1), // byte_fallback
    integer(40, vocabulary.unknown), // unk_id
    integer(41, vocabulary.bos), // bos_id
    integer(42, vocabulary.eos), // eos_id
    integer(43, -1), // pad_id: none
    delimited(44, " \u2047 "), // unk_surface
    delimited(45, vocabulary.pieces[vocabulary.unknown]!), // unk_piece
    delimited(46, vocabulary.pieces[vocabulary.bos]!), // bos_piece
    delimited(47, vocabulary.pieces[vocabulary.eos]!) // eos_piece
  ]
  const normalizer = [
    delimited(1, "identity"), // name
    delimited(2, ""), // precompiled_charsmap
    integer(3, vocabulary.dummyPrefix ? 1 : 0), // add_dummy_prefix
    integer(4, 0) // remove_extra_whitespaces
  ]
  return Uint8Array.from([...pieces, delimited(2, trainer.flat()), delimited(3, normalizer.flat())].flat())
}
