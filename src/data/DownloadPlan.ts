/** What a download will bring, before it brings it: each source of the pipeline file becomes a list of files with a place in the artifact. */
import { Effect } from "effect"
import type { HttpClient } from "effect/http"
import { type Preempted, StageError } from "../pipeline/StageType.ts"
import type { DocumentFormat } from "./Documents.ts"
import type { Download } from "./HttpDownload.ts"
import { type Session, shownUrl } from "./HttpTransport.ts"
import { access, explain, list } from "./Hub.ts"
import { listObjects, objectUrl, parseS3, type S3Access, s3Access, type S3Object, type S3Settings } from "./S3.ts"
import {
  formatOf,
  type HubSource,
  hubSourceOf,
  isPrefix,
  listOf,
  resolveLocal,
  type Selected,
  type Source,
  withinBudget
} from "./Sources.ts"

/** A file to bring: where it lies, and what the artifact calls it. */
export interface Planned {
  readonly index: number
  readonly place: string
  readonly from:
    | { readonly kind: "file"; readonly address: string }
    | {
        readonly kind: "http"
        readonly address: string
        /** What stays the same where the address changes: the name of what has arrived. */
        readonly key: string
        readonly request: Omit<Download, "place" | "target" | "onBytes" | "sha256">
      }
  readonly source: string
  readonly name: string
  readonly format: DocumentFormat
  readonly bytes: number
  readonly sha256: string | undefined
}

/** A relative path that stays inside its folder. */
const inside = (id: string): string =>
  id
    .split("/")
    .filter((part) => part !== "" && part !== ".")
    .map((part) => (part === ".." ? "_up" : part))
    .join("/")

/** How messages name a source. */
export const describe = (source: Source, index: number): string =>
  source.url !== undefined
    ? `sources[${index}] (url: ${shownUrl(source.url)})`
    : source.hub !== undefined
      ? `sources[${index}] (hub: ${source.hub})`
      : source.preset !== undefined
        ? `sources[${index}] (preset: ${source.preset})`
        : `sources[${index}] (path: ${listOf(source.path).join(", ")})`

/** Applies max_bytes, and checks what can be said once the number of files is known. */
const select = Effect.fnUntraced(function* (source: Source, index: number, planned: ReadonlyArray<Planned>) {
  const place = describe(source, index)
  if (source.sha256 !== undefined && planned.length > 1)
    return yield* new StageError({
      failure: "invalid-input",
      message: `${place}: sha256 is given for ${planned.length} files`,
      next: "a sha256 goes with a source that names one file: split the source"
    })
  const selected = withinBudget(planned, source.max_bytes)
  const first = selected.leftOut[0]
  if (selected.taken.length === 0 && first !== undefined)
    return yield* new StageError({
      failure: "invalid-input",
      message: `${place}: its first file, ${first.source}, has ${first.bytes} bytes, more than max_bytes ${source.max_bytes}`,
      next: "raise max_bytes or exclude that file"
    })
  return selected
})

const planUrl = Effect.fnUntraced(function* (source: Source & { readonly url: string }, index: number) {
  const place = describe(source, index)
  const name = inside(new URL(source.url).pathname) || "index"
  const planned: Planned = {
    index,
    place,
    from: { kind: "http", address: source.url, key: source.url, request: { url: source.url } },
    source: shownUrl(source.url),
    name,
    format: yield* formatOf(place, name, source.format),
    bytes: 0,
    sha256: source.sha256
  }
  const selected: Selected<Planned> = { taken: [planned], leftOut: [] }
  return selected
})

/** One object, or those below a prefix; what a listing tells of it is its size and ETag. */
const s3Planned = (
  access: S3Access,
  bucket: string,
  { bytes, etag, key, path }: S3Object,
  file: Pick<Planned, "index" | "place" | "sha256" | "format">
): Planned => {
  const url = objectUrl(access, bucket, key)
  const address = `s3://${bucket}/${key}`
  return {
    ...file,
    from: {
      kind: "http",
      address: url,
      key: `${address}:${etag}`,
      request: {
        url,
        key: `${address}:${etag}`,
        md5Etag: true,
        authorize: access.authorize,
        explain: access.explain
      }
    },
    source: address,
    name: inside(path),
    bytes
  }
}

