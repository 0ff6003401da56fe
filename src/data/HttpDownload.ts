/**
 * One file over http(s) into the work folder. Its bytes go to `<target>.part`, by several ranges at once, and the journal beside it says which are
 * there, so that a broken connection, a killed attempt and a failed run cost next to nothing. The file gets its name when it is whole and its digests
 * are right; `<target>.json` vouches for it in later attempts.
 */
import { constants } from "node:fs"
import { mkdir, open, readFile, rename, rm, stat, statfs, writeFile } from "node:fs/promises"
import { dirname } from "node:path"
import { Effect, Schema } from "effect"
import { StageError } from "../pipeline/StageType.ts"
import { fileFailure } from "./FileFailure.ts"
import { type Ask, network, type Session } from "./HttpTransport.ts"
import { examine, type Expected, search } from "./PartCheck.ts"
import { journalOf, RangeJournal } from "./RangeJournal.ts"
import { create, fetchGaps, fetchWhole } from "./RangeTransfer.ts"
import type { Transfer } from "./Transfer.ts"

export interface Download extends Ask {
  readonly target: string
  /** What the file is, where its address changes; default the address. */
  readonly key?: string
  /** The size that a listing told; with `pinned` the file is known to have it. */
  readonly size?: number | undefined
  /** A commit or digest says what the file is: copies on several servers need not agree about ETags. */
  readonly pinned?: boolean
  readonly sha256?: string | undefined
  readonly gitBlob?: string | undefined
  /** The server's ETag is the MD5 of the content, where it looks like one. */
  readonly md5Etag?: boolean
  /** Bytes on disk, and the size when the server has told it. */
  readonly onBytes: (done: number, total: number | undefined) => void
}

export interface Downloaded {
  readonly bytes: number
  readonly sha256: string
}

/** New versions that may come while the file is fetched. */
const mostVersions = 3
/** Times that what the disk lost is fetched again. */
const mostRepairs = 3

const Finished = Schema.fromJsonString(Schema.Struct({ bytes: Schema.Int, sha256: Schema.String }))

/** Enough room, or disk-full before a byte of them is fetched. `folder` must be there. */
export const ensureRoom = (folder: string, bytes: number, place: string): Effect.Effect<void, StageError> =>
  Effect.gen(function* () {
    const disk = yield* Effect.tryPromise({ try: () => statfs(folder), catch: fileFailure(place) })
    const free = disk.bavail * disk.bsize
    if (bytes <= free) return
    return yield* new StageError({
      failure: "disk-full",
      message: `${place}: ${bytes} bytes are to come, and the disk has ${free} free`,
      next: "free space, move the runs folder to another disk, or take less with max_bytes; nothing was fetched"
    })
  })

/**
 * Fetches to `target`, or finds it there from an earlier attempt. Fails as network (after patience has run out), invalid-input (401, 403, 404 and other
 * refusals), corrupt (digests), disk-full; as Preempted when asked to stop. All but corrupt keep what has arrived.
 */
export const download = Effect.fn("HttpDownload.download")(function* (session: Session, request: Download) {
  const { place, target } = request
  yield* Effect.tryPromise({ try: () => mkdir(dirname(target), { recursive: true }), catch: fileFailure(place) })
  const finished = yield* earlier(request)
  if (finished !== undefined) {
    request.onBytes(finished.bytes, finished.bytes)
    return finished
  }
  return yield* Effect.scoped(
    Effect.gen(function* () {
      const transfer = yield* openTransfer(session, request)
      const journal = yield* bring(transfer, request)
      const sha256 = yield* verify(transfer, request, journal)
      return yield* finish(transfer, request, { bytes: journal.identity.size, sha256 })
    })
  )
})

/** The finished file of an earlier attempt, if it is the one that is asked for. */
const earlier = Effect.fnUntraced(function* ({ sha256, target }: Download) {
  const [note, size] = yield* Effect.promise(() =>
    Promise.all([
      readFile(`${target}.json`, "utf8").catch(() => ""),
      stat(target).then(
        (entry) => entry.size,
        () => undefined
      )
    ])
  )
  const known = yield* Effect.option(Schema.decodeEffect(Finished)(note))
  if (known._tag === "None" || known.value.bytes !== size) return undefined
  return sha256 === undefined || sha256 === known.value.sha256 ? known.value : undefined
})

/** The part file with what an earlier attempt left of the same file. */
const openTransfer = Effect.fnUntraced(function* (session: Session, request: Download) {
  const { md5Etag = false, pinned = false, place, size, target } = request
  const part = `${target}.part`
  const key = request.key ?? request.url
  const file = yield* Effect.acquireRelease(
    Effect.tryPromise({
      try: () => open(part, constants.O_RDWR | constants.O_CREAT),
      catch: fileFailure(`${place}: ${part}`)
    }),
    (handle) => Effect.promise(() => handle.close())
  )
  const transfer: Transfer = {
    session,
    ask: request,
    part,
    file,
    key,
    md5Etag,
    pinned,
    ensureRoom: (bytes) => ensureRoom(dirname(part), bytes, place),
    onBytes: request.onBytes,
    journal: undefined,
    direct: undefined,
    said: undefined,
    wholeOnly: false
  }
  yield* Effect.addFinalizer(() => Effect.sync(() => transfer.journal?.close()))
  transfer.journal = yield* Effect.try({ try: () => RangeJournal.load(part), catch: fileFailure(place) })
  const identity = transfer.journal?.identity
  const same =
    identity !== undefined && identity.key === key && (!pinned || size === undefined || identity.size === size)
  if (!same) yield* forget(transfer)
  if (transfer.journal !== undefined) {
    request.onBytes(transfer.journal.held, transfer.journal.identity.size)
    if (transfer.journal.held > 0) session.log(`${place}: going on from ${transfer.journal.held} bytes`)
  } else if (pinned && size !== undefined) {
    yield* transfer.ensureRoom(size)
    yield* create(transfer, { key, size, validator: null, sha256: null, gitBlob: null, md5: null })
  }
  return transfer
})

