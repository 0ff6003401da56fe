/**
 * The Documents artifact: `documents.jsonl` lists the files under `files/` in order, with where each came from. Readers here give bytes: text
 * never passes through JavaScript strings, and rows of a jsonl file are cut at newline bytes.
 */
import { readFile } from "node:fs/promises"
import { join } from "node:path"
import { Effect, Schema } from "effect"
import type { ArtifactHandle } from "../artifacts/Artifact.ts"
import { StageError } from "../pipeline/StageType.ts"
import { readPieces } from "./Decompression.ts"
import { fileFailure } from "./FileFailure.ts"

/** text and jsonl may be compressed with gzip or Zstandard; litpkds: lit-gpt's packed tokens. */
export const DocumentFormat = Schema.Literals(["text", "jsonl", "parquet", "arrow", "litpkds"])
export type DocumentFormat = typeof DocumentFormat.Type

export const DocumentFile = Schema.Struct({
  /** Relative to the artifact's folder, below files/. */
  path: Schema.String,
  format: DocumentFormat,
  /** Where it came from, the same on every machine: a path relative to the pipeline file, a URL, or hub:owner/name@revision/path. */
  source: Schema.String,
  bytes: Schema.Int,
  sha256: Schema.String
})
export type DocumentFile = typeof DocumentFile.Type

export const listFile = "documents.jsonl"

const Line = Schema.fromJsonString(DocumentFile)

export const encodeList = (files: ReadonlyArray<DocumentFile>): string =>
  files
    .map(({ path, format, source, bytes, sha256 }) => `${JSON.stringify({ path, format, source, bytes, sha256 })}\n`)
    .join("")

/** The files of a Documents artifact, in order. Fails as corrupt when the list cannot be read. */
export const readList = Effect.fn("Documents.readList")(function* (documents: ArtifactHandle) {
  const place = `${documents.origin}: ${listFile}`
  const text = yield* Effect.tryPromise({
    try: () => readFile(join(documents.folder, listFile), "utf8"),
    catch: fileFailure(place)
  })
  return yield* Effect.forEach(
    text.split("\n").filter((line) => line !== ""),
    (line, index) =>
      Schema.decodeEffect(Line)(line).pipe(
        Effect.mapError(
          (error) =>
            new StageError({
              failure: "corrupt",
              message: `${place}:${index + 1}: ${error.message}`,
              next: `make ${documents.origin} anew: tinyllama run --force ${documents.origin.split(".")[0]}`
            })
        )
      )
  )
})

/** A row of a jsonl file, as bytes without its newline. `line` counts from 1; `end` is the offset after its newline. */
export interface Row {
  readonly bytes: Uint8Array
  readonly line: number
  readonly end: number
}

/** Rows from a byte offset on (the start of a line, whose number is `line`); blank lines are passed over. */
export async function* readRows(file: string, start = 0, line = 1): AsyncGenerator<Row> {
  let pending: Array<Uint8Array> = []
  let offset = start
  const rowOf = (last: Uint8Array): Uint8Array => {
    const whole = pending.length === 0 ? last : Buffer.concat([...pending, last])
    pending = []
    return whole.at(-1) === 0x0d ? whole.subarray(0, -1) : whole
  }
  const isBlank = (row: Uint8Array): boolean => row.every((byte) => byte === 0x20 || byte === 0x09)
  for await (const piece of readPieces(file, start)) {
    const chunk = Buffer.from(piece.bytes) // rows outlive the piece
    let from = 0
    for (let newline = chunk.indexOf(0x0a); newline >= 0; newline = chunk.indexOf(0x0a, from)) {
      const bytes = rowOf(chunk.subarray(from, newline))
      from = newline + 1
      if (!isBlank(bytes)) yield { bytes, line, end: offset + from }
      line++
    }
    if (from < chunk.length) pending.push(chunk.subarray(from))
    offset += chunk.length
  }
  if (pending.length > 0) {
    const bytes = rowOf(new Uint8Array(0))
    if (!isBlank(bytes)) yield { bytes, line, end: offset }
  }
}
