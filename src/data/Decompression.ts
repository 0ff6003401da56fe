/**
 * The bytes of a file in pieces, decompressed where its first bytes say gzip or Zstandard; names do not matter, and no text in UTF-8 begins with
 * either's mark. Decompression runs on threads of its own, a few pieces ahead. Several gzip members or Zstandard frames in a row are one text.
 */
import { createReadStream } from "node:fs"
import { open } from "node:fs/promises"
import { createGunzip, createZstdDecompress } from "node:zlib"
import { Schema } from "effect"

/** Bytes asked for at a time. */
const pieceBytes = 1 << 18

/** The file is not what its first bytes promise: cut off, or damaged. `offset` counts decompressed bytes: all before it are good. */
export class BrokenStream extends Schema.TaggedError<BrokenStream>()("BrokenStream", {
  reason: Schema.String,
  offset: Schema.Int
}) {}

export interface Piece {
  /** Valid until the next piece is asked for. */
  readonly bytes: Uint8Array
  /** Bytes of the file that were read to get this far. */
  readonly consumed: number
}

export type Compression = "gzip" | "zstd" | "none"

/** What a file's first four bytes say. 0x184D2A5? begins a skippable frame. */
const compressionOf = (head: Uint8Array): Compression =>
  head[0] === 0x1f && head[1] === 0x8b
    ? "gzip"
    : head[3] === 0xfd && head[2] === 0x2f && head[1] === 0xb5 && head[0] === 0x28
      ? "zstd"
      : head[3] === 0x18 && head[2] === 0x4d && head[1] === 0x2a && ((head[0] ?? 0) & 0xf0) === 0x50
        ? "zstd"
        : "none"

const headOf = async (file: string): Promise<{ readonly head: Uint8Array; readonly size: number }> => {
  await using handle = await open(file, "r")
  const { bytesRead, buffer } = await handle.read(new Uint8Array(4), 0, 4, 0)
  return { head: buffer.subarray(0, bytesRead), size: (await handle.stat()).size }
}

const codeOf = (cause: unknown): string => (cause instanceof Error && "code" in cause ? String(cause.code) : "")

/**
 * The streams hand options of Transform on, though their types do not say so: eight pieces are made before they are asked for, and, as objects, given out one
 * by one instead of copied into one.
 */
const ahead = { chunkSize: pieceBytes, readableObjectMode: true, readableHighWaterMark: 8 }

const described = { gzip: "gzip", zstd: "Zstandard" } as const

async function* decompressed(file: string, size: number, kind: "gzip" | "zstd"): AsyncGenerator<Piece> {
  let offset = 0
  // Node's Zstandard stream ends with the first frame that does not end a piece of input; the next one begins where it stopped.
  for (let at = 0; at < size;) {
    const source = createReadStream(file, { start: at, highWaterMark: pieceBytes })
    const target = kind === "gzip" ? createGunzip(ahead) : createZstdDecompress(ahead)
    source.on("error", (error) => target.destroy(error))
    try {
      for await (const bytes of source.pipe(target) as AsyncIterable<Buffer>) {
        yield { bytes, consumed: Math.min(size, at + target.bytesWritten) }
        offset += bytes.length
      }
    } catch (cause) {
      if (codeOf(cause) === "Z_BUF_ERROR")
        throw new BrokenStream({ reason: `the file ends in the middle of its ${described[kind]} data`, offset })
      if (/^(Z_|ZSTD_|ERR_ZLIB|ERR_ZSTD)/u.test(codeOf(cause)))
        throw new BrokenStream({ reason: `its ${described[kind]} data is damaged: ${String(cause)}`, offset })
      throw cause
    } finally {
      source.destroy()
      target.destroy()
    }
    if (kind === "gzip") return
    if (target.bytesWritten === 0)
      throw new BrokenStream({ reason: `there is no ${described[kind]} frame at byte ${at} of the file`, offset })
    at += target.bytesWritten
  }
}

/** Two buffers take turns: while one is given out, the other is read to. */
async function* plain(file: string, start: number): AsyncGenerator<Piece> {
  await using handle = await open(file, "r")
  const buffers = [Buffer.allocUnsafe(pieceBytes), Buffer.allocUnsafe(pieceBytes)] as const
  let consumed = start
  let reading = handle.read(buffers[0], 0, pieceBytes, consumed)
  for (let turn = 1; ; turn = 1 - turn) {
    const { buffer, bytesRead } = await reading
    if (bytesRead === 0) return
    consumed += bytesRead
    reading = handle.read(turn === 0 ? buffers[0] : buffers[1], 0, pieceBytes, consumed)
    reading.catch(() => undefined) // it is heard of when the next piece is asked for, if one is
    yield { bytes: buffer.subarray(0, bytesRead), consumed }
  }
}

/** The text of `file` from byte `start` of it on. Fails with BrokenStream, or with an error of the file system. */
export async function* readPieces(file: string, start = 0): AsyncGenerator<Piece> {
  const { head, size } = await headOf(file)
  const kind = compressionOf(head)
  if (kind === "none") {
    yield* plain(file, start)
    return
  }
  let before = 0
  for await (const { bytes, consumed } of decompressed(file, size, kind)) {
    const skipped = Math.min(bytes.length, Math.max(0, start - before))
    before += bytes.length
    if (skipped < bytes.length) yield { bytes: bytes.subarray(skipped), consumed }
  }
}
