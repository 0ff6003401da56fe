/** Forecasts of the stages that handle text, from documents on: tokenize, pack. */
import type { Facts } from "../artifacts/Artifact.ts"
import { mixtureCounts } from "../data/Packing.ts"
import { formatCount } from "../pipeline/file/Quantity.ts"
import type { Forecast } from "../pipeline/StageType.ts"
import { factsOf, numberIn, passedOn, sumKnown } from "./KnownFacts.ts"
import { counted, outlook } from "./Outlook.ts"

/** Bytes of text that a Llama 2 token stands for: 2.5 (JavaScript) to 4.2 (English prose) in the default pipeline's text. */
export const BYTES_PER_TOKEN = 3.3
const FEWEST_BYTES_PER_TOKEN = 2.4
/** A line of documents.jsonl, or a document's row in a shard. */
export const BYTES_PER_ENTRY = 250
/** Headers and metadata of an Arrow file. */
const ARROW_BYTES = 6000
const TOKEN_BYTES = 2
/** A smaller share of the tokens is what rounding to whole blocks leaves. */
const WORTH_TELLING = 0.001

/** Of a tokenizer by name, where stages above have not run yet. */
const vocabularySizes: Readonly<Record<string, number>> = { "llama-2": 32_000 }

/** Every text that is read counts, those that filters drop too; of compressed files of known data sets, the text that lies in them. */
export const forecastTokenize = (
  params: {
    readonly tokenizer: string | undefined
    readonly bos: string
    readonly eos: string
    readonly shard_bytes: number
    readonly sample: { readonly fraction: number } | null
  },
  documents: ReadonlyArray<Facts>
): Forecast => {
  const { bos, eos, sample, shard_bytes, tokenizer } = params
  const share = sample?.fraction ?? 1
  const bytes = sumKnown(documents.map((facts) => numberIn(facts, "bytes")))
  const files = sumKnown(documents.map((facts) => numberIn(facts, "files"))) ?? 0
  const entries = files * BYTES_PER_ENTRY + ARROW_BYTES
  // Known data sets tell how many tokens a byte of their compressed files has.
  const expected = sumKnown(documents.map((facts) => numberIn(facts, "expected_tokens")))
  const text = expected === undefined ? bytes : Math.round(expected * BYTES_PER_TOKEN)
  const kept = text === undefined ? undefined : Math.round(share * text)
  const most = expected ?? (bytes === undefined ? undefined : bytes / FEWEST_BYTES_PER_TOKEN)
  const tokens = factsOf(
    {
      tokenizer,
      bos,
      eos,
      vocabulary_size: vocabularySizes[tokenizer ?? ""],
      bytes: kept,
      tokens: kept === undefined ? undefined : Math.round(kept / BYTES_PER_TOKEN)
    },
    ["bytes", "tokens"]
  )
  const shards = kept === undefined ? undefined : { shards: Math.ceil(kept / shard_bytes), estimated: ["shards"] }
  return {
    amount: text,
    unit: "bytes",
    ...outlook(counted(tokens, "tokens"), shards === undefined ? undefined : counted(shards, "shards")),
    bytes: most === undefined ? undefined : Math.ceil(TOKEN_BYTES * share * most) + entries,
    outputs: { tokens }
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

/** Blocks that come of it; documents are held out whole, so both counts are estimates. `origins` name the sources. */
export const forecastPack = (
  params: {
    readonly seq_len: number
    readonly weights: ReadonlyArray<number> | null
    readonly validation: number
    readonly attention_reset: boolean
  },
  sources: ReadonlyArray<Facts>,
  origins: ReadonlyArray<string> = []
): Forecast => {
  const { seq_len, validation, weights } = params
  const tokens = sources.map((facts) => numberIn(facts, "tokens"))
  const total = sumKnown(tokens)
  const sum = weights?.reduce((all, weight) => all + weight, 0) ?? 0
  const shares = weights !== null && sum > 0 ? weights.map((weight) => weight / sum) : undefined
  const blocksOf = (share: number) => tokens.map((count) => Math.floor(((count ?? 0) * share) / (seq_len + 1)))
  const count = (blocks: ReadonlyArray<number>) => blocks.reduce((all, some) => all + some, 0)
  const known = total !== undefined && (shares === undefined || shares.length === sources.length)
  const available = blocksOf(1 - validation)
  const taken = mixtureCounts(available, shares)
  const train = count(taken)
  const leftOut = (count(available) - train) * (seq_len + 1)
  const mixture = taken.map((blocks, s) => ({
    source: origins[s] ?? `source ${s + 1}`,
    weight: shares?.[s] ?? blocks / train,
    realised: blocks / train,
    blocks
  }))
  const dataset = factsOf(
    {
      ...passedOn(sources[0], ["tokenizer", "tokenizer_digest", "vocabulary_size", "bos", "eos"]),
      seq_len,
      attention_reset: params.attention_reset ? true : undefined,
      train_blocks: known ? train : undefined,
      validation_blocks: known ? count(blocksOf(validation)) : undefined,
      mixture: known && train > 0 ? mixture : undefined
    },
    ["train_blocks", "validation_blocks", "mixture"]
  )
  return {
    amount: total === undefined ? undefined : TOKEN_BYTES * total,
    unit: "bytes",
    ...outlook(
      counted(dataset, "train_blocks", `blocks of ${formatCount(seq_len)} tokens to train on`),
      counted(dataset, "validation_blocks", "to validate with"),
      known && train > 0 && sources.length > 1
        ? `mixture: ${mixture.map(({ realised, source }) => `${source} ~${(100 * realised).toFixed(1)} %`).join(", ")}`
        : undefined,
      known && leftOut > WORTH_TELLING * (total ?? 0)
        ? `~${formatCount(leftOut)} tokens left out by the weights`
        : undefined
    ),
    bytes: total === undefined ? undefined : TOKEN_BYTES * total + 2 * ARROW_BYTES,
    outputs: { dataset }
  }
}
