import { closeSync, openSync, truncateSync, writeFileSync, writeSync } from "node:fs"
import { join } from "node:path"
import { gzipSync, zstdCompressSync } from "node:zlib"
import { assert, describe, it } from "@effect/vitest"
import { RecordBatchStreamWriter, tableFromArrays, tableToIPC } from "apache-arrow"
import { Effect } from "effect"
import { parquetWriteBuffer } from "hyparquet-writer"
import { cutAt, partsOf, partsOfStream } from "../../src/data/DocumentParts.ts"
import { type Item, type LocatedFile, type ReaderOptions, readDocuments, start } from "../../src/data/DocumentReader.ts"
import type { DocumentFormat } from "../../src/data/Documents.ts"
import { fileFailure } from "../../src/data/FileFailure.ts"
import { load } from "../../src/engine/Native.ts"
import { loadTokenizer } from "../../src/engine/Tokenizer.ts"
import { temporaryFolder } from "../stages/stage-fixture.ts"

interface Given {
  readonly name: string
  readonly format: DocumentFormat
  readonly content: Uint8Array | string
}
interface Options extends Partial<Omit<ReaderOptions, "filter" | "native" | "firstInvalidUtf8">> {
  readonly filter?: Partial<ReaderOptions["filter"]>
}

const locate = Effect.fnUntraced(function* (files: ReadonlyArray<Given>) {
  const folder = yield* temporaryFolder
  return files.map(({ content, format, name }): LocatedFile => {
    const file = join(folder, name)
    const bytes = Buffer.from(content)
    writeFileSync(file, bytes)
    return { path: `files/${name}`, format, source: name, bytes: bytes.length, sha256: "", file }
  })
})

const read = Effect.fnUntraced(function* (files: ReadonlyArray<LocatedFile>, options: Options = {}, from = start) {
  const native = yield* load
  const tokenizer = yield* loadTokenizer("llama-2")
  return yield* Effect.tryPromise({
    try: async () => {
      const items: Array<Item & { readonly text: string }> = []
      const reader = readDocuments(
        files,
        {
          textField: "text",
          invalidUtf8: "error",
          badRows: "error",
          ...options,
          native,
          filter: { where: [], sample: null, minCharacters: null, maxCharacters: null, ...options.filter },
          firstInvalidUtf8: (bytes) => tokenizer.firstInvalidUtf8(bytes)
        },
        from
      )
      for await (const batch of reader)
        for (const item of batch.items)
          items.push({ ...item, text: item.kind === "document" ? Buffer.from(item.bytes).toString() : item.reason })
      return items
    },
    catch: fileFailure("documents")
  })
})

const textsOf = (files: ReadonlyArray<Given>, options: Options = {}) =>
  Effect.flatMap(locate(files), (located) => read(located, options)).pipe(
    Effect.map((items) => items.map((item) => (item.kind === "document" ? item.text : `(${item.reason})`)))
  )

const refused = (files: ReadonlyArray<Given>, options: Options = {}) =>
  textsOf(files, options).pipe(
    Effect.flip,
    Effect.map((error) => (error._tag === "StageError" ? [error.failure, error.message] : [error._tag, ""]))
  )

const rows = [
  { text: "One.", meta: { set: "Book" }, stars: 1 },
  { text: "Zwei größer\n", meta: { set: "Github" }, stars: 2 },
  { text: "Three 😀", meta: { set: "Wiki" }, stars: 3 }
]
const jsonl = rows.map((row) => JSON.stringify(row)).join("\n")
const texts = rows.map(({ text }) => text)

