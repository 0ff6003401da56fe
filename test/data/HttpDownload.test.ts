import { createHash } from "node:crypto"
import { existsSync, readFileSync, writeFileSync } from "node:fs"
import type { IncomingMessage, ServerResponse } from "node:http"
import { join } from "node:path"
import * as NodeHttpClient from "@effect/platform-node/NodeHttpClient"
import { assert, describe, it } from "@effect/vitest"
import { Duration, Effect } from "effect"
import { FetchHttpClient } from "effect/http"
import { download, type Download } from "../../src/data/HttpDownload.ts"
import { makeSession, type Patience } from "../../src/data/HttpTransport.ts"
import { heldBytes } from "../../src/data/RangeJournal.ts"
import { temporaryFolder } from "../stages/stage-fixture.ts"
import { askedRange, sendRange, serve } from "./HttpTestServer.ts"

const bytesOf = (length: number, seed = 1): Buffer => {
  const bytes = Buffer.allocUnsafe(length)
  for (let i = 0, x = seed; i < length; i++) {
    x = (Math.imul(x, 1664525) + 1013904223) | 0
    bytes[i] = x >>> 24
  }
  return bytes
}
const digest = (bytes: Buffer): string => createHash("sha256").update(bytes).digest("hex")

/** Less than what the first request asks for. */
const body = bytesOf(120_000)
const sha256 = digest(body)

const quick: Partial<Patience> = {
  tries: 4,
  base: Duration.millis(5),
  longest: Duration.millis(20),
  stall: Duration.millis(300)
}

interface Options extends Partial<Download> {
  readonly patience?: Partial<Patience>
  readonly connections?: number
  readonly stopRequested?: () => boolean
  readonly logs?: Array<string>
}

const fetchTo = (url: string, target: string, options: Options = {}) => {
  const { connections = 4, logs = [], patience = quick, stopRequested = () => false, ...more } = options
  return Effect.flatMap(
    makeSession({ connections, stopRequested, log: (line) => void logs.push(line), patience }),
    (session) => download(session, { url, place: "sources[0]", target, onBytes: () => {}, ...more })
  ).pipe(Effect.provide(FetchHttpClient.layer))
}

const failureOf = (error: { readonly _tag: string }): string =>
  "failure" in error && typeof error.failure === "string" ? error.failure : error._tag

