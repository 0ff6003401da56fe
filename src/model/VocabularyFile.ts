/**
 * The vocabulary of another Llama-family repository: its tokenizer.model (SentencePiece), or its tokenizer.json (the fast tokenizer), which is turned
 * back into pieces and scores. Anything that would be encoded otherwise than by its own library is refused with the reason.
 */
import { Effect, FileSystem, Schema } from "effect"
import * as Native from "../engine/Native.ts"
import { digestOf, loadVocabulary, pieceType, type Vocabulary } from "./Vocabulary.ts"

export class VocabularyFileError extends Schema.TaggedError<VocabularyFileError>()("VocabularyFileError", {
  path: Schema.String,
  reason: Schema.String
}) {
  override get message() {
    return `${this.path} cannot be used as a tokenizer: ${this.reason}`
  }
  get next() {
    return "name the tokenizer.model, or else the tokenizer.json, of a Llama-family repository (BPE with byte fallback)"
  }
}

type Parts = Native.Vocabulary & { readonly addDummyPrefix: boolean }

/**
 * A path that ends in .json is read as tokenizer.json, any other as tokenizer.model. Its name comes of what it says, wherever it lies: that of Llama 2 is
 * llama-2, every other spm- and the first digits of its digest.
 */
export const readVocabularyFile = Effect.fn("readVocabularyFile")(function* (path: string) {
  const fs = yield* FileSystem.FileSystem
  const native = yield* Native.load
  const refuse = (cause: unknown) =>
    new VocabularyFileError({ path, reason: cause instanceof Error ? cause.message : String(cause) })
  const file = yield* Effect.mapError(fs.readFile(path), refuse)
  const parts = path.endsWith(".json")
    ? yield* Schema.decodeEffect(FastTokenizer)(new TextDecoder().decode(file)).pipe(
        Effect.mapError(refuse),
        Effect.flatMap((json) => Effect.mapError(fromFastTokenizer(json), refuse))
      )
    : yield* Effect.try({ try: () => native.readSentencePieceModel(file), catch: refuse })
  const { pieces, scores, types, addDummyPrefix: dummyPrefix } = parts
  yield* Effect.try({ try: () => new native.Tokenizer(parts), catch: refuse })
  const special = (piece: string, type: number) => pieces.findIndex((text, id) => text === piece && types[id] === type)
  const llama2 = yield* Effect.mapError(loadVocabulary("llama-2"), refuse)
  if (dummyPrefix && isSame(parts, llama2)) return llama2
  const digest = digestOf({ pieces, scores, types, dummyPrefix })
  const vocabulary: Vocabulary = {
    name: `spm-${digest.slice(0, 12)}`,
    pieces,
    scores,
    types,
    digest,
    dummyPrefix,
    unknown: types.indexOf(pieceType.unknown),
    bos: special("<s>", pieceType.control),
    eos: special("</s>", pieceType.control)
  }
  return vocabulary
})

/**
 * Whether two vocabularies give the same ids for every text. Of scores their order alone counts, which is all that tokenizer.json tells; runs of ▁, below
 * all else, come out the same in whatever order they grow.
 */
const isSame = (one: Native.Vocabulary, other: Native.Vocabulary): boolean => {
  const { pieces, types } = one
  if (pieces.length !== other.pieces.length || pieces.some((piece, id) => piece !== other.pieces[id])) return false
  if (types.some((type, id) => type !== other.types[id])) return false
  const ids = normalIds(one)
  const made = Array.from(ids).filter(([piece]) => waysToMake(piece, ids) > 0)
  const isRun = (piece: string) => /^▁+$/u.test(piece)
  const runs = made.flatMap(([piece, id]) => (isRun(piece) ? [id] : []))
  const others = made.flatMap(([piece, id]) => (isRun(piece) ? [] : [id]))
  const runsAreLast = ({ scores }: Native.Vocabulary) =>
    Math.max(...runs.map((id) => scores[id] ?? 0)) < Math.min(...others.map((id) => scores[id] ?? 0))
  const ranks = ranksOf(one.scores, others)
  return (
    runsAreLast(one) &&
    runsAreLast(other) &&
    ranksOf(other.scores, others).every((rank, index) => rank === ranks[index])
  )
}

/** For each id, how many different scores are higher. */
const ranksOf = (scores: Float32Array, ids: ReadonlyArray<number>): ReadonlyArray<number | undefined> => {
  const ofIds = ids.map((id) => scores[id] ?? 0)
  const rank = new Map(
    Array.from(new Set(ofIds))
      .toSorted((a, b) => b - a)
      .map((score, index) => [score, index])
  )
  return ofIds.map((score) => rank.get(score))
}

const normalIds = ({ pieces, types }: Pick<Native.Vocabulary, "pieces" | "types">): ReadonlyMap<string, number> =>
  new Map(pieces.flatMap((piece, id) => (types[id] === pieceType.normal ? [[piece, id] as const] : [])))

const Merge = Schema.Union([Schema.String, Schema.Tuple([Schema.String, Schema.String])])

const Step = Schema.Struct({
  type: Schema.String,
  prepend: Schema.optionalKey(Schema.String),
  content: Schema.optionalKey(Schema.String),
  pattern: Schema.optionalKey(Schema.Unknown),
  replacement: Schema.optionalKey(Schema.String),
  prepend_scheme: Schema.optionalKey(Schema.String),
  add_prefix_space: Schema.optionalKey(Schema.Boolean),
  split: Schema.optionalKey(Schema.Boolean)
})
type Step = typeof Step.Type

