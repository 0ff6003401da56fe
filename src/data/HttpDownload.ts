/**
 * One file over http(s) into the work folder, resumable: bytes go to `<target>.part`, which survives a broken connection, a killed attempt and
 * a failed run; the next try asks for the missing range (RFC 9110, 14) and, by If-Range, for a fresh start when the file has changed since.
 */
import { existsSync } from "node:fs"
import { mkdir, open, readFile, rename, rm, stat, writeFile } from "node:fs/promises"
import { dirname } from "node:path"
import { Effect, Schedule, Schema, Stream } from "effect"
import * as HttpClient from "effect/http/HttpClient"
import * as HttpClientRequest from "effect/http/HttpClientRequest"
import type * as HttpClientResponse from "effect/http/HttpClientResponse"
import { Preempted, StageError } from "../pipeline/StageType.ts"
import { sha256OfFile } from "./FileDigest.ts"
import { fileFailure } from "./FileFailure.ts"

export interface Download {
  readonly url: string
  /** Leads every message: which source of the file this is. */
  readonly place: string
  readonly target: string
  readonly headers?: Readonly<Record<string, string>>
  /** Expected digest; a mismatch fails as corrupt and throws the bytes away. */
  readonly sha256?: string | undefined
  /** What a 401 or 403 asks of the user. */
  readonly accessHint?: string
  /** Bytes on disk, and the size when the server has told it. */
  readonly onBytes: (done: number, total: number | undefined) => void
  readonly stopRequested: () => boolean
}

/** A dropped connection that brought bytes goes on at once, this often; then the runner's retry policy has its say. */
const resumesInARow = 10

/** Statuses 408, 429 and 5xx and failed connections are tried again here, honouring Retry-After. */
export const patientClient = Effect.map(HttpClient.HttpClient, (client) =>
  client.pipe(
    HttpClient.followRedirects(), // drops the authorization header when the origin changes
    HttpClient.retryTransient({ schedule: Schedule.exponential("200 millis"), times: 3 })
  )
)

/** A URL as it may be shown: without user, password and query, where secrets ride. */
export const shownUrl = (url: string): string => {
  const { origin, pathname } = new URL(url)
  return origin + pathname
}

const network = (place: string, reason: string): StageError =>
  new StageError({
    failure: "network",
    message: `${place}: ${reason}`,
    next: "check the connection and run again: what has arrived is kept and the download goes on from there"
  })

/** Turns a failed request or a broken body into a network failure, without the query string that the client's message may carry. */
export const requestFailed =
  (place: string) =>
  (error: { readonly message: string; readonly cause?: unknown }): StageError => {
    const message = error.message.replaceAll(/\?[^\s)]*/g, "")
    return network(place, error.cause instanceof Error ? `${message}: ${error.cause.message}` : message)
  }

/** The failure that a status other than 200 and 206 means. */
export const statusFailure = (place: string, status: number, accessHint?: string): StageError => {
  if (status === 408 || status === 429 || status >= 500) return network(place, `the server answers ${status}`)
  return new StageError({
    failure: "invalid-input",
    message: `${place}: the server answers ${status}${status === 404 ? " (not found)" : status === 401 || status === 403 ? " (no access)" : ""}`,
    next: status === 401 || status === 403 ? (accessHint ?? "name a file that is open to all") : "check the address"
  })
}

/** What a later range request needs to know of the bytes in the part file. */
const PartNote = Schema.fromJsonString(Schema.Struct({ url: Schema.String, validator: Schema.NullOr(Schema.String) }))

/** A strong validator of the response's body: only a strong ETag or a date may stand in If-Range. */
const validatorOf = (response: HttpClientResponse.HttpClientResponse): string | null => {
  const etag = response.headers["etag"]
  return etag !== undefined && !etag.startsWith("W/") ? etag : (response.headers["last-modified"] ?? null)
}

/** `bytes 10-99/100` or `bytes ∗/100`. */
const contentRange = (header: string | undefined): { readonly start: number; readonly total: number } | undefined => {
  const match = /^bytes (?:(\d+)-\d+|\*)\/(\d+)$/.exec(header ?? "")
  return match === null ? undefined : { start: Number(match[1] ?? 0), total: Number(match[2]) }
}

const sizeOf = (file: string): Promise<number> =>
  stat(file).then(
    (entry) => entry.size,
    () => 0
  )

