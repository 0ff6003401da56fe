/**
 * Data sets that have a name here: where they are on the hub, and what is known of them without asking it, so that `plan` can tell bytes and
 * tokens offline. Sizes are what the publishers state, for forecasts alone; what is fetched is what the hub lists.
 */
import type { DocumentFormat } from "./Documents.ts"
import type { Condition } from "./RowFilter.ts"

export interface Preset {
  readonly name: string
  /** owner/name of a dataset on the hub. */
  readonly repository: string
  /** Branch, tag or commit. */
  readonly revision: string
  readonly include: ReadonlyArray<string>
  readonly exclude: ReadonlyArray<string>
  /** Of the included files, as they are on the hub: compressed. */
  readonly bytes: number
  /** undefined: not published. */
  readonly files: number | undefined
  readonly format: DocumentFormat
  /** For tokenize: text_field. */
  readonly textField: string
  /** For tokenize: where; what TinyLlama leaves out of it. */
  readonly where?: ReadonlyArray<Condition>
  /** Llama 2 tokens a byte on the hub, rows that `where` drops counted as none. undefined: not measured. */
  readonly tokensPerByte?: number
  readonly licence: string
  /** Wants an account that has accepted its terms. */
  readonly gated: boolean
}

// TinyLlama's recipe: 893 and 290 GB, about 950 billion tokens in both together, mixed by their number, 0.693584 to 0.306416.
const slimPajamaBytes = 893e9
const starCoderBytes = 290e9
const tinyLlamaTokens = 950e9
const slimPajamaShare = 0.693584

const withoutGithub: ReadonlyArray<Condition> = [{ field: "meta.redpajama_set_name", not: "RedPajamaGithub" }]

const slimPajama = {
  repository: "cerebras/SlimPajama-627B",
  revision: "2d0accdd58c5d5511943ca1f5ff0e3eb5e293543",
  exclude: [],
  format: "jsonl",
  textField: "text",
  where: withoutGithub,
  tokensPerByte: (tinyLlamaTokens * slimPajamaShare) / slimPajamaBytes,
  licence: "that of each part: see the dataset's card",
  gated: false
} as const

const list = [
  {
    ...slimPajama,
    name: "slimpajama",
    include: ["train/chunk*/*.jsonl.zst"],
    bytes: slimPajamaBytes,
    files: 59_166
  },
  {
    ...slimPajama,
    name: "slimpajama-validation",
    include: ["validation/chunk*/*.jsonl.zst"],
    // 500 million of 627 billion tokens
    bytes: Math.round((slimPajamaBytes * 0.5) / 627),
    files: undefined
  },
  {
    name: "starcoderdata",
    repository: "bigcode/starcoderdata",
    revision: "main",
    include: ["*/*.parquet"],
    exclude: [],
    bytes: starCoderBytes,
    files: undefined,
    format: "parquet",
    textField: "content",
    tokensPerByte: (tinyLlamaTokens * (1 - slimPajamaShare)) / starCoderBytes,
    licence: "that of each source file, all permissive; terms of use of The Stack",
    gated: true
  },
  {
    name: "openassistant-guanaco",
    repository: "timdettmers/openassistant-guanaco",
    revision: "main",
    include: ["openassistant_best_replies_train.jsonl"],
    exclude: [],
    bytes: 20.9e6,
    files: 1,
    format: "jsonl",
    textField: "text",
    licence: "apache-2.0",
    gated: false
  }
] as const satisfies ReadonlyArray<Preset>

export const presets: ReadonlyArray<Preset> = list

export const presetNames = list.map(({ name }) => name)
export type PresetName = (typeof presetNames)[number]

export const presetNamed = (wanted: PresetName): Preset => presets.find(({ name }) => name === wanted) ?? list[0]
