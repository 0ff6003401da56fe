import { createHash } from "node:crypto"
import { mkdirSync, readFileSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { assert, describe, it } from "@effect/vitest"
import { ConfigProvider, Effect } from "effect"
import { readList } from "../../src/data/Documents.ts"
import { downloadStage } from "../../src/stages/Download.ts"
import { sendRange, serve } from "../data/HttpTestServer.ts"
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
  const pages = (base: string) => [
    [
      { type: "directory", path: "data", size: 0 },
      { type: "file", path: "data/two.jsonl", size: 12, lfs: { oid: digest('{"text":"2"}'), size: 12 } }
    ],
    [
      { type: "file", path: "data/one.jsonl", size: 12 },
      { type: "file", path: "README.md", size: 3 },
      { type: "file", path: `note ${base.length > 0 ? "ü" : ""}.jsonl`, size: 12 }
    ]
  ]
  const hub = serve((request, response) => {
    const url = new URL(request.url ?? "", "http://hub")
    if (request.headers.authorization === undefined && url.pathname.includes("private"))
      return void response.writeHead(401).end()
    const repository = /^\/api\/(?:datasets|models)\/(owner\/(?:name|private))\/tree\/main$/.exec(url.pathname)
    if (repository !== null) {
      const page = url.searchParams.get("cursor") === "2" ? 1 : 0
      if (page === 0)
        response.setHeader("link", `<https://elsewhere.example${url.pathname}?recursive=true&cursor=2>; rel="next"`)
      response.setHeader("content-type", "application/json")
      return void response.end(JSON.stringify(pages("x")[page]))
    }
    const file = /^(?:\/datasets)?\/owner\/(?:name|private)\/resolve\/main\/(.+)\.jsonl$/.exec(url.pathname)
    if (file === null) return void response.writeHead(404).end()
    response.end(`{"text":"${file[1]?.endsWith("two") ? 2 : 1}"}`)
  })
  const environment = (values: Record<string, string>) =>
    Effect.provide(ConfigProvider.layer(ConfigProvider.fromUnknown(values)))

  it.live("lists all pages, takes what matches, checks the digests of the listing", () =>
    Effect.gen(function* () {
      const server = yield* hub
      const params = { sources: [{ hub: "owner/name", include: ["data/*.jsonl", "*.jsonl"] }], endpoint: server.base }
      const { outputs } = yield* runStage(downloadStage, { params }).pipe(environment({}))
      assert.deepStrictEqual(
        (yield* readList(outputs.documents)).map(({ path, source }) => [path, source]),
        [
          ["files/0/data/one.jsonl", "hub:owner/name@main/data/one.jsonl"],
          ["files/0/data/two.jsonl", "hub:owner/name@main/data/two.jsonl"],
          ["files/0/note ü.jsonl", "hub:owner/name@main/note ü.jsonl"]
        ]
      )
      assert.isTrue(server.asked.every(({ headers }) => headers.authorization === undefined))
    })
  )

  it.live(
    "models live at the root; the endpoint may come from the environment; the token goes along and stays out of sight",
    () =>
      Effect.gen(function* () {
        const server = yield* hub
        const params = { sources: [{ hub: "owner/private", type: "model", include: "data/*" }] }
        const { outputs, logs } = yield* runStage(downloadStage, { params }).pipe(
          environment({ HF_ENDPOINT: `${server.base}/`, HF_TOKEN: "hf_hidden" })
        )
        assert.isTrue(server.asked.every(({ headers }) => headers.authorization === "Bearer hf_hidden"))
        assert.include(server.asked.map(({ url }) => url).join(" "), " /owner/private/resolve/main/data/one.jsonl")
        assert.notInclude(JSON.stringify([logs, outputs.documents, yield* readList(outputs.documents)]), "hidden")
      })
  )

  it.live("no access, no repository and no match say so", () =>
    Effect.gen(function* () {
      const { base } = yield* hub
      const tried = (hub: string, files: string) =>
        failing([{ hub, include: files }], "/", { endpoint: base }).pipe(environment({}))
      assert.deepStrictEqual(yield* tried("owner/private", "*"), [
        "invalid-input",
        "sources[0] (hub: owner/private): the server answers 401 (no access)"
      ])
      assert.include((yield* tried("owner/none", "*"))[1], "404")
      assert.include((yield* tried("owner/name", "*.rs"))[1], "no file matches *.rs among 5 entries")
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
        runStage(downloadStage, { params: { sources: [a, { url: `${server.base}/none.txt` }] }, work })
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
