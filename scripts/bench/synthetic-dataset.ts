/**
 * A sparse file laid out like a packed dataset of any size: the headers of all record batches and the footer are there, the tokens are a hole. The footer
 * has no schema: it is for the native loader alone.
 */
import { closeSync, ftruncateSync, openSync, writeSync } from "node:fs"

const magic = Buffer.from("ARROW1\0\0", "latin1")

/** Positions and values of little-endian numbers, as bytes. */
const bytesOf = (
  size: number,
  fields: ReadonlyArray<readonly [at: number, width: 1 | 2 | 4 | 8, value: number]>
): Buffer => {
  const buffer = Buffer.alloc(size)
  for (const [at, width, value] of fields)
    if (width === 8) buffer.writeBigInt64LE(BigInt(value), at)
    else if (width === 4) buffer.writeInt32LE(value, at)
    else if (width === 2) buffer.writeUInt16LE(value, at)
    else buffer.writeUInt8(value, at)
  return buffer
}

/** Mark, size, and a Message with a RecordBatch of one FixedSizeList column: 8 + 120 bytes. */
const messageOf = (rows: number, bodyBytes: number): Buffer =>
  bytesOf(128, [
    [0, 4, -1],
    [4, 4, 120],
    [8, 4, 16], // the message's table, at 24
    [12, 2, 10], // its vtable: version absent, header_type at 4, header at 8
    [14, 2, 12],
    [16, 2, 0],
    [18, 2, 4],
    [20, 2, 8],
    [24, 4, 12],
    [28, 1, 3],
    [32, 4, 16], // the record batch's table, at 48
    [36, 2, 10], // its vtable: length at 8, nodes absent, buffers at 4
    [38, 2, 16],
    [40, 2, 8],
    [42, 2, 0],
    [44, 2, 4],
    [48, 4, 12],
    [52, 4, 16], // the buffers, at 68
    [56, 8, rows],
    [68, 4, 3],
    [72, 8, 0],
    [80, 8, 0],
    [88, 8, 0],
    [96, 8, 0],
    [104, 8, 0],
    [112, 8, bodyBytes]
  ])

/** Writes the file; returns what it holds. */
export const syntheticDataset = (
  file: string,
  tokens: number,
  blockLength: number
): { readonly blocks: number; readonly batches: number } => {
  const rows = Math.floor(2 ** 22 / blockLength)
  const body = Math.ceil((rows * blockLength * 2) / 8) * 8
  const batches = Math.ceil(tokens / (rows * (blockLength - 1)))
  const message = messageOf(rows, body)
  const stride = message.length + body
  const descriptor = openSync(file, "w")
  writeSync(descriptor, magic, 0, magic.length, 0)
  for (let batch = 0; batch < batches; batch++)
    writeSync(descriptor, message, 0, message.length, magic.length + batch * stride)
  const end = magic.length + batches * stride
  // The footer: its table at 16, whose vtable at 4 has recordBatches in the fourth place.
  const head = bytesOf(28, [
    [0, 4, 16],
    [4, 2, 12],
    [6, 2, 8],
    [14, 2, 4],
    [16, 4, 12],
    [20, 4, 4],
    [24, 4, batches]
  ])
  const footer = Buffer.concat([head, Buffer.alloc(24 * batches)])
  for (let batch = 0; batch < batches; batch++) {
    const at = head.length + 24 * batch
    footer.writeBigInt64LE(BigInt(magic.length + batch * stride), at)
    footer.writeInt32LE(message.length, at + 8)
    footer.writeBigInt64LE(BigInt(body), at + 16)
  }
  const tail = bytesOf(4, [[0, 4, footer.length]])
  ftruncateSync(descriptor, end)
  let position = end
  for (const piece of [footer, tail, magic.subarray(0, 6)])
    position += writeSync(descriptor, piece, 0, piece.length, position)
  closeSync(descriptor)
  return { blocks: batches * rows, batches }
}
