import { createHash } from "node:crypto"
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { assert, describe, it } from "@effect/vitest"
import { ConfigProvider, Effect } from "effect"
import { readList } from "../../src/data/Documents.ts"
import { downloadStage } from "../../src/stages/Download.ts"
import { sendRange, serve } from "../data/HttpTestServer.ts"
import { commit, type HubFixture, serveHub } from "../data/HubTestServer.ts"
import { filesOf, observeStage, runStage, temporaryFolder } from "./stage-fixture.ts"

const digest = (text: string) => createHash("sha256").update(text).digest("hex")

const corpus = Effect.map(temporaryFolder, (folder) => {
  mkdirSync(join(folder, "docs"))
  for (const name of ["c", "a", "b"]) writeFileSync(join(folder, "docs", `${name}.md`), name.repeat(10))
  writeFileSync(join(folder, "rows.jsonl"), '{"text":"row"}\n')
  writeFileSync(join(folder, "empty.txt"), "")
  return folder
})

const failing = (sources: unknown, baseDirectory: string, params: Readonly<Record<string, unknown>> = {}) =>
  runStage(downloadStage, { params: { sources, ...params }, baseDirectory }).pipe(
    Effect.flip,
    Effect.map((error) => [error._tag === "StageError" ? error.failure : error._tag, error.message] as const)
  )

