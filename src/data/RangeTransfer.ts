/**
 * The bytes of one file, from a server that may not do what it says, into a part file: gaps are fetched by several range requests at once (RFC 9110,
 * 14), each answer is held against what was asked and against what is known of the file, and what arrived is noted in the journal.
 */
import { createHash } from "node:crypto"
import type { FileHandle } from "node:fs/promises"
import { crc32 } from "node:zlib"
import { Deferred, Effect, Stream } from "effect"
import { Preempted } from "../pipeline/StageType.ts"
import { judge, other } from "./AnswerCheck.ts"
import { fileFailure } from "./FileFailure.ts"
import { contentDigest, contentLength, identify } from "./HttpIdentity.ts"
import { type Answer, ask, connectionFault, patiently, seconds, type Session, Transient } from "./HttpTransport.ts"
import { type Gap, type Identity, type Piece, RangeJournal } from "./RangeJournal.ts"
import type { Transfer } from "./Transfer.ts"

/**
 * A range request asks for a share of what this process has received, so that a kill loses a share of that at most, whatever is in the buffers on the
 * way: little at first, soon so much that requests are few.
 */
const smallestSegment = 1 << 17
const largestSegment = 1 << 24
const smallestPiece = 1 << 14
const largestPiece = 1 << 20

/** Bytes after which what a connection brought is noted: small, so that a kill loses little; more for large files, whose journal stays small. */
const pieceBytes = (size: number): number =>
  Math.max(smallestPiece, Math.min(largestPiece, 2 ** Math.ceil(Math.log2(Math.max(1, size / 16384)))))

const segmentBytes = ({ connections, received }: Session): number =>
  Math.max(smallestSegment, Math.min(largestSegment, Math.floor(received.bytes / (8 * connections))))

/** Takes the next segment from the front of the gaps. */
const take = (gaps: Array<Gap>, session: Session): Gap | undefined => {
  const [first] = gaps
  if (first === undefined) return undefined
  const end = Math.min(first.end, first.start + segmentBytes(session))
  if (end === first.end) gaps.shift()
  else gaps[0] = { start: end, end: first.end }
  return { start: first.start, end }
}

/** Fetches all that is missing. Fails as Changed, or as WholeOnly when the server turns out to have no ranges. */
export const fetchGaps = Effect.fn("RangeTransfer.fetchGaps")(function* (transfer: Transfer) {
  const { journal, session } = transfer
  const gaps = [...(journal?.gaps ?? [{ start: 0, end: segmentBytes(session) }])]
  const first = take(gaps, session)
  if (first === undefined) return
  // The others wait until an answer shows that there are ranges.
  const opened = yield* Deferred.make<void>()
  const open = (size: number | undefined) => {
    if (size !== undefined && size > first.end) gaps.push({ start: first.end, end: size })
    return Deferred.succeed(opened, undefined)
  }
  const takeAll = (size: number): number => {
    gaps.length = 0
    return size
  }
  const follower = Effect.gen(function* () {
    yield* Deferred.await(opened)
    for (let gap = take(gaps, session); gap !== undefined; gap = take(gaps, session))
      yield* fetchGap(
        transfer,
        gap,
        () => Effect.void,
        () => gap.end
      )
  })
  const leader = Effect.andThen(
    Effect.ensuring(fetchGap(transfer, first, open, takeAll), Deferred.succeed(opened, undefined)),
    follower
  )
  const followers = Array.from({ length: session.connections - 1 }, () => follower)
  yield* Effect.all([leader, ...followers], { concurrency: "unbounded", discard: true })
})

