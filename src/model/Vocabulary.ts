/**
 * The tokenizer vocabularies, by name. Llama 2's comes from the npm package llama-tokenizer-js, which carries the pieces; scores and types
 * follow from the ids, and are rebuilt here exactly as they stand in Meta's tokenizer.model. Loaded on first use: it takes a tenth of a second.
 */
import { createHash } from "node:crypto"
import { Effect, Schema } from "effect"
import type * as Native from "../engine/Native.ts"

export const TokenizerName = Schema.Literals(["llama-2"])
export type TokenizerName = typeof TokenizerName.Type

/** SentencePiece's piece types, which are GGUF's token types as well. */
export const pieceType = { normal: 1, unknown: 2, control: 3, byte: 6 } as const

export interface Vocabulary extends Native.Vocabulary {
  /** As artifacts and messages call it. */
  readonly name: string
  /** sha256 of the pieces, scores and types; see digestOf. */
  readonly digest: string
  /** Whether the tokenizer puts a ▁ in front of a text. */
  readonly dummyPrefix: boolean
  readonly unknown: number
  readonly bos: number
  readonly eos: number
}

export class VocabularyUnavailable extends Schema.TaggedError<VocabularyUnavailable>()("VocabularyUnavailable", {
  name: Schema.String,
  reason: Schema.String
}) {
  override get message() {
    return `the vocabulary of tokenizer ${this.name} cannot be loaded: ${this.reason}`
  }
  get next() {
    return "npm ci, which installs llama-tokenizer-js as package-lock.json names it"
  }
}

/** The same for every run of the program. */
export const loadVocabulary = (name: TokenizerName): Effect.Effect<Vocabulary, VocabularyUnavailable> => loaders[name]

/**
 * sha256, in hex, of one line per id: JSON.stringify([piece, score, type]) and a line feed, as UTF-8. A score is written as the number that its
 * 32-bit float is. A tokenizer that puts no ▁ in front of a text has one more line, "no dummy prefix".
 */
export const digestOf = (vocabulary: Native.Vocabulary & { readonly dummyPrefix?: boolean }): string => {
  const lines = vocabulary.pieces.map(
    (piece, id) => `${JSON.stringify([piece, vocabulary.scores[id], vocabulary.types[id]])}\n`
  )
  if (vocabulary.dummyPrefix === false) lines.push('"no dummy prefix"\n')
  return createHash("sha256").update(lines.join("")).digest("hex")
}

const llama2 = Effect.tryPromise({
  try: () => import("llama-tokenizer-js"),
  catch: (cause) => new VocabularyUnavailable({ name: "llama-2", reason: String(cause) })
}).pipe(
  Effect.flatMap(({ default: { vocabById } }) => {
    const vocabulary = fromLlama2Pieces(vocabById)
    return vocabulary.digest === llama2Digest
      ? Effect.succeed(vocabulary)
      : new VocabularyUnavailable({
          name: "llama-2",
          reason: `the pieces in llama-tokenizer-js are not Llama 2's (digest ${vocabulary.digest}, expected ${llama2Digest})`
        })
  })
)

const llama2Digest = "71e85685b2b806b7d25a9e6e0611a33632494fb4d593f99afbffa8dc38803b92"

const loaders: Record<TokenizerName, Effect.Effect<Vocabulary, VocabularyUnavailable>> = {
  "llama-2": Effect.runSync(Effect.cached(llama2))
}

/**
 * Ids 0 unknown, 1 and 2 control, 3..258 the bytes, then the normal pieces in the order in which training merged them: the score of id i is
 * -(i - 259), except that the pieces of one to sixteen ▁ alone score -1e9. Unknown, control and byte pieces score 0.
 */
function fromLlama2Pieces(pieces: ReadonlyArray<string>): Vocabulary {
  const scores = new Float32Array(pieces.length)
  const types = new Uint8Array(pieces.length)
  for (const [id, piece] of pieces.entries()) {
    types[id] = id === 0 ? pieceType.unknown : id < 3 ? pieceType.control : id < 259 ? pieceType.byte : pieceType.normal
    if (id >= 259) scores[id] = /^▁+$/u.test(piece) ? -1e9 : 259 - id
  }
  const vocabulary = { pieces, scores, types }
  const digest = digestOf(vocabulary)
  return { ...vocabulary, name: "llama-2", digest, dummyPrefix: true, unknown: 0, bos: 1, eos: 2 }
}
