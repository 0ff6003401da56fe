import { createHash } from "node:crypto"
import { existsSync, readFileSync, statSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import * as NodeHttpClient from "@effect/platform-node/NodeHttpClient"
import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { FetchHttpClient } from "effect/http"
import { download, type Download } from "../../src/data/HttpDownload.ts"
import { temporaryFolder } from "../stages/stage-fixture.ts"
import { sendRange, serve } from "./HttpTestServer.ts"

const body = Buffer.from(Array.from({ length: 300_000 }, (_, i) => (i * 2654435761) >>> 24))
const sha256 = createHash("sha256").update(body).digest("hex")

const fetchTo = (url: string, target: string, more: Partial<Download> = {}) =>
  download({ url, place: "sources[0]", target, onBytes: () => {}, stopRequested: () => false, ...more }).pipe(
    Effect.provide(NodeHttpClient.layerUndici)
  )

describe("HttpDownload", () => {
  it.live("fetches, verifies, reports bytes, and does not ask again for a finished file", () =>
    Effect.gen(function* () {
      const server = yield* serve((request, response) => sendRange(request, response, body))
      const target = join(yield* temporaryFolder, "a")
      const readings: Array<readonly [number, number | undefined]> = []
      const onBytes = (done: number, total: number | undefined) => void readings.push([done, total])
      assert.deepStrictEqual(yield* fetchTo(`${server.base}/a`, target, { sha256, onBytes }), {
        bytes: body.length,
        sha256
      })
      assert.deepStrictEqual(readings.at(-1), [body.length, body.length])
      yield* fetchTo(`${server.base}/a`, target, { sha256 })
      assert.strictEqual(server.asked.length, 1)
      assert.isTrue(readFileSync(target).equals(body))
    })
  )

  it.live("goes on by ranges after dropped connections", () =>
    Effect.gen(function* () {
      const server = yield* serve((request, response, earlier) => {
        if (earlier >= 2) return sendRange(request, response, body, '"v1"')
        const start = Number(/^bytes=(\d+)-$/.exec(request.headers.range ?? "")?.[1] ?? 0)
        response.writeHead(start === 0 ? 200 : 206, {
          etag: '"v1"',
          "content-length": body.length - start,
          ...(start > 0 ? { "content-range": `bytes ${start}-${body.length - 1}/${body.length}` } : {})
        })
        response.write(body.subarray(start, start + 100_000), () => setTimeout(() => response.destroy(), 50))
      })
      const target = join(yield* temporaryFolder, "a")
      yield* fetchTo(`${server.base}/a`, target, { sha256 })
      assert.deepStrictEqual(
        server.asked.map(({ headers }) => headers.range),
        [undefined, "bytes=100000-", "bytes=200000-"]
      )
      assert.strictEqual(server.asked[1]?.headers["if-range"], '"v1"')
    })
  )

  it.live("a truncated download fails as network, keeps the part, and the next attempt resumes", () =>
    Effect.gen(function* () {
      let whole = false
      const server = yield* serve((request, response) => {
        if (whole) return sendRange(request, response, body)
        if (request.headers.range !== undefined) return void response.destroy()
        response.writeHead(200, { "content-length": body.length })
        response.write(body.subarray(0, 120_000), () => setTimeout(() => response.destroy(), 50))
      })
      const target = join(yield* temporaryFolder, "a")
      const error = yield* Effect.flip(fetchTo(`${server.base}/a`, target))
      assert.deepStrictEqual([error._tag, error._tag === "StageError" && error.failure], ["StageError", "network"])
      assert.strictEqual(statSync(`${target}.part`).size, 120_000)
      whole = true
      yield* fetchTo(`${server.base}/a`, target, { sha256 })
      assert.strictEqual(server.asked.at(-1)?.headers.range, "bytes=120000-")
    })
  )

  it.live("starts over when the server ignores ranges or the file has changed", () =>
    Effect.gen(function* () {
      const other = Buffer.from("a new version, shorter than before")
      let phase = 0
      const server = yield* serve((request, response) => {
        if (phase === 0) {
          response.writeHead(200, { etag: '"v1"', "content-length": body.length })
          return void response.write(body.subarray(0, 50_000))
        }
        sendRange(request, response, other, '"v2"')
      })
      const target = join(yield* temporaryFolder, "a")
      let polls = 0
      const stopped = yield* Effect.flip(
        fetchTo(`${server.base}/a`, target, { stopRequested: () => polls++ > 0 }).pipe(
          Effect.timeoutOrElse({ duration: "400 millis", orElse: () => Effect.fail({ _tag: "Preempted" as const }) })
        )
      )
      assert.strictEqual(stopped._tag, "Preempted")
      phase = 1
      yield* fetchTo(`${server.base}/a`, target)
      assert.strictEqual(readFileSync(target, "utf8"), other.toString())
    })
  )

  it.live("a part that is already whole is accepted on 416", () =>
    Effect.gen(function* () {
      const server = yield* serve((request, response) => sendRange(request, response, body))
      const target = join(yield* temporaryFolder, "a")
      writeFileSync(`${target}.part`, body)
      writeFileSync(`${target}.part.json`, JSON.stringify({ url: `${server.base}/a`, validator: null }))
      assert.strictEqual((yield* fetchTo(`${server.base}/a`, target, { sha256 })).sha256, sha256)
    })
  )

  it.live("tries a 503 again", () =>
    Effect.gen(function* () {
      const server = yield* serve((request, response, earlier) =>
        earlier === 0 ? void response.writeHead(503).end() : sendRange(request, response, body)
      )
      yield* fetchTo(`${server.base}/a`, join(yield* temporaryFolder, "a"), { sha256 })
      assert.strictEqual(server.asked.length, 2)
    })
  )

  it.live("gives up on a lasting 503 as network, on 404 at once as invalid-input", () =>
    Effect.gen(function* () {
      const server = yield* serve((request, response) => {
        response.writeHead(request.url?.startsWith("/gone") ? 404 : 503).end()
      })
      const target = join(yield* temporaryFolder, "a")
      const busy = yield* Effect.flip(fetchTo(`${server.base}/busy`, target))
      assert.strictEqual(busy._tag === "StageError" && busy.failure, "network")
      assert.include(busy.message, "503")
      const gone = yield* Effect.flip(fetchTo(`${server.base}/gone?key=secret`, target))
      assert.strictEqual(gone._tag === "StageError" && gone.failure, "invalid-input")
      assert.include(gone.message, "404")
      assert.strictEqual(server.asked.filter(({ url }) => url.startsWith("/gone")).length, 1)
    })
  )

  it.live("a wrong sha256 is corrupt, names both digests and removes the part", () =>
    Effect.gen(function* () {
      const server = yield* serve((request, response) => sendRange(request, response, body))
      const target = join(yield* temporaryFolder, "a")
      const error = yield* Effect.flip(fetchTo(`${server.base}/a`, target, { sha256: "0".repeat(64) }))
      assert.strictEqual(error._tag === "StageError" && error.failure, "corrupt")
      assert.include(error.message, "0".repeat(64))
      assert.include(error.message, sha256)
      assert.isFalse(existsSync(`${target}.part`) || existsSync(target))
    })
  )

  it.live("nobody listening is a network failure that shows no query string", () =>
    Effect.gen(function* () {
      const error = yield* Effect.flip(fetchTo("http://127.0.0.1:9/a?token=hidden", join(yield* temporaryFolder, "a")))
      assert.strictEqual(error._tag === "StageError" && error.failure, "network")
      assert.notInclude(error.message, "hidden")
    })
  )

  it.live("works the same over fetch", () =>
    Effect.gen(function* () {
      const server = yield* serve((request, response) =>
        request.url === "/old"
          ? void response.writeHead(302, { location: "/new" }).end()
          : sendRange(request, response, body)
      )
      const target = join(yield* temporaryFolder, "a")
      const request = { url: `${server.base}/old`, place: "p", target, onBytes: () => {}, stopRequested: () => false }
      assert.strictEqual((yield* download(request).pipe(Effect.provide(FetchHttpClient.layer))).sha256, sha256)
    })
  )
})
