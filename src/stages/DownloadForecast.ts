/** What a download will bring, told without the network: sizes of local files, and of presets as their publishers state them. */
import { Option, Schema } from "effect"
import type { Facts } from "../artifacts/Artifact.ts"
import { canonicalJson } from "../artifacts/CanonicalJson.ts"
import { hubSourceOf, type Source } from "../data/Sources.ts"
import type { Forecast } from "../pipeline/StageType.ts"
import { factsOf, numberIn, sumKnown } from "./KnownFacts.ts"
import { counted, outlook, sized } from "./Outlook.ts"
import { BYTES_PER_ENTRY, BYTES_PER_TOKEN } from "./TextForecast.ts"

const Observed = Schema.Array(Schema.NullOr(Schema.Array(Schema.Struct({ path: Schema.String, bytes: Schema.Finite }))))
const decodeObserved = Schema.decodeUnknownOption(Observed)

interface Expected {
  readonly files: number | undefined
  readonly bytes: number | undefined
}

/** Of a source on the network: a preset's size, or max_bytes as the most that it may be; undefined where nothing tells. */
const remote = (source: Source): Expected => {
  const preset = hubSourceOf(source)?.preset
  const { max_bytes: most } = source
  if (preset === undefined || (most !== undefined && most < preset.bytes)) return { files: undefined, bytes: most }
  return { files: preset.files, bytes: preset.bytes }
}

/**
 * The Llama 2 tokens in `bytes` of each source, where a preset tells how many a byte stands for: compressed text has more than plain text.
 * undefined: no source has such a preset, or a size is missing.
 */
export const expectedTokens = (
  sources: ReadonlyArray<Source>,
  bytes: ReadonlyArray<number | undefined>
): number | undefined => {
  const rates = sources.map((source) => hubSourceOf(source)?.preset?.tokensPerByte)
  if (rates.every((rate) => rate === undefined)) return undefined
  const tokens = sumKnown(
    rates.map((rate, index) => {
      const size = bytes[index]
      return size === undefined ? undefined : size * (rate ?? 1 / BYTES_PER_TOKEN)
    })
  )
  return tokens === undefined ? undefined : Math.round(tokens)
}

/** `observed` is what the stage's `observe` returned: local files with their sizes. */
export const forecastDownload = (
  sources: ReadonlyArray<Source>,
  observed: Schema.Json | undefined,
  previous: { readonly sources: ReadonlyArray<Source>; readonly documents: Facts | undefined } | undefined
): Forecast => {
  const local = Option.getOrElse(decodeObserved(observed), () => [])
  const seen = new Set<string>()
  const ofSource = (source: Source, index: number): Expected => {
    if (source.path === undefined) return remote(source)
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
  const certain = sources.every(({ path }) => path !== undefined)
  const expected_tokens = expectedTokens(
    sources,
    all.map((source) => source.bytes)
  )
  const documents = factsOf({ files, bytes, expected_tokens }, certain ? [] : ["files", "bytes", "expected_tokens"])
  return {
    amount: bytes,
    unit: "bytes",
    ...outlook(counted(documents, "files"), sized(documents, "bytes"), counted(documents, "expected_tokens", "tokens")),
    bytes: bytes === undefined ? undefined : bytes + BYTES_PER_ENTRY * (files ?? sources.length),
    ...(kept === true && before !== undefined && bytes !== undefined && before <= bytes
      ? { resumesAt: { done: before, total: bytes, unit: "bytes" } }
      : {}),
    outputs: { documents }
  }
}
