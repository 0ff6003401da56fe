/**
 * Where documents come from: local files and globs, URLs, S3 objects, files of a hub repository. Here are the form of a source in the pipeline
 * file and the resolution of local patterns; transfers are in HttpDownload.ts, listings in Hub.ts and S3.ts.
 */
import { globSync } from "node:fs"
import { stat } from "node:fs/promises"
import { basename, isAbsolute, matchesGlob, normalize, relative, resolve, sep } from "node:path"
import { Effect, Schema } from "effect"
import { StageError } from "../pipeline/StageType.ts"
import { DocumentFormat } from "./Documents.ts"
import { fileFailure } from "./FileFailure.ts"
import { type Preset, presetNamed, presetNames } from "./Presets.ts"

const Patterns = Schema.Union([Schema.NonEmptyString, Schema.NonEmptyArray(Schema.NonEmptyString)])
const Sha256 = Schema.String.check(
  Schema.isPattern(/^[0-9a-f]{64}$/u, { message: "a sha256 is 64 lower-case hexadecimal digits" })
)

const SourceFields = Schema.Struct({
  path: Schema.optionalKey(Patterns).annotate({
    description: "file or glob, or a list of them, relative to the pipeline file"
  }),
  url: Schema.optionalKey(
    Schema.String.check(
      Schema.isPattern(/^(?:https?|s3):\/\/[^\s]+$/u, { message: "a url starts with https://, http:// or s3://" }),
      Schema.makeFilter((url: string) => URL.canParse(url) || "this is not a url")
    )
  ).annotate({ description: "https://…, s3://bucket/key, or s3://bucket/prefix/ with include" }),
  hub: Schema.optionalKey(
    Schema.String.check(
      Schema.isPattern(/^(?:hf:)?[\w.-]+\/[\w.-]+(?:@[\w./-]+)?$/u, {
        message: "a hub repository is written owner/name or hf:owner/name@revision"
      })
    ).annotate({ description: "repository on the hub, owner/name or hf:owner/name@revision" })
  ),
  preset: Schema.optionalKey(Schema.Literals(presetNames)).annotate({
    description: "a data set that is known here: repository, revision, files and fields need not be named"
  }),
  include: Schema.optionalKey(Patterns).annotate({ description: "globs of files inside the repository" }),
  revision: Schema.optionalKey(Schema.NonEmptyString).annotate({
    description: "branch, tag or commit of the hub repository; default main"
  }),
  type: Schema.optionalKey(Schema.Literals(["dataset", "model"])).annotate({
    description: "kind of hub repository; default dataset"
  }),
  exclude: Schema.optionalKey(Patterns).annotate({ description: "globs of files to leave out" }),
  format: Schema.optionalKey(DocumentFormat).annotate({
    description:
      "default: by the extension, .jsonl and .ndjson (also .gz, .zst), .parquet, .arrow and .feather, .bin of lit-gpt; text for all else"
  }),
  max_bytes: Schema.optionalKey(Schema.Int.check(Schema.isGreaterThan(0))).annotate({
    description: "take files in order, up to this many bytes in all"
  }),
  sha256: Schema.optionalKey(Sha256).annotate({ description: "of the one file that this source names" })
})
type SourceFields = typeof SourceFields.Type

const kinds = ["path", "url", "hub", "preset"] as const
type Kind = (typeof kinds)[number]

/** Fields that only make sense with some kinds of source. */
const usedWith: ReadonlyArray<readonly [keyof SourceFields, ReadonlyArray<Kind>]> = [
  ["include", ["url", "hub", "preset"]],
  ["revision", ["hub", "preset"]],
  ["type", ["hub"]],
  ["exclude", ["path", "url", "hub", "preset"]],
  ["max_bytes", ["path", "url", "hub", "preset"]]
]

/** s3://bucket/prefix/: all objects below it. */
export const isPrefix = (url: string | undefined): boolean => url?.startsWith("s3://") === true && url.endsWith("/")

