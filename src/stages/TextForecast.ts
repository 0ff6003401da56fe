/** Forecasts of the stages that handle text, from documents on: tokenize, pack. */
import type { Facts } from "../artifacts/Artifact.ts"
import { mixtureCounts } from "../data/Packing.ts"
import type { Forecast } from "../pipeline/StageType.ts"
import { factsOf, numberIn, passedOn, sumKnown } from "./KnownFacts.ts"

/** Bytes of text that a Llama 2 token stands for: 2.5 (JavaScript) to 4.2 (English prose) in the default pipeline's text. */
export const BYTES_PER_TOKEN = 3.3
const FEWEST_BYTES_PER_TOKEN = 2.4
/** A line of documents.jsonl, or a document's row in a shard. */
export const BYTES_PER_ENTRY = 250
/** Headers and metadata of an Arrow file. */
const ARROW_BYTES = 6000
const TOKEN_BYTES = 2

/** Of a tokenizer by name, where stages above have not run yet. */
const vocabularySizes: Readonly<Record<string, number>> = { "llama-2": 32_000 }

export const forecastTokenize = (
  policy: { readonly tokenizer: string | undefined; readonly bos: string; readonly eos: string },
  documents: ReadonlyArray<Facts>
): Forecast => {
  const bytes = sumKnown(documents.map((facts) => numberIn(facts, "bytes")))
  const files = sumKnown(documents.map((facts) => numberIn(facts, "files"))) ?? 0
  const entries = files * BYTES_PER_ENTRY + ARROW_BYTES
  // Known data sets tell how many tokens a byte of their compressed files has.
  const expected = sumKnown(documents.map((facts) => numberIn(facts, "expected_tokens")))
  const tokens = expected ?? (bytes === undefined ? undefined : Math.round(bytes / BYTES_PER_TOKEN))
  const mostTokens = expected ?? (bytes === undefined ? undefined : bytes / FEWEST_BYTES_PER_TOKEN)
  return {
    amount: bytes,
    unit: "bytes",
    bytes: mostTokens === undefined ? undefined : Math.ceil(TOKEN_BYTES * mostTokens) + entries,
    outputs: {
      tokens: factsOf(
        {
          ...policy,
          vocabulary_size: vocabularySizes[policy.tokenizer ?? ""],
          bytes,
          tokens
        },
        ["bytes", "tokens"]
      )
    }
  }
}

/** lit-gpt's files hold two bytes a token for vocabularies like Llama 2's, behind headers that are next to nothing. */
export const forecastImport = (
  policy: { readonly tokenizer: string | undefined; readonly bos: string; readonly eos: string },
  documents: ReadonlyArray<Facts>
): Forecast => {
  const bytes = sumKnown(documents.map((facts) => numberIn(facts, "bytes")))
  const tokens = bytes === undefined ? undefined : Math.round(bytes / TOKEN_BYTES)
  return {
    amount: bytes,
    unit: "bytes",
    // what a document's row takes besides its tokens, at 500 tokens a document
    bytes: bytes === undefined ? undefined : Math.ceil(bytes * 1.2) + ARROW_BYTES,
    outputs: {
      tokens: factsOf({ ...policy, vocabulary_size: vocabularySizes[policy.tokenizer ?? ""], tokens }, ["tokens"])
    }
  }
}

/** Blocks that come of it; documents are held out whole, so both counts are estimates. */
export const forecastPack = (
  params: { readonly seq_len: number; readonly weights: ReadonlyArray<number> | null; readonly validation: number },
  sources: ReadonlyArray<Facts>
): Forecast => {
  const { seq_len, validation, weights } = params
  const tokens = sources.map((facts) => numberIn(facts, "tokens"))
  const total = sumKnown(tokens)
  const sum = weights?.reduce((all, weight) => all + weight, 0) ?? 0
  const shares = weights !== null && sum > 0 ? weights.map((weight) => weight / sum) : undefined
  const blocksOf = (share: number) => tokens.map((count) => Math.floor(((count ?? 0) * share) / (seq_len + 1)))
  const count = (blocks: ReadonlyArray<number>) => blocks.reduce((all, some) => all + some, 0)
  const known = total !== undefined && (shares === undefined || shares.length === sources.length)
  return {
    amount: total === undefined ? undefined : TOKEN_BYTES * total,
    unit: "bytes",
    bytes: total === undefined ? undefined : TOKEN_BYTES * total + 2 * ARROW_BYTES,
    outputs: {
      dataset: factsOf(
        {
          ...passedOn(sources[0], ["tokenizer", "tokenizer_digest", "vocabulary_size", "bos", "eos"]),
          seq_len,
          train_blocks: known ? count(mixtureCounts(blocksOf(1 - validation), shares)) : undefined,
          validation_blocks: known ? count(blocksOf(validation)) : undefined
        },
        ["train_blocks", "validation_blocks"]
      )
    }
  }
}
