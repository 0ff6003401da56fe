/** Writes that survive a crash at any instruction: either the old content or the new one is there. */
import { Effect, FileSystem, Path, type PlatformError } from "effect"
import { StageError } from "../pipeline/StageType.ts"

const encoder = new TextEncoder()

/** fsync of a file, or of a folder: the latter makes renames and new names in it durable. */
export const sync = Effect.fnUntraced(function* (path: string) {
  const fs = yield* FileSystem.FileSystem
  yield* Effect.scoped(Effect.flatMap(fs.open(path, { flag: "r" }), (file) => file.sync))
})

/** Temporary file, fsync, rename, fsync of the folder. The folder is made when missing. */
export const writeFileAtomic = Effect.fn("writeFileAtomic")(function* (target: string, text: string) {
  const fs = yield* FileSystem.FileSystem
  const folder = (yield* Path.Path).dirname(target)
  yield* fs.makeDirectory(folder, { recursive: true })
  const temporary = `${target}.${process.pid}-${Math.random().toString(36).slice(2, 10)}.tmp`
  yield* Effect.scoped(
    Effect.gen(function* () {
      const file = yield* fs.open(temporary, { flag: "wx" })
      yield* file.writeAll(encoder.encode(text))
      yield* file.sync
    })
  ).pipe(
    Effect.andThen(fs.rename(temporary, target)),
    Effect.onError(() => Effect.ignore(fs.remove(temporary, { force: true })))
  )
  yield* sync(folder)
})

/** Two-space JSON with a final newline, written atomically. */
export const writeJsonAtomic = (target: string, value: unknown) =>
  writeFileAtomic(target, `${JSON.stringify(value, null, 2)}\n`)

/** The errno name of the cause, where the platform told one: "ENOSPC". */
export const errorCode = (error: PlatformError.PlatformError): string | undefined => {
  const cause = error.reason.cause
  return cause instanceof Error && "code" in cause && typeof cause.code === "string" ? cause.code : undefined
}

/** A file system's refusal as a stage failure: a full disk has a class of its own, the rest is internal. */
export const storageFailure =
  (path: string) =>
  (error: PlatformError.PlatformError): StageError => {
    const code = errorCode(error)
    if (code === "ENOSPC" || code === "EDQUOT") {
      return new StageError({
        failure: "disk-full",
        message: `no room left on the disk of ${path} (${code})`,
        next: "free some space, then run again: everything complete is kept"
      })
    }
    return new StageError({
      failure: "internal",
      message: `${path}: ${error.message}`,
      next: "check that the folder is there and writable, then run again"
    })
  }
