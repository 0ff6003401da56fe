import { createHash } from "node:crypto"
import { readFileSync } from "node:fs"
import { join } from "node:path"
import { assert, describe, it } from "@effect/vitest"
import { ConfigProvider, Effect, Schema } from "effect"
import { readList } from "../../src/data/Documents.ts"
import { objectUrl, S3Settings, s3Access } from "../../src/data/S3.ts"
import { downloadStage } from "../../src/stages/Download.ts"
import { runStage } from "../stages/stage-fixture.ts"
import { serve } from "./HttpTestServer.ts"
import { serveS3 } from "./S3TestServer.ts"

const objects = {
  "corpus/a b+(1)'é.jsonl": '{"text":"one"}\n',
  "corpus/deep/two.jsonl": '{"text":"two"}\n',
  "corpus/deep/": "",
  "corpus/three.txt": "three",
  "other.txt": "other"
}
const credentials = { id: "AKIDEXAMPLE", secret: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", token: "session/token==" }
const secrets = { KEY_ID: credentials.id, KEY: credentials.secret, SESSION: credentials.token }
const named = { access_key: "KEY_ID", secret_key: "KEY", session_token: "SESSION" }

const environment = (values: Record<string, string>) =>
  Effect.provide(ConfigProvider.layer(ConfigProvider.fromUnknown(values)))

const run = (sources: ReadonlyArray<unknown>, s3: unknown, values: Record<string, string> = {}) =>
  runStage(downloadStage, { params: { sources, s3 } }).pipe(environment(values))

const refusal = (sources: ReadonlyArray<unknown>, s3: unknown, values: Record<string, string> = {}) =>
  Effect.map(Effect.flip(run(sources, s3, values)), (error) =>
    error._tag === "StageError" ? [error.failure, error.message, error.next] : [error._tag, error.message, ""]
  )

describe("S3", () => {
  it.live("one object of a public bucket, unsigned", () =>
    Effect.gen(function* () {
      const server = yield* serveS3({ objects })
      const { outputs } = yield* run([{ url: "s3://bucket/corpus/three.txt" }], { endpoint: server.base })
      assert.deepStrictEqual(
        (yield* readList(outputs.documents)).map(({ path, source, format }) => [path, source, format]),
        [["files/0/corpus/three.txt", "s3://bucket/corpus/three.txt", "text"]]
      )
      assert.strictEqual(server.asked[0]?.headers.authorization, undefined)
    })
  )

  it.live("a prefix, in pages, signed with credentials from named secrets; keys with all sorts of signs", () =>
    Effect.gen(function* () {
      const server = yield* serveS3({ objects, credentials, region: "eu-west-1" })
      const source = { url: "s3://bucket/corpus/", include: "**/*.jsonl" }
      const s3 = { endpoint: server.base, region: "eu-west-1", ...named }
      const { logs, outputs } = yield* run([source], s3, secrets)
      assert.deepStrictEqual(
        (yield* readList(outputs.documents)).map(({ path, source: from }) => [path, from]),
        [
          ["files/0/a b+(1)'é.jsonl", "s3://bucket/corpus/a b+(1)'é.jsonl"],
          ["files/0/deep/two.jsonl", "s3://bucket/corpus/deep/two.jsonl"]
        ]
      )
      assert.strictEqual(
        readFileSync(join(outputs.documents.folder, "files/0/a b+(1)'é.jsonl"), "utf8"),
        objects["corpus/a b+(1)'é.jsonl"]
      )
      const shown = JSON.stringify([logs, outputs.documents, yield* readList(outputs.documents)])
      for (const hidden of Object.values(credentials)) assert.notInclude(shown, hidden)
    })
  )

  it.live("what is refused says why and what helps", () =>
    Effect.gen(function* () {
      const server = yield* serveS3({ objects, credentials, region: "eu-west-1" })
      const source = { url: "s3://bucket/corpus/three.txt" }
      const at = { endpoint: server.base, region: "eu-west-1" }
      const unsigned = yield* refusal([source], at)
      assert.deepStrictEqual(unsigned.slice(0, 2), [
        "invalid-input",
        "sources[0] (url: s3://bucket/corpus/three.txt): the server answers 403 (no access, or no such object)"
      ])
      assert.include(unsigned[2], "name credentials")
      const wrong = yield* refusal([source], { ...at, ...named }, { ...secrets, KEY: "another-secret-key" })
      assert.include(wrong[2], "check the key's rights")
      const region = yield* refusal([source], { endpoint: server.base, ...named }, secrets)
      assert.deepStrictEqual(region.slice(1), [
        "sources[0] (url: s3://bucket/corpus/three.txt): the server answers 301 (the bucket is in another region)",
        "s3: { region: eu-west-1 }"
      ])
      const unset = yield* refusal([source], { ...at, ...named }, { KEY_ID: "AKIDEXAMPLE" })
      assert.deepStrictEqual(unset, [
        "invalid-input",
        "s3: the secret KEY is not set for this stage",
        'export KEY, and name it under "secrets" of this stage'
      ])
      const nothing = yield* refusal([{ url: "s3://bucket/corpus/", include: "*.rs" }], { ...at, ...named }, secrets)
      assert.match(nothing[1] ?? "", /no object matches \*\.rs among 3$/u)
    })
  )

  it.live("the MD5 in an ETag is checked", () =>
    Effect.gen(function* () {
      const etag = `"${createHash("md5").update("something else").digest("hex")}"`
      const server = yield* serve((_, response) => {
        response.writeHead(206, { etag, "content-range": "bytes 0-4/5" }).end("three")
      })
      const [failure, message] = yield* refusal([{ url: "s3://bucket/three.txt" }], { endpoint: server.base })
      assert.strictEqual(failure, "corrupt")
      assert.include(message, "wrong MD5")
    })
  )

  it.effect("addresses: by host at AWS, by path for names with dots and at other providers", () =>
    Effect.gen(function* () {
      const aws = yield* s3Access({ region: "eu-west-1" })
      assert.strictEqual(objectUrl(aws, "bucket", "a/b c"), "https://bucket.s3.eu-west-1.amazonaws.com/a/b%20c")
      assert.strictEqual(objectUrl(aws, "my.bucket", "a"), "https://s3.eu-west-1.amazonaws.com/my.bucket/a")
      const other = yield* s3Access({ endpoint: "https://minio.example:9000/" })
      assert.strictEqual(objectUrl(other, "bucket", "a"), "https://minio.example:9000/bucket/a")
      const half = yield* Effect.flip(Schema.decodeUnknownEffect(S3Settings)({ access_key: "KEY_ID" }))
      assert.include(half.message, "access_key and secret_key go together")
    })
  )
})
