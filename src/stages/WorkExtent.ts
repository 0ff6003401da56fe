/**
 * How much there is to do in all, noted in a work folder by the stage that knows it once it has read its inputs; together with what is done it
 * tells where an attempt would go on.
 */
import { Effect, FileSystem, Option, Path, Schema } from "effect"
import { writeJsonAtomic } from "../artifacts/DurableFile.ts"

const Note = Schema.fromJsonString(Schema.Struct({ total: Schema.Finite, unit: Schema.String }))
const decodeNote = Schema.decodeUnknownOption(Note)
const fileName = "extent.json"

/** Best effort: a note that cannot be written leaves `plan` without a number. */
export const noteTotal = Effect.fn("WorkExtent.noteTotal")(function* (work: string, total: number, unit: string) {
  const path = yield* Path.Path
  yield* Effect.ignore(writeJsonAtomic(path.join(work, fileName), { total, unit }))
})

/** `done` of the noted total; undefined when nothing is noted or done. */
export const extentOf = Effect.fn("WorkExtent.extentOf")(function* (work: string, done: number) {
  if (!(done > 0)) return undefined
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const text = yield* Effect.orElseSucceed(fs.readFileString(path.join(work, fileName)), () => "")
  return Option.match(decodeNote(text), {
    onNone: () => undefined,
    onSome: ({ total, unit }) => ({ done: Math.min(done, total), total, unit })
  })
})

/** Names in a folder that may be gone or change at this moment. */
export const namesIn = Effect.fn("WorkExtent.namesIn")(function* (folder: string) {
  const fs = yield* FileSystem.FileSystem
  const names: ReadonlyArray<string> = yield* Effect.orElseSucceed(fs.readDirectory(folder), () => [])
  return names
})

/** A file's text, "" where it cannot be read. */
export const textOf = Effect.fn("WorkExtent.textOf")(function* (file: string) {
  const fs = yield* FileSystem.FileSystem
  return yield* Effect.orElseSucceed(fs.readFileString(file), () => "")
})

/** A file's size in bytes, 0 where there is none. */
export const sizeOf = Effect.fn("WorkExtent.sizeOf")(function* (file: string) {
  const fs = yield* FileSystem.FileSystem
  return yield* fs.stat(file).pipe(
    Effect.map(({ size }) => Number(size)),
    Effect.orElseSucceed(() => 0)
  )
})
