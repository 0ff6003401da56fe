/**
 * The documents of Documents artifacts as UTF-8 bytes, whatever they are stored in: text files are one document each, rows of jsonl, parquet and Arrow
 * files one each. Text never becomes a JavaScript string. What does not become a document is passed over with its reason: nothing is dropped in silence.
 * A cursor tells where reading goes on between any two of them.
 */
import { Schema } from "effect"
import type { Native } from "../engine/Native.ts"
import { StageError } from "../pipeline/StageType.ts"
import { BrokenStream, readPieces } from "./Decompression.ts"
import { readArrow } from "./ArrowReader.ts"
import { partsOf, partsOfStream, longestPart } from "./DocumentParts.ts"
import type { DocumentFile } from "./Documents.ts"
import { hintAt } from "./FieldNames.ts"
import { readJsonl } from "./JsonlReader.ts"
import { readParquet } from "./ParquetReader.ts"
import { type Filter, fieldsOf, meets } from "./RowFilter.ts"
import { type Bad, type BadReason, type Fields, headBytes, type RowBatch, type SourceRow } from "./RowSource.ts"

export const policies = {
  invalid_utf8: Schema.Literals(["error", "replace", "skip"]),
  bad_rows: Schema.Literals(["error", "skip"])
}

/** The next document is in file number `file`, from byte `offset` of its text on, as row `row`, of which `part` parts were read already. */
export const Cursor = Schema.Struct({
  file: Schema.Int,
  offset: Schema.Int,
  row: Schema.Int,
  part: Schema.Int
})
export type Cursor = typeof Cursor.Type
export const start: Cursor = { file: 0, offset: 0, row: 1, part: 0 }

/** A row that is put aside, as the quarantine file states it. */
export interface Quarantined {
  readonly file: string
  readonly row: number
  /** Of the row's first byte in the text, after decompression; null in columnar files. */
  readonly offset: number | null
  readonly reason: BadReason
  readonly message: string
  /** The first bytes, what is not UTF-8 as U+FFFD. */
  readonly head: string
}

export interface DocumentItem {
  readonly kind: "document"
  /** The file's source; for a row, source#row. */
  readonly id: string
  /** Valid until the next batch is asked for. */
  readonly bytes: Uint8Array
  /** A very long document comes in parts; BOS belongs in front of the first, EOS behind the last. */
  readonly first: boolean
  readonly last: boolean
  /** False: the part had to be cut inside a word. */
  readonly exact: boolean
  /** U+FFFD stands for what is not UTF-8. */
  readonly replaced: boolean
  readonly next: Cursor
}

export interface PassedItem {
  readonly kind: "passed"
  readonly reason: BadReason | "empty_documents" | "where" | "sample" | "too_short" | "too_long"
  /** For bad rows; filters and empty documents are only counted. */
  readonly quarantined?: Quarantined
  readonly next: Cursor
}

export type Item = DocumentItem | PassedItem

interface FileBatch {
  readonly items: ReadonlyArray<Item>
  /** Bytes that were read to get this far: here of one file, in an ItemBatch of all. */
  readonly done: number
  /** Where the bytes of all documents lie, if in one place: it stays as it is until the batch after the next is asked for. */
  readonly arena?: Uint8Array
}

/** Items of one file, by its number. */
export interface ItemBatch extends FileBatch {
  readonly file: number
}

export interface ReaderOptions {
  readonly native: Native
  readonly textField: string
  readonly filter: Filter
  readonly invalidUtf8: "error" | "replace" | "skip"
  readonly badRows: "error" | "skip"
  /** Offset of the first byte that is not UTF-8, or -1. */
  readonly firstInvalidUtf8: (bytes: Uint8Array) => number
}

export type LocatedFile = DocumentFile & { readonly file: string }

const invalid = (message: string, next: string): StageError =>
  new StageError({ failure: "invalid-input", message, next })

/** How messages and ids name a row. */
const placeOf = (file: DocumentFile, row: number): string =>
  file.format === "text" ? file.source : `${file.source}:${row}`
