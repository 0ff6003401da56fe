/**
 * Whether a part file holds what it should. The CRC of each piece tells what the disk lost after it arrived; the digest of the whole tells that
 * something is wrong, but not where. Then pieces are fetched once more and compared, the likeliest first, until the digest is right: those of answers
 * that ended badly, those of answers that a kill ended, then one of each large answer (a server that sends other bytes than it says is found by any), then the rest.
 */
import { createHash } from "node:crypto"
import { crc32 } from "node:zlib"
import { Effect } from "effect"
import type { StageError } from "../pipeline/StageType.ts"
import { fileFailure } from "./FileFailure.ts"
import type { Piece, RangeJournal } from "./RangeJournal.ts"
import { fetchAgain } from "./RangeTransfer.ts"
import type { Transfer } from "./Transfer.ts"

/** What the file should be, as far as anybody said. */
export interface Expected {
  readonly sha256: string | undefined
  /** Git's id of the content: sha1 of "blob <size>\0" and the bytes. */
  readonly gitBlob: string | undefined
  readonly md5: string | undefined
}

export interface Examined {
  readonly sha256: string
  /** "sha256\n  expected …\n  actual   …" of the digest that is wrong. */
  readonly wrong: string | undefined
  /** Pieces whose bytes are not those that arrived. */
  readonly damaged: ReadonlyArray<Piece>
}

const bufferBytes = 1 << 20

/** One pass over the file. */
export const examine = (
  transfer: Transfer,
  journal: RangeJournal,
  expected: Expected
): Effect.Effect<Examined, StageError> =>
  Effect.tryPromise({
    try: async () => {
      const { size } = journal.identity
      const sha256 = createHash("sha256")
      const gitBlob = expected.gitBlob === undefined ? undefined : createHash("sha1").update(`blob ${size}\0`)
      const md5 = expected.md5 === undefined ? undefined : createHash("md5")
      const damaged: Array<Piece> = []
      const buffer = Buffer.allocUnsafe(bufferBytes)
      for (const piece of journal.pieces) {
        let crc = 0
        for (let done = 0; done < piece.length;) {
          const { bytesRead } = await transfer.file.read(
            buffer,
            0,
            Math.min(buffer.length, piece.length - done),
            piece.offset + done
          )
          if (bytesRead === 0) break // shorter than noted: the CRC tells
          const bytes = buffer.subarray(0, bytesRead)
          crc = crc32(bytes, crc)
          for (const hash of [sha256, gitBlob, md5]) hash?.update(bytes)
          done += bytesRead
        }
        if (crc !== piece.crc) damaged.push(piece)
      }
      const actual = sha256.digest("hex")
      const pairs = [
        ["sha256", expected.sha256, actual],
        ["git blob id", expected.gitBlob, gitBlob?.digest("hex")],
        ["MD5", expected.md5, md5?.digest("hex")]
      ] as const
      const wrong = pairs.find(([, should, is]) => should !== undefined && should !== is)
      return {
        sha256: actual,
        damaged,
        wrong: wrong && `${wrong[0]}\n  expected ${wrong[1]}\n  actual   ${wrong[2]}`
      }
    },
    catch: fileFailure(`${transfer.ask.place}: ${transfer.part}`)
  })

/** Bytes that are fetched again in search of the damage: all of a small file, a share of a large one. */
const searchBytes = (size: number): number => Math.max(2 ** 28, size / 8)
/** Bytes of one request of the search. */
const stride = 1 << 22
/** Answers of which one piece is looked at, the largest first. */
const mostSamples = 32
/** Strides that differed, and the file is still wrong: then the server has another file. */
const mostDifferences = 16

