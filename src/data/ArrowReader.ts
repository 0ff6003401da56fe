/**
 * Rows of an Arrow file, also Feather version 2, or of an Arrow stream, record batch by record batch; text stays bytes. Bodies compressed with Zstandard
 * are read, those with LZ4 are not: Node has no decoder for it. Memory is what one record batch takes.
 */
import { createReadStream } from "node:fs"
import { open } from "node:fs/promises"
import { zstdDecompressSync } from "node:zlib"
import type { Field, RecordBatch, Vector } from "apache-arrow"
import { StageError } from "../pipeline/StageType.ts"
import type { Arrow } from "./ArrowFile.ts"
import { BrokenStream } from "./Decompression.ts"
import { columnMissing } from "./FieldNames.ts"
import {
  compound,
  type Fields,
  type FieldValue,
  headBytes,
  type Position,
  type RowBatch,
  type SourceRow
} from "./RowSource.ts"

const magic = "ARROW1"

const namesOf = (fields: ReadonlyArray<Field>, prefix = ""): ReadonlyArray<string> =>
  fields.flatMap((field) => {
    const name = prefix + field.name
    const children: ReadonlyArray<Field> | null = field.type.children ?? null
    return children === null || !String(field.type).startsWith("Struct")
      ? [name]
      : [name, ...namesOf(children, `${name}.`)]
  })

/** The column at a dotted path, through structs. */
const columnAt = (batch: RecordBatch, path: ReadonlyArray<string>): Vector | undefined => {
  const [top = "", ...inner] = path
  let column: Vector | null = batch.getChild(top)
  for (const name of inner) column = column?.getChild(name) ?? null
  return column ?? undefined
}

const comparable = (value: unknown): FieldValue =>
  value === undefined || value === null
    ? null
    : typeof value === "string" || typeof value === "number" || typeof value === "boolean"
      ? value
      : typeof value === "bigint"
        ? Number(value)
        : compound

/** The bytes of a text column's rows, without making strings where the layout is Arrow's plain one. */
const textOf = ({ DataType }: Arrow, column: Vector): ((row: number) => Uint8Array | undefined) => {
  const [data] = column.data
  if (data !== undefined && column.data.length === 1 && (DataType.isUtf8(data.type) || DataType.isBinary(data.type))) {
    const values = data.values as Uint8Array
    const offsets = data.valueOffsets as Int32Array
    return (row) => (column.isValid(row) ? values.subarray(offsets[row], offsets[row + 1]) : undefined)
  }
  return (row) => {
    const value: unknown = column.get(row)
    return typeof value === "string" ? Buffer.from(value, "utf8") : value instanceof Uint8Array ? value : undefined
  }
}

const holdsText = ({ DataType }: Arrow, column: Vector): boolean => {
  const type: unknown = DataType.isDictionary(column.type) ? column.type.dictionary : column.type
  return (
    DataType.isUtf8(type) ||
    DataType.isLargeUtf8(type) ||
    DataType.isUtf8View(type) ||
    DataType.isBinary(type) ||
    DataType.isLargeBinary(type)
  )
}

/** The file's batches with the bytes of the file that each takes it to. */
async function* batches(library: Arrow, file: string): AsyncGenerator<readonly [RecordBatch, number]> {
  const { CompressionType, compressionRegistry, RecordBatchReader } = library
  compressionRegistry.set(CompressionType.ZSTD, { decode: (bytes) => zstdDecompressSync(bytes) })
  await using handle = await open(file, "r")
  const { size } = await handle.stat()
  const { buffer, bytesRead } = await handle.read(Buffer.alloc(magic.length), 0, magic.length, 0)
  if (buffer.toString("latin1", 0, bytesRead) === magic) {
    await using whole = await open(file, "r") // the reader's own, which it may close
    const reader = await RecordBatchReader.from(whole)
    await reader.open()
    const count = "numRecordBatches" in reader ? reader.numRecordBatches : 1
    let read = 0
    for await (const batch of reader) yield [batch, Math.floor((size * ++read) / Math.max(1, count))]
    return
  }
  const stream = createReadStream(file, { highWaterMark: 1 << 20 })
  try {
    for await (const batch of await RecordBatchReader.from(stream)) yield [batch, Math.min(size, stream.bytesRead)]
  } finally {
    stream.destroy()
  }
}

/** Rows from a position on. Fails as invalid-input when a column is missing, with BrokenStream when the file is damaged. */
export async function* readArrow(
  file: string,
  place: string,
  fields: Fields,
  from: Position
): AsyncGenerator<RowBatch> {
  const library = await import("apache-arrow")
  const iterator = batches(library, file)
  try {
    yield* rowsOf(library, iterator, place, fields, from)
  } finally {
    await iterator.return(undefined)
  }
}

async function* rowsOf(
  library: Arrow,
  iterator: AsyncGenerator<readonly [RecordBatch, number]>,
  place: string,
  fields: Fields,
  from: Position
): AsyncGenerator<RowBatch> {
  const paths = [fields.text, ...fields.filters].map((name) => name.split("."))
  let before = 0
  let checked = false
  for (;;) {
    const next = await iterator.next().catch((cause: unknown): never => {
      const reason = /lz4/iu.test(String(cause))
        ? "its bodies are compressed with LZ4, which is not read here (write it with zstd, or uncompressed)"
        : `the Arrow file cannot be read: ${String(cause)}`
      throw new BrokenStream({ reason, offset: 0 })
    })
    if (next.done === true) return
    const [batch, consumed] = next.value
    const columns = paths.map((path) => columnAt(batch, path))
    if (!checked) {
      for (const [index, column] of columns.entries())
        if (column === undefined)
          throw columnMissing(place, (paths[index] ?? []).join("."), namesOf(batch.schema.fields), index === 0)
      checked = true
    }
    const [text, ...filters] = columns
    if (text === undefined) return
    if (!holdsText(library, text))
      throw new StageError({
        failure: "invalid-input",
        message: `${place}: the column "${fields.text}" holds no text, but ${String(text.type)}`,
        next: "set text_field to the column that holds the text"
      })
    const bytesOf = textOf(library, text)
    const rows: Array<SourceRow> = []
    for (let index = Math.max(0, from.row - 1 - before); index < batch.numRows; index++) {
      const row = before + index + 1
      const bytes = bytesOf(index)
      const common = {
        offset: 0,
        row,
        next: { offset: 0, row: row + 1 },
        loneSurrogate: false,
        field: (at: number) => comparable(filters[at]?.get(index))
      }
      rows.push(
        bytes !== undefined
          ? { ...common, text: bytes, head: () => bytes.subarray(0, headBytes) }
          : {
              ...common,
              bad: {
                reason: "not_text",
                message: `the column "${fields.text}" is empty here`,
                next: "set bad_rows: skip to put such rows into quarantine"
              },
              head: () => new Uint8Array(0)
            }
      )
    }
    before += batch.numRows
    yield { rows, consumed }
  }
}