const idOf = (file: DocumentFile, row: number): string =>
  file.format === "text" ? file.source : `${file.source}#${row}`

/** Turns rows into documents under the policies and filters. */
class Sieve {
  readonly options: ReaderOptions
  readonly filterFields: ReadonlyArray<string>

  constructor(options: ReaderOptions) {
    this.options = options
    this.filterFields = fieldsOf(options.filter.where)
  }

  get fields(): Fields {
    return { text: this.options.textField, filters: this.filterFields }
  }

  /** A bad row: fails, or goes into quarantine. */
  putAside(file: DocumentFile, row: SourceRow, bad: Bad, policy: "error" | "skip", next: Cursor): PassedItem {
    if (policy === "error") throw invalid(`${placeOf(file, row.row)}: ${bad.message}`, bad.next)
    const columnar = file.format === "parquet" || file.format === "arrow"
    return {
      kind: "passed",
      reason: bad.reason,
      quarantined: {
        file: file.source,
        row: row.row,
        offset: columnar ? null : row.offset,
        reason: bad.reason,
        message: bad.message,
        head: Buffer.from(row.head()).toString("utf8")
      },
      next
    }
  }

  missing(name: string, row: SourceRow): Bad {
    return {
      reason: "missing_field",
      message: `the row has no field "${name}"${hintAt(name, row.names?.() ?? [])}`,
      next:
        name === this.options.textField
          ? "set text_field to the field that holds the text, or bad_rows: skip"
          : "correct the field's name in where, or set bad_rows: skip"
    }
  }

  /** Why a document with this text is not wanted; its length in characters where a limit asks for it. */
  dropped(text: Uint8Array, characters: () => number): PassedItem["reason"] | undefined {
    const { maxCharacters, minCharacters, sample } = this.options.filter
    if (text.length === 0) return "empty_documents"
    if (minCharacters !== null && characters() < minCharacters) return "too_short"
    if (maxCharacters !== null && characters() > maxCharacters) return "too_long"
    // the hash covers the first part of a very long text, which is all that is in memory of a text file
    if (
      sample !== null &&
      this.options.native.textHash(text.subarray(0, longestPart), sample.seed ?? 0) >= sample.fraction
    )
      return "sample"
    return undefined
  }

  /** What is wrong with the bytes of a text whose first bad byte is at `at`; `half`: an escaped half of a surrogate pair. */
  badText(at: number, half: boolean, where: string, byte: number | undefined): Bad {
    return {
      reason: "invalid_utf8",
      message: half
        ? "the text holds half of a surrogate pair, which UTF-8 cannot express"
        : `not UTF-8 at byte ${at}${where}${byte === undefined ? "" : ` (0x${byte.toString(16).padStart(2, "0")})`}`,
      next: "correct it, or set invalid_utf8: replace, or skip to put it into quarantine"
    }
  }

  *itemsOf(file: DocumentFile, number: number, row: SourceRow, partsRead: number): Generator<Item> {
    const { filter, firstInvalidUtf8, invalidUtf8, native } = this.options
    const next: Cursor = { file: number, ...row.next, part: 0 }
    if (row.bad !== undefined) {
      const bad = row.bad.message === "" ? this.missing(this.options.textField, row) : row.bad
      yield this.putAside(file, row, bad, this.options.badRows, next)
      return
    }
    const text = row.text ?? new Uint8Array(0)
    for (const condition of filter.where) {
      const value = row.field(this.filterFields.indexOf(condition.field))
      if (value === undefined) {
        yield this.putAside(file, row, this.missing(condition.field, row), this.options.badRows, next)
        return
      }
      if (!meets(condition, value)) {
        yield { kind: "passed", reason: "where", next }
        return
      }
    }
    const at = row.invalidAt ?? firstInvalidUtf8(text)
    const broken = at >= 0 || row.loneSurrogate
    if (broken && invalidUtf8 !== "replace") {
      const where = file.format === "jsonl" ? " of the line" : " of the text"
      yield this.putAside(file, row, this.badText(at, at < 0, where, undefined), invalidUtf8, next)
      return
    }
    const reason = this.dropped(text, () => row.characters ?? native.countCharacters(text))
    if (reason !== undefined) {
      yield { kind: "passed", reason, next }
      return
    }
    let part = 0
    for (const { bytes, exact, last } of partsOf(text)) {
      part++
      if (part <= partsRead) continue
      yield {
        kind: "document",
        id: part === 1 ? idOf(file, row.row) : `${idOf(file, row.row)} (part ${part})`,
        bytes,
        first: part === 1,
        last,
        exact,
        replaced: broken && part === 1,
        next: last ? next : { file: number, offset: row.offset, row: row.row, part }
      }
    }
  }
}