/** One request; resolves with the size when the file is whole. */
const transfer = Effect.fnUntraced(function* (download: Download) {
  const { place, url } = download
  const part = `${download.target}.part`
  const note = `${part}.json`
  const client = yield* patientClient
  const onDisk = fileFailure(`${place}: ${part}`)
  const kept = yield* Effect.promise(async () => ({
    size: await sizeOf(part),
    note: await readFile(note, "utf8").catch(() => "")
  }))
  const known = yield* Effect.option(Schema.decodeEffect(PartNote)(kept.note))
  const usable = known._tag === "Some" && known.value.url === url
  const from = usable ? kept.size : 0
  const validator = usable ? known.value.validator : null
  const response = yield* client
    .execute(
      HttpClientRequest.get(url, {
        headers: {
          ...download.headers,
          "accept-encoding": "identity",
          ...(from > 0 ? { range: `bytes=${from}-` } : {}),
          ...(from > 0 && validator !== null ? { "if-range": validator } : {})
        }
      })
    )
    .pipe(Effect.mapError(requestFailed(place)))
  const range = contentRange(response.headers["content-range"])
  if (response.status === 416 && from > 0 && range?.total === from) return from
  if (response.status === 416 || (response.status === 206 && range?.start !== from)) {
    yield* Effect.promise(() => rm(part, { force: true }))
    return yield* network(place, "the server has other bytes than before; starting anew")
  }
  if (response.status !== 200 && response.status !== 206)
    return yield* statusFailure(place, response.status, download.accessHint)
  const resumed = response.status === 206 // 200: the server ignores ranges or the file has changed, start over
  const length = response.headers["content-length"]
  const total = resumed ? range?.total : length === undefined ? undefined : Number(length)
  let done = resumed ? from : 0
  if (!resumed)
    yield* Effect.tryPromise({
      try: async () => {
        await rm(part, { force: true })
        await writeFile(note, JSON.stringify({ url, validator: validatorOf(response) }))
      },
      catch: onDisk
    })
  yield* Effect.scoped(
    Effect.gen(function* () {
      const file = yield* Effect.acquireRelease(
        Effect.tryPromise({ try: () => open(part, "a"), catch: onDisk }),
        (handle) => Effect.promise(() => handle.close())
      )
      yield* response.stream.pipe(
        Stream.mapError(requestFailed(place)),
        Stream.runForEach((chunk) =>
          Effect.gen(function* () {
            if (download.stopRequested())
              return yield* new Preempted({ message: `${place}: stopped at ${done} bytes, which are kept` })
            yield* Effect.tryPromise({ try: () => file.writeFile(chunk), catch: onDisk })
            download.onBytes((done += chunk.length), total)
          })
        )
      )
    })
  )
  if (total !== undefined && done !== total)
    return yield* network(place, `the download is cut off: ${done} of ${total} bytes arrived`)
  return done
})

const verified = Effect.fnUntraced(function* (download: Download, size: number) {
  const part = `${download.target}.part`
  const onDisk = fileFailure(`${download.place}: ${download.target}`)
  const sha256 = yield* sha256OfFile(part, download.place)
  if (download.sha256 !== undefined && sha256 !== download.sha256) {
    yield* Effect.promise(() => rm(part, { force: true }))
    return yield* new StageError({
      failure: "corrupt",
      message: `${download.place}: wrong sha256\n  expected ${download.sha256}\n  actual   ${sha256}`,
      next: "the file has changed or was damaged on the way: run again, and correct sha256 if the new file is the one you want"
    })
  }
  yield* Effect.tryPromise({
    try: async () => {
      await writeFile(`${download.target}.json`, JSON.stringify({ bytes: size, sha256 }))
      await rename(part, download.target)
      await rm(`${part}.json`, { force: true })
    },
    catch: onDisk
  })
  return { bytes: size, sha256 }
})

const Finished = Schema.fromJsonString(Schema.Struct({ bytes: Schema.Int, sha256: Schema.String }))

/**
 * Fetches `url` to `target`, or finds it there from an earlier attempt. Fails as network (cut off, unreachable, 5xx after retries), invalid-input
 * (404 and other refusals), corrupt (digest), disk-full; as Preempted when asked to stop. All but corrupt keep what has arrived.
 */
export const download = Effect.fn("HttpDownload.download")(function* (request: Download) {
  yield* Effect.tryPromise({
    try: () => mkdir(dirname(request.target), { recursive: true }),
    catch: fileFailure(request.place)
  })
  if (existsSync(request.target)) {
    const note = yield* Effect.promise(() => readFile(`${request.target}.json`, "utf8").catch(() => ""))
    const finished = yield* Effect.option(Schema.decodeEffect(Finished)(note))
    if (finished._tag === "Some") {
      request.onBytes(finished.value.bytes, finished.value.bytes)
      return finished.value
    }
  }
  const part = `${request.target}.part`
  for (let resumes = 0; ; resumes++) {
    const before = yield* Effect.promise(() => sizeOf(part))
    const size = yield* transfer(request).pipe(
      Effect.catchIf(
        (error) => error._tag === "StageError" && error.failure === "network" && resumes < resumesInARow,
        (error) =>
          Effect.promise(() => sizeOf(part)).pipe(
            Effect.flatMap((after) => (after > before ? Effect.void : Effect.fail(error)))
          )
      )
    )
    if (typeof size === "number") return yield* verified(request, size)
  }
})
