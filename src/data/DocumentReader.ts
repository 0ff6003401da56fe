/**
 * The documents of Documents artifacts one by one, as UTF-8 bytes: a text file is one document, a row of a jsonl file is one. Text is never decoded
 * into JavaScript strings, but for jsonl, whose texts are JSON strings to begin with. A cursor tells where the reader stands between documents.
 */
import { readFile } from "node:fs/promises"
import { Effect, Schema } from "effect"
import { StageError } from "../pipeline/StageType.ts"
import { type DocumentFile, readRows, type Row } from "./Documents.ts"
import { fileFailure } from "./FileFailure.ts"

export const policies = {
  invalid_utf8: Schema.Literals(["error", "replace", "skip"]),
  bad_rows: Schema.Literals(["error", "skip"])
}

/** The next document is in file number `file`, at byte `offset`, the start of line `line`. */
export interface Cursor {
  readonly file: number
  readonly offset: number
  readonly line: number
}

/** What was not read as it stands, so far. */
export const Tally = Schema.Struct({
  /** Documents passed over, by reason: empty_documents, bad_rows, invalid_utf8. */
  skipped: Schema.Record(Schema.String, Schema.Int),
  /** Documents in which U+FFFD stands for what is not UTF-8. */
  replaced: Schema.Int
})
export type Tally = typeof Tally.Type

export interface DocumentBytes {
  /** The file's source; for a row, source#line. */
  readonly id: string
  readonly bytes: Uint8Array
  /** Length of the text in UTF-8. */
  readonly length: number
}

export interface ReaderOptions {
  readonly textField: string
  readonly invalidUtf8: "error" | "replace" | "skip"
  readonly badRows: "error" | "skip"
  /** Offset of the first byte that is not UTF-8, or -1. */
  readonly firstInvalidUtf8: (bytes: Uint8Array) => number
  readonly from: Cursor
  /** The tally of the part before `from`. */
  readonly tally: Tally
}

export interface Reader {
  /** The next document; undefined at the end. Fails as invalid-input for bytes or rows that the policies refuse. */
  readonly next: Effect.Effect<DocumentBytes | undefined, StageError>
  readonly cursor: () => Cursor
  readonly tally: () => Tally
}

const invalid = (message: string, next: string): StageError =>
  new StageError({ failure: "invalid-input", message, next })

/** Drops a byte order mark, puts U+FFFD for what is not UTF-8. */
const decoder = new TextDecoder("utf-8")

/** A text file is read in one piece, as one document. */
const largestText = 2 ** 30

/** Reads `files` in order; `file` is where each lies on the disk. */
export const openReader = (
  files: ReadonlyArray<DocumentFile & { readonly file: string }>,
  options: ReaderOptions
): Reader => {
  let cursor = options.from
  let rows: AsyncGenerator<Row> | undefined
  const skipped: Record<string, number> = { ...options.tally.skipped }
  let replaced = options.tally.replaced
  const skip = (reason: string): void => {
    skipped[reason] = (skipped[reason] ?? 0) + 1
  }
  const nextFile = (): void => {
    rows = undefined
    cursor = { file: cursor.file + 1, offset: 0, line: 1 }
  }

  /** A text file as one document, or undefined where it is passed over. */
  const textDocument = Effect.fnUntraced(function* (file: DocumentFile & { readonly file: string }) {
    if (file.bytes > largestText)
      return yield* invalid(
        `${file.source}: one text of ${file.bytes} bytes; a document has at most ${largestText}`,
        "cut it into documents: several files, or a jsonl file with a row for each"
      )
    const bytes = yield* Effect.tryPromise({ try: () => readFile(file.file), catch: fileFailure(file.source) })
    nextFile()
    if (bytes.length === 0) return skip("empty_documents")
    const at = options.firstInvalidUtf8(bytes)
    if (at >= 0 && options.invalidUtf8 === "error")
      return yield* invalid(
        `${file.source}: not UTF-8 at byte ${at} (0x${(bytes[at] ?? 0).toString(16).padStart(2, "0")})`,
        "convert or exclude the file, or set invalid_utf8: replace or skip"
      )
    if (at >= 0 && options.invalidUtf8 === "skip") return skip("invalid_utf8")
    if (at >= 0) replaced++ // the tokenizer puts U+FFFD for each bad byte
    const document: DocumentBytes = { id: file.source, bytes, length: bytes.length }
    return document
  })

  /** The text of a row, or undefined where it is passed over. */
  const rowDocument = Effect.fnUntraced(function* (file: DocumentFile, row: Row) {
    const place = `${file.source}:${row.line}`
    const at = options.firstInvalidUtf8(row.bytes)
    if (at >= 0 && options.invalidUtf8 === "error")
      return yield* invalid(
        `${place}: not UTF-8 at byte ${at} of the line`,
        "correct the row, or set invalid_utf8: replace or skip"
      )
    if (at >= 0 && options.invalidUtf8 === "skip") return skip("invalid_utf8")
    const text = decoder.decode(row.bytes)
    const parsed = yield* Effect.result(Effect.try({ try: (): unknown => JSON.parse(text), catch: String }))
    const value =
      parsed._tag === "Success" && typeof parsed.success === "object" && parsed.success !== null
        ? (parsed.success as Readonly<Record<string, unknown>>)[options.textField]
        : undefined
    if (typeof value !== "string") {
      if (options.badRows === "skip") return skip("bad_rows")
      return yield* invalid(
        parsed._tag === "Failure"
          ? `${place}: this is not JSON: ${parsed.failure}`
          : value === undefined
            ? `${place}: the row has no field "${options.textField}"`
            : `${place}: the field "${options.textField}" is not a string`,
        parsed._tag === "Failure"
          ? "correct the row, or set bad_rows: skip"
          : "set text_field to the field that holds the text, or bad_rows: skip"
      )
    }
    const wellFormed = value.isWellFormed()
    if (!wellFormed && options.invalidUtf8 === "error")
      return yield* invalid(
        `${place}: the text holds half of a surrogate pair, which UTF-8 cannot express`,
        "correct the row, or set invalid_utf8: replace or skip"
      )
    if (!wellFormed && options.invalidUtf8 === "skip") return skip("invalid_utf8")
    if (at >= 0 || !wellFormed) replaced++
    const bytes = Buffer.from(value, "utf8")
    if (bytes.length === 0) return skip("empty_documents")
    const document: DocumentBytes = { id: `${file.source}#${row.line}`, bytes, length: bytes.length }
    return document
  })

  const next = Effect.gen(function* () {
    for (;;) {
      const file = files[cursor.file]
      if (file === undefined) return undefined
      if (file.format === "text") {
        const document = yield* textDocument(file)
        if (document !== undefined) return document
        continue
      }
      rows ??= readRows(file.file, cursor.offset, cursor.line)
      const iterator = rows
      const row = yield* Effect.tryPromise({ try: () => iterator.next(), catch: fileFailure(file.source) })
      if (row.done === true) {
        nextFile()
        continue
      }
      cursor = { ...cursor, offset: row.value.end, line: row.value.line + 1 }
      const document = yield* rowDocument(file, row.value)
      if (document !== undefined) return document
    }
  })
  return { next, cursor: () => cursor, tally: () => ({ skipped: { ...skipped }, replaced }) }
}