const FastTokenizer = Schema.fromJsonString(
  Schema.Struct({
    added_tokens: Schema.Array(Schema.Struct({ id: Schema.Int, content: Schema.String })),
    normalizer: Schema.NullOr(
      Schema.Union([Schema.Struct({ type: Schema.Literal("Sequence"), normalizers: Schema.Array(Step) }), Step])
    ),
    pre_tokenizer: Schema.NullOr(Step),
    model: Schema.Struct({
      type: Schema.Literal("BPE"),
      byte_fallback: Schema.Literal(true),
      ignore_merges: Schema.optionalKey(Schema.Literal(false)),
      dropout: Schema.optionalKey(Schema.Null),
      unk_token: Schema.String,
      vocab: Schema.Record(Schema.String, Schema.Int),
      merges: Schema.Array(Merge)
    })
  })
)

const fromFastTokenizer = Effect.fnUntraced(function* (json: typeof FastTokenizer.Type) {
  const { vocab, merges, unk_token } = json.model
  const added = new Map(json.added_tokens.map(({ id, content }) => [id, content]))
  const pieces: Array<string> = []
  for (const [piece, id] of Object.entries(vocab)) pieces[id] = piece
  for (const [id, content] of added) pieces[id] = content
  const gap = Array.from(pieces).findIndex((piece) => piece === undefined)
  if (gap >= 0) return yield* Effect.fail(`no piece has the id ${gap}`)
  const types = Uint8Array.from(pieces, (piece, id) =>
    piece === unk_token
      ? pieceType.unknown
      : added.has(id)
        ? pieceType.control
        : /^<0x[0-9A-F]{2}>$/u.test(piece)
          ? pieceType.byte
          : pieceType.normal
  )
  const ids = normalIds({ pieces, types })
  const scores = yield* scoresOf(merges.map(pairOf), ids, pieces.length)
  return { pieces, scores, types, addDummyPrefix: yield* dummyPrefixOf(json) } satisfies Parts
})

const pairOf = (merge: typeof Merge.Type): readonly [left: string, right: string] => {
  if (typeof merge !== "string") return merge
  const space = merge.indexOf(" ", 1) // a piece may be a space, but then not in this form
  return [merge.slice(0, space), merge.slice(space + 1)]
}

/**
 * Merging by a list of pairs is merging by the score of the result when the list holds every pair that makes a piece, and all pairs of one piece stand
 * together. Pieces whose pairs are mixed share a score: in Llama's vocabularies these are the runs of ▁.
 */
const scoresOf = Effect.fnUntraced(function* (
  merges: ReadonlyArray<readonly [left: string, right: string]>,
  ids: ReadonlyMap<string, number>,
  size: number
) {
  const listed = new Map<number, { first: number; last: number; pairs: number }>()
  for (const [at, [left, right]] of merges.entries()) {
    const id = ids.get(left + right)
    if (id === undefined || !ids.has(left) || !ids.has(right)) {
      return yield* Effect.fail(`merge ${at} ("${left}" and "${right}") is not of pieces of the vocabulary`)
    }
    const entry = listed.get(id) ?? { first: at, last: at, pairs: 0 }
    listed.set(id, { first: entry.first, last: at, pairs: entry.pairs + 1 })
  }
  for (const [piece, id] of ids) {
    const made = waysToMake(piece, ids)
    const { pairs } = listed.get(id) ?? { pairs: 0 }
    if (made !== pairs) {
      return yield* Effect.fail(
        `"${piece}" can be put together from pieces in ${made} ways, of which the merges list ${pairs}: it was not made from a SentencePiece vocabulary`
      )
    }
  }
  const scores = new Float32Array(size)
  let group = 0
  let end = -1
  for (const [id, { first, last }] of listed) {
    if (first > end) group++
    end = Math.max(end, last)
    scores[id] = -group
  }
  return scores
})

const waysToMake = (piece: string, ids: ReadonlyMap<string, number>): number => {
  let ways = 0
  let cut = 0
  for (const character of piece) {
    cut += character.length
    if (cut < piece.length && ids.has(piece.slice(0, cut)) && ids.has(piece.slice(cut))) ways++
  }
  return ways
}

/** The two forms of "a ▁ in front, and ▁ for spaces" that Llama-family repositories use, with or without the ▁ in front. */
const dummyPrefixOf = Effect.fnUntraced(function* ({ normalizer, pre_tokenizer }: typeof FastTokenizer.Type) {
  const steps: ReadonlyArray<Step> =
    normalizer === null ? [] : "normalizers" in normalizer ? normalizer.normalizers : [normalizer]
  const isReplace = (step: Step | undefined) =>
    step?.type === "Replace" && step.content === "▁" && JSON.stringify(step.pattern) === '{"String":" "}'
  if (pre_tokenizer === null) {
    if (steps.length === 1 && isReplace(steps[0])) return false
    if (steps.length === 2 && steps[0]?.type === "Prepend" && steps[0].prepend === "▁" && isReplace(steps[1]))
      return true
  } else if (
    steps.length === 0 &&
    pre_tokenizer.type === "Metaspace" &&
    pre_tokenizer.replacement === "▁" &&
    pre_tokenizer.split === false
  ) {
    return (pre_tokenizer.prepend_scheme ?? (pre_tokenizer.add_prefix_space === false ? "never" : "always")) !== "never"
  }
  return yield* Effect.fail("it normalizes or splits text before the merges, which is not supported")
})