/** `opened` is told the size when the first good answer to a range request told it; `takeAll` that one answer brings the file. */
const fetchGap = (
  transfer: Transfer,
  gap: Gap,
  opened: (size: number | undefined) => Effect.Effect<unknown>,
  takeAll: (size: number) => number
) => {
  const { session } = transfer
  let alone = gap.start === 0
  let at = gap.start
  let { end } = gap
  const attempt = Effect.gen(function* () {
    if (at >= end) return
    const validator = transfer.pinned ? null : (transfer.journal?.identity.validator ?? null)
    const answer = yield* askFor(transfer, {
      range: `bytes=${at}-${end - 1}`,
      "want-content-digest": "sha-256=1",
      ...(validator === null ? {} : { "if-range": validator })
    })
    const known = transfer.journal !== undefined
    const extent = yield* judge(transfer, answer, at, end)
    const journal = yield* begin(transfer, answer, extent.total)
    if (!extent.whole) {
      alone = false
      yield* opened(known ? undefined : extent.total)
    }
    // Where nothing else has come yet, all of a whole file is taken.
    end = extent.whole && alone && journal.held === 0 ? takeAll(extent.total) : Math.min(end, extent.total)
    const part = { start: at, end: Math.min(extent.end, end) }
    yield* receive(transfer, journal, answer, part, (position) => (at = position))
    if (at < end) return yield* new Transient({ reason: `the answer ends at byte ${at} of ${end}`, progress: true })
  })
  return patiently(session, transfer.ask.place, () => transfer.direct ?? transfer.ask.url, attempt)
}

/** The address that redirects led to is asked as long as it answers; then again the one that was given. */
const askFor = (transfer: Transfer, headers: Readonly<Record<string, string>>) => {
  const { direct } = transfer
  const { ask: request, session } = transfer
  if (direct === undefined) return ask(session, { ...request, headers })
  return ask(session, { ...request, url: direct, home: request.url, headers }).pipe(
    Effect.catchIf(
      (error) => error._tag === "StageError",
      (error) => {
        transfer.direct = undefined
        return Effect.fail(new Transient({ reason: error.message.replace(`${request.place}: `, "") }))
      }
    )
  )
}

/**
 * The file in one answer, from its start, for servers without ranges. What arrived before a break is of no use to them, because nothing tells that the
 * next answer is of the same file.
 */
export const fetchWhole = Effect.fn("RangeTransfer.fetchWhole")(function* (transfer: Transfer) {
  const { journal: earlier, session } = transfer
  const attempt = Effect.gen(function* () {
    const answer = yield* askFor(transfer, {})
    if (answer.response.status !== 200)
      return yield* new Transient({
        reason: `the server answers ${answer.response.status} where the whole file was asked for`
      })
    const size = contentLength(answer.headers)
    if (transfer.pinned && earlier !== undefined && size !== undefined && size !== earlier.identity.size)
      return yield* other(transfer, `${size} bytes`)
    yield* transfer.ensureRoom(size ?? 0)
    const told = identify(answer, { key: transfer.key, size: size ?? 0, md5Etag: transfer.md5Etag })
    const identity = transfer.pinned && earlier !== undefined ? { ...earlier.identity, size: told.size } : told
    const journal = yield* create(transfer, identity)
    const pieces = yield* receive(transfer, journal, answer, { start: 0, end: size ?? Infinity }, () => {})
    if (size !== undefined) return
    const whole = yield* create(transfer, { ...identity, size: journal.held })
    for (const piece of pieces) whole.add(piece)
  })
  return yield* patiently(session, transfer.ask.place, () => transfer.direct ?? transfer.ask.url, attempt)
})

/** The bytes of a gap once more, to compare with what is there. */
export const fetchAgain = (transfer: Transfer, gap: Gap) => {
  const attempt = Effect.gen(function* () {
    const answer = yield* askFor(transfer, { range: `bytes=${gap.start}-${gap.end - 1}` })
    const extent = yield* judge(transfer, answer, gap.start, gap.end)
    if (extent.end < gap.end)
      return yield* new Transient({ reason: `the answer ends at byte ${extent.end} of ${gap.end}` })
    const bytes = Buffer.allocUnsafe(gap.end - gap.start)
    let filled = 0
    yield* answer.response.stream.pipe(
      Stream.timeoutOrElse({
        duration: transfer.session.patience.stall,
        orElse: () => Stream.fail(new Transient({ reason: `no byte for ${seconds(transfer.session.patience.stall)}` }))
      }),
      Stream.runForEachWhile((chunk) =>
        Effect.sync(() => {
          bytes.set(chunk.subarray(0, bytes.length - filled), filled)
          filled = Math.min(bytes.length, filled + chunk.length)
          return filled < bytes.length
        })
      ),
      Effect.mapError((error) =>
        error instanceof Transient
          ? error
          : new Transient({ reason: `the connection broke: ${connectionFault(error)}` })
      )
    )
    if (filled < bytes.length) return yield* new Transient({ reason: "the answer is cut off" })
    return bytes
  })
  return patiently(transfer.session, transfer.ask.place, () => transfer.direct ?? transfer.ask.url, attempt)
}

