/** What the headers of an answer say of the file behind it: size, validator, digests, and which part of it this is. */
import type { Identity } from "./RangeJournal.ts"

type Headers = Readonly<Record<string, string | undefined>>

export interface ContentRange {
  readonly start: number
  /** Exclusive. */
  readonly end: number
  readonly total: number
}

/** `bytes 10-99/100`; undefined for every other form, also for an unknown total. */
export const contentRange = (headers: Headers): ContentRange | undefined => {
  const match = /^bytes (\d+)-(\d+)\/(\d+)$/u.exec(headers["content-range"] ?? "")
  if (match === null) return undefined
  const [start, last, total] = match.slice(1).map(Number)
  if (start === undefined || last === undefined || total === undefined || last < start || last >= total)
    return undefined
  return { start, end: last + 1, total }
}

/** The size in a 416: `bytes ∗/100`. */
export const sizeOfUnsatisfied = (headers: Headers): number | undefined => {
  const size = /^bytes \*\/(\d+)$/u.exec(headers["content-range"] ?? "")?.[1]
  return size === undefined ? undefined : Number(size)
}

/** undefined without a length, and where the body is encoded, so that its length is not the file's. */
export const contentLength = (headers: Headers): number | undefined => {
  const { "content-encoding": encoding, "content-length": length } = headers
  if (encoding !== undefined && encoding !== "identity") return undefined
  return length !== undefined && /^\d+$/u.test(length) ? Number(length) : undefined
}

/** Only a strong ETag or a date may stand in If-Range. */
export const validatorOf = (headers: Headers): string | null => {
  const { etag, "last-modified": modified } = headers
  return etag !== undefined && !etag.startsWith("W/") ? etag : (modified ?? null)
}

/** sha256 in hex from a field of RFC 9530, `sha-256=:base64:`. */
const digestField = (field: string | undefined): string | null => {
  const base64 = /(?:^|,)\s*sha-256=:([A-Za-z0-9+/]{43}=):/u.exec(field ?? "")?.[1]
  return base64 === undefined ? null : Buffer.from(base64, "base64").toString("hex")
}

/** The digest of this very answer's body. */
export const contentDigest = (headers: Headers): string | null => digestField(headers["content-digest"])

const quoted = (etag: string | undefined): string => /^"?([^"]*)"?$/u.exec(etag ?? "")?.[1] ?? ""

/**
 * A hub that sends the request on says in X-Linked-ETag what the file is: the sha256 of large files, git's blob id of others. S3's ETag is the
 * content's MD5, unless the object was uploaded in parts or is encrypted with a managed key.
 */
export const identify = (
  answer: { readonly headers: Headers; readonly origin: Headers },
  options: { readonly key: string; readonly size: number; readonly md5Etag: boolean }
): Identity => {
  const linked = quoted(answer.origin["x-linked-etag"] ?? answer.headers["x-linked-etag"])
  const managed = answer.headers["x-amz-server-side-encryption"] ?? "AES256"
  const etag = quoted(answer.headers["etag"])
  return {
    key: options.key,
    size: options.size,
    validator: validatorOf(answer.headers),
    sha256: /^[0-9a-f]{64}$/u.test(linked) ? linked : digestField(answer.headers["repr-digest"]),
    gitBlob: /^[0-9a-f]{40}$/u.test(linked) ? linked : null,
    md5: options.md5Etag && managed === "AES256" && /^[0-9a-f]{32}$/u.test(etag) ? etag : null
  }
}
