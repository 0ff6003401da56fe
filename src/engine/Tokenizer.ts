/** Text to token ids and back, by the native tokenizer: SentencePiece's BPE exactly, on bytes. */
import { Effect } from "effect"
import { loadVocabulary, type TokenizerName, type Vocabulary, type VocabularyUnavailable } from "../model/Vocabulary.ts"
import * as Native from "./Native.ts"

export interface Tokenizer {
  readonly name: string
  readonly vocabulary: Vocabulary
  readonly vocabularySize: number
  /** Digest of the vocabulary; artifacts made with different tokenizers are told apart by it. */
  readonly digest: string
  readonly bos: number
  readonly eos: number
  /**
   * Ids of one document. The defaults are SentencePiece's: no BOS, no EOS, a dummy prefix where the vocabulary has one. Special pieces written out in the text are plain
   * characters. Bytes that are not UTF-8 become U+FFFD one by one; ask firstInvalidUtf8 before where that is not wanted.
   */
  readonly encode: (document: Uint8Array, options?: Partial<Native.EncodeOptions>) => Int32Array
  /**
   * Ids of many documents at once: document i is text [offsets[i], offsets[i + 1]). Off the JavaScript thread, without copying the text; neither array
   * may change before the effect ends. The ids do not depend on `threads`.
   */
  readonly encodeBatch: (
    text: Uint8Array,
    offsets: Uint32Array,
    options: Partial<Native.EncodeOptions> & { readonly threads: number }
  ) => Effect.Effect<Native.EncodedBatch>
  /** The same for documents that need not lie end to end: document i is text [ranges[2 i], ranges[2 i + 1]). */
  readonly encodeRanges: Tokenizer["encodeBatch"]
  /** UTF-8 bytes of the text. Throws an Error for an id outside the vocabulary. */
  readonly decode: (ids: Int32Array | ReadonlyArray<number>) => Uint8Array
  /** Offset of the first byte that is not valid UTF-8, or -1. */
  readonly firstInvalidUtf8: (document: Uint8Array) => number
}

/** One tokenizer per name and process. Not for use by several threads: worker threads load their own. */
export const loadTokenizer = (
  name: TokenizerName
): Effect.Effect<Tokenizer, Native.NativeUnavailable | VocabularyUnavailable> => loaders[name]

const make = Effect.fn("Tokenizer.make")(function* (name: TokenizerName) {
  return yield* tokenizerOf(yield* loadVocabulary(name))
})

/** A tokenizer of any vocabulary of the Llama family (see model/VocabularyFile.ts), with whatever rules for cutting text its pieces prove. */
export const tokenizerOf = Effect.fn("Tokenizer.tokenizerOf")(function* (vocabulary: Vocabulary) {
  const { Tokenizer: NativeTokenizer } = yield* Native.load
  const native = new NativeTokenizer(vocabulary)
  const tokenizer: Tokenizer = {
    name: vocabulary.name,
    vocabulary,
    vocabularySize: native.vocabularySize,
    digest: vocabulary.digest,
    bos: vocabulary.bos,
    eos: vocabulary.eos,
    encode: (document, { addBos = false, addEos = false, dummyPrefix = vocabulary.dummyPrefix } = {}) =>
      native.encode(document, { addBos, addEos, dummyPrefix }),
    encodeBatch: (text, offsets, { addBos = false, addEos = false, dummyPrefix = vocabulary.dummyPrefix, threads }) =>
      Effect.promise(() => native.encodeBatch(text, offsets, { addBos, addEos, dummyPrefix }, threads)),
    encodeRanges: (text, ranges, { addBos = false, addEos = false, dummyPrefix = vocabulary.dummyPrefix, threads }) =>
      Effect.promise(() => native.encodeRanges(text, ranges, { addBos, addEos, dummyPrefix }, threads)),
    decode: (ids) => native.decode(ids instanceof Int32Array ? ids : Int32Array.from(ids)),
    firstInvalidUtf8: (document) => native.firstInvalidUtf8(document)
  }
  return tokenizer
})

const loaders: Record<TokenizerName, ReturnType<typeof make>> = {
  "llama-2": Effect.runSync(Effect.cached(make("llama-2")))
}