/** A wrong file with sound pieces: looks for what is wrong and replaces it. What it finds is the last examination. */
export const search = Effect.fn("PartCheck.search")(function* (
  transfer: Transfer,
  journal: RangeJournal,
  expected: Expected,
  first: Examined
) {
  const { place } = transfer.ask
  const byResponse = Map.groupBy(journal.pieces, ({ response }) => response)
  const ended = (how: "fault" | undefined) =>
    strides(journal.pieces.filter(({ response }) => journal.endOf(response) === how))
  const samples = Array.from(byResponse.values())
    .toSorted((a, b) => b.length - a.length)
    .slice(0, mostSamples)
    .flatMap(([piece]) => piece ?? [])
  const queue: Array<ReadonlyArray<Piece>> = [
    ...ended("fault"),
    ...ended(undefined),
    ...samples.map((piece) => [piece]),
    ...strides(journal.pieces)
  ]
  const seen = new Set<number>()
  let budget = searchBytes(journal.identity.size)
  let differences = 0
  let found = first
  transfer.session.log(`${place}: wrong ${(first.wrong ?? "").split("\n")[0]}; looking for the damaged bytes`)
  for (let next = queue.shift(); next !== undefined; next = queue.shift()) {
    const pieces = next.filter(({ offset }) => !seen.has(offset))
    if (pieces.length === 0) continue
    for (const run of runs(pieces)) {
      budget -= run.reduce((sum, { length }) => sum + length, 0)
      for (const { offset } of run) seen.add(offset)
      const replaced = yield* compare(transfer, journal, run).pipe(
        // Another file now, or no ranges any more: there is nothing to compare with.
        Effect.catchIf(
          (error) => error._tag === "Changed" || error._tag === "WholeOnly",
          () => Effect.succeed(undefined)
        )
      )
      if (replaced === undefined) return found
      if (replaced.length === 0) continue
      differences++
      transfer.session.log(
        `${place}: ${replaced.length} pieces from byte ${replaced[0]?.offset} on were wrong, and are replaced`
      )
      found = yield* examine(transfer, journal, expected)
      if (found.wrong === undefined) return found
      // What else this answer brought is wrong too, perhaps.
      queue.unshift(...replaced.flatMap(({ response }) => strides(byResponse.get(response) ?? [])))
    }
    if (budget <= 0 || differences >= mostDifferences) break
  }
  return found
})

/** Groups of pieces that one request can bring, or nearly. */
const strides = (pieces: ReadonlyArray<Piece>): ReadonlyArray<ReadonlyArray<Piece>> =>
  Array.from(Map.groupBy(pieces, ({ offset }) => Math.floor(offset / stride)).values())

/** Pieces in order, cut where one does not follow on the other. */
const runs = (pieces: ReadonlyArray<Piece>): ReadonlyArray<ReadonlyArray<Piece>> => {
  const found: Array<Array<Piece>> = []
  let end = -1
  for (const piece of pieces) {
    if (piece.offset === end) found.at(-1)?.push(piece)
    else found.push([piece])
    end = piece.offset + piece.length
  }
  return found
}

/** Fetches pieces that follow on each other again, and puts those that differ in the place of what is there. Gives the replaced ones. */
const compare = Effect.fnUntraced(function* (transfer: Transfer, journal: RangeJournal, run: ReadonlyArray<Piece>) {
  const [first, last] = [run[0], run.at(-1)]
  if (first === undefined || last === undefined) return []
  const start = first.offset
  const fresh = yield* fetchAgain(transfer, { start, end: last.offset + last.length })
  const response = journal.nextResponse()
  journal.ended(response, "end")
  const replaced: Array<Piece> = []
  for (const piece of run) {
    const bytes = fresh.subarray(piece.offset - start, piece.offset - start + piece.length)
    const crc = crc32(bytes)
    if (crc === piece.crc) continue
    yield* Effect.tryPromise({
      try: () => transfer.file.write(bytes, 0, bytes.length, piece.offset),
      catch: fileFailure(`${transfer.ask.place}: ${transfer.part}`)
    })
    journal.drop(piece)
    journal.add({ ...piece, crc, response })
    replaced.push(piece)
  }
  return replaced
})