/** What is there is of another file. */
const forget = (transfer: Transfer) =>
  Effect.tryPromise({
    try: async () => {
      transfer.journal?.close()
      transfer.journal = undefined
      await rm(journalOf(transfer.part), { force: true })
      await transfer.file.truncate(0)
    },
    catch: fileFailure(transfer.ask.place)
  })

/** All bytes of one version of the file. */
const bring = Effect.fnUntraced(function* (transfer: Transfer, request: Download) {
  const { place } = request
  for (let versions = 1; ; versions++) {
    const changed = yield* fetchGaps(transfer).pipe(
      Effect.catchTag("WholeOnly", ({ reason }) => {
        transfer.session.log(`${place}: ${reason}: one connection, and after a break the download starts anew`)
        return Effect.tap(fetchWhole(transfer), () => Effect.sync(() => (transfer.wholeOnly = true)))
      }),
      Effect.as(undefined),
      Effect.catchTag("Changed", (change) => Effect.succeed(change))
    )
    const { journal } = transfer
    if (changed === undefined && journal !== undefined) return journal
    const what = changed?.what ?? "nothing"
    if (transfer.pinned)
      return yield* new StageError({
        failure: "corrupt",
        message: `${place}: the server has another file than the one that was listed: ${what} rather than ${request.size} bytes`,
        next: `check that the endpoint is a whole copy of the hub${/^\d{1,3} bytes$/u.test(what) ? "; what it has may be a Git LFS pointer" : ""}`
      })
    if (versions >= mostVersions)
      return yield* network(place, `the file changed ${versions} times while it was fetched, last to ${what}`)
    transfer.session.log(`${place}: the file changed while it was fetched (now ${what}): starting anew`)
    yield* forget(transfer)
  }
})

const expectedOf = (request: Download, journal: RangeJournal): Expected => ({
  sha256: request.sha256 ?? journal.identity.sha256 ?? undefined,
  gitBlob: request.gitBlob ?? journal.identity.gitBlob ?? undefined,
  md5: journal.identity.md5 ?? undefined
})

/** The sha256 of a file that is what it should be. Fetches again what is not. */
const verify = Effect.fnUntraced(function* (transfer: Transfer, request: Download, brought: RangeJournal) {
  const { place } = request
  let journal = brought
  yield* Effect.tryPromise({ try: () => transfer.file.truncate(journal.identity.size), catch: fileFailure(place) })
  for (let repairs = 0; ; repairs++) {
    const expected = expectedOf(request, journal)
    const examined = yield* examine(transfer, journal, expected)
    if (examined.damaged.length > 0 && repairs < mostRepairs) {
      transfer.session.log(
        `${place}: ${examined.damaged.length} pieces are not on the disk as they arrived, and are fetched again`
      )
      for (const piece of examined.damaged) journal.drop(piece)
      journal = yield* bring(transfer, request)
      continue
    }
    if (examined.wrong !== undefined && transfer.wholeOnly && repairs === 0) {
      transfer.session.log(`${place}: wrong ${examined.wrong.split("\n")[0]}; once more from the start`)
      yield* forget(transfer)
      journal = yield* bring(transfer, request)
      continue
    }
    const found = examined.wrong === undefined ? examined : yield* search(transfer, journal, expected, examined)
    if (found.wrong === undefined && found.damaged.length === 0) {
      yield* refusePointer(transfer, journal.identity.size)
      return found.sha256
    }
    yield* forget(transfer)
    yield* Effect.promise(() => rm(transfer.part, { force: true }))
    return yield* new StageError({
      failure: "corrupt",
      message: `${place}: wrong ${found.wrong ?? "bytes on the disk"}`,
      next: "the file has changed or was damaged on the way: run again, and correct sha256 if the new file is the one you want"
    })
  }
})

/** Raw addresses of repositories give, for large files, three lines that stand for them. */
const refusePointer = Effect.fnUntraced(function* ({ ask, file }: Transfer, size: number) {
  if (size > 1024) return
  const { buffer } = yield* Effect.tryPromise({
    try: () => file.read(Buffer.alloc(size), 0, size, 0),
    catch: fileFailure(ask.place)
  })
  const pointer = /^version https:\/\/git-lfs\.github\.com\/spec\/v1\n[^]*^size (\d+)$/mu.exec(buffer.toString("utf8"))
  if (pointer === null) return
  return yield* new StageError({
    failure: "invalid-input",
    message: `${ask.place}: this is a Git LFS pointer of ${size} bytes, not the file of ${pointer[1]} bytes that it stands for`,
    next: "name the address that gives the file itself, on a hub .../resolve/..."
  })
})

/** The note comes first: a file without one is fetched again. */
const finish = (transfer: Transfer, { place, target }: Download, downloaded: Downloaded) =>
  Effect.tryPromise({
    try: async () => {
      await transfer.file.datasync()
      await writeFile(`${target}.json`, JSON.stringify(downloaded))
      await rename(transfer.part, target)
      await rm(journalOf(transfer.part), { force: true })
      return downloaded
    },
    catch: fileFailure(`${place}: ${target}`)
  })
