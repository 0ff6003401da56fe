/** Forecasts of the stages that handle text: download, tokenize, pack. */
import { Option, Schema } from "effect"
import type { Facts } from "../artifacts/Artifact.ts"
import { canonicalJson } from "../artifacts/CanonicalJson.ts"
import { mixtureCounts } from "../data/Packing.ts"
import type { Source } from "../data/Sources.ts"
import type { Forecast } from "../pipeline/StageType.ts"
import { factsOf, numberIn, passedOn, sumKnown } from "./KnownFacts.ts"

/** Bytes of text that a Llama 2 token stands for: 2.5 (JavaScript) to 4.2 (English prose) in the default pipeline's text. */
export const BYTES_PER_TOKEN = 3.3
const FEWEST_BYTES_PER_TOKEN = 2.4
/** A line of documents.jsonl, or a document's row in a shard. */
const BYTES_PER_ENTRY = 250
/** Headers and metadata of an Arrow file. */
const ARROW_BYTES = 6000
const TOKEN_BYTES = 2

/** Of a tokenizer by name, where stages above have not run yet. */
const vocabularySizes: Readonly<Record<string, number>> = { "llama-2": 32_000 }

const Observed = Schema.Array(Schema.NullOr(Schema.Array(Schema.Struct({ path: Schema.String, bytes: Schema.Finite }))))
const decodeObserved = Schema.decodeUnknownOption(Observed)

/** Local files are observed with their sizes; of the web's only max_bytes is known, if given. */
export const forecastDownload = (
  sources: ReadonlyArray<Source>,
  observed: Schema.Json | undefined,
  previous: { readonly sources: ReadonlyArray<Source>; readonly documents: Facts | undefined } | undefined
): Forecast => {
  const local = Option.getOrElse(decodeObserved(observed), () => [])
  const seen = new Set<string>()
  const ofSource = (source: Source, index: number) => {
    if (source.path === undefined) return { files: undefined, bytes: source.max_bytes }
    const files = local[index]
    if (files === undefined || files === null) return { files: undefined, bytes: undefined }
    const fresh = files.filter(({ path }) => !seen.has(path))
    for (const { path } of files) seen.add(path)
    return { files: fresh.length, bytes: fresh.reduce((sum, { bytes }) => sum + bytes, 0) }
  }
  const all = sources.map(ofSource)
  const bytes = sumKnown(all.map((source) => source.bytes))
  const files = sumKnown(all.map((source) => source.files))
  const kept = previous?.sources.every((old) => sources.some((source) => canonicalJson(source) === canonicalJson(old)))
  const before = numberIn(previous?.documents, "bytes")
  return {
    amount: bytes,
    unit: "bytes",
    bytes: bytes === undefined ? undefined : bytes + BYTES_PER_ENTRY * (files ?? sources.length),
    ...(kept === true && before !== undefined && bytes !== undefined && before <= bytes
      ? { resumesAt: { done: before, total: bytes, unit: "bytes" } }
      : {}),
    outputs: { documents: factsOf({ files, bytes }, files === undefined ? ["bytes"] : []) }
  }
}

export const forecastTokenize = (
  policy: { readonly tokenizer: string; readonly bos: string; readonly eos: string },
  documents: ReadonlyArray<Facts>
): Forecast => {
  const bytes = sumKnown(documents.map((facts) => numberIn(facts, "bytes")))
  const files = sumKnown(documents.map((facts) => numberIn(facts, "files"))) ?? 0
  const entries = files * BYTES_PER_ENTRY + ARROW_BYTES
  return {
    amount: bytes,
    unit: "bytes",
    bytes: bytes === undefined ? undefined : Math.ceil((TOKEN_BYTES * bytes) / FEWEST_BYTES_PER_TOKEN) + entries,
    outputs: {
      tokens: factsOf(
        {
          ...policy,
          vocabulary_size: vocabularySizes[policy.tokenizer],
          bytes,
          tokens: bytes === undefined ? undefined : Math.round(bytes / BYTES_PER_TOKEN)
        },
        ["bytes", "tokens"]
      )
    }
  }
}

/** lit-gpt's files hold two bytes a token for vocabularies like Llama 2's, behind headers that are next to nothing. */
export const forecastImport = (
  policy: { readonly tokenizer: string; readonly bos: string; readonly eos: string },
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
      tokens: factsOf({ ...policy, vocabulary_size: vocabularySizes[policy.tokenizer], tokens }, ["tokens"])
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