/** A text file longer than one part: it is read twice, once to know its length and that it is UTF-8 where that matters, and once for its parts. */
async function* longText(
  sieve: Sieve,
  file: LocatedFile,
  number: number,
  partsRead: number
): AsyncGenerator<FileBatch> {
  const { filter, firstInvalidUtf8, invalidUtf8, native } = sieve.options
  const next: Cursor = { file: number + 1, offset: 0, row: 1, part: 0 }
  let characters = 0
  let length = 0
  let invalidAt = -1
  let head = new Uint8Array(0)
  let byte: number | undefined
  let reason: PassedItem["reason"] | undefined
  for await (const { bytes } of partsOfStream(readPieces(file.file))) {
    if (length === 0) {
      head = bytes.slice(0, headBytes)
      reason = sieve.dropped(bytes, () => filter.minCharacters ?? 0) // all but the lengths, which are not known yet
    }
    if (invalidAt < 0) {
      const at = firstInvalidUtf8(bytes)
      if (at >= 0) {
        invalidAt = length + at
        byte = bytes[at]
      }
    }
    characters += native.countCharacters(bytes)
    length += bytes.length
  }
  const row = {
    offset: 0,
    row: 1,
    next: { offset: 0, row: 1 },
    loneSurrogate: false,
    field: () => undefined,
    head: () => head
  }
  if (invalidAt >= 0 && invalidUtf8 !== "replace") {
    const item = sieve.putAside(file, row, sieve.badText(invalidAt, false, "", byte), invalidUtf8, next)
    yield { items: [item], done: file.bytes }
    return
  }
  if (filter.maxCharacters !== null && characters > filter.maxCharacters) reason = "too_long"
  else if (filter.minCharacters !== null && characters < filter.minCharacters) reason = "too_short"
  if (reason !== undefined) {
    yield { items: [{ kind: "passed", reason, next }], done: file.bytes }
    return
  }
  let part = 0
  for await (const { bytes, consumed, exact, last } of partsOfStream(readPieces(file.file))) {
    part++
    if (part <= partsRead) continue
    const item: DocumentItem = {
      kind: "document",
      id: part === 1 ? file.source : `${file.source} (part ${part})`,
      bytes,
      first: part === 1,
      last,
      exact,
      replaced: invalidAt >= 0 && part === 1,
      next: last ? next : { file: number, offset: 0, row: 1, part }
    }
    yield { items: [item], done: consumed }
  }
}

/** A text file: one document. */
async function* readText(
  sieve: Sieve,
  file: LocatedFile,
  number: number,
  partsRead: number
): AsyncGenerator<FileBatch> {
  const parts = partsOfStream(readPieces(file.file))
  const first = await parts.next()
  if (first.done === true) return
  if (!first.value.last) {
    await parts.return(undefined)
    yield* longText(sieve, file, number, partsRead)
    return
  }
  const { bytes } = first.value
  const invalidAt = sieve.options.firstInvalidUtf8(bytes)
  const row: SourceRow = {
    offset: 0,
    row: 1,
    next: { offset: 0, row: 1 },
    text: bytes,
    invalidAt,
    loneSurrogate: false,
    field: () => undefined,
    head: () => bytes.subarray(0, headBytes)
  }
  const next: Cursor = { file: number + 1, offset: 0, row: 1, part: 0 }
  if (invalidAt >= 0 && sieve.options.invalidUtf8 !== "replace") {
    const bad = sieve.badText(invalidAt, false, "", bytes[invalidAt])
    yield { items: [sieve.putAside(file, row, bad, sieve.options.invalidUtf8, next)], done: file.bytes }
  } else {
    yield {
      items: [...sieve.itemsOf(file, number, row, partsRead)].map((item) => ({ ...item, next })),
      done: file.bytes
    }
  }
  await parts.return(undefined)
}

