/**
 * Rows of a jsonl file, plain or compressed. The native scanner finds the fields and unescapes the text on bytes; JavaScript sees numbers only. Memory
 * is four times the longest row, and 6 MiB at least.
 */
import type { JsonRows, Native } from "../engine/Native.ts"
import { BrokenStream, readPieces } from "./Decompression.ts"
import {
  type Bad,
  compound,
  type Fields,
  type FieldValue,
  headBytes,
  type Position,
  type RowBatch,
  type SourceRow
} from "./RowSource.ts"

/** Longer rows are bad rows: a corpus that has them is better kept as text files, which are read in parts. */
const longestRow = 2 ** 26
const firstCapacity = 2 ** 21
/** Bytes that are gathered before rows are looked for: a batch for the tokenizer. */
const scanBytes = 2 ** 20
const rowsPerScan = 4096

/** The record that JsonRows.scan writes, in Int32s. */
const rowInts = 7
const fieldInts = 4
const status = ["ok", "not_json", "too_deep", "not_an_object"] as const
const kind = { missing: 0, null: 1, false: 2, true: 3, number: 4, string: 5 } as const

const pathOf = (field: string): ReadonlyArray<string> => field.split(".")

/** The names that a row has, for messages; [] where it is not an object. */
const namesIn = (row: Uint8Array): ReadonlyArray<string> => {
  try {
    const value: unknown = JSON.parse(Buffer.from(row).toString("utf8"))
    return typeof value === "object" && value !== null && !Array.isArray(value)
      ? Object.entries(value).flatMap(([name, inner]) =>
          typeof inner === "object" && inner !== null && !Array.isArray(inner)
            ? [name, ...Object.keys(inner).map((key) => `${name}.${key}`)]
            : [name]
        )
      : []
  } catch {
    return []
  }
}

/** One filled buffer of rows, and how to read the records of a scan. */
class Scan {
  readonly scanner: JsonRows
  readonly fields: Fields
  readonly records: Int32Array
  readonly stride: number
  input: Buffer = Buffer.allocUnsafe(firstCapacity)
  /** The first is for the texts of the next scan. The other holds those that were given out last: they may be in the tokenizer still. */
  arenas: readonly [Buffer, Buffer] = [Buffer.allocUnsafe(firstCapacity), Buffer.allocUnsafe(firstCapacity)]
  /** Bytes of `input` that are filled, and the offset in the text of its first byte. */
  filled = 0
  base: number
  row: number
  /** Where in a record's fields each filter field stands. */
  readonly slots: ReadonlyArray<number>

  constructor(native: Native, fields: Fields, from: Position) {
    const paths = Array.from(new Set([fields.text, ...fields.filters]))
    this.slots = fields.filters.map((name) => paths.indexOf(name))
    this.scanner = new native.JsonRows(paths.map(pathOf))
    this.fields = fields
    this.stride = rowInts + fieldInts * paths.length
    this.records = new Int32Array(this.stride * rowsPerScan)
    this.base = from.offset
    this.row = from.row
  }

  append(bytes: Uint8Array): void {
    const needed = this.filled + bytes.length
    if (needed > this.input.length) {
      const grown = Buffer.allocUnsafe(Math.max(needed, 2 * this.input.length))
      grown.set(this.input.subarray(0, this.filled))
      this.input = grown
      this.arenas = [Buffer.allocUnsafe(grown.length), Buffer.allocUnsafe(grown.length)]
    }
    this.input.set(bytes, this.filled)
    this.filled = needed
  }

  /** The whole rows that `input` holds from `start` on, and where they end. */
  rowsFrom(
    start: number,
    last: boolean
  ): { readonly rows: ReadonlyArray<SourceRow>; readonly end: number; readonly arena: Uint8Array } {
    const input = this.input.subarray(0, this.filled)
    const [arena] = this.arenas
    const count = this.scanner.scan(input, start, last, arena, this.records)
    const rows: Array<SourceRow> = []
    let end = start
    for (let i = 0; i < count; i++) {
      const at = i * this.stride
      end = this.records[at + 3] ?? 0
      const row = this.rowAt(at)
      if (row !== undefined) rows.push(row)
      this.row++
    }
    return { rows, end, arena }
  }

  /** The texts of the last scan were given out. */
  turn(): void {
    this.arenas = [this.arenas[1], this.arenas[0]]
  }

  /** Drops what lies before `start`. */
  keepFrom(start: number): void {
    this.input.copyWithin(0, start, this.filled)
    this.filled -= start
    this.base += start
  }

