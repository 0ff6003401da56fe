import { readFileSync, truncateSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { assert, describe, it } from "@effect/vitest"
import { tableFromIPC } from "apache-arrow"
import { Effect, Schema } from "effect"
import type { ArtifactHandle } from "../../src/artifacts/Artifact.ts"
import { factsOf, readShard } from "../../src/data/TokenShards.ts"
import { policy, tokenShards } from "./token-fixture.ts"

const Tokens = Schema.Array(Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 31999 })))

const documentsOf = Effect.fnUntraced(function* (handle: ArtifactHandle) {
  const facts = yield* factsOf(handle)
  const parts = yield* Effect.forEach(facts.shards, (shard) => readShard(handle, shard, policy))
  return parts.flat().flatMap((part) =>
    Array.from({ length: part.documents }, (_, row) => ({
      id: part.id(row),
      tokens: [...part.tokens.subarray(part.offsets[row], part.offsets[row + 1])],
      bytes: part.bytes[row]
    }))
  )
})

const failureOf = (handle: ArtifactHandle) =>
  documentsOf(handle).pipe(
    Effect.flip,
    Effect.map(({ failure, message, next }) => [failure, message, next] as const)
  )

describe("TokenShards", () => {
  it.live.prop(
    "what is written is read back, across shards",
    [Schema.Array(Tokens)],
    ([documents]) =>
      Effect.gen(function* () {
        const read = yield* documentsOf(yield* tokenShards(documents))
        assert.deepStrictEqual(
          read,
          documents.map((tokens, i) => ({ id: `document ${i} ü`, tokens: [...tokens], bytes: tokens.length * 3 }))
        )
      }),
    { arbitrary: { runs: 30 } }
  )

  it.live("any Arrow reader sees the columns and the policy", () =>
    Effect.gen(function* () {
      const handle = yield* tokenShards([[1, 2, 3], [], [31999]])
      const table = tableFromIPC(readFileSync(join(handle.folder, "shard-00000.arrow")))
      assert.deepStrictEqual(table.schema.fields.map(String), [
        "tokens: List<Uint16>",
        "document: Utf8",
        "bytes: Uint32"
      ])
      assert.deepStrictEqual(
        table.toArray().map((row) => [[...row.tokens], row.document, row.bytes]),
        [
          [[1, 2, 3], "document 0 ü", 9],
          [[], "document 1 ü", 0],
          [[31999], "document 2 ü", 3]
        ]
      )
      assert.strictEqual(table.schema.metadata.get("bos"), "document")
    })
  )

  it.live("a cut, changed or foreign shard is corrupt, and named", () =>
    Effect.gen(function* () {
      const cut = yield* tokenShards([[1, 2, 3]], { origin: "web.tokens" })
      truncateSync(join(cut.folder, "shard-00000.arrow"), 100)
      const [failure, message, next] = yield* failureOf(cut)
      assert.strictEqual(failure, "corrupt")
      assert.match(message, /^web\.tokens: shard-00000\.arrow: wrong sha256/)
      assert.include(next, "--force web")

      const changed = yield* tokenShards([[1, 2, 3]])
      const file = join(changed.folder, "shard-00000.arrow")
      const bytes = readFileSync(file)
      bytes[bytes.length >> 1] = (bytes[bytes.length >> 1] ?? 0) ^ 1
      writeFileSync(file, bytes)
      assert.include((yield* failureOf(changed))[1], "wrong sha256")
    })
  )

  it.live("without a digest to go by, damage is still found", () =>
    Effect.gen(function* () {
      const handle = yield* tokenShards([[1, 2, 3]])
      const facts = yield* factsOf(handle)
      const file = join(handle.folder, "shard-00000.arrow")
      const whole = readFileSync(file)
      const { createHash } = yield* Effect.promise(() => import("node:crypto"))
      const withBytes = (bytes: Buffer) => {
        writeFileSync(file, bytes)
        const sha256 = createHash("sha256").update(bytes).digest("hex")
        return failureOf({ ...handle, facts: { ...facts, shards: [{ ...facts.shards[0], sha256 }] } })
      }
      assert.include((yield* withBytes(whole.subarray(0, 200)))[1], "ARROW1")
      assert.include((yield* withBytes(Buffer.from("ARROW1\0\0ARROW1")))[1], "cannot be read")
      assert.include((yield* withBytes(Buffer.alloc(0)))[1], "ARROW1")
    })
  )

  it.live("ids beyond the vocabulary, other counts and a missing file are corrupt or named", () =>
    Effect.gen(function* () {
      const [failure, message] = yield* failureOf(yield* tokenShards([[40000]]))
      assert.strictEqual(failure, "corrupt")
      assert.include(message, "beyond the vocabulary of 32000")
      const handle = yield* tokenShards([[1]])
      const facts = yield* factsOf(handle)
      const other = { ...handle, facts: { ...facts, shards: [{ ...facts.shards[0], tokens: 2 }] } }
      assert.include((yield* failureOf(other))[1], "1 documents and 1 tokens")
      assert.include((yield* failureOf({ ...handle, folder: "/nowhere" }))[1], "no such file")
      assert.include((yield* failureOf({ ...handle, facts: {} }))[1], "its facts are not those of token shards")
    })
  )
})