describe("download", () => {
  it.live("copies files into one artifact, twice the same bytes", () =>
    Effect.gen(function* () {
      const baseDirectory = yield* corpus
      const params = { sources: [{ path: "docs/*.md" }, { path: ["rows.jsonl", "docs/a.md"] }] }
      const { outputs, logs, progress } = yield* runStage(downloadStage, { params, baseDirectory })
      assert.deepStrictEqual(
        (yield* readList(outputs.documents)).map(({ path, format, source, bytes }) => [path, format, source, bytes]),
        [
          ["files/0/docs/a.md", "text", "docs/a.md", 10],
          ["files/0/docs/b.md", "text", "docs/b.md", 10],
          ["files/0/docs/c.md", "text", "docs/c.md", 10],
          ["files/1/rows.jsonl", "jsonl", "rows.jsonl", 15]
        ]
      )
      assert.include(logs.join("\n"), "1 files are named by an earlier source")
      assert.deepStrictEqual(progress.at(-1), { done: 45, total: 45, unit: "bytes" })
      assert.deepStrictEqual(outputs.documents.facts, { files: 4, bytes: 45, left_out: [] })
      const again = yield* runStage(downloadStage, { params, baseDirectory })
      assert.strictEqual(again.outputs.documents.digest, outputs.documents.digest)
    })
  )

  it.live("max_bytes takes files in order and says what it left out", () =>
    Effect.gen(function* () {
      const baseDirectory = yield* corpus
      const { outputs, logs } = yield* runStage(downloadStage, {
        params: { sources: [{ path: "docs/*.md", max_bytes: 25 }] },
        baseDirectory
      })
      assert.deepStrictEqual(outputs.documents.facts, {
        files: 2,
        bytes: 20,
        left_out: [{ source: 0, files: 1, bytes: 10 }]
      })
      assert.include(logs.join("\n"), "left out 1 files (10 bytes), from docs/c.md on")
      const [failure, message] = yield* failing([{ path: "docs/*.md", max_bytes: 5 }], baseDirectory)
      assert.strictEqual(failure, "invalid-input")
      assert.include(message, "more than max_bytes 5")
    })
  )

  it.live("observes local files by content: a changed file changes the key", () =>
    Effect.gen(function* () {
      const baseDirectory = yield* corpus
      const params = { sources: [{ path: "docs/*.md", max_bytes: 25 }, { url: "https://example.org/a.txt" }] }
      const before = yield* observeStage(downloadStage, params, baseDirectory)
      assert.deepStrictEqual(before, [
        [
          { path: "docs/a.md", bytes: 10, sha256: digest("a".repeat(10)) },
          { path: "docs/b.md", bytes: 10, sha256: digest("b".repeat(10)) }
        ],
        null
      ])
      writeFileSync(join(baseDirectory, "docs/b.md"), "B")
      assert.notDeepEqual(yield* observeStage(downloadStage, params, baseDirectory), before)
    })
  )

  it.live("bad sources: missing, empty corpus, wrong digest, digest of many, archives", () =>
    Effect.gen(function* () {
      const folder = yield* corpus
      writeFileSync(join(folder, "a.jsonl.zip"), "x")
      assert.deepStrictEqual(yield* failing([{ path: "docs/a.md" }, { path: "lost/*.md" }], folder), [
        "invalid-input",
        "sources[1] (path: lost/*.md): the glob matches no file"
      ])
      assert.deepStrictEqual(yield* failing([{ path: "empty.txt" }], folder), [
        "invalid-input",
        "the corpus is empty: 1 files with 0 bytes in all"
      ])
      const [failure, message] = yield* failing([{ path: "docs/a.md", sha256: digest("b") }], folder)
      assert.strictEqual(failure, "corrupt")
      assert.include(message, digest("b"))
      assert.include(message, digest("a".repeat(10)))
      assert.include((yield* failing([{ path: "docs/*.md", sha256: digest("b") }], folder))[1], "given for 3 files")
      assert.include((yield* failing([{ path: "a.jsonl.zip" }], folder))[1], "a.jsonl.zip is a .zip file")
    })
  )

  it.live("stops when asked", () =>
    Effect.gen(function* () {
      const options = { params: { sources: [{ path: "docs/*.md" }] }, baseDirectory: yield* corpus, stopAfterPolls: 4 }
      assert.strictEqual((yield* Effect.flip(runStage(downloadStage, options)))._tag, "Preempted")
    })
  )

  it.live("a url lands under its own name; a later attempt in the same work folder does not fetch it again", () =>
    Effect.gen(function* () {
      const server = yield* serve((request, response) => sendRange(request, response, Buffer.from("hello web")))
      const params = { sources: [{ url: `${server.base}/data/hello.txt?key=1`, sha256: digest("hello web") }] }
      const first = yield* runStage(downloadStage, { params })
      const second = yield* runStage(downloadStage, { params, work: first.work })
      assert.strictEqual(server.asked.length, 1)
      assert.deepStrictEqual(filesOf(second.outputs.documents.folder), filesOf(first.outputs.documents.folder))
      assert.deepStrictEqual(
        (yield* readList(first.outputs.documents)).map(({ path, source }) => [path, source]),
        [["files/0/data/hello.txt", `${server.base}/data/hello.txt`]]
      )
      assert.strictEqual(
        readFileSync(join(first.outputs.documents.folder, "files/0/data/hello.txt"), "utf8"),
        "hello web"
      )
    })
  )
})

