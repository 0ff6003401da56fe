/**
 * Digests of files outside the store, remembered by what the file system says of them, so that planning over unchanged inputs reads no byte of
 * them. An entry holds only while path, size, inode, and both times are what they were; a file that changed within the last seconds is not
 * remembered, since another change in the same clock tick could not be seen (as git does with "racily clean" entries of its index).
 */
import { createHash } from "node:crypto"
import { createReadStream } from "node:fs"
import { readFile, stat } from "node:fs/promises"
import { Context, Effect, FileSystem, Layer, Path, Schema } from "effect"
import { writeFileAtomic } from "./DurableFile.ts"

/** Files up to this size are read at once. */
const smallBytes = 1 << 22
/** Nanoseconds for which a changed file counts as still changing. */
const settleNanos = 2_000_000_000n
/** Entries that are kept; beyond, the oldest of the file go. */
const mostEntries = 200_000

const Entry = Schema.Struct({
  path: Schema.String,
  /** size, inode, mtime and ctime in nanoseconds. */
  seen: Schema.String,
  sha256: Schema.String
})
const decodeEntries = Schema.decodeUnknownEffect(
  Schema.fromJsonString(Schema.Struct({ version: Schema.Literal(1), entries: Schema.Array(Entry) }))
)

export interface FileDigests {
  /** sha256 of the file's bytes in hexadecimal; rejects as Node's file system does. */
  readonly sha256: (file: string) => Promise<string>
  /** Writes what was learned; a cache that cannot be written is no failure. */
  readonly save: Effect.Effect<void>
}

/** Reads every byte every time, unless a layer remembers. */
export const FileDigests = Context.Reference<FileDigests>("tinyllama/artifacts/FileDigests", {
  defaultValue: () => ({ sha256: readDigest, save: Effect.void })
})

/** Remembers in the store's `digests.json`. */
export const layer = (root: string) => Layer.effect(FileDigests, remembering(root))

const remembering = Effect.fn("DigestCache.make")(function* (root: string) {
  const services = yield* Effect.context<FileSystem.FileSystem | Path.Path>()
  const path = yield* Path.Path
  const file = path.join(root, "digests.json")
  let changed = false
  let known: Promise<Map<string, typeof Entry.Type>> | undefined
  const load = async () => {
    const text = await readFile(file, "utf8").catch(() => "")
    const decoded = await Effect.runPromise(
      decodeEntries(text).pipe(
        Effect.map(({ entries }) => entries),
        Effect.orElseSucceed(() => [])
      )
    )
    return new Map(decoded.map((entry) => [entry.path, entry]))
  }

  const sha256 = async (name: string): Promise<string> => {
    const full = path.resolve(name)
    const before = await fingerprint(full)
    known ??= load()
    const entries = await known
    const entry = entries.get(full)
    if (entry?.seen === before.seen) return entry.sha256
    const digest = await readDigest(full)
    const after = await fingerprint(full)
    // A file that changed while it was read, or just before, is not remembered.
    if (after.seen === before.seen && after.settled) {
      entries.set(full, { path: full, seen: after.seen, sha256: digest })
      changed = true
    }
    return digest
  }

  const save = Effect.suspend(() => {
    if (!changed || known === undefined) return Effect.void
    changed = false
    return Effect.promise(() => known ?? load()).pipe(
      Effect.flatMap((entries) =>
        writeFileAtomic(
          file,
          `${JSON.stringify({ version: 1, entries: Array.from(entries.values()).slice(-mostEntries) })}\n`
        )
      ),
      Effect.ignore,
      Effect.provideContext(services)
    )
  })
  return { sha256, save }
})

const fingerprint = async (file: string): Promise<{ readonly seen: string; readonly settled: boolean }> => {
  const { ctimeNs, ino, mtimeNs, size } = await stat(file, { bigint: true })
  const newest = ctimeNs > mtimeNs ? ctimeNs : mtimeNs
  return {
    seen: `${size} ${ino} ${mtimeNs} ${ctimeNs}`,
    settled: BigInt(Date.now()) * 1_000_000n - newest > settleNanos
  }
}

/** sha256 of a file's bytes in hexadecimal. */
export const readDigest = async (file: string): Promise<string> => {
  const hash = createHash("sha256")
  if ((await stat(file)).size <= smallBytes) return hash.update(await readFile(file)).digest("hex")
  for await (const chunk of createReadStream(file, { highWaterMark: 1 << 20 })) hash.update(chunk as Buffer)
  return hash.digest("hex")
}