export const Source = SourceFields.check(
  Schema.makeFilter((source: SourceFields) => {
    const given = kinds.filter((kind) => source[kind] !== undefined)
    const kind = given[0]
    if (kind === undefined || given.length > 1)
      return [{ path: [], issue: "a source has exactly one of path, url, hub and preset" }]
    const single = kind === "url" && !isPrefix(source.url)
    const issues = usedWith
      .filter(([field, allowed]) => source[field] !== undefined && (single || !allowed.includes(kind)))
      .map(([field]) => ({
        path: [field],
        issue: `${field} has no meaning for ${single ? "a url of one file" : `a ${kind} source`}`
      }))
    if (source.include === undefined && (kind === "hub" || isPrefix(source.url)))
      issues.push({
        path: ["include"],
        issue: `${kind === "hub" ? "a hub source" : "a prefix"} needs include, for example include: "*.jsonl"`
      })
    if (source.revision !== undefined && source.hub?.includes("@") === true)
      issues.push({ path: ["revision"], issue: "the revision stands behind the @ already" })
    return issues
  })
).annotate({ identifier: "Source" })
export type Source = typeof Source.Type

/** What a hub or preset source names. */
export interface HubSource {
  readonly repository: { readonly id: string; readonly revision: string; readonly type: "dataset" | "model" }
  readonly include: ReadonlyArray<string>
  readonly exclude: ReadonlyArray<string>
  readonly format: DocumentFormat | undefined
  /** Where the files are those that the preset names, so that their sizes are known. */
  readonly preset: Preset | undefined
}

export const hubSourceOf = (source: Source): HubSource | undefined => {
  if (source.preset !== undefined) {
    const preset = presetNamed(source.preset)
    const whole = source.include === undefined && source.exclude === undefined
    return {
      repository: { id: preset.repository, revision: source.revision ?? preset.revision, type: "dataset" },
      include: source.include === undefined ? preset.include : listOf(source.include),
      exclude: source.exclude === undefined ? preset.exclude : listOf(source.exclude),
      format: source.format ?? preset.format,
      preset: whole ? preset : undefined
    }
  }
  if (source.hub === undefined) return undefined
  const [id = "", revision] = source.hub.replace(/^hf:/u, "").split("@")
  return {
    repository: { id, revision: source.revision ?? revision ?? "main", type: source.type ?? "dataset" },
    include: listOf(source.include),
    exclude: listOf(source.exclude),
    format: source.format,
    preset: undefined
  }
}

export const listOf = (patterns: string | ReadonlyArray<string> | undefined): ReadonlyArray<string> =>
  patterns === undefined ? [] : typeof patterns === "string" ? [patterns] : patterns

const formats: ReadonlyArray<readonly [RegExp, DocumentFormat]> = [
  [/\.(jsonl|ndjson)$/iu, "jsonl"],
  [/\.parquet$/iu, "parquet"],
  [/\.(arrow|feather|arrows|ipc)$/iu, "arrow"],
  [/\.bin$/iu, "litpkds"]
]

/** The format that the extension tells, behind .gz or .zst; other archives are refused here, where the name is known. */
export const formatOf = (
  place: string,
  name: string,
  given: DocumentFormat | undefined
): Effect.Effect<DocumentFormat, StageError> => {
  const extension = /\.(bz2|xz|zip|tar|tgz|tar\.gz|7z)$/iu.exec(name)?.[1]
  if (extension !== undefined)
    return Effect.fail(
      new StageError({
        failure: "invalid-input",
        message: `${place}: ${name} is a .${extension} file; documents are plain text, jsonl (plain, .gz, .zst), parquet or Arrow`,
        next: "unpack or convert it first and name the result"
      })
    )
  const plain = name.replace(/\.(gz|zst|zstd)$/iu, "")
  return Effect.succeed(given ?? formats.find(([pattern]) => pattern.test(plain))?.[1] ?? "text")
}

export interface Selected<T> {
  readonly taken: ReadonlyArray<T>
  readonly leftOut: ReadonlyArray<T>
}