const rowsOf = (sieve: Sieve, file: LocatedFile, from: Cursor): AsyncGenerator<RowBatch> => {
  switch (file.format) {
    case "parquet":
      return readParquet(file.file, file.source, sieve.fields, from)
    case "arrow":
      return readArrow(file.file, file.source, sieve.fields, from)
    default:
      return readJsonl(sieve.options.native, file.file, sieve.fields, from)
  }
}

async function* readFile(sieve: Sieve, file: LocatedFile, from: Cursor): AsyncGenerator<FileBatch> {
  const { file: number } = from
  if (file.format === "text") {
    if (sieve.filterFields.length > 0)
      throw invalid(
        `${file.source}: a text file has no field "${sieve.filterFields[0]}" for where to look at`,
        "tokenize texts and rows in stages of their own, or drop where"
      )
    yield* readText(sieve, file, number, from.part)
    return
  }
  if (file.format === "litpkds")
    throw invalid(`${file.source} holds tokens, not text`, "take it in with the stage type import-packed")
  let partsRead = from.part
  for await (const { arena, consumed, rows } of rowsOf(sieve, file, from)) {
    const items: Array<Item> = []
    for (const row of rows) {
      items.push(...sieve.itemsOf(file, number, row, partsRead))
      partsRead = 0
    }
    yield { items, done: consumed, ...(arena === undefined ? {} : { arena }) }
  }
}

/**
 * Documents of `files` from a cursor on, in order, of those files alone that are wanted. Fails with a StageError: invalid-input for rows and bytes that the policies refuse, corrupt for files
 * that are cut off or damaged; or with an error of the file system.
 */
export async function* readDocuments(
  files: ReadonlyArray<LocatedFile>,
  options: ReaderOptions,
  from: Cursor,
  wanted: (file: number) => boolean = () => true
): AsyncGenerator<ItemBatch> {
  const sieve = new Sieve(options)
  let before = files.slice(0, from.file).reduce((sum, { bytes }, file) => sum + (wanted(file) ? bytes : 0), 0)
  let cursor = from
  while (cursor.file < files.length) {
    const file = files[cursor.file]
    if (file === undefined) return
    const next: Cursor = { file: cursor.file + 1, offset: 0, row: 1, part: 0 }
    if (!wanted(cursor.file)) {
      cursor = next
      continue
    }
    let at = cursor
    try {
      for await (const batch of readFile(sieve, file, cursor)) {
        at = batch.items.at(-1)?.next ?? at
        yield { ...batch, file: cursor.file, done: before + batch.done }
      }
    } catch (cause) {
      if (!(cause instanceof BrokenStream)) throw cause
      const { offset, reason } = cause
      if (options.badRows === "error")
        throw new StageError({
          failure: "corrupt",
          message: `${file.source}: ${reason}${file.format === "text" || offset === 0 ? "" : `, after ${offset} bytes of its text (row ${at.row})`}`,
          next: "fetch or make the file anew; or set bad_rows: skip to take what is whole, and put the rest into quarantine"
        })
      const quarantined: Quarantined = {
        file: file.source,
        row: at.row,
        offset,
        reason: "broken_file",
        message: reason,
        head: ""
      }
      const items = [{ kind: "passed", reason: "broken_file", quarantined, next }] as const
      yield { items, file: cursor.file, done: before + file.bytes }
    }
    before += file.bytes
    cursor = next
  }
}