/** Sends the range that was asked for, but only its first bytes; then the connection breaks. */
const breakAfter = (
  request: IncomingMessage,
  response: ServerResponse,
  whole: Buffer,
  bytes: number,
  etag?: string
) => {
  const { end, start } = askedRange(request, whole.length) ?? { start: 0, end: whole.length }
  response.writeHead(206, {
    ...(etag === undefined ? {} : { etag }),
    "content-length": end - start,
    "content-range": `bytes ${start}-${end - 1}/${whole.length}`
  })
  response.write(whole.subarray(start, start + bytes), () => setTimeout(() => response.destroy(), 20))
}

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
      assert.isFalse(existsSync(`${target}.part`) || existsSync(`${target}.part.journal`))
    })
  )

  it.live("a large file comes by several ranges at once", () =>
    Effect.gen(function* () {
      const large = bytesOf(40_000_000)
      let running = 0
      let most = 0
      const server = yield* serve((request, response) => {
        most = Math.max(most, ++running)
        response.on("close", () => running--)
        setTimeout(() => sendRange(request, response, large, '"v1"'), 30)
      })
      const target = join(yield* temporaryFolder, "a")
      yield* fetchTo(`${server.base}/a`, target, { sha256: digest(large) })
      const ranges = server.asked.map(({ headers }) => /^bytes=(\d+)-(\d+)$/u.exec(headers.range ?? "") ?? [])
      const lengths = ranges.map(([, start, last]) => Number(last) + 1 - Number(start))
      const asked = lengths.reduce((sum, length) => sum + length, 0)
      // On a busy machine an answer may be late enough to be asked for again.
      assert.isAtLeast(asked, large.length)
      assert.isBelow(asked, large.length * 1.1)
      // More at a time, the more has come.
      assert.strictEqual(lengths[0], 131_072)
      assert.isAbove(Math.max(...lengths), 1_000_000)
      assert.strictEqual(most, 4)
      assert.strictEqual(server.asked[2]?.headers["if-range"], '"v1"')
    })
  )

  it.live("goes on by ranges after dropped connections", () =>
    Effect.gen(function* () {
      const server = yield* serve((request, response, earlier) =>
        earlier >= 2 ? sendRange(request, response, body, '"v1"') : breakAfter(request, response, body, 50_000, '"v1"')
      )
      const target = join(yield* temporaryFolder, "a")
      yield* fetchTo(`${server.base}/a`, target, { sha256 })
      const [first, second, third, ...more] = server.asked.map(({ headers }) => headers.range)
      const starts = [second, third].map((range) => Number(/^bytes=(\d+)-119999$/u.exec(range ?? "")?.[1]))
      assert.deepStrictEqual([first, more], ["bytes=0-131071", []])
      // Of what was sent, a connection that is reset may lose the last.
      assert.isTrue(
        0 < starts[0]! && starts[0]! <= 50_000 && starts[0]! < starts[1]! && starts[1]! <= 100_000,
        starts.join(", ")
      )
      assert.strictEqual(server.asked[1]?.headers["if-range"], '"v1"')
    })
  )

  it.live("a truncated download fails as network, keeps what came, and the next attempt resumes", () =>
    Effect.gen(function* () {
      let whole = false
      const server = yield* serve((request, response, earlier) => {
        if (whole) return sendRange(request, response, body)
        if (earlier > 0) return void response.destroy()
        breakAfter(request, response, body, 60_000)
      })
      const target = join(yield* temporaryFolder, "a")
      const error = yield* Effect.flip(fetchTo(`${server.base}/a`, target))
      assert.strictEqual(failureOf(error), "network")
      assert.strictEqual(heldBytes(`${target}.part`), 60_000)
      whole = true
      yield* fetchTo(`${server.base}/a`, target, { sha256 })
      assert.strictEqual(server.asked.at(-1)?.headers.range, "bytes=60000-119999")
    })
  )

  it.live("a connection that stalls is given up and asked again", () =>
    Effect.gen(function* () {
      const server = yield* serve((request, response, earlier) => {
        if (earlier > 0) return sendRange(request, response, body)
        response.writeHead(206, {
          "content-length": body.length,
          "content-range": `bytes 0-${body.length - 1}/${body.length}`
        })
        response.write(body.subarray(0, 1000))
      })
      const target = join(yield* temporaryFolder, "a")
      yield* fetchTo(`${server.base}/a`, target, { sha256 })
      assert.strictEqual(server.asked[1]?.headers.range, "bytes=1000-119999")
    })
  )

  it.live("a stop keeps what has arrived", () =>
    Effect.gen(function* () {
      const server = yield* serve((_, response) => {
        response.writeHead(206, {
          "content-length": body.length,
          "content-range": `bytes 0-${body.length - 1}/${body.length}`
        })
        response.write(body.subarray(0, 100_000))
        setTimeout(() => response.end(body.subarray(100_000)), 100)
      })
      const target = join(yield* temporaryFolder, "a")
      let stop = false
      const error = yield* Effect.flip(
        fetchTo(`${server.base}/a`, target, { stopRequested: () => stop, onBytes: (done) => (stop = done > 0) })
      )
      assert.strictEqual(error._tag, "Preempted")
      assert.isAbove(heldBytes(`${target}.part`), 0)
    })
  )

  it.live("tries 408, 429, 500 and 503 again", () =>
    Effect.gen(function* () {
      const statuses = [408, 429, 500, 503]
      for (const status of statuses) {
        const server = yield* serve((request, response, earlier) =>
          earlier < 2 ? void response.writeHead(status).end() : sendRange(request, response, body)
        )
        yield* fetchTo(`${server.base}/a`, join(yield* temporaryFolder, "a"), { sha256 })
        assert.strictEqual(server.asked.length, 3)
      }
    })
  )

  it.live("honours Retry-After, for all connections to that server", () =>
    Effect.gen(function* () {
      const times: Array<number> = []
      const server = yield* serve((request, response, earlier) => {
        times.push(performance.now())
        if (earlier === 0) return void response.writeHead(429, { "retry-after": "1" }).end()
        sendRange(request, response, body)
      })
      yield* fetchTo(`${server.base}/a`, join(yield* temporaryFolder, "a"), { sha256 })
      assert.isAtLeast((times[1] ?? 0) - (times[0] ?? 0), 950)
      const hours = yield* serve((_, response) => void response.writeHead(503, { "retry-after": "7200" }).end())
      const error = yield* Effect.flip(fetchTo(`${hours.base}/a`, join(yield* temporaryFolder, "a")))
      assert.strictEqual(failureOf(error), "network")
      assert.include(error.message, "asks to wait 7200 s")
      assert.strictEqual(hours.asked.length, 1)
    })
  )

  it.live("gives up on a lasting 503 as network, on 401, 403 and 404 at once as invalid-input", () =>
    Effect.gen(function* () {
      const server = yield* serve((request, response) => {
        response.writeHead(Number(/\d+/u.exec(request.url ?? "")?.[0] ?? 503)).end()
      })
      const target = join(yield* temporaryFolder, "a")
      const busy = yield* Effect.flip(fetchTo(`${server.base}/503`, target))
      assert.strictEqual(failureOf(busy), "network")
      assert.include(busy.message, "503, 4 times in a row")
      for (const [status, cause] of [
        [401, "no access"],
        [403, "no access"],
        [404, "not found"]
      ] as const) {
        const refused = yield* Effect.flip(fetchTo(`${server.base}/${status}?key=secret`, target))
        assert.deepStrictEqual(
          [failureOf(refused), refused.message],
          ["invalid-input", `sources[0]: the server answers ${status} (${cause})`]
        )
        assert.strictEqual(server.asked.filter(({ url }) => url.startsWith(`/${status}`)).length, 1)
      }
    })
  )

  it.live("nobody listening is a network failure that shows no query string", () =>
    Effect.gen(function* () {
      const error = yield* Effect.flip(fetchTo("http://127.0.0.1:9/a?token=hidden", join(yield* temporaryFolder, "a")))
      assert.strictEqual(failureOf(error), "network")
      assert.notInclude(error.message, "hidden")
    })
  )

  it.live("an empty file is a file", () =>
    Effect.gen(function* () {
      const server = yield* serve((request, response) => sendRange(request, response, Buffer.alloc(0)))
      const target = join(yield* temporaryFolder, "a")
      assert.strictEqual((yield* fetchTo(`${server.base}/a`, target)).bytes, 0)
      assert.strictEqual(readFileSync(target).length, 0)
    })
  )

  it.live("a disk that is too small is told before a byte is fetched", () =>
    Effect.gen(function* () {
      let sent = 0
      const server = yield* serve((_, response) => {
        response.on("close", () => (sent += response.socket?.bytesWritten ?? 0))
        response.writeHead(206, {
          "content-range": "bytes 0-16777215/900000000000000000",
          "content-length": 16_777_216
        })
        response.flushHeaders()
      })
      const target = join(yield* temporaryFolder, "a")
      const error = yield* Effect.flip(fetchTo(`${server.base}/a`, target))
      assert.strictEqual(failureOf(error), "disk-full")
      assert.match(error.message, /^sources\[0\]: 900000000000000000 bytes are to come, and the disk has \d+ free$/u)
      assert.isBelow(sent, 1000)
    })
  )

  it.live("works the same over undici, with redirects", () =>
    Effect.gen(function* () {
      const server = yield* serve((request, response) =>
        request.url === "/old"
          ? void response.writeHead(302, { location: "/new" }).end()
          : sendRange(request, response, body)
      )
      const target = join(yield* temporaryFolder, "a")
      const session = yield* makeSession({ connections: 2, stopRequested: () => false, log: () => {} })
      const request = { url: `${server.base}/old`, place: "p", target, onBytes: () => {} }
      const fetched = yield* download(session, request).pipe(Effect.provide(NodeHttpClient.layerUndici))
      assert.strictEqual(fetched.sha256, sha256)
    })
  )
})