describe("download from a hub", () => {
  const row = (n: number, length: number) => `${JSON.stringify({ text: String(n).repeat(length) })}\n`
  const files = {
    "README.md": "a card",
    "data/one.jsonl": row(1, 5),
    "data/two.jsonl": row(2, 5000),
    "note ü.jsonl": row(3, 5)
  }
  const environment = (values: Record<string, string>) =>
    Effect.provide(ConfigProvider.layer(ConfigProvider.fromUnknown(values)))
  const refused = (
    fixture: Partial<HubFixture>,
    source: Readonly<Record<string, unknown>>,
    values: Record<string, string> = {}
  ) =>
    Effect.gen(function* () {
      const { base: endpoint } = yield* serveHub({ files, ...fixture })
      const params = { sources: [{ hub: "owner/name", include: "*", ...source }], endpoint }
      const error = yield* Effect.flip(runStage(downloadStage, { params }).pipe(environment(values)))
      return error._tag === "StageError" ? [error.failure, error.message, error.next] : [error._tag, error.message, ""]
    })

  it.live("lists all pages at one commit, takes what matches, from wherever the hub sends it", () =>
    Effect.gen(function* () {
      const server = yield* serveHub({ files })
      const params = {
        sources: [{ hub: "hf:owner/name@main", include: ["data/*.jsonl", "*.jsonl"] }],
        endpoint: server.base
      }
      const { logs, outputs } = yield* runStage(downloadStage, { params }).pipe(environment({}))
      assert.deepStrictEqual(
        (yield* readList(outputs.documents)).map(({ path, source }) => [path, source]),
        [
          ["files/0/data/one.jsonl", "hub:owner/name@main/data/one.jsonl"],
          ["files/0/data/two.jsonl", "hub:owner/name@main/data/two.jsonl"],
          ["files/0/note ü.jsonl", "hub:owner/name@main/note ü.jsonl"]
        ]
      )
      assert.strictEqual(
        readFileSync(join(outputs.documents.folder, "files/0/data/two.jsonl"), "utf8"),
        files["data/two.jsonl"]
      )
      assert.deepInclude(outputs.documents.facts, { commits: [{ source: 0, commit }] })
      assert.include(logs.join("\n"), `3 files of commit ${commit}`)
      assert.isTrue(server.asked.every(({ headers }) => headers.authorization === undefined))
      assert.strictEqual(server.store.length, 1)
    })
  )

  it.live("models live at the root, and their revisions may have slashes; exclude leaves out", () =>
    Effect.gen(function* () {
      const server = yield* serveHub({ files })
      const params = {
        sources: [{ hub: "owner/name@refs/pr/3", type: "model", include: "**", exclude: ["*.md", "data/t*"] }],
        endpoint: server.base
      }
      const { outputs } = yield* runStage(downloadStage, { params }).pipe(environment({}))
      assert.deepStrictEqual(
        (yield* readList(outputs.documents)).map(({ path }) => path),
        ["files/0/data/one.jsonl", "files/0/note ü.jsonl"]
      )
      assert.include(
        server.asked.map(({ url }) => url).join(" "),
        `/api/models/owner/name/revision/refs%2Fpr%2F3 /api/models/owner/name/tree/${commit}`
      )
      assert.include(server.asked.map(({ url }) => url).join(" "), ` /owner/name/resolve/${commit}/data/one.jsonl`)
    })
  )

  it.live("the token goes to the hub, not to the host it sends to, and into nothing that is kept or shown", () =>
    Effect.gen(function* () {
      const server = yield* serveHub({ files, private: true, gated: true })
      const params = { sources: [{ hub: "owner/name", include: "data/*" }], token: "MY_TOKEN" }
      const { logs, outputs, work } = yield* runStage(downloadStage, { params }).pipe(
        environment({ HF_ENDPOINT: `${server.base}/`, MY_TOKEN: "let-me-in", HF_TOKEN: "expired" })
      )
      assert.isTrue(server.asked.every(({ headers }) => headers.authorization === "Bearer let-me-in"))
      assert.isTrue(server.store.length > 0)
      assert.isTrue(server.store.every(({ headers }) => headers.authorization === undefined))
      const kept = readdirSync(join(work, "downloads"))
        .filter((name) => name.endsWith(".json"))
        .map((name) => readFileSync(join(work, "downloads", name), "utf8"))
      const shown = JSON.stringify([logs, kept, outputs.documents, yield* readList(outputs.documents)])
      assert.notInclude(shown, "let-me-in")
      assert.notInclude(shown, "signature")
    })
  )

  it.live("what is refused says why and what helps: 401, an expired token, 403, 404", () =>
    Effect.gen(function* () {
      assert.deepStrictEqual((yield* refused({ private: true }, {})).slice(0, 2), [
        "invalid-input",
        "sources[0] (hub: owner/name): the server answers 401 (no access)"
      ])
      const [failure, message, next] = yield* refused({ private: true }, {}, { HF_TOKEN: "expired" })
      assert.deepStrictEqual(
        [failure, message],
        [
          "invalid-input",
          "sources[0] (hub: owner/name): the server answers 401 (no access: Invalid credentials in Authorization header)"
        ]
      )
      assert.match(next ?? "", /^the token has expired or was revoked: make a new one at .*settings\/tokens/u)
      const gated = yield* refused({ gated: true }, {}, { HF_TOKEN: "stranger" })
      assert.match(gated[1] ?? "", /403 \(no access: Access to dataset owner\/name is restricted\)/u)
      assert.match(gated[2] ?? "", /^accept the terms at http:.*\/datasets\/owner\/name with the account/u)
      const revision = yield* refused({}, { revision: "v9" })
      assert.match(revision[1] ?? "", /404 \(owner\/name has no revision v9\)/u)
      const nobody = yield* refused({}, { hub: "owner/none" })
      assert.match(nobody[1] ?? "", /404 \(no dataset owner\/none, or not for this account\)/u)
    })
  )

  it.live("an include that matches nothing names files that there are", () =>
    Effect.gen(function* () {
      const [failure, message, next] = yield* refused({}, { include: "*.rs" })
      assert.deepStrictEqual(
        [failure, message, next],
        [
          "invalid-input",
          "sources[0] (hub: owner/name): no file matches *.rs among 5 entries",
          "the repository has, for example: README.md, data/one.jsonl, data/two.jsonl, note ü.jsonl"
        ]
      )
    })
  )

  it.live("waits when the hub asks for it, and asks anew when a signed address has run out", () =>
    Effect.gen(function* () {
      const server = yield* serveHub({ files, busy: 1, expired: 1 })
      const params = { sources: [{ hub: "owner/name", include: "data/two.jsonl" }], endpoint: server.base }
      const begun = performance.now()
      yield* runStage(downloadStage, { params }).pipe(environment({}))
      assert.isAtLeast(performance.now() - begun, 950)
      assert.strictEqual(server.asked.filter(({ url }) => url.includes("/resolve/")).length, 2)
    })
  )

  it.live("a mirror that serves the pointers instead of the files is told, and so is one with other bytes", () =>
    Effect.gen(function* () {
      const [failure, message, next] = yield* refused({ pointers: true }, { include: "data/two.jsonl" })
      assert.strictEqual(failure, "corrupt")
      assert.match(message ?? "", /another file than the one that was listed: 1\d\d bytes rather than 5012 bytes/u)
      assert.include(next, "a Git LFS pointer")
      const other = yield* refused({}, { include: "data/one.jsonl", sha256: "0".repeat(64) })
      assert.strictEqual(other[0], "corrupt")
    })
  )

  it.live("a disk that is too small is told before anything is fetched", () =>
    Effect.gen(function* () {
      const asked: Array<string> = []
      const server = yield* serve((request, response) => {
        asked.push(request.url ?? "")
        response.end(
          request.url?.includes("/revision/") === true
            ? JSON.stringify({ sha: commit })
            : JSON.stringify([1, 2].map((n) => ({ type: "file", path: `${n}.jsonl`, size: 4e15, oid: "0".repeat(40) })))
        )
      })
      const [failure, message] = yield* failing([{ hub: "owner/name", include: "*" }], "/", {
        endpoint: server.base
      }).pipe(environment({}))
      assert.strictEqual(failure, "disk-full")
      assert.match(message, /^2 files: 8000000000000000 bytes are to come, and the disk has \d+ free$/u)
      assert.strictEqual(asked.length, 2)
    })
  )

  it.live("a later attempt goes on with whole files and parts, also when the branch has moved", () =>
    Effect.gen(function* () {
      const server = yield* serveHub({ files })
      const params = { sources: [{ hub: "owner/name", include: "data/*" }], endpoint: server.base }
      const first = yield* runStage(downloadStage, { params }).pipe(environment({}))
      const asked = server.store.length
      const again = yield* runStage(downloadStage, { params, work: first.work }).pipe(environment({}))
      assert.strictEqual(server.store.length, asked)
      assert.strictEqual(again.outputs.documents.digest, first.outputs.documents.digest)
    })
  )
})

