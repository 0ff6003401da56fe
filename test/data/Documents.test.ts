import { writeFileSync } from "node:fs"
import { join } from "node:path"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Schema } from "effect"
import { DocumentFile, encodeList, listFile, readList, readRows } from "../../src/data/Documents.ts"
import { artifactOf, temporaryFolder } from "../stages/stage-fixture.ts"

const rowsOf = async (file: string, start?: number, line?: number) => {
  const rows: Array<readonly [number, string, number]> = []
  for await (const row of readRows(file, start, line)) rows.push([row.line, Buffer.from(row.bytes).toString(), row.end])
  return rows
}

const fileWith = Effect.fnUntraced(function* (content: string) {
  const file = join(yield* temporaryFolder, "rows.jsonl")
  writeFileSync(file, content)
  return file
})

describe("Documents", () => {
  it.live.prop(
    "the list survives writing and reading",
    [Schema.Array(DocumentFile)],
    ([drawn]) =>
      Effect.gen(function* () {
        const files = drawn.map((file) => ({ ...file, bytes: Math.abs(file.bytes) })) // JSON has no -0
        const folder = yield* temporaryFolder
        writeFileSync(join(folder, listFile), encodeList(files))
        assert.deepStrictEqual(yield* readList(artifactOf("Documents", folder, {}, "a.documents")), files)
      }),
    { arbitrary: { runs: 30 } }
  )

  it.live("a broken list is corrupt with its line", () =>
    Effect.gen(function* () {
      const folder = yield* temporaryFolder
      writeFileSync(join(folder, listFile), '{"path":"files/a"\n')
      const error = yield* Effect.flip(readList(artifactOf("Documents", folder, {}, "web.documents")))
      assert.strictEqual(error.failure, "corrupt")
      assert.include(error.message, "web.documents: documents.jsonl:1: ")
      assert.include(error.next, "--force web")
    })
  )

  it.live("rows keep their line numbers over blank lines, CRLF and a missing last newline", () =>
    Effect.gen(function* () {
      const file = yield* fileWith("one\n\n  \r\ntwo\r\nthrée")
      assert.deepStrictEqual(yield* Effect.promise(() => rowsOf(file)), [
        [1, "one", 4],
        [4, "two", 14],
        [5, "thrée", 20]
      ])
      assert.deepStrictEqual(yield* Effect.promise(() => rowsOf(file, 14, 5)), [[5, "thrée", 20]])
      assert.deepStrictEqual(yield* Effect.promise(() => rowsOf(file, 20, 6)), [])
    })
  )

  const Lengths = Schema.Array(Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 700_000 })))
  it.live.prop(
    "rows are whole, however they fall on the pieces that are read, and reading goes on from any of them",
    [Lengths, Schema.Boolean],
    ([lengths, closed]) =>
      Effect.gen(function* () {
        const rows = lengths.slice(0, 8).map((length, i) => String.fromCharCode(97 + i).repeat(length))
        const file = yield* fileWith(rows.join("\n") + (closed && rows.length > 0 ? "\n" : ""))
        const read = yield* Effect.promise(() => rowsOf(file))
        assert.isTrue(read.every(([line, row]) => row === rows[line - 1]) && read.length === rows.length)
        const middle = read[read.length >> 1]
        if (middle === undefined) return
        const rest = yield* Effect.promise(() => rowsOf(file, middle[2], middle[0] + 1))
        assert.deepStrictEqual(
          rest.map(([line, row]) => [line, row.length]),
          read.slice((read.length >> 1) + 1).map(([line, row]) => [line, row.length])
        )
      }),
    { arbitrary: { runs: 20 } }
  )
})