describe("HttpDownload from a server without ranges, or whose file changes", () => {
  it.live("one connection, said so; after a break it starts anew", () =>
    Effect.gen(function* () {
      const server = yield* serve((_, response, earlier) => {
        response.writeHead(200, { "content-length": body.length })
        if (earlier > 0) return void response.end(body)
        response.write(body.subarray(0, 100_000), () => setTimeout(() => response.destroy(), 20))
      })
      const logs: Array<string> = []
      const target = join(yield* temporaryFolder, "a")
      assert.strictEqual((yield* fetchTo(`${server.base}/a`, target, { logs })).sha256, sha256)
      assert.include(logs.join("\n"), "one connection, and after a break the download starts anew")
    })
  )

  it.live("a body whose length nobody tells", () =>
    Effect.gen(function* () {
      const server = yield* serve((_, response) => {
        response.write(body.subarray(0, 100_000))
        setTimeout(() => response.end(body.subarray(100_000)), 10)
      })
      const target = join(yield* temporaryFolder, "a")
      assert.strictEqual((yield* fetchTo(`${server.base}/a`, target)).sha256, sha256)
      assert.isTrue(readFileSync(target).equals(body))
    })
  )

  it.live("a damaged byte without ranges: once more from the start", () =>
    Effect.gen(function* () {
      const damaged = Buffer.from(body)
      damaged[60_000] = (damaged[60_000] ?? 0) ^ 1
      let answers = 0
      const server = yield* serve((request, response) => {
        if (request.headers.range !== undefined) return void response.writeHead(200).end("x")
        response.writeHead(200, { "content-length": body.length }).end(answers++ === 0 ? damaged : body)
      })
      const target = join(yield* temporaryFolder, "a")
      yield* fetchTo(`${server.base}/a`, target, { sha256 })
      assert.strictEqual(answers, 2)
    })
  )

  it.live("a file that changes under the transfer is noticed, and the new one is fetched whole", () =>
    Effect.gen(function* () {
      const other = bytesOf(200_000, 2)
      const server = yield* serve((request, response, earlier) =>
        earlier === 0
          ? breakAfter(request, response, body, 50_000, '"v1"')
          : sendRange(request, response, other, '"v2"')
      )
      const logs: Array<string> = []
      const target = join(yield* temporaryFolder, "a")
      yield* fetchTo(`${server.base}/a`, target, { logs })
      assert.isTrue(readFileSync(target).equals(other))
      assert.match(logs.join("\n"), /the file changed while it was fetched \(now 200000 bytes\): starting anew/u)
    })
  )

  it.live("a change that only the validator shows is one too, and one without end is a network failure", () =>
    Effect.gen(function* () {
      const server = yield* serve((request, response, earlier) =>
        breakAfter(request, response, body, 100, `"v${Math.floor(earlier / 4)}"`)
      )
      const target = join(yield* temporaryFolder, "a")
      const error = yield* Effect.flip(fetchTo(`${server.base}/a`, target, { patience: { ...quick, tries: 9 } }))
      assert.strictEqual(failureOf(error), "network")
      assert.match(error.message, /changed 3 times while it was fetched, last to validator "v\d"/u)
    })
  )

  it.live("what an earlier attempt has of another version is not used", () =>
    Effect.gen(function* () {
      let version = 1
      const other = bytesOf(body.length, 3)
      const server = yield* serve((request, response, earlier) => {
        if (version === 2) return sendRange(request, response, other, '"v2"')
        if (earlier > 0) return void response.destroy()
        breakAfter(request, response, body, 50_000, '"v1"')
      })
      const target = join(yield* temporaryFolder, "a")
      yield* Effect.flip(fetchTo(`${server.base}/a`, target))
      version = 2
      yield* fetchTo(`${server.base}/a`, target)
      assert.isTrue(readFileSync(target).equals(other))
    })
  )
})

