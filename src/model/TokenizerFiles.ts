/**
 * The tokenizer's part of a Hugging Face model folder: tokenizer.model (SentencePiece), tokenizer.json (the fast tokenizer) and
 * tokenizer_config.json. The bytes depend on the vocabulary and the options alone.
 */
import { Effect, FileSystem, Path } from "effect"
import { type ChatFormat, chatTemplate } from "./ChatTemplate.ts"
import { sentencePieceModel } from "./SentencePieceModel.ts"
import { pieceType, type Vocabulary } from "./Vocabulary.ts"

export interface TokenizerFilesOptions {
  /** The conversation format that the model was fine-tuned on; null: a base model. */
  readonly chat: ChatFormat | null
  /** In tokens. */
  readonly contextLength: number
}

export interface TokenizerFile {
  readonly name: "tokenizer.json" | "tokenizer.model" | "tokenizer_config.json"
  readonly bytes: Uint8Array
}

export const tokenizerFiles = (
  vocabulary: Vocabulary,
  options: TokenizerFilesOptions
): ReadonlyArray<TokenizerFile> => [
  { name: "tokenizer.json", bytes: json(fastTokenizer(vocabulary)) },
  { name: "tokenizer.model", bytes: sentencePieceModel(vocabulary) },
  { name: "tokenizer_config.json", bytes: json(tokenizerConfig(vocabulary, options)) }
]

/** Writes the three files into `folder`, which must exist. */
export const writeTokenizerFiles = Effect.fn("writeTokenizerFiles")(function* (
  folder: string,
  vocabulary: Vocabulary,
  options: TokenizerFilesOptions
) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  for (const { name, bytes } of tokenizerFiles(vocabulary, options)) yield* fs.writeFile(path.join(folder, name), bytes)
})

const json = (value: unknown): Uint8Array => new TextEncoder().encode(`${JSON.stringify(value, null, 2)}\n`)

const specialIds = ({ unknown, bos, eos }: Vocabulary): ReadonlyArray<number> => [unknown, bos, eos]

const addedToken = (content: string) => ({
  content,
  lstrip: false,
  normalized: false,
  rstrip: false,
  single_word: false,
  special: true
})

const fastTokenizer = (vocabulary: Vocabulary) => {
  const bos = vocabulary.pieces[vocabulary.bos]!
  const sequence = (id: "A" | "B", type_id: number) => ({ Sequence: { id, type_id } })
  const start = (type_id: number) => ({ SpecialToken: { id: bos, type_id } })
  return {
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: specialIds(vocabulary).map((id) => ({ id, ...addedToken(vocabulary.pieces[id]!) })),
    normalizer: {
      type: "Sequence",
      normalizers: [
        ...(vocabulary.dummyPrefix ? [{ type: "Prepend", prepend: "▁" }] : []),
        { type: "Replace", pattern: { String: " " }, content: "▁" }
      ]
    },
    pre_tokenizer: null,
    post_processor: {
      type: "TemplateProcessing",
      single: [start(0), sequence("A", 0)],
      pair: [start(0), sequence("A", 0), start(1), sequence("B", 1)],
      special_tokens: { [bos]: { id: bos, ids: [vocabulary.bos], tokens: [bos] } }
    },
    decoder: {
      type: "Sequence",
      decoders: [
        { type: "Replace", pattern: { String: "▁" }, content: " " },
        { type: "ByteFallback" },
        { type: "Fuse" },
        ...(vocabulary.dummyPrefix ? [{ type: "Strip", content: " ", start: 1, stop: 0 }] : [])
      ]
    },
    model: {
      type: "BPE",
      dropout: null,
      unk_token: vocabulary.pieces[vocabulary.unknown]!,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: true,
      byte_fallback: true,
      ignore_merges: false,
      vocab: Object.fromEntries(vocabulary.pieces.map((piece, id) => [piece, id])),
      merges: mergesOf(vocabulary)
    }
  }
}

/**
 * Every way to put a normal piece together from two, best first. Merging by this list equals merging by score with ties to the left: pieces have
 * different scores but for the runs of ▁, and there the longest left part first makes a run grow from its left end.
 */
export const mergesOf = (vocabulary: Vocabulary): ReadonlyArray<string> => {
  const normal = vocabulary.pieces.flatMap((piece, id) =>
    vocabulary.types[id] === pieceType.normal ? [{ piece, score: vocabulary.scores[id]! }] : []
  )
  const known = new Set(normal.map(({ piece }) => piece))
  return normal
    .flatMap(({ piece, score }) => {
      const characters = Array.from(piece)
      return characters.slice(1).flatMap((_, cut) => {
        const left = characters.slice(0, cut + 1).join("")
        const right = characters.slice(cut + 1).join("")
        return known.has(left) && known.has(right) ? [{ left, right, score, length: cut + 1 }] : []
      })
    })
    .sort((a, b) => b.score - a.score || b.length - a.length || b.right.length - a.right.length)
    .map(({ left, right }) => `${left} ${right}`)
}

const tokenizerConfig = (vocabulary: Vocabulary, { chat, contextLength }: TokenizerFilesOptions) => ({
  add_bos_token: true,
  add_eos_token: false,
  ...(vocabulary.dummyPrefix ? {} : { add_prefix_space: false }),
  added_tokens_decoder: Object.fromEntries(
    specialIds(vocabulary).map((id) => [id, addedToken(vocabulary.pieces[id]!)])
  ),
  bos_token: vocabulary.pieces[vocabulary.bos]!,
  ...(chat === null ? {} : { chat_template: chatTemplate[chat] }),
  clean_up_tokenization_spaces: false,
  eos_token: vocabulary.pieces[vocabulary.eos]!,
  legacy: false,
  model_max_length: contextLength,
  pad_token: vocabulary.pieces[vocabulary.eos]!,
  sp_model_kwargs: {},
  tokenizer_class: "LlamaTokenizer",
  unk_token: vocabulary.pieces[vocabulary.unknown]!,
  use_default_system_prompt: false
})