const planS3 = Effect.fnUntraced(function* (
  source: Source & { readonly url: string },
  index: number,
  options: PlanOptions
) {
  const place = describe(source, index)
  const access = yield* s3Access(options.s3)
  const { bucket, key } = parseS3(source.url)
  const objects = isPrefix(source.url)
    ? yield* listObjects(options.session, source.url, listOf(source.include), listOf(source.exclude), place, access)
    : [{ key, path: key, bytes: 0, etag: "" }]
  const planned = yield* Effect.forEach(objects, (object) =>
    Effect.map(formatOf(place, object.path, source.format), (format) =>
      s3Planned(access, bucket, object, {
        index,
        place: isPrefix(source.url) ? `${place} ${object.path}` : place,
        sha256: source.sha256,
        format
      })
    )
  )
  return yield* select(source, index, planned)
})

const planHub = Effect.fnUntraced(function* (
  source: Source,
  { exclude, format, include, repository }: HubSource,
  index: number,
  options: PlanOptions
) {
  const place = describe(source, index)
  const hub = yield* access(options.endpoint, options.token)
  const { commit, files } = yield* list(options.session, repository, include, exclude, place, hub)
  const planned = yield* Effect.forEach(files, (file) =>
    Effect.map(formatOf(place, file.path, format), (format): Planned => {
      // A later commit of a branch may have the same file: what has arrived of it stays good.
      const key = `hub:${repository.type}:${repository.id}/${file.path}:${file.sha256 ?? file.gitBlob ?? commit}`
      return {
        index,
        place: `${place} ${file.path}`,
        from: {
          kind: "http",
          address: file.url,
          key,
          request: {
            url: file.url,
            key,
            size: file.bytes,
            pinned: true,
            gitBlob: file.gitBlob,
            authorize: () => Effect.succeed(hub.headers),
            explain: explain(hub, repository)
          }
        },
        source: `hub:${repository.id}@${repository.revision}/${file.path}`,
        name: inside(file.path),
        format,
        bytes: file.bytes,
        sha256: source.sha256 ?? file.sha256
      }
    })
  )
  const selected = yield* select(source, index, planned)
  return { ...selected, commit }
})

/** The files of a local source, within its budget. */
export const planLocal = Effect.fnUntraced(function* (source: Source, index: number, baseDirectory: string) {
  const files = yield* resolveLocal(source, index, baseDirectory)
  const planned = yield* Effect.forEach(files, (file) =>
    Effect.map(formatOf(`sources[${index}]`, file.id, source.format), (format): Planned => ({
      index,
      place: `sources[${index}] ${file.id}`,
      from: { kind: "file", address: file.absolute },
      source: file.id,
      name: inside(file.id),
      format,
      bytes: file.bytes,
      sha256: source.sha256
    }))
  )
  return yield* select(source, index, planned)
})

export interface PlanOptions {
  readonly session: Session
  readonly baseDirectory: string
  /** Of the hub; null: from the environment. */
  readonly endpoint: string | null
  /** Name of the variable that holds the hub's token. */
  readonly token: string
  readonly s3: S3Settings
}

/** The files of any source, within its budget; and the commit that a hub's are of. */
export const plan = (
  source: Source,
  index: number,
  options: PlanOptions
): Effect.Effect<Selected<Planned> & { readonly commit?: string }, StageError | Preempted, HttpClient.HttpClient> => {
  const { url } = source
  const hub = hubSourceOf(source)
  if (url?.startsWith("s3://") === true) return planS3({ ...source, url }, index, options)
  return url !== undefined
    ? planUrl({ ...source, url }, index)
    : hub !== undefined
      ? planHub(source, hub, index, options)
      : planLocal(source, index, options.baseDirectory)
}
