/**
 * S3 through its https interface: `s3://bucket/key` is `https://bucket.s3.region.amazonaws.com/key`, or `endpoint/bucket/key` at another provider; all
 * objects below `s3://bucket/prefix/` are listed by ListObjectsV2. Requests are unsigned, for public buckets, unless credentials are named: then each
 * is signed anew (Signature Version 4, by aws4fetch).
 */
import { matchesGlob } from "node:path"
import { Config, Effect, Option, Redacted, Schema } from "effect"
import { StageError } from "../pipeline/StageType.ts"
import { type Ask, askForText, type Explain, explainPlain, type Session } from "./HttpTransport.ts"

const Name = Schema.String.check(
  Schema.isPattern(/^[A-Za-z_]\w*$/u, { message: "the name of a variable, as in AWS_SECRET_ACCESS_KEY" })
)

const Fields = Schema.Struct({
  endpoint: Schema.optionalKey(Schema.String).annotate({ description: "address of a provider other than AWS" }),
  region: Schema.optionalKey(Schema.NonEmptyString).annotate({ description: "default us-east-1" }),
  access_key: Schema.optionalKey(Name).annotate({ description: "name of the secret that holds the access key's id" }),
  secret_key: Schema.optionalKey(Name).annotate({ description: "name of the secret that holds the secret key" }),
  session_token: Schema.optionalKey(Name).annotate({ description: "name of the secret that holds a session token" })
})

/** How S3 is reached. Without key names requests are not signed. */
export const S3Settings = Fields.check(
  Schema.makeFilter((settings: typeof Fields.Type) =>
    (settings.access_key === undefined) === (settings.secret_key === undefined) &&
    (settings.session_token === undefined || settings.access_key !== undefined)
      ? undefined
      : "access_key and secret_key go together, and session_token with them"
  )
).annotate({ identifier: "S3Settings" })
export type S3Settings = typeof S3Settings.Type

/** Settings with the credentials that they name. */
export interface S3Access {
  readonly endpoint: string | undefined
  readonly region: string
  readonly authorize: Ask["authorize"]
  readonly explain: Explain
}

const secret = Effect.fnUntraced(function* (name: string) {
  const value = yield* Effect.option(Config.Redacted(name))
  if (Option.isSome(value)) return Redacted.value(value.value)
  return yield* new StageError({
    failure: "invalid-input",
    message: `s3: the secret ${name} is not set for this stage`,
    next: `export ${name}, and name it under "secrets" of this stage`
  })
})

export const s3Access = Effect.fn("S3.access")(function* (settings: S3Settings) {
  const { access_key, endpoint, region = "us-east-1", secret_key, session_token } = settings
  const signed = access_key !== undefined && secret_key !== undefined
  const credentials = signed
    ? {
        accessKeyId: yield* secret(access_key),
        secretAccessKey: yield* secret(secret_key),
        ...(session_token === undefined ? {} : { sessionToken: yield* secret(session_token) })
      }
    : undefined
  const access: S3Access = {
    endpoint: endpoint?.replace(/\/+$/u, ""),
    region,
    authorize: credentials && ((url) => sign(url, { ...credentials, region })),
    explain: explainS3(signed)
  }
  return access
})

interface Signing {
  readonly accessKeyId: string
  readonly secretAccessKey: string
  readonly sessionToken?: string
  readonly region: string
}

/** The headers of a signed GET. The range is left out of the signature, as S3 allows. */
const sign = (url: string, credentials: Signing): Effect.Effect<Readonly<Record<string, string>>> =>
  Effect.clockWith((clock) => clock.currentTimeMillis).pipe(
    Effect.flatMap((now) =>
      Effect.promise(async () => {
        const { AwsV4Signer } = await import("aws4fetch")
        const datetime = new Date(now).toISOString().replaceAll(/[:-]|\.\d{3}/gu, "")
        const { headers } = await new AwsV4Signer({
          url,
          method: "GET",
          service: "s3",
          datetime,
          ...credentials
        }).sign()
        return Object.fromEntries(Array.from(headers).filter(([name]) => name !== "host"))
      })
    )
  )