/** The longest prefix of `files` within the budget; the order decides, so that the choice is easy to foresee. */
export const withinBudget = <T extends { readonly bytes: number }>(
  files: ReadonlyArray<T>,
  maxBytes: number | undefined
): Selected<T> => {
  if (maxBytes === undefined) return { taken: files, leftOut: [] }
  let total = 0
  const end = files.findIndex((file) => (total += file.bytes) > maxBytes)
  return end < 0 ? { taken: files, leftOut: [] } : { taken: files.slice(0, end), leftOut: files.slice(end) }
}

export interface LocalFile {
  readonly absolute: string
  /** How it is called in artifacts: relative, with forward slashes; never a path of this machine. */
  readonly id: string
  readonly bytes: number
}

const forward = (path: string): string => path.replaceAll(sep, "/")
const magic = /[*?[\]{}()!]/

/** The leading folders of a pattern that hold no wildcard. */
const fixedPrefix = (pattern: string): string => {
  const parts = pattern.split("/")
  const first = parts.findIndex((part) => magic.test(part))
  return parts.slice(0, first < 0 ? parts.length - 1 : first).join("/") || "/"
}

const matches = async (pattern: string, baseDirectory: string): Promise<ReadonlyArray<string>> => {
  const literal = resolve(baseDirectory, pattern)
  if ((await stat(literal).catch(() => undefined))?.isFile()) return [literal]
  if (!magic.test(pattern)) return []
  // the synchronous glob takes a third of the asynchronous one's time: 0.15 s for the 16,000 files of a node_modules
  return globSync(pattern, { cwd: baseDirectory }).map((match) => resolve(baseDirectory, match))
}

/**
 * The files that a local source names, in a fixed order: patterns as listed, the matches of each sorted by name. Fails with invalid-input when a
 * pattern matches no file, names a folder, or all matches are excluded.
 */
export const resolveLocal = Effect.fn("Sources.resolveLocal")(function* (
  source: Source,
  index: number,
  baseDirectory: string
) {
  const excluded = listOf(source.exclude).map((pattern) => forward(normalize(pattern)))
  const files = new Map<string, LocalFile>()
  for (const written of listOf(source.path)) {
    const pattern = normalize(written)
    const place = `sources[${index}] (path: ${written})`
    const found = yield* Effect.tryPromise({
      try: async () => {
        const sized = await Promise.all(
          (await matches(pattern, baseDirectory)).map(async (absolute) => ({
            absolute,
            stat: await stat(absolute).catch(() => undefined) // a link that leads nowhere
          }))
        )
        return sized.flatMap(({ absolute, stat }) => (stat?.isFile() ? [{ absolute, bytes: stat.size }] : []))
      },
      catch: fileFailure(place)
    })
    if (found.length === 0) {
      const isFolder = yield* Effect.promise(() =>
        stat(resolve(baseDirectory, pattern)).then(
          (entry) => entry.isDirectory(),
          () => false
        )
      )
      return yield* new StageError({
        failure: "invalid-input",
        message: `${place}: ${isFolder ? "is a folder, not a file" : magic.test(pattern) ? "the glob matches no file" : "no such file"}`,
        next: isFolder
          ? `write a glob, for example ${written.replace(/\/+$/, "")}/**/*.md`
          : `relative paths start at the pipeline file's folder; look there for ${written}`
      })
    }
    const root = isAbsolute(pattern) ? fixedPrefix(forward(pattern)) : baseDirectory
    const named = found
      .map((file) => ({ ...file, id: forward(relative(root, file.absolute)) || basename(file.absolute) }))
      .filter(
        (file) => !excluded.some((glob) => matchesGlob(file.id, glob) || matchesGlob(forward(file.absolute), glob))
      )
      .sort((a, b) => (a.id < b.id ? -1 : a.id > b.id ? 1 : 0))
    for (const file of named) if (!files.has(file.absolute)) files.set(file.absolute, file)
  }
  if (files.size === 0)
    return yield* new StageError({
      failure: "invalid-input",
      message: `sources[${index}] (path: ${listOf(source.path).join(", ")}): exclude leaves no file`,
      next: `narrow exclude: ${listOf(source.exclude).join(", ")}`
    })
  return [...files.values()]
})