const parquet = (codec: "SNAPPY" | "GZIP" | "ZSTD" | "UNCOMPRESSED", many = rows, rowGroupSize = 2) =>
  new Uint8Array(
    parquetWriteBuffer({
      columnData: [
        { name: "text", data: many.map(({ text }) => text), type: "STRING" },
        { name: "set", data: many.map(({ meta }) => meta.set), type: "STRING" },
        { name: "stars", data: many.map(({ stars }) => stars), type: "INT32" }
      ],
      codec,
      rowGroupSize,
      compressors: { GZIP: (bytes) => gzipSync(bytes), ZSTD: (bytes) => zstdCompressSync(bytes) }
    })
  )

const table = tableFromArrays({
  text: texts,
  set: rows.map(({ meta }) => meta.set),
  stars: rows.map(({ stars }) => stars)
})

/** The same three rows in every format. */
const everyFormat: ReadonlyArray<Given> = [
  { name: "a.jsonl", format: "jsonl", content: jsonl },
  { name: "a.jsonl.gz", format: "jsonl", content: gzipSync(jsonl) },
  { name: "a.jsonl.zst", format: "jsonl", content: zstdCompressSync(jsonl) },
  { name: "snappy.parquet", format: "parquet", content: parquet("SNAPPY") },
  { name: "gzip.parquet", format: "parquet", content: parquet("GZIP") },
  { name: "zstd.parquet", format: "parquet", content: parquet("ZSTD") },
  { name: "plain.parquet", format: "parquet", content: parquet("UNCOMPRESSED") },
  { name: "a.arrow", format: "arrow", content: tableToIPC(table, "file") },
  { name: "a.arrows", format: "arrow", content: tableToIPC(table, "stream") },
  {
    name: "zstd.arrow",
    format: "arrow",
    content: RecordBatchStreamWriter.writeAll(tableFromArrays({ text: texts })).toUint8Array(true)
  }
]

describe("documents of every format", () => {
  for (const file of everyFormat)
    it.live(`${file.name}: the same texts, from any row on`, () =>
      Effect.gen(function* () {
        const located = yield* locate([file])
        const items = yield* read(located)
        assert.deepStrictEqual(
          items.map(({ text }) => text),
          texts
        )
        assert.deepStrictEqual(
          items.map((item) => item.kind === "document" && item.id),
          [1, 2, 3].map((row) => `${file.name}#${row}`)
        )
        for (const [index, { next }] of items.entries())
          assert.deepStrictEqual(
            (yield* read(located, {}, next)).map(({ text }) => text),
            texts.slice(index + 1)
          )
      })
    )

  it.live("text files are one document each, compressed or not", () =>
    Effect.gen(function* () {
      const files = [
        { name: "a.md", format: "text", content: "# Title\n" },
        { name: "b.txt.gz", format: "text", content: gzipSync("packed") },
        { name: "c.py", format: "text", content: "" }
      ] as const
      assert.deepStrictEqual(yield* textsOf(files), ["# Title\n", "packed", "(empty_documents)"])
    })
  )

  it.live("gzip members, Zstandard frames and skippable frames in a row are one text", () =>
    Effect.gen(function* () {
      const half = jsonl.indexOf("\n") + 9
      const [head, tail] = [jsonl.slice(0, half), jsonl.slice(half)]
      const skippable = Buffer.from([0x5a, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3])
      for (const content of [
        Buffer.concat([gzipSync(head), gzipSync(tail)]),
        Buffer.concat([zstdCompressSync(head), zstdCompressSync(tail)]),
        Buffer.concat([skippable, zstdCompressSync(head), skippable, zstdCompressSync(tail), skippable])
      ])
        assert.deepStrictEqual(yield* textsOf([{ name: "a.jsonl", format: "jsonl", content }]), texts)
    })
  )

  it.live("many rows, across pieces and buffers", () =>
    Effect.gen(function* () {
      const many = Array.from({ length: 9000 }, (_, i) => `${i} `.repeat(1 + ((i * 7919) % 900)))
      const content = zstdCompressSync(many.map((text) => `${JSON.stringify({ id: 1, text })}\r\n`).join(""))
      const found = yield* textsOf([{ name: "a.jsonl.zst", format: "jsonl", content }])
      assert.isTrue(found.length === many.length && found.every((text, i) => text === many[i]))
      const columns = many.map((text) => ({ text, meta: { set: "x" }, stars: 1 }))
      const fromParquet = yield* textsOf([
        { name: "a.parquet", format: "parquet", content: parquet("SNAPPY", columns, 4000) }
      ])
      assert.isTrue(fromParquet.length === many.length && fromParquet.every((text, i) => text === many[i]))
    })
  )
})

