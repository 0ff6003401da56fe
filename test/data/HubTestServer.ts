/**
 * A stand-in of the hub: revisions, listings in pages, resolve addresses that send large files on to another origin (with what X-Linked-ETag and
 * X-Linked-Size say of them), ETags, tokens, gated and private repositories, unknown revisions, and 429 on demand. It keeps what was asked of either.
 */
import { createHash } from "node:crypto"
import type { ServerResponse } from "node:http"
import { Effect } from "effect"
import { type Asked, sendRange, serve } from "./HttpTestServer.ts"

export const commit = "0123456789abcdef0123456789abcdef01234567"

export interface HubFixture {
  /** Path → content. */
  readonly files: Readonly<Record<string, string | Buffer>>
  /** From this size on a file is a large one, on the other origin. Default 1000. */
  readonly large?: number
  readonly perPage?: number
  /** Without a token: 401, as if it were not there. */
  readonly private?: boolean
  /** 403 for accounts that have not accepted the terms: all but `let-me-in`. */
  readonly gated?: boolean
  /** 429 for so many requests, with Retry-After: 1. */
  readonly busy?: number
  /** Large files are served as the pointers that git keeps. */
  readonly pointers?: boolean
  /** The other origin says 403 this often: its signed addresses have run out. */
  readonly expired?: number
}

const tokens = new Map([
  ["Bearer let-me-in", "friend"],
  ["Bearer stranger", "stranger"]
])

export const pointerOf = (content: Buffer): Buffer =>
  Buffer.from(
    `version https://git-lfs.github.com/spec/v1\noid sha256:${createHash("sha256").update(content).digest("hex")}\nsize ${content.length}\n`
  )

export const sha256Of = (content: Buffer): string => createHash("sha256").update(content).digest("hex")
export const blobOf = (content: Buffer): string =>
  createHash("sha1").update(`blob ${content.length}\0`).update(content).digest("hex")

export const serveHub = Effect.fnUntraced(function* (fixture: HubFixture) {
  const { large = 1000, perPage = 2 } = fixture
  const files = new Map(Object.entries(fixture.files).map(([path, content]) => [path, Buffer.from(content)]))
  let expired = fixture.expired ?? 0
  const store = yield* serve((request, response) => {
    const found = Array.from(files.values()).find((content) => request.url?.startsWith(`/${sha256Of(content)}?`))
    if (found === undefined) return void response.writeHead(404).end()
    if (expired-- > 0) return void response.writeHead(403).end("the signature has expired")
    sendRange(request, response, found, `"store-${sha256Of(found).slice(0, 8)}"`)
  })
  let busy = fixture.busy ?? 0
  const hub = yield* serve((request, response) => {
    const url = new URL(request.url ?? "", "http://hub")
    const refuse = (status: number, code: string, message: string) =>
      void response.writeHead(status, { "x-error-code": code, "x-error-message": message }).end()
    if (busy-- > 0) return void response.writeHead(429, { "retry-after": "1" }).end()
    const account = tokens.get(request.headers.authorization ?? "")
    if (request.headers.authorization !== undefined && account === undefined)
      return void response.writeHead(401, { "x-error-message": "Invalid credentials in Authorization header" }).end()
    if (fixture.private === true && account === undefined) return refuse(401, "RepoNotFound", "Repository not found")
    const api = /^\/api\/(?:datasets|models)\/owner\/name\/(revision|tree)\/([^/]+)$/u.exec(url.pathname)
    const resolve = /^\/(?:datasets\/)?owner\/name\/resolve\/([^/]+)\/(.+)$/u.exec(url.pathname)
    const revision = decodeURIComponent(api?.[2] ?? resolve?.[1] ?? "")
    if (revision === "") return refuse(404, "RepoNotFound", "Repository not found")
    if (!["main", "refs/pr/3", commit].includes(revision))
      return refuse(404, "RevisionNotFound", `Invalid rev id: ${revision}`)
    if (api?.[1] === "revision") return void response.end(JSON.stringify({ id: "owner/name", sha: commit }))
    if (api !== null) return sendPage(url, response)
    if (fixture.gated === true && account !== "friend")
      return refuse(403, "GatedRepo", "Access to dataset owner/name is restricted")
    sendFile(decodeURIComponent(resolve?.[2] ?? ""))

    function sendFile(path: string): void {
      const content = files.get(path)
      if (content === undefined) return refuse(404, "EntryNotFound", "Entry not found")
      response.setHeader("x-repo-commit", commit)
      if (content.length < large) return sendRange(request, response, content, `"${blobOf(content)}"`)
      if (fixture.pointers === true) return sendRange(request, response, pointerOf(content))
      response
        .writeHead(302, {
          "x-linked-etag": `"${sha256Of(content)}"`,
          "x-linked-size": content.length,
          location: `${store.base}/${sha256Of(content)}?signature=secret`
        })
        .end()
    }
  })

  const sendPage = (url: URL, response: ServerResponse): void => {
    const entries = [
      { type: "directory", path: "data", size: 0, oid: "0".repeat(40) },
      ...Array.from(files, ([path, content]) => ({
        type: "file",
        path,
        size: content.length,
        ...(content.length < large
          ? { oid: blobOf(content) }
          : {
              oid: blobOf(pointerOf(content)),
              lfs: { oid: sha256Of(content), size: content.length, pointerSize: 130 }
            })
      }))
    ]
    const from = Number(url.searchParams.get("cursor") ?? 0)
    const next = from + perPage
    if (next < entries.length)
      response.setHeader("link", `<https://elsewhere.example${url.pathname}?recursive=true&cursor=${next}>; rel="next"`)
    response.setHeader("content-type", "application/json")
    response.end(JSON.stringify(entries.slice(from, next)))
  }
  return { base: hub.base, asked: hub.asked, store: store.asked } satisfies {
    base: string
    asked: ReadonlyArray<Asked>
    store: ReadonlyArray<Asked>
  }
})
