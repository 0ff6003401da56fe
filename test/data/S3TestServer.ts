/** A stand-in of S3 at an endpoint of its own: objects, listings in pages, and Signature Version 4 checked by what AWS documents, not by our library. */
import { createHash, createHmac } from "node:crypto"
import type { IncomingMessage } from "node:http"
import { sendRange, serve } from "./HttpTestServer.ts"

export interface S3Fixture {
  readonly objects: Readonly<Record<string, string>>
  /** Wanted of every request; without it the bucket is public. */
  readonly credentials?: { readonly id: string; readonly secret: string; readonly token?: string }
  readonly region?: string
  readonly perPage?: number
}

const hmac = (key: string | Buffer, text: string): Buffer => createHmac("sha256", key).update(text).digest()
const sha256 = (text: string): string => createHash("sha256").update(text).digest("hex")

/** Whether the request's Authorization is what its parts and the secret give (AWS General Reference, Signature Version 4). */
const isSigned = (request: IncomingMessage, secret: string): boolean => {
  const match =
    /^AWS4-HMAC-SHA256 Credential=([^/]+)\/(\d{8})\/([^/]+)\/s3\/aws4_request, SignedHeaders=([^,]+), Signature=([0-9a-f]{64})$/u.exec(
      request.headers.authorization ?? ""
    )
  if (match === null) return false
  const [, , day = "", region = "", names = "", signature] = match
  const [path = "", query = ""] = (request.url ?? "").split("?")
  const canonical = [
    "GET",
    path,
    query.split("&").toSorted().join("&"),
    ...names.split(";").map((name) => `${name}:${String(request.headers[name]).trim()}`),
    "",
    names,
    request.headers["x-amz-content-sha256"]
  ].join("\n")
  const scope = `${day}/${region}/s3/aws4_request`
  const text = ["AWS4-HMAC-SHA256", request.headers["x-amz-date"], scope, sha256(canonical)].join("\n")
  const key = hmac(hmac(hmac(hmac(`AWS4${secret}`, day), region), "s3"), "aws4_request")
  return hmac(key, text).toString("hex") === signature
}

const escape = (text: string): string => text.replaceAll("&", "&amp;").replaceAll('"', "&quot;")

export const serveS3 = ({ credentials, objects, perPage = 2, region = "us-east-1" }: S3Fixture) =>
  serve((request, response) => {
    const url = new URL(request.url ?? "", "http://s3")
    const signedFor = /Credential=[^/]+\/\d+\/([^/]+)/u.exec(request.headers.authorization ?? "")?.[1]
    if (signedFor !== undefined && signedFor !== region)
      return void response.writeHead(301, { "x-amz-bucket-region": region }).end()
    if (
      credentials !== undefined &&
      !(isSigned(request, credentials.secret) && request.headers["x-amz-security-token"] === credentials.token)
    )
      return void response.writeHead(403).end("<Error><Code>SignatureDoesNotMatch</Code></Error>")
    if (url.pathname === "/bucket/") {
      const keys = Object.keys(objects).filter((key) => key.startsWith(url.searchParams.get("prefix") ?? ""))
      const from = Number(url.searchParams.get("continuation-token") ?? 0)
      const rows = keys.slice(from, from + perPage).map((key) => {
        const content = Buffer.from(objects[key] ?? "")
        const etag = `"${createHash("md5").update(content).digest("hex")}"`
        return `<Contents><Key>${encodeURIComponent(key).replaceAll("%20", "+")}</Key><ETag>${escape(etag)}</ETag><Size>${content.length}</Size></Contents>`
      })
      const more = from + perPage < keys.length
      const next = more ? `<NextContinuationToken>${from + perPage}</NextContinuationToken>` : ""
      return void response.end(
        `<?xml version="1.0"?><ListBucketResult><IsTruncated>${more}</IsTruncated>${next}${rows.join("")}</ListBucketResult>`
      )
    }
    const content = objects[decodeURIComponent(url.pathname.slice("/bucket/".length))]
    if (content === undefined) return void response.writeHead(404).end()
    sendRange(request, response, Buffer.from(content), `"${createHash("md5").update(content).digest("hex")}"`)
  })