describe("filters", () => {
  it.live("rows are kept by their fields, also nested ones", () =>
    Effect.gen(function* () {
      const kept = (condition: ReaderOptions["filter"]["where"][number]) =>
        textsOf([{ name: "a.jsonl", format: "jsonl", content: jsonl }], { filter: { where: [condition] } })
      const dropped = "(where)"
      assert.deepStrictEqual(yield* kept({ field: "meta.set", not: "Github" }), [texts[0], dropped, texts[2]])
      assert.deepStrictEqual(yield* kept({ field: "stars", equals: 2 }), [dropped, texts[1], dropped])
      assert.deepStrictEqual(yield* kept({ field: "meta.set", in: ["Book", "Wiki"] }), [texts[0], dropped, texts[2]])
      assert.deepStrictEqual(yield* kept({ field: "text", not_in: ["One."] }), [dropped, texts[1], texts[2]])
      for (const file of everyFormat.filter(({ name }) => /parquet|^a\.arrow/u.test(name)))
        assert.deepStrictEqual(
          yield* textsOf([file], {
            filter: {
              where: [
                { field: "set", not: "Github" },
                { field: "stars", in: [1, 2] }
              ]
            }
          }),
          [texts[0], dropped, dropped]
        )
    })
  )

  it.live("columns inside a struct are found", () =>
    Effect.gen(function* () {
      const { vectorFromArray, Table, makeVector, Struct, Field, Utf8, makeData } = yield* Effect.promise(
        () => import("apache-arrow")
      )
      const [text, set] = [vectorFromArray(texts, new Utf8()), vectorFromArray(["a", "b", "c"], new Utf8())]
      const type = new Struct([new Field("set", new Utf8(), true)])
      const data = set.data[0]
      if (data === undefined) return assert.fail("no column")
      const meta = makeVector(makeData({ type, length: 3, nullCount: 0, children: [data] }))
      const content = tableToIPC(new Table({ text, meta }), "file")
      assert.deepStrictEqual(
        yield* textsOf([{ name: "a.arrow", format: "arrow", content }], {
          filter: { where: [{ field: "meta.set", equals: "b" }] }
        }),
        ["(where)", texts[1], "(where)"]
      )
    })
  )

  it.live("lengths count characters; a sample is a share, the same for the same texts", () =>
    Effect.gen(function* () {
      const file = { name: "a.jsonl", format: "jsonl", content: jsonl } as const
      assert.deepStrictEqual(yield* textsOf([file], { filter: { minCharacters: 7 } }), [
        "(too_short)",
        texts[1],
        texts[2]
      ])
      assert.deepStrictEqual(yield* textsOf([file], { filter: { maxCharacters: 7 } }), [
        texts[0],
        "(too_long)",
        texts[2]
      ])
      const many = Array.from({ length: 4000 }, (_, i) => `text ${i}`)
      const content = many.map((text) => JSON.stringify({ text })).join("\n")
      const taken = (seed: number, given = content) =>
        Effect.map(
          textsOf([{ name: "m.jsonl", format: "jsonl", content: given }], {
            filter: { sample: { fraction: 0.25, seed } }
          }),
          (found) => found.filter((text) => text !== "(sample)")
        )
      const [first, other] = [yield* taken(1), yield* taken(2)]
      assert.isTrue(Math.abs(first.length - 1000) < 110) // four standard deviations
      assert.notDeepEqual(first, other)
      const backwards = content.split("\n").toReversed().join("\n")
      assert.deepStrictEqual((yield* taken(1, backwards)).toReversed(), first)
    })
  )
})

