/** Shares of tokenize: however many processes do the work, in whatever order, the shards are those of one. */
import { mkdirSync, readdirSync, rmSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { encodeList } from "../../src/data/Documents.ts"
import { partsOfFiles } from "../../src/data/FileParts.ts"
import { tokenizeStage } from "../../src/stages/Tokenize.ts"
import { artifactOf, filesOf, runStage, temporaryFolder } from "./stage-fixture.ts"

/** Files of rows, some of them bad, one without a document, and texts. */
const corpus = Effect.gen(function* () {
  const folder = yield* temporaryFolder
  mkdirSync(join(folder, "files"))
  const list = Array.from({ length: 14 }, (_, i) => {
    const rows = Array.from({ length: 1 + ((i * 5) % 9) }, (__, row) =>
      JSON.stringify({ text: `Row ${row} of ${i}. ` })
    )
    const isText = i % 3 === 2
    const text =
      i === 6 ? "{}\n" : isText ? `Text ${i}. `.repeat(20) : `${rows.join("\n")}\n${i % 4 === 0 ? "{\n" : ""}`
    const path = `files/${i}.${isText ? "txt" : "jsonl"}`
    writeFileSync(join(folder, path), text)
    return { path, format: isText ? "text" : "jsonl", source: path, bytes: text.length, sha256: "" } as const
  })
  writeFileSync(join(folder, "documents.jsonl"), encodeList(list))
  return artifactOf("Documents", folder, {}, "corpus.documents")
})

const params = { shard_bytes: 120, bad_rows: "skip" }

describe("shares of tokenize", () => {
  it.live("do the whole in any number and order, also stopped on the way, to the bytes of one process", () =>
    Effect.gen(function* () {
      const inputs = { documents: [yield* corpus] }
      const whole = yield* runStage(tokenizeStage, { params, inputs })
      assert.isAbove(readdirSync(whole.outputs.tokens.folder).length, 8)
      assert.isAbove(filesOf(whole.outputs.tokens.folder).filter(({ path }) => path === "quarantine.jsonl").length, 0)
      for (const of of [1, 2, 3, 20]) {
        const work = yield* temporaryFolder
        const order = Array.from({ length: of }, (_, i) => ({ index: of - i, of }))
        for (const [done, share] of order.entries()) {
          if (done === 0) {
            const stopped = yield* Effect.flip(
              runStage(tokenizeStage, { params, inputs, work, share, stopAfterPolls: of < 4 ? 4 : 0 })
            )
            assert.strictEqual(stopped._tag, of < 4 ? "Preempted" : "ShareDone")
          }
          const error = yield* Effect.flip(runStage(tokenizeStage, { params, inputs, work, share }))
          if (error._tag !== "ShareDone") return assert.fail(`${error._tag}: ${error.message}`)
          assert.strictEqual(error.done === error.total, done === of - 1, `${error.message} after ${done + 1} of ${of}`)
        }
        const joined = yield* runStage(tokenizeStage, { params, inputs, work })
        assert.strictEqual(joined.outputs.tokens.digest, whole.outputs.tokens.digest)
      }
    })
  )

  it.live("what no share did, a run without one does", () =>
    Effect.gen(function* () {
      const inputs = { documents: [yield* corpus] }
      const whole = yield* runStage(tokenizeStage, { params, inputs })
      const work = yield* temporaryFolder
      for (const index of [2, 3])
        yield* Effect.flip(runStage(tokenizeStage, { params, inputs, work, share: { index, of: 3 } }))
      const lost = readdirSync(join(work, "shards")).find((name) => /^part-00001-\d+\.arrow$/u.test(name))
      rmSync(join(work, "shards", lost ?? "none"))
      const joined = yield* runStage(tokenizeStage, { params, inputs, work })
      assert.strictEqual(joined.outputs.tokens.digest, whole.outputs.tokens.digest)
      assert.match(joined.logs[0] ?? "", /^going on after \d+ of \d+ parts$/u)
    })
  )

  it.effect("parts end with the file that fills them", () =>
    Effect.sync(() => {
      const parts = (...bytes: ReadonlyArray<number>) =>
        partsOfFiles(
          bytes.map((size) => ({ bytes: size })),
          10
        ).map(({ bytes: size, end, first }) => [first, end, size])
      assert.deepStrictEqual(parts(), [])
      assert.deepStrictEqual(parts(3, 3, 3), [[0, 3, 9]])
      assert.deepStrictEqual(parts(10, 50, 4, 6, 1), [
        [0, 1, 10],
        [1, 2, 50],
        [2, 4, 10],
        [4, 5, 1]
      ])
    })
  )
})