const explainS3 =
  (signed: boolean): Explain =>
  (status, headers) => {
    const region = headers["x-amz-bucket-region"]
    if (status >= 300 && status < 400)
      return {
        cause: "the bucket is in another region",
        next: region === undefined ? "name its region: s3: { region: … }" : `s3: { region: ${region} }`
      }
    if (status === 400)
      return { cause: "the request is refused", next: "the session token may have expired; check the region" }
    if (status === 401 || status === 403)
      return {
        cause: "no access, or no such object",
        next: signed
          ? "check the key's rights to this bucket, whether it has expired, and the region"
          : "if the bucket is not public, name credentials: s3: { access_key: …, secret_key: … }, and the same names under secrets"
      }
    return explainPlain(status, headers)
  }

/** `s3://bucket/key` → both parts. */
export const parseS3 = (url: string): { readonly bucket: string; readonly key: string } => {
  const [bucket = "", ...key] = url.slice("s3://".length).split("/")
  return { bucket, key: key.join("/") }
}

/** RFC 3986, as the signature wants it. */
const encode = (text: string): string =>
  encodeURIComponent(text).replaceAll(/[!'()*]/gu, (sign) => `%${sign.charCodeAt(0).toString(16).toUpperCase()}`)

const root = ({ endpoint, region }: S3Access, bucket: string): string =>
  endpoint !== undefined
    ? `${endpoint}/${bucket}`
    : bucket.includes(".") // no certificate covers names with dots
      ? `https://s3.${region}.amazonaws.com/${bucket}`
      : `https://${bucket}.s3.${region}.amazonaws.com`

export const objectUrl = (access: S3Access, bucket: string, key: string): string =>
  `${root(access, bucket)}/${key.split("/").map(encode).join("/")}`

export interface S3Object {
  readonly key: string
  /** Below the prefix. */
  readonly path: string
  readonly bytes: number
  readonly etag: string
}

const entities = new Map([
  ["&quot;", '"'],
  ["&#34;", '"'],
  ["&lt;", "<"],
  ["&gt;", ">"],
  ["&amp;", "&"]
])
const unescape = (text: string): string =>
  text.replaceAll(/&(?:quot|#34|lt|gt|amp);/gu, (entity) => entities.get(entity) ?? "")
const field = (xml: string, name: string): string =>
  unescape(new RegExp(`<${name}>([^<]*)</${name}>`, "u").exec(xml)?.[1] ?? "")

/** The objects below a prefix that match `include` and not `exclude`, sorted by key. */
export const listObjects = Effect.fn("S3.listObjects")(function* (
  session: Session,
  url: string,
  include: ReadonlyArray<string>,
  exclude: ReadonlyArray<string>,
  place: string,
  access: S3Access
) {
  const { bucket, key: prefix } = parseS3(url)
  const found: Array<S3Object> = []
  let token: string | undefined
  do {
    const query = [
      ...(token === undefined ? [] : [`continuation-token=${encode(token)}`]),
      "encoding-type=url",
      "list-type=2",
      `prefix=${encode(prefix)}`
    ]
    const { text } = yield* askForText(session, {
      url: `${root(access, bucket)}/?${query.join("&")}`,
      place,
      authorize: access.authorize,
      explain: access.explain
    })
    if (!text.includes("<ListBucketResult"))
      return yield* new StageError({
        failure: "network",
        message: `${place}: the listing is not what S3 sends`,
        next: "check s3.endpoint"
      })
    for (const [, xml = ""] of text.matchAll(/<Contents>([^]*?)<\/Contents>/gu)) {
      const key = decodeURIComponent(field(xml, "Key").replaceAll("+", " "))
      if (!key.endsWith("/"))
        found.push({ key, path: key.slice(prefix.length), bytes: Number(field(xml, "Size")), etag: field(xml, "ETag") })
    }
    token = field(text, "IsTruncated") === "true" ? field(text, "NextContinuationToken") : undefined
  } while (token !== undefined && token !== "")
  const taken = found
    .filter(({ path }) => include.some((glob) => matchesGlob(path, glob)))
    .filter(({ path }) => !exclude.some((glob) => matchesGlob(path, glob)))
    .toSorted((a, b) => (a.key < b.key ? -1 : 1))
  if (taken.length > 0) return taken
  return yield* new StageError({
    failure: "invalid-input",
    message: `${place}: no object matches ${include.join(", ")} among ${found.length}`,
    next: `below the prefix are, for example: ${
      found
        .slice(0, 5)
        .map(({ path }) => path)
        .join(", ") || "none"
    }`
  })
})
