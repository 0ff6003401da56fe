/**
 * Files of an earlier download that a new list of sources names again. What the web sent is trusted once and then kept: a file with the same
 * address is not fetched again, unless a digest or a size that is known beforehand says that it is another one now. Every file taken is checked
 * against its digest.
 */
import { copyFile, link, mkdir, readdir } from "node:fs/promises"
import { join } from "node:path"
import { Effect } from "effect"
import { type DocumentFile, readList } from "../data/Documents.ts"
import type { Planned } from "../data/DownloadPlan.ts"
import { sha256OfFile } from "../data/FileDigest.ts"
import { type HubSource, hubSourceOf, type Source } from "../data/Sources.ts"
import type { Previous } from "../pipeline/StageType.ts"

export interface EarlierFile {
  /** Absolute. */
  readonly file: string
  readonly bytes: number
  readonly sha256: string
}

/** The file that an earlier download has for this one; undefined where it has none, or another. */
export type FindEarlier = (planned: Planned, source: Source) => Effect.Effect<EarlierFile | undefined>

const nothing: FindEarlier = () => Effect.succeed(undefined)

/** Whether both sources mean the same place by one name: what a list of documents shows of an address leaves parts of it out. */
const samePlace = (before: Source, now: Source): boolean =>
  now.path !== undefined
    ? before.path !== undefined
    : now.url !== undefined
      ? before.url === now.url
      : sameRepository(hubSourceOf(before), hubSourceOf(now))

const sameRepository = (before: HubSource | undefined, now: HubSource | undefined): boolean =>
  before !== undefined &&
  now !== undefined &&
  before.repository.id === now.repository.id &&
  before.repository.type === now.repository.type

/** A listed file, with the index of the source that brought it: it lies in files/<index>/. */
const indexOf = ({ path }: DocumentFile): number => Number(/^files\/(\d+)\//u.exec(path)?.[1])

export const openEarlier = Effect.fn("DownloadReuse.openEarlier")(function* (
  previous: Previous<{ readonly sources: ReadonlyArray<Source> }> | undefined
) {
  const documents = previous?.outputs["documents"]
  if (previous === undefined || documents === undefined) return nothing
  const list: ReadonlyArray<DocumentFile> = yield* Effect.orElseSucceed(readList(documents), () => [])
  const byName = Map.groupBy(list, ({ source }) => source)
  const find: FindEarlier = Effect.fnUntraced(
    function* (planned, source) {
      const entry = byName.get(planned.source)?.find((listed) => {
        const before = previous.params.sources[indexOf(listed)]
        return before !== undefined && samePlace(before, source)
      })
      if (entry === undefined) return undefined
      if (planned.sha256 !== undefined && planned.sha256 !== entry.sha256) return undefined
      // A url tells its size only when it is fetched.
      if (source.url === undefined && planned.bytes !== entry.bytes) return undefined
      const { from, place } = planned
      if (from.kind === "file" && (yield* sha256OfFile(from.address, place)) !== entry.sha256) return undefined
      const file = join(documents.folder, entry.path)
      if ((yield* sha256OfFile(file, place)) !== entry.sha256) return undefined
      return { file, bytes: entry.bytes, sha256: entry.sha256 }
    },
    Effect.orElseSucceed(() => undefined)
  )
  return find
})

/** Links a finished file; another disk gets a copy. */
export const linkOrCopy = (from: string, to: string): Promise<void> => link(from, to).catch(() => copyFile(from, to))

/**
 * What an unfinished download of another list of sources has in its work folder, whole and partial files, as if it had arrived in this one. A part
 * is copied, because its owner may write to it again; range requests bring what its journal lacks.
 */
export const adoptDownloads = (earlierWork: string, work: string): Effect.Effect<void> =>
  Effect.promise(async () => {
    const [from, to] = [join(earlierWork, "downloads"), join(work, "downloads")]
    const names = await readdir(from).catch((): ReadonlyArray<string> => [])
    if (names.length === 0) return
    await mkdir(to, { recursive: true }).catch(() => undefined)
    const present = new Set(await readdir(to).catch((): ReadonlyArray<string> => []))
    for (const name of names.filter((other) => /^[0-9a-f]{32}(?:\.part)?$/u.test(other))) {
      const whole = name.slice(0, 32)
      if (present.has(whole) || present.has(`${whole}.part`)) continue
      // The note or journal comes first: a part has at least what its journal says, and without one starts anew.
      const [bring, note] = name.endsWith(".part") ? [copyFile, `${name}.journal`] : [linkOrCopy, `${name}.json`]
      await copyFile(join(from, note), join(to, note))
        .then(() => bring(join(from, name), join(to, name)))
        .catch(() => undefined) // gone meanwhile: it is fetched
    }
  })
