/**
 * What tokenize leaves in its work folder: the shards of each part of the files, each with a note that vouches for it, and a note for every part that is
 * finished. Names tell part and shard, so that processes which share the work do not meet.
 */
import { readFile, rename, writeFile } from "node:fs/promises"
import { join } from "node:path"
import { Effect, Option, Schema } from "effect"
import { temporaryName } from "../artifacts/DurableFile.ts"
import type { StageError } from "../pipeline/StageType.ts"
import { Cursor } from "./DocumentReader.ts"
import { sha256OfFile } from "./FileDigest.ts"
import { fileFailure } from "./FileFailure.ts"
import { Tally } from "./Quarantine.ts"
import { Shard } from "./TokenShards.ts"

/** Where the reader stands after a shard, and the shard itself: what the next attempt needs. */
const ShardNote = Schema.Struct({
  shard: Shard,
  next: Cursor,
  /** Bytes of the part's files that were read so far. */
  done: Schema.Int,
  tally: Tally
})
export type ShardNote = typeof ShardNote.Type

const PartNote = Schema.Struct({
  shards: Schema.Array(Shard),
  /** Of the part's files. */
  bytes: Schema.Int,
  tally: Tally
})
export type PartNote = typeof PartNote.Type

const decodeShardNote = Schema.decodeUnknownOption(Schema.fromJsonString(ShardNote))
const decodePartNote = Schema.decodeUnknownOption(Schema.fromJsonString(PartNote))

const number = (value: number): string => String(value).padStart(5, "0")
export const partShardName = (part: number, shard: number): string => `part-${number(part)}-${number(shard)}.arrow`
const partNoteName = (part: number): string => `part-${number(part)}.json`

const textOf = (file: string): Effect.Effect<string> => Effect.promise(() => readFile(file, "utf8").catch(() => ""))

const isWhole = (folder: string, { path, sha256 }: Shard): Effect.Effect<boolean> =>
  Effect.map(Effect.option(sha256OfFile(join(folder, path), path)), (found) => Option.contains(found, sha256))

const writeNote = (folder: string, name: string, note: ShardNote | PartNote): Effect.Effect<void, StageError> =>
  Effect.tryPromise({
    try: async () => {
      const temporary = temporaryName(join(folder, name))
      await writeFile(temporary, JSON.stringify(note))
      await rename(temporary, join(folder, name))
    },
    catch: fileFailure(name)
  })

export const writeShardNote = (folder: string, note: ShardNote) => writeNote(folder, `${note.shard.path}.json`, note)
export const writePartNote = (folder: string, part: number, note: PartNote) =>
  writeNote(folder, partNoteName(part), note)

/** The finished shards of a part that are as they were left; the first that is not ends the list. */
export const finishedShards = Effect.fn("ShardNotes.finishedShards")(function* (folder: string, part: number) {
  const finished: Array<ShardNote> = []
  for (;;) {
    const note = decodeShardNote(yield* textOf(join(folder, `${partShardName(part, finished.length)}.json`)))
    if (Option.isNone(note) || !(yield* isWhole(folder, note.value.shard))) return finished
    finished.push(note.value)
  }
})

/** The note of a part that is finished; its shards may have been damaged since. */
export const notedPart = (folder: string, part: number): Effect.Effect<PartNote | undefined> =>
  Effect.map(textOf(join(folder, partNoteName(part))), (text) => Option.getOrUndefined(decodePartNote(text)))

/** The note of a part that is finished and whole. */
export const finishedPart = Effect.fn("ShardNotes.finishedPart")(function* (folder: string, part: number) {
  const note = yield* notedPart(folder, part)
  if (note === undefined) return undefined
  for (const shard of note.shards) if (!(yield* isWhole(folder, shard))) return undefined
  return note
})

/** Bytes of the files behind all that the names in a work folder's list stand for. */
export const bytesNoted = Effect.fnUntraced(function* <R>(
  names: ReadonlyArray<string>,
  read: (name: string) => Effect.Effect<string, never, R>
) {
  const done = new Map<string, number>()
  for (const name of names) {
    const [whole, part = ""] = /^(part-\d+)(?:-\d+\.arrow)?\.json$/u.exec(name) ?? []
    if (whole === undefined) continue
    const text = yield* read(name)
    const bytes = name.endsWith(".arrow.json")
      ? Option.getOrUndefined(decodeShardNote(text))?.done
      : Option.getOrUndefined(decodePartNote(text))?.bytes
    done.set(part, Math.max(done.get(part) ?? 0, bytes ?? 0))
  }
  return Array.from(done.values()).reduce((sum, bytes) => sum + bytes, 0)
})