describe("bad input", () => {
  const skip = { badRows: "skip", invalidUtf8: "skip" } as const

  it.live("a compressed file that is cut off: named with its place; what is whole is taken, the rest put aside", () =>
    Effect.gen(function* () {
      const many = Array.from({ length: 3000 }, (_, i) =>
        JSON.stringify({ text: `row ${i} ${(i * 7919) % 3001}` })
      ).join("\n")
      for (const [name, whole] of [
        ["a.jsonl.zst", zstdCompressSync(many)],
        ["a.jsonl.gz", gzipSync(many)],
        ["two.jsonl.zst", Buffer.concat([zstdCompressSync(many), zstdCompressSync(many)])]
      ] as const) {
        const file = { name, format: "jsonl", content: whole.subarray(0, whole.length - 40) } as const
        const [failure, message] = yield* refused([file])
        assert.strictEqual(failure, "corrupt")
        assert.match(
          message ?? "",
          new RegExp(`^${name}: the file ends in the middle of its (gzip|Zstandard) data`, "u")
        )
        const next = { name: "next.jsonl", format: "jsonl", content: '{"text":"next"}' } as const
        const found = yield* textsOf([file, next], skip)
        assert.deepStrictEqual(found.slice(-2), ["(broken_file)", "next"])
        if (name === "two.jsonl.zst") assert.isAtLeast(found.length, 2999)
      }
      const damaged = Buffer.concat([zstdCompressSync(many), Buffer.from("no frame")])
      assert.include(
        (yield* refused([{ name: "a.jsonl.zst", format: "jsonl", content: damaged }]))[1],
        "its Zstandard data is damaged"
      )
      const torn = Buffer.from(gzipSync(many))
      torn[torn.length >> 1] = (torn[torn.length >> 1] ?? 0) ^ 0xff
      const [failure, message] = yield* refused([{ name: "a.jsonl.gz", format: "jsonl", content: torn }])
      assert.strictEqual(failure, "corrupt")
      assert.include(message, "its gzip data is damaged")
    })
  )

  it.live("a parquet or Arrow file without the column says which it has", () =>
    Effect.gen(function* () {
      for (const file of everyFormat.filter(({ format, name }) => format !== "jsonl" && name !== "zstd.arrow")) {
        assert.deepStrictEqual(yield* refused([file], { ...skip, textField: "content" }), [
          "invalid-input",
          `${file.name}: there is no column "content"; it has text, set, stars`
        ])
        assert.include((yield* refused([file], { textField: "txt" }))[1], 'did you mean "text"?')
        assert.include((yield* refused([file], { textField: "stars" }))[1], 'the column "stars" holds no text')
        assert.include(
          (yield* refused([file], { filter: { where: [{ field: "sets", equals: 1 }] } }))[1],
          'there is no column "sets"; did you mean "set"?'
        )
      }
    })
  )

  it.live("a parquet or Arrow file that is cut off or none at all", () =>
    Effect.gen(function* () {
      for (const { content, format, name } of everyFormat.filter((file) => /snappy|^a\.arrow$/u.test(file.name)))
        for (const bytes of [Buffer.from(content).subarray(0, 50), Buffer.from("nonsense".repeat(20))]) {
          const [failure, message] = yield* refused([{ name, format, content: bytes }])
          assert.strictEqual(failure, "corrupt")
          assert.include(message, `${name}: the ${format === "parquet" ? "parquet" : "Arrow"} file cannot be read`)
          assert.deepStrictEqual(yield* textsOf([{ name, format, content: bytes }], skip), ["(broken_file)"])
        }
    })
  )

  it.live("empty and null values, missing filter fields, wrong kinds", () =>
    Effect.gen(function* () {
      const nulls = tableToIPC(tableFromArrays({ text: ["a", null, ""] }), "file")
      assert.deepStrictEqual(yield* textsOf([{ name: "n.arrow", format: "arrow", content: nulls }], skip), [
        "a",
        "(not_text)",
        "(empty_documents)"
      ])
      assert.include(
        (yield* refused([{ name: "n.arrow", format: "arrow", content: nulls }]))[1],
        'n.arrow:2: the column "text" is empty here'
      )
      const where = [{ field: "meta.sett", not: "x" }]
      assert.deepStrictEqual(
        yield* refused([{ name: "a.jsonl", format: "jsonl", content: jsonl }], { filter: { where } }),
        ["invalid-input", 'a.jsonl:1: the row has no field "meta.sett"; did you mean "meta.set"?']
      )
      assert.include(
        (yield* refused([{ name: "a.md", format: "text", content: "x" }], { filter: { where } }))[1],
        'a text file has no field "meta.sett"'
      )
      assert.include(
        (yield* refused([{ name: "a.bin", format: "litpkds", content: "x" }]))[1],
        "holds tokens, not text"
      )
    })
  )

  it.live("a row of more than 64 MiB is put aside, in memory that does not grow with it", () =>
    Effect.gen(function* () {
      const [located] = yield* locate([{ name: "a.jsonl", format: "jsonl", content: '{"text":"first"}\n{"text":"' }])
      if (located === undefined) return assert.fail("no file")
      const descriptor = openSync(located.file, "a")
      const piece = Buffer.alloc(2 ** 20, "x")
      for (let i = 0; i < 70; i++) writeSync(descriptor, piece)
      writeSync(descriptor, Buffer.from('"}\n{"text":"last"}\n'))
      closeSync(descriptor)
      const items = yield* read([located], skip)
      assert.deepStrictEqual(
        items.map(({ text }) => text),
        ["first", "row_too_long", "last"]
      )
      assert.deepStrictEqual(items[2]?.next.row, 4)
      const error = yield* Effect.flip(read([located]))
      assert.include(error.message, "a.jsonl:2: the row has more than 67108864 bytes")
      truncateSync(located.file, 0)
    })
  )
})

