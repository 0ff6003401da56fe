/** One file of a download, from wherever there is something of it: an earlier result, this machine, or the network by way of the work folder. */
import { createHash } from "node:crypto"
import { mkdir, open } from "node:fs/promises"
import { dirname, join } from "node:path"
import { Effect } from "effect"
import type { Planned } from "../data/DownloadPlan.ts"
import type { DocumentFile } from "../data/Documents.ts"
import { fileFailure } from "../data/FileFailure.ts"
import { download, ensureRoom } from "../data/HttpDownload.ts"
import type { Session } from "../data/HttpTransport.ts"
import { heldBytes } from "../data/RangeJournal.ts"
import { Preempted, StageError } from "../pipeline/StageType.ts"
import { type EarlierFile, linkOrCopy } from "./DownloadReuse.ts"
import { sizeOf } from "./WorkExtent.ts"

/** A file to bring, and what there is of it. */
export interface Prepared {
  readonly file: Planned
  readonly earlier: EarlierFile | undefined
  /** Where what the web sends is kept in the work folder. */
  readonly kept: string
}

/** The name under which a work folder keeps what comes of a file. */
export const nameOf = ({ from }: Planned): string =>
  createHash("sha256")
    .update(from.kind === "http" ? from.key : from.address)
    .digest("hex")
    .slice(0, 32)

/** Copies in pieces, hashing on the way. */
const copy = async (
  from: string,
  to: string,
  onBytes: (bytes: number) => void,
  stopRequested: () => boolean
): Promise<{ readonly bytes: number; readonly sha256: string } | undefined> => {
  await using source = await open(from, "r")
  await using target = await open(to, "w")
  const hash = createHash("sha256")
  const buffer = Buffer.allocUnsafe(1 << 20)
  let bytes = 0
  for (;;) {
    if (stopRequested()) return undefined
    const { bytesRead } = await source.read(buffer, 0, buffer.length)
    if (bytesRead === 0) return { bytes, sha256: hash.digest("hex") }
    const piece = buffer.subarray(0, bytesRead)
    hash.update(piece)
    await target.writeFile(piece)
    onBytes((bytes += bytesRead))
  }
}

/** Fails before anything is fetched when the disk cannot hold what is still to come, as far as sizes are known. */
export const checkRoom = Effect.fnUntraced(function* (work: string, prepared: ReadonlyArray<Prepared>) {
  const missing = yield* Effect.forEach(prepared, ({ earlier, file, kept }) =>
    earlier !== undefined
      ? Effect.succeed(0)
      : Effect.map(sizeOf(kept), (whole) => Math.max(0, file.bytes - Math.max(whole, heldBytes(`${kept}.part`))))
  )
  yield* ensureRoom(
    work,
    missing.reduce((sum, bytes) => sum + bytes, 0),
    `${prepared.length} files`
  )
})

/** Brings one file into the output folder: linked from an earlier result, copied, or fetched. */
export const bring = Effect.fnUntraced(function* (
  session: Session,
  { earlier, file, kept }: Prepared,
  output: string,
  report: (bytes: number, size: number | undefined) => void
) {
  const { from } = file
  const path = `files/${file.index}/${file.name}`
  const target = join(output, path)
  const onDisk = fileFailure(file.place)
  yield* Effect.tryPromise({ try: () => mkdir(dirname(target), { recursive: true }), catch: onDisk })
  const linked = (source: string) => Effect.tryPromise({ try: () => linkOrCopy(source, target), catch: onDisk })
  let fetched: { readonly bytes: number; readonly sha256: string } | undefined
  if (earlier !== undefined) {
    yield* linked(earlier.file)
    report(earlier.bytes, earlier.bytes)
    fetched = earlier
  } else if (from.kind === "file") {
    fetched = yield* Effect.tryPromise({
      try: () =>
        copy(
          from.address,
          target,
          (bytes) => report(bytes, undefined),
          () => session.stopRequested()
        ),
      catch: onDisk
    })
  } else {
    const { place, sha256 } = file
    fetched = yield* download(session, { ...from.request, place, sha256, target: kept, onBytes: report })
    yield* linked(kept)
    session.log(`${file.source}: ${fetched.bytes} bytes, sha256 ${fetched.sha256}`)
  }
  if (fetched === undefined) return yield* new Preempted({ message: `stopped while copying ${file.source}` })
  if (file.sha256 !== undefined && fetched.sha256 !== file.sha256)
    return yield* new StageError({
      failure: "corrupt",
      message: `${file.place}: wrong sha256\n  expected ${file.sha256}\n  actual   ${fetched.sha256}`,
      next: "check the file, and correct sha256 if this is the one you want"
    })
  const { bytes, sha256 } = fetched
  const listed: DocumentFile = { path, format: file.format, source: file.source, bytes, sha256 }
  return listed
})
