/**
 * What a part file holds: beside `<target>.part`, whose bytes arrive out of order, `<target>.part.journal` has a line for each piece that was
 * written, with its CRC-32 as it arrived. Lines are written after their bytes and only appended. A killed process loses what its connections had not
 * noted, less than a piece each; what a dead machine loses of noted bytes is found by the CRCs.
 *
 * The first line says of which file these are pieces; then `[offset, length, crc, response]`, `["drop", offset]` for a piece that is fetched again,
 * `["end", response]` for a response that ended well and `["fault", response]` for one that did not: when something is wrong, the bytes of those
 * are the first to be doubted, and after them the bytes of responses that a kill ended.
 */
import { appendFileSync, closeSync, openSync, readFileSync, writeFileSync, writeSync } from "node:fs"
import { Option, Schema } from "effect"

/** Which file: pieces of another are of no use. */
export const Identity = Schema.Struct({
  /** The address, or what stays the same where addresses change. */
  key: Schema.String,
  size: Schema.Int,
  /** What If-Range takes: a strong ETag or a date. */
  validator: Schema.NullOr(Schema.String),
  /** What the server itself says of the content, where it says something. */
  sha256: Schema.NullOr(Schema.String),
  gitBlob: Schema.NullOr(Schema.String),
  md5: Schema.NullOr(Schema.String)
})
export type Identity = typeof Identity.Type

const Header = Schema.Struct({ journal: Schema.Literal(1), ...Identity.fields })
const Line = Schema.Union([
  Schema.Tuple([Schema.Int, Schema.Int, Schema.Int, Schema.Int]),
  Schema.Tuple([Schema.Literal("drop"), Schema.Int]),
  Schema.Tuple([Schema.Literal("end"), Schema.Int]),
  Schema.Tuple([Schema.Literal("fault"), Schema.Int])
])
const decodeHeader = Schema.decodeUnknownOption(Schema.fromJsonString(Header))
const decodeLine = Schema.decodeUnknownOption(Schema.fromJsonString(Line))

export interface Piece {
  readonly offset: number
  readonly length: number
  readonly crc: number
  /** Number of the response that brought it. */
  readonly response: number
}

export interface Gap {
  readonly start: number
  /** Exclusive. */
  readonly end: number
}

export const journalOf = (part: string): string => `${part}.journal`

interface Content {
  readonly identity: Identity
  readonly pieces: Map<number, Piece>
  readonly ends: Map<number, "end" | "fault">
}

/** A line that a crash left half written is as if it were not there. */
const parse = (text: string): Content | undefined => {
  const [first = "", ...lines] = text.split("\n")
  const header = decodeHeader(first)
  if (Option.isNone(header)) return undefined
  const { journal: _, ...identity } = header.value
  const pieces = new Map<number, Piece>()
  const ends = new Map<number, "end" | "fault">()
  for (const text of lines) {
    const line = decodeLine(text)
    if (Option.isNone(line)) continue
    const entry = line.value
    if (entry[0] === "drop") pieces.delete(entry[1])
    else if (entry[0] === "end" || entry[0] === "fault") ends.set(entry[1], entry[0])
    else {
      const [offset, length, crc, response] = entry
      pieces.set(offset, { offset, length, crc, response })
    }
  }
  return { identity, pieces, ends }
}

const read = (part: string): string => {
  try {
    return readFileSync(journalOf(part), "utf8")
  } catch {
    return "" // there is none: nothing has arrived
  }
}

/** Bytes that a part file holds. */
export const heldBytes = (part: string): number => {
  const pieces = parse(read(part))?.pieces.values() ?? []
  let bytes = 0
  for (const { length } of pieces) bytes += length
  return bytes
}

/** An open journal; one process writes it. Its methods throw what Node's file system throws. */
export class RangeJournal {
  readonly identity: Identity
  readonly #pieces: Map<number, Piece>
  readonly #ends: Map<number, "end" | "fault">
  readonly #file: number
  #held = 0
  #responses = 0

  private constructor(part: string, { ends, identity, pieces }: Content) {
    this.identity = identity
    this.#pieces = pieces
    this.#ends = ends
    for (const { length, response } of pieces.values()) {
      this.#held += length
      this.#responses = Math.max(this.#responses, response + 1)
    }
    this.#file = openSync(journalOf(part), "a")
  }

  /** The journal of an earlier attempt; undefined where there is none. */
  static load(part: string): RangeJournal | undefined {
    const text = read(part)
    const content = parse(text)
    if (content === undefined) return undefined
    // New lines must not join a broken one.
    if (!text.endsWith("\n")) appendFileSync(journalOf(part), "\n")
    return new RangeJournal(part, content)
  }

  static create(part: string, identity: Identity): RangeJournal {
    writeFileSync(journalOf(part), `${JSON.stringify({ journal: 1, ...identity })}\n`)
    return new RangeJournal(part, { identity, pieces: new Map(), ends: new Map() })
  }

  get held(): number {
    return this.#held
  }

  /** Pieces in the order of the file. */
  get pieces(): ReadonlyArray<Piece> {
    return Array.from(this.#pieces.values()).toSorted((a, b) => a.offset - b.offset)
  }

  /** What is not there yet, in order. */
  get gaps(): ReadonlyArray<Gap> {
    const gaps: Array<Gap> = []
    let at = 0
    for (const { length, offset } of this.pieces) {
      if (offset > at) gaps.push({ start: at, end: offset })
      at = Math.max(at, offset + length)
    }
    if (at < this.identity.size) gaps.push({ start: at, end: this.identity.size })
    return gaps
  }

  nextResponse(): number {
    return this.#responses++
  }

  /** Call it once the bytes are written. */
  add(piece: Piece): void {
    this.#append([piece.offset, piece.length, piece.crc, piece.response])
    this.#pieces.set(piece.offset, piece)
    this.#held += piece.length
  }

  drop(piece: Piece): void {
    this.#append(["drop", piece.offset])
    if (this.#pieces.delete(piece.offset)) this.#held -= piece.length
  }

  /** How a response ended. */
  ended(response: number, how: "end" | "fault"): void {
    this.#append([how, response])
    this.#ends.set(response, how)
  }

  /** undefined: a kill, or it has not ended yet. */
  endOf(response: number): "end" | "fault" | undefined {
    return this.#ends.get(response)
  }

  close(): void {
    closeSync(this.#file)
  }

  #append(line: typeof Line.Type): void {
    writeSync(this.#file, `${JSON.stringify(line)}\n`)
  }
}