  /** undefined: a blank line. */
  private rowAt(at: number): SourceRow | undefined {
    const { records } = this
    const [arena] = this.arenas
    const [code = 0, begin = 0, end = 0, next = 0, errorAt = 0, invalidAt = -1, characters = 0] = records.subarray(
      at,
      at + rowInts
    )
    const line = this.input.subarray(begin, end)
    const textAt = at + rowInts
    const textKind = records[textAt] ?? 0
    const position = { offset: this.base + begin, row: this.row }
    const common = {
      ...position,
      next: { offset: this.base + next, row: this.row + 1 },
      invalidAt,
      loneSurrogate: records[textAt + 3] === 1,
      head: () => line.subarray(0, headBytes),
      names: () => namesIn(line)
    }
    if (code !== 0 || textKind !== kind.string) {
      if (code === 1 && line.every((byte) => byte === 0x20 || byte === 0x09)) return undefined
      const bad = this.badOf(code, textKind, errorAt, line)
      return { ...common, bad, field: () => undefined }
    }
    const offset = records[textAt + 1] ?? 0
    const values = this.slots.map((slot) => this.valueAt(textAt + slot * fieldInts))
    return {
      ...common,
      text: arena.subarray(offset, offset + (records[textAt + 2] ?? 0)),
      characters,
      field: (index) => values[index]
    }
  }

  private badOf(code: number, textKind: number, errorAt: number, line: Uint8Array): Bad {
    const correct = "correct the row, or set bad_rows: skip to put such rows into quarantine"
    switch (status[code]) {
      case "not_json":
        return {
          reason: "not_json",
          message:
            errorAt >= line.length
              ? "this is not JSON: the line ends too early"
              : `this is not JSON: ${JSON.stringify(String.fromCharCode(line[errorAt] ?? 0))} cannot stand at byte ${errorAt} of the line`,
          next: correct
        }
      case "too_deep":
        return {
          reason: "not_json",
          message: `brackets nest deeper than 512 at byte ${errorAt} of the line`,
          next: correct
        }
      case "not_an_object":
        return { reason: "not_an_object", message: "the row is no JSON object", next: correct }
      default:
        return textKind === kind.missing
          ? { reason: "missing_field", message: "", next: "" } // the reader of documents says it, for all formats alike
          : {
              reason: "not_text",
              message: `the field "${this.fields.text}" is not a string`,
              next: "set text_field to the field that holds the text, or bad_rows: skip"
            }
    }
  }

  private valueAt(at: number): FieldValue {
    const { records } = this
    const [arena] = this.arenas
    const offset = records[at + 1] ?? 0
    const text = () => arena.toString("utf8", offset, offset + (records[at + 2] ?? 0))
    switch (records[at]) {
      case kind.missing:
        return undefined
      case kind.null:
        return null
      case kind.false:
        return false
      case kind.true:
        return true
      case kind.number:
        return Number(text())
      case kind.string:
        return text()
      default:
        return compound
    }
  }
}

/** Rows from a position on. */
export async function* readJsonl(
  native: Native,
  file: string,
  fields: Fields,
  from: Position
): AsyncGenerator<RowBatch> {
  const scan = new Scan(native, fields, from)
  let consumed = 0
  let tooLong: SourceRow | undefined
  let enough = scanBytes

  /** Goes through the buffer; what remains is the beginning of a row. */
  function* drain(last: boolean): Generator<RowBatch> {
    let start = 0
    for (;;) {
      const { arena, end, rows } = scan.rowsFrom(start, last)
      if (rows.length > 0) {
        yield { rows, consumed, arena }
        scan.turn()
      }
      if (end === start) break
      start = end
    }
    scan.keepFrom(start)
  }

  try {
    for await (const piece of readPieces(file, from.offset)) {
      consumed = piece.consumed
      let bytes = piece.bytes
      if (tooLong !== undefined) {
        const newline = bytes.indexOf(0x0a)
        if (newline < 0) {
          scan.base += bytes.length
          continue
        }
        scan.base += newline + 1
        scan.row++
        yield { rows: [{ ...tooLong, next: { offset: scan.base, row: scan.row } }], consumed }
        tooLong = undefined
        bytes = bytes.subarray(newline + 1)
      }
      scan.append(bytes)
      if (scan.filled < enough) continue
      yield* drain(false)
      // A row that is longer is not looked through for every piece of it.
      enough = Math.min(Math.max(scanBytes, 2 * scan.filled), longestRow + 1)
      if (scan.filled > longestRow) {
        const head = Buffer.from(scan.input.subarray(0, headBytes))
        tooLong = {
          offset: scan.base,
          row: scan.row,
          next: { offset: scan.base, row: scan.row + 1 },
          loneSurrogate: false,
          invalidAt: -1,
          bad: {
            reason: "row_too_long",
            message: `the row has more than ${longestRow} bytes`,
            next: "give so long a document as a text file, which is read in parts, or set bad_rows: skip"
          },
          field: () => undefined,
          head: () => head
        }
        scan.base += scan.filled
        scan.filled = 0
      }
    }
  } catch (cause) {
    // what came before the break is whole
    if (cause instanceof BrokenStream && tooLong === undefined) yield* drain(false)
    throw cause
  }
  if (tooLong !== undefined) yield { rows: [{ ...tooLong, next: { offset: scan.base, row: scan.row + 1 } }], consumed }
  yield* drain(true)
}
