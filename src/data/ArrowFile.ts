/**
 * Arrow IPC files as this project writes and reads them: record batches built over typed arrays, written piece by piece, read without copying
 * (the columns are views of the file's buffer). Any Arrow reader opens them. apache-arrow itself is loaded on first use.
 */
import { createHash, webcrypto } from "node:crypto"
import { closeSync, constants, openSync, write } from "node:fs"
import { open } from "node:fs/promises"
import type { Data, DataType, RecordBatch, Schema, TypeMap } from "apache-arrow"
import { Effect } from "effect"
import { StageError } from "../pipeline/StageType.ts"
import { fileFailure } from "./FileFailure.ts"

export type Arrow = typeof import("apache-arrow")

export const arrow: Effect.Effect<Arrow> = Effect.promise(() => import("apache-arrow"))

/** A batch of equal-length columns under `schema`. */
export const batchOf = (
  { makeData, RecordBatch, Struct }: Arrow,
  schema: Schema,
  length: number,
  columns: ReadonlyArray<Data>
): RecordBatch =>
  new RecordBatch(
    schema,
    makeData({ type: new Struct<TypeMap>(schema.fields), length, nullCount: 0, children: [...columns] })
  )

/** Bytes that are hashed at a time: a tokenizer that is done with its batch waits for the JavaScript thread under a millisecond. */
const sliceBytes = 2 ** 20

/** One write call at the file's position; gives how many bytes it took. */
const writePiece = (descriptor: number, piece: Uint8Array, at: number): Promise<number> =>
  new Promise((resolve, reject) =>
    write(descriptor, piece, at, piece.length - at, null, (error, count) =>
      error === null ? resolve(count) : reject(error)
    )
  )

const writeAll = async (descriptor: number, bytes: Uint8Array): Promise<void> => {
  for (let at = 0; at < bytes.length;) at += await writePiece(descriptor, bytes, at)
}

export interface Written {
  readonly bytes: number
  readonly sha256: string
}

/** Writes to a file until closed, off the JavaScript thread. */
export interface ArrowWriter {
  /** Begins to write a batch, whose buffers must stay as they are until `written`. */
  write(batch: RecordBatch): void
  /** Waits for all batches so far to be written. Fails with file system errors. */
  written(): Promise<void>
  close(): Promise<Written>
}

/** Opens `file` for writing; throws file system errors. At least one batch, maybe of length 0, must be written: it carries the schema. */
export const openWriter = ({ AsyncByteQueue, RecordBatchFileWriter }: Arrow, file: string): ArrowWriter => {
  const descriptor = openSync(file, constants.O_WRONLY | constants.O_CREAT | constants.O_TRUNC)
  const hash = createHash("sha256")
  let bytes = 0
  let failed: { readonly cause: unknown } | undefined
  let pending = Promise.resolve()
  const put = async (piece: Uint8Array): Promise<void> => {
    if (failed !== undefined) return
    try {
      for (let at = 0; at < piece.length; at += sliceBytes) {
        const slice = piece.subarray(at, at + sliceBytes)
        const writing = writeAll(descriptor, slice)
        hash.update(slice)
        await writing
      }
    } catch (cause) {
      failed = { cause }
    }
  }
  class FileQueue extends AsyncByteQueue {
    override write(chunk: ArrayBuffer | ArrayBufferView): void {
      const piece = ArrayBuffer.isView(chunk)
        ? new Uint8Array(chunk.buffer, chunk.byteOffset, chunk.byteLength)
        : new Uint8Array(chunk)
      bytes += piece.length
      pending = pending.then(() => put(piece))
    }
  }
  const writer = new RecordBatchFileWriter()
  writer.reset(new FileQueue())
  const written = async (): Promise<void> => {
    await pending
    if (failed !== undefined) throw failed.cause
  }
  return {
    write: (batch) => writer.write(batch),
    written,
    close: async () => {
      try {
        writer.close()
        await written()
      } finally {
        closeSync(descriptor)
      }
      return { bytes, sha256: hash.digest("hex") }
    }
  }
}

const corrupt = (place: string, reason: string, remake: string): StageError =>
  new StageError({ failure: "corrupt", message: `${place}: ${reason}`, next: remake })

/** Memory to read files into, one after the other: it grows to the largest. */
export interface Room {
  bytes: Uint8Array<ArrayBuffer>
}
export const emptyRoom = (): Room => ({ bytes: new Uint8Array(0) })

/** The whole file, also beyond the 2 GiB that one read call takes; read off the JavaScript thread. */
const readWhole = async (file: string, room: Room): Promise<Uint8Array<ArrayBuffer>> => {
  await using handle = await open(file, "r")
  const { size } = await handle.stat()
  if (room.bytes.length < size) room.bytes = new Uint8Array(size)
  const buffer = room.bytes.subarray(0, size)
  for (let at = 0; at < buffer.length;) {
    const { bytesRead } = await handle.read(buffer, at, Math.min(buffer.length - at, 1 << 30), at)
    if (bytesRead === 0) break
    at += bytesRead
  }
  return buffer
}

/** Off the JavaScript thread too. */
const sha256Of = async (bytes: Uint8Array<ArrayBuffer>): Promise<string> =>
  Buffer.from(await webcrypto.subtle.digest("SHA-256", bytes)).toString("hex")

export interface ReadOptions {
  readonly file: string
  /** Leads messages: what this file is to the user. */
  readonly place: string
  /** What to do about a damaged file. */
  readonly remake: string
  readonly sha256?: string | undefined
  /** Where to read it to; what was read there before is gone. Default: memory of its own. */
  readonly room?: Room | undefined
}

const magic = "ARROW1"

/** The batches of an Arrow file, their buffers views of one file buffer. Damage of any kind fails as corrupt, with the file's name. */
export const readBatches = Effect.fn("ArrowFile.readBatches")(function* (options: ReadOptions) {
  const { tableFromIPC } = yield* arrow
  const { place, remake } = options
  const buffer = yield* Effect.tryPromise({
    try: () => readWhole(options.file, options.room ?? emptyRoom()),
    catch: fileFailure(place)
  })
  if (options.sha256 !== undefined) {
    const sha256 = yield* Effect.promise(() => sha256Of(buffer))
    if (sha256 !== options.sha256)
      return yield* corrupt(place, `wrong sha256\n  expected ${options.sha256}\n  actual   ${sha256}`, remake)
  }
  const ascii = (bytes: Uint8Array) => Buffer.from(bytes).toString("latin1")
  if (ascii(buffer.subarray(0, 6)) !== magic || ascii(buffer.subarray(-6)) !== magic)
    return yield* corrupt(place, "this is not a whole Arrow file: its ARROW1 marks are missing", remake)
  const table = yield* Effect.try({
    try: () => tableFromIPC(buffer),
    catch: (cause) => corrupt(place, `the Arrow file cannot be read: ${String(cause)}`, remake)
  })
  return {
    metadata: Object.fromEntries(table.schema.metadata),
    /** As apache-arrow prints them, "tokens: List<Uint16>". */
    columns: table.schema.fields.map(String),
    batches: table.batches,
    failure: (reason: string) => corrupt(place, reason, remake)
  }
})

/** The column at `index` of a batch, whose type the caller has checked. */
export const columnOf = <T extends DataType>(batch: RecordBatch, index: number): Data<T> =>
  batch.data.children[index] as Data<T>
