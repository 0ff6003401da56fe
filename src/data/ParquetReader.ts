/**
 * Rows of a parquet file, row group by row group, in pieces of pages where the file has an offset index; only the columns that are needed are read, and
 * text stays bytes. Memory is what one row group's text takes, decompressed.
 */
import { open } from "node:fs/promises"
import { brotliDecompressSync, gunzipSync, zstdDecompressSync } from "node:zlib"
import type { Compressors, FileMetaData, SchemaTree } from "hyparquet"
import { StageError } from "../pipeline/StageType.ts"
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

const compressors: Compressors = {
  GZIP: (bytes, size) => gunzipSync(bytes, { maxOutputLength: size }),
  ZSTD: (bytes, size) => zstdDecompressSync(bytes, { maxOutputLength: size }),
  BROTLI: (bytes, size) => brotliDecompressSync(bytes, { maxOutputLength: size })
}

/** Rows asked for at a time where an offset index allows it. */
const rowsPerRead = 1024

const leafNames = (tree: SchemaTree, prefix = ""): ReadonlyArray<string> =>
  tree.children.flatMap((child) => {
    const name = prefix + child.element.name
    return child.children.length === 0 ? [name] : [name, ...leafNames(child, `${name}.`)]
  })

const nodeAt = (tree: SchemaTree, path: ReadonlyArray<string>): SchemaTree | undefined =>
  path.reduce<SchemaTree | undefined>((node, name) => node?.children.find((child) => child.element.name === name), tree)

/** A value inside nested structs, as hyparquet gives them. */
const valueAt = (row: Readonly<Record<string, unknown>>, path: ReadonlyArray<string>): unknown =>
  path.reduce<unknown>(
    (value, name) =>
      typeof value === "object" && value !== null ? (value as Readonly<Record<string, unknown>>)[name] : undefined,
    row
  )

/** What filters compare: a column that is there but empty in this row is null. */
const comparable = (value: unknown): FieldValue =>
  value === undefined || value === null
    ? null
    : value instanceof Uint8Array
      ? Buffer.from(value).toString("utf8")
      : typeof value === "string" || typeof value === "number" || typeof value === "boolean"
        ? value
        : typeof value === "bigint"
          ? Number(value)
          : compound

/** Ranges of rows to read in one go, from `first` (counted from 0) on. */
function* ranges(metadata: FileMetaData, first: number): Generator<readonly [number, number]> {
  let start = 0
  for (const group of metadata.row_groups) {
    const end = start + Number(group.num_rows)
    const indexed = group.columns.every((column) => column.offset_index_offset !== undefined)
    const step = indexed ? rowsPerRead : end - start
    for (let at = start; at < end; at += step)
      if (Math.min(end, at + step) > first) yield [Math.max(at, first), Math.min(end, at + step)]
    start = end
  }
}

/** Rows from a position on. Fails as invalid-input when a column is missing, with BrokenStream when the file is damaged. */
export async function* readParquet(
  file: string,
  place: string,
  fields: Fields,
  from: Position
): AsyncGenerator<RowBatch> {
  const { parquetMetadataAsync, parquetRead, parquetSchema } = await import("hyparquet")
  await using handle = await open(file, "r")
  const { size } = await handle.stat()
  const source = {
    byteLength: size,
    slice: async (start: number, end = size): Promise<ArrayBuffer> => {
      const bytes = new Uint8Array(end - start)
      for (let at = 0; at < bytes.length;) {
        const { bytesRead } = await handle.read(bytes, at, bytes.length - at, start + at)
        if (bytesRead === 0) throw new Error(`the file ends before byte ${end}`)
        at += bytesRead
      }
      return bytes.buffer
    }
  }
  const damaged = (cause: unknown): never => {
    if (cause instanceof StageError) throw cause
    throw new BrokenStream({ reason: `the parquet file cannot be read: ${String(cause)}`, offset: 0 })
  }
  const metadata = await parquetMetadataAsync(source).catch(damaged)
  const schema = parquetSchema(metadata)
  const names = [fields.text, ...fields.filters]
  const paths = names.map((name) => name.split("."))
  for (const [index, name] of names.entries())
    if (nodeAt(schema, paths[index] ?? []) === undefined)
      throw columnMissing(place, name, leafNames(schema), index === 0)
  const type = nodeAt(schema, paths[0] ?? [])?.element.type
  if (type !== "BYTE_ARRAY")
    throw new StageError({
      failure: "invalid-input",
      message: `${place}: the column "${fields.text}" holds no text, but ${type ?? "a group of columns"}`,
      next: "set text_field to the column that holds the text"
    })
  const columns = Array.from(new Set(paths.map(([top = ""]) => top)))
  const total = Number(metadata.num_rows)
  for (const [rowStart, rowEnd] of ranges(metadata, from.row - 1)) {
    let table: ReadonlyArray<Readonly<Record<string, unknown>>> = []
    await parquetRead({
      file: source,
      metadata,
      columns,
      rowStart,
      rowEnd,
      compressors,
      rowFormat: "object",
      useOffsetIndex: true,
      parsers: { stringFromBytes: (bytes: Uint8Array) => bytes, jsonFromBytes: (bytes: Uint8Array) => bytes },
      onComplete: (read: ReadonlyArray<Readonly<Record<string, unknown>>>) => {
        table = read
      }
    }).catch(damaged)
    const rows = table.map((record, index): SourceRow => {
      const value = valueAt(record, paths[0] ?? [])
      const row = rowStart + index + 1
      const common = {
        offset: 0,
        row,
        next: { offset: 0, row: row + 1 },
        loneSurrogate: false,
        field: (at: number) => comparable(valueAt(record, paths[at + 1] ?? []))
      }
      return value instanceof Uint8Array
        ? { ...common, text: value, head: () => value.subarray(0, headBytes) }
        : {
            ...common,
            bad: {
              reason: "not_text",
              message: `the column "${fields.text}" is empty here`,
              next: "set bad_rows: skip to put such rows into quarantine"
            },
            head: () => new Uint8Array(0)
          }
    })
    yield { rows, consumed: Math.floor((size * rowEnd) / Math.max(1, total)) }
  }
}