/** The journal; made when an answer first tells the size. */
const begin = Effect.fnUntraced(function* (transfer: Transfer, answer: Answer, size: number) {
  if (transfer.journal !== undefined) return transfer.journal
  yield* transfer.ensureRoom(size)
  const identity = identify(answer, { key: transfer.key, size, md5Etag: transfer.md5Etag })
  return yield* create(transfer, identity)
})

/** A new journal, in the place of any that is there. */
export const create = (transfer: Transfer, identity: Identity) =>
  Effect.try({
    try: () => {
      transfer.journal?.close()
      return (transfer.journal = RangeJournal.create(transfer.part, identity))
    },
    catch: fileFailure(transfer.ask.place)
  })

/**
 * Writes the body to its place in the file, piece by piece; `reached` is told how far what is noted goes. A gap without end takes what comes: a body
 * whose length nobody told.
 */
const receive = (
  transfer: Transfer,
  journal: RangeJournal,
  answer: Answer,
  gap: Gap,
  reached: (position: number) => void
) => {
  const { ask: request, file, session } = transfer
  const response = journal.nextResponse()
  const size = pieceBytes(journal.identity.size)
  const expected = contentDigest(answer.headers)
  const hash = expected === null ? undefined : createHash("sha256")
  const pieces: Array<Piece> = []
  let piece = { offset: gap.start, crc: 0 }
  let position = gap.start
  let surplus = 0
  const note = (): void => {
    if (position === piece.offset) return
    const noted = { offset: piece.offset, length: position - piece.offset, crc: piece.crc, response }
    journal.add(noted)
    pieces.push(noted)
    piece = { offset: position, crc: 0 }
    reached(position)
    transfer.onBytes(journal.held, gap.end === Infinity ? undefined : journal.identity.size)
  }
  const take = Effect.fnUntraced(function* (chunk: Uint8Array) {
    if (session.stopRequested())
      return yield* new Preempted({ message: `${request.place}: stopped at ${journal.held} bytes, which are kept` })
    const bytes = chunk.subarray(0, gap.end - position)
    surplus += chunk.length - bytes.length
    hash?.update(bytes)
    yield* Effect.tryPromise({
      try: () => writeAll(file, bytes, position),
      catch: fileFailure(`${request.place}: ${transfer.part}`)
    })
    piece.crc = crc32(bytes, piece.crc)
    position += bytes.length
    session.received.bytes += bytes.length
    if (position - piece.offset >= size || position === gap.end) note()
    return position < gap.end
  })
  const fault = (reason: string): Transient => {
    journal.ended(response, "fault")
    return new Transient({ reason, progress: position > gap.start })
  }
  return answer.response.stream.pipe(
    Stream.mapError((error) => ({ _tag: "Broken" as const, reason: connectionFault(error) })),
    Stream.timeoutOrElse({
      duration: session.patience.stall,
      orElse: () => Stream.fail({ _tag: "Broken" as const, reason: `no byte for ${seconds(session.patience.stall)}` })
    }),
    Stream.runForEachWhile(take),
    Effect.ensuring(Effect.sync(note)),
    Effect.catchIf(
      (error) => error._tag === "Broken",
      ({ reason }) => Effect.suspend(() => Effect.fail(fault(`the connection broke at byte ${position}: ${reason}`)))
    ),
    Effect.flatMap(() =>
      Effect.suspend(() => {
        if (position < gap.end && gap.end !== Infinity)
          return Effect.fail(fault(`the answer is cut off at byte ${position} of ${gap.end}`))
        journal.ended(response, surplus > 0 ? "fault" : "end")
        if (hash === undefined || hash.digest("hex") === expected) return Effect.succeed(pieces)
        for (const each of pieces) journal.drop(each)
        reached(gap.start)
        return Effect.fail(new Transient({ reason: "bytes were damaged on the way: their Content-Digest is another" }))
      })
    )
  )
}

/** FileHandle.write may write less than it was given. */
const writeAll = async (file: FileHandle, bytes: Uint8Array, position: number): Promise<void> => {
  for (let written = 0; written < bytes.length;)
    written += (await file.write(bytes, written, bytes.length - written, position + written)).bytesWritten
}