describe("download on top of an earlier result", () => {
  const pages: Readonly<Record<string, string>> = {
    "/a.txt": "the first",
    "/b.txt": "the second",
    "/c.txt?key=1": "one"
  }
  const web = serve((request, response) => {
    const body = pages[request.url ?? ""]
    if (body === undefined) return void response.writeHead(404).end()
    sendRange(request, response, Buffer.from(body))
  })

  it.live("fetches new files alone, and leaves the same bytes", () =>
    Effect.gen(function* () {
      const baseDirectory = yield* corpus
      const server = yield* web
      const [a, b] = [{ url: `${server.base}/a.txt` }, { url: `${server.base}/b.txt` }]
      const before = { sources: [{ path: "docs/*.md" }, a] }
      const old = yield* runStage(downloadStage, { params: before, baseDirectory })
      const previous = { params: before, outputs: old.outputs, work: undefined }
      const onTop = Effect.fnUntraced(function* (sources: ReadonlyArray<unknown>) {
        const asked = server.asked.length
        const result = yield* runStage(downloadStage, { params: { sources }, baseDirectory, previous })
        const fetched = server.asked.slice(asked).map(({ url }) => url)
        const anew = yield* runStage(downloadStage, { params: { sources }, baseDirectory })
        assert.deepStrictEqual(filesOf(result.outputs.documents.folder), filesOf(anew.outputs.documents.folder))
        assert.strictEqual(result.outputs.documents.digest, anew.outputs.documents.digest)
        return {
          fetched,
          reused: result.logs.flatMap((line) => /^(\d+) of \d+ files are those/u.exec(line)?.[1] ?? [])
        }
      })
      assert.deepStrictEqual(yield* onTop([b, a, { path: "docs/*.md" }]), { fetched: ["/b.txt"], reused: ["4"] })
      assert.deepStrictEqual(yield* onTop([a]), { fetched: [], reused: ["1"] })
      // The same name with another query is another place; a digest that was not what came asks again.
      assert.deepStrictEqual(yield* onTop([{ url: `${server.base}/c.txt?key=1` }]), {
        fetched: ["/c.txt?key=1"],
        reused: []
      })
      assert.deepStrictEqual(yield* onTop([{ ...a, sha256: digest("the first") }]), { fetched: [], reused: ["1"] })
      writeFileSync(join(baseDirectory, "docs/a.md"), "A".repeat(10))
      assert.deepStrictEqual(yield* onTop([{ path: "docs/*.md" }]), { fetched: [], reused: ["2"] })
      // A file of the earlier result that was damaged is fetched.
      writeFileSync(join(old.outputs.documents.folder, "files/1/a.txt"), "THE FIRST")
      assert.deepStrictEqual(yield* onTop([a]), { fetched: ["/a.txt"], reused: [] })
    })
  )

  it.live("what an unfinished download brought is not fetched again", () =>
    Effect.gen(function* () {
      const server = yield* web
      const [a, b] = [{ url: `${server.base}/a.txt` }, { url: `${server.base}/b.txt` }]
      const work = yield* temporaryFolder
      yield* Effect.flip(
        runStage(downloadStage, {
          params: { sources: [a, { url: `${server.base}/none.txt` }], connections: 1 },
          work
        })
      )
      const asked = server.asked.length
      const previous = { params: { sources: [a] }, outputs: {}, work }
      const { outputs } = yield* runStage(downloadStage, { params: { sources: [b, a] }, previous })
      assert.deepStrictEqual(
        server.asked.slice(asked).map(({ url }) => url),
        ["/b.txt"]
      )
      assert.strictEqual(readFileSync(join(outputs.documents.folder, "files/1/a.txt"), "utf8"), "the first")
    })
  )
})