describe("parts of long documents", () => {
  it("cuts behind line ends, else before a space, else between characters", () => {
    const cut = (text: string, limit: number) => cutAt(Buffer.from(text), limit)
    assert.deepStrictEqual(cut("ab\ncd\nef", 7), { at: 6, exact: true })
    assert.deepStrictEqual(cut("ab cd  ef", 7), { at: 5, exact: true })
    assert.deepStrictEqual(cut("aaé", 3), { at: 2, exact: false })
    assert.deepStrictEqual(cut("😀😀", 5), { at: 4, exact: false })
  })

  it.live("a text in pieces has the parts of the whole", () =>
    Effect.gen(function* () {
      const text = Buffer.from(
        Array.from({ length: 500 }, (_, i) => "x".repeat(i % 37) + (i % 3 === 0 ? "\n" : " ")).join("")
      )
      const whole = Array.from(partsOf(text, 100), ({ bytes, exact, last }) => [
        Buffer.from(bytes).toString(),
        exact,
        last
      ])
      for (const size of [1, 7, 99, 100, 101, 1000, 10 ** 6]) {
        const pieces = (async function* () {
          for (let at = 0; at < text.length; at += size) yield { bytes: text.subarray(at, at + size), consumed: at }
        })()
        const parts: Array<ReadonlyArray<unknown>> = []
        yield* Effect.promise(async () => {
          for await (const { bytes, exact, last } of partsOfStream(pieces, 100))
            parts.push([Buffer.from(bytes).toString(), exact, last])
        })
        assert.deepStrictEqual(parts, whole)
      }
      assert.strictEqual(whole.map(([part]) => part).join(""), text.toString())
    })
  )
})