describe("HttpDownload from a server that lies", () => {
  const lies: Readonly<
    Record<string, (range: { start: number; end: number }, response: ServerResponse, size: number) => void>
  > = {
    "another place than was asked for": ({ end, start }, response, size) =>
      void response
        .writeHead(206, { "content-range": `bytes ${start + 7}-${end - 1}/${size}` })
        .end(body.subarray(start + 7, end)),
    "the whole file instead of a part": (_, response) =>
      void response.writeHead(200, { "content-length": body.length }).end(body),
    "fewer bytes than it says": ({ end, start }, response, size) =>
      void response
        .writeHead(206, { "content-range": `bytes ${start}-${end - 1}/${size}`, "content-length": 10 })
        .end(body.subarray(start, start + 10)),
    "more bytes than it says": ({ end, start }, response, size) =>
      void response
        .writeHead(206, { "content-range": `bytes ${start}-${end - 1}/${size}` })
        .end(Buffer.concat([body.subarray(start, end), Buffer.from("and more")])),
    "more bytes than were asked for": ({ start }, response, size) =>
      void response
        .writeHead(206, { "content-range": `bytes ${start}-${size - 1}/${size}`, "content-length": size - start })
        .end(body.subarray(start)),
    "another size": ({ end, start }, response, size) =>
      void response
        .writeHead(206, { "content-range": `bytes ${start}-${end - 1}/${size + 1}` })
        .end(body.subarray(start, end)),
    "no range": (_, response) => void response.writeHead(206).end("what?"),
    "a refusal of its own range": (_, response, size) =>
      void response.writeHead(416, { "content-range": `bytes */${size}` }).end()
  }
  for (const [name, lie] of Object.entries(lies))
    it.live(`${name}: the result is right`, () =>
      Effect.gen(function* () {
        const server = yield* serve((request, response, earlier) => {
          const range = askedRange(request, body.length) ?? { start: 0, end: body.length }
          if (earlier === 0) return breakAfter(request, response, body, 30_000, '"v1"')
          if (earlier === 1 || earlier === 3) {
            response.setHeader("etag", '"v1"')
            return lie(range, response, body.length)
          }
          if (earlier === 2) return breakAfter(request, response, body, 30_000, '"v1"')
          sendRange(request, response, body, '"v1"')
        })
        const target = join(yield* temporaryFolder, "a")
        yield* fetchTo(`${server.base}/a`, target)
        assert.isTrue(readFileSync(target).equals(body))
      })
    )

  it.live("a corrupted byte is found by the digest, and only what is needed is fetched again", () =>
    Effect.gen(function* () {
      const large = bytesOf(5_000_000)
      let served = 0
      let sound = true
      const server = yield* serve((request, response) => {
        const range = askedRange(request, large.length) ?? { start: 0, end: large.length }
        served += range.end - range.start
        if (!sound || range.start > 3_000_000 || range.end <= 3_000_000)
          return sendRange(request, response, large, '"v1"')
        // a node that damages a byte, and breaks off
        sound = false
        const damaged = Buffer.from(large)
        damaged[3_000_000] = (damaged[3_000_000] ?? 0) ^ 4
        breakAfter(request, response, damaged, range.end - range.start - 1, '"v1"')
      })
      const logs: Array<string> = []
      const target = join(yield* temporaryFolder, "a")
      yield* fetchTo(`${server.base}/a`, target, { sha256: digest(large), logs })
      assert.isTrue(readFileSync(target).equals(large))
      assert.match(logs.join("\n"), /1 pieces from byte [23]\d+ on were wrong, and are replaced/u)
      // All of it again would be twice.
      assert.isBelow(served, large.length * 1.5)
    })
  )

  it.live("an answer that tells its own digest is checked by it at once", () =>
    Effect.gen(function* () {
      let damage = true
      const server = yield* serve((request, response) => {
        const { end, start } = askedRange(request, body.length) ?? { start: 0, end: body.length }
        const part = Buffer.from(body.subarray(start, end))
        const told = createHash("sha256").update(part).digest("base64")
        if (damage) part[5] = (part[5] ?? 0) ^ 1
        damage = false
        response
          .writeHead(206, {
            "content-range": `bytes ${start}-${end - 1}/${body.length}`,
            "content-digest": `sha-256=:${told}:`
          })
          .end(part)
      })
      const target = join(yield* temporaryFolder, "a")
      yield* fetchTo(`${server.base}/a`, target)
      assert.isTrue(readFileSync(target).equals(body))
      assert.strictEqual(server.asked.length, 2)
    })
  )

  it.live("bytes that the disk lost are found without the server's help", () =>
    Effect.gen(function* () {
      const server = yield* serve((request, response, earlier) => {
        if (earlier === 0) return breakAfter(request, response, body, 100_000, '"v1"')
        if (earlier < 4) return void response.destroy()
        sendRange(request, response, body, '"v1"')
      })
      const target = join(yield* temporaryFolder, "a")
      yield* Effect.flip(fetchTo(`${server.base}/a`, target))
      const part = readFileSync(`${target}.part`)
      part.fill(0, 70_000, 80_000)
      writeFileSync(`${target}.part`, part)
      yield* fetchTo(`${server.base}/a`, target)
      assert.isTrue(readFileSync(target).equals(body))
    })
  )

  it.live("a wrong sha256 is corrupt, names both digests and removes the part", () =>
    Effect.gen(function* () {
      const server = yield* serve((request, response) => sendRange(request, response, body))
      const target = join(yield* temporaryFolder, "a")
      const error = yield* Effect.flip(fetchTo(`${server.base}/a`, target, { sha256: "0".repeat(64) }))
      assert.strictEqual(failureOf(error), "corrupt")
      assert.include(error.message, "0".repeat(64))
      assert.include(error.message, sha256)
      assert.isFalse(existsSync(`${target}.part`) || existsSync(`${target}.part.journal`) || existsSync(target))
    })
  )

  it.live("a Git LFS pointer is not taken for the file", () =>
    Effect.gen(function* () {
      const pointer = Buffer.from(`version https://git-lfs.github.com/spec/v1\noid sha256:${sha256}\nsize 120000\n`)
      const server = yield* serve((request, response) => sendRange(request, response, pointer))
      const error = yield* Effect.flip(fetchTo(`${server.base}/a`, join(yield* temporaryFolder, "a")))
      assert.strictEqual(failureOf(error), "invalid-input")
      assert.include(error.message, "Git LFS pointer")
      assert.include(error.message, "120000 bytes")
    })
  )
})
