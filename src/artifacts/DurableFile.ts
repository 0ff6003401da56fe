/** Writes that survive a crash at any instruction: either the old content or the new one is there. */
import { Clock, Effect, FileSystem, Option, Path, PlatformError } from "effect"
import { StageError } from "../pipeline/StageType.ts"
import { markEnded, processMark } from "./ProcessIdentity.ts"
import { Durability } from "./PromptFileSystem.ts"

/** fsync of a file, or of a folder: the latter makes renames and new names in it durable. */
export const sync = (path: string) => Effect.flatMap(Durability, (durability) => durability.sync(path))

/** A name beside `target` that no other process uses and that says whose it is: `removeTemporaries` takes it away once its process is gone. */
export const temporaryName = (target: string): string =>
  `${target}.${processMark()}-${Math.random().toString(36).slice(2, 10)}.tmp`

/** A temporary of a machine whose processes we cannot see is left alone for a day. */
const strangersMillis = 86_400_000

/** Removes from one folder what dead processes left half done. `names` saves reading the folder where they are known. */
export const removeTemporaries = Effect.fnUntraced(function* (folder: string, names?: ReadonlyArray<string>) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const found = names ?? (yield* fs.readDirectory(folder).pipe(Effect.orElseSucceed(() => [])))
  const now = yield* Clock.currentTimeMillis
  for (const name of found.filter((one) => one.endsWith(".tmp"))) {
    const file = path.join(folder, name)
    const [, mark = ""] = /\.(\d+-\w+-[0-9a-f]{8})-\w+\.tmp$/u.exec(name) ?? []
    const left = markEnded(mark) ?? now - (yield* lastChange(file)) > strangersMillis
    if (left) yield* Effect.ignore(fs.remove(file, { recursive: true, force: true }))
  }
})

/** Milliseconds since the epoch; now when it is gone already. */
const lastChange = Effect.fnUntraced(function* (file: string) {
  const fs = yield* FileSystem.FileSystem
  const info = yield* Effect.option(fs.stat(file))
  const changed = Option.flatMap(info, ({ mtime }) => mtime)
  return Option.isSome(changed) ? changed.value.getTime() : yield* Clock.currentTimeMillis
})

/**
 * Replaces the file as a whole, for other processes to see, without waiting for the disk: for what a crash of the machine makes worthless anyway,
 * such as claims of its processes. The folder is made when missing.
 */
export const replaceFile = Effect.fnUntraced(function* (target: string, text: string) {
  const fs = yield* FileSystem.FileSystem
  const temporary = temporaryName(target)
  yield* inFolder(temporary, fs.writeFileString(temporary, text, { flag: "wx" })).pipe(
    Effect.andThen(fs.rename(temporary, target)),
    Effect.onError(() => Effect.ignore(fs.remove(temporary, { force: true })))
  )
})

/** Temporary file, fsync, `settle` (which gives it its name), fsync of the folder. The folder is made when missing. */
const writeDurably = <A, R>(
  target: string,
  text: string,
  settle: (temporary: string) => Effect.Effect<A, PlatformError.PlatformError, R>,
  syncFolder?: SyncFolder
) =>
  Effect.gen(function* () {
    const fs = yield* FileSystem.FileSystem
    const folder = (yield* Path.Path).dirname(target)
    const temporary = temporaryName(target)
    const settled = yield* inFolder(temporary, (yield* Durability).writeNew(temporary, text)).pipe(
      Effect.andThen(settle(temporary)),
      Effect.onError(() => Effect.ignore(fs.remove(temporary, { force: true })))
    )
    yield* syncFolder ?? sync(folder)
    return settled
  })

/** Writes a file, into a folder that is made when missing. */
const inFolder = <R>(file: string, write: Effect.Effect<void, PlatformError.PlatformError, R>) =>
  Effect.catchIf(
    write,
    (error) => error.reason._tag === "NotFound",
    () =>
      Effect.gen(function* () {
        const folder = (yield* Path.Path).dirname(file)
        yield* (yield* FileSystem.FileSystem).makeDirectory(folder, { recursive: true })
        yield* write
      })
  )

/** How the target's folder is made durable; by an fsync of its own, unless one is shared with others. */
type SyncFolder = Effect.Effect<void, PlatformError.PlatformError, FileSystem.FileSystem>

/** Replaces the file as a whole, or makes it. */
export const writeFileAtomic = Effect.fnUntraced(function* (target: string, text: string, syncFolder?: SyncFolder) {
  const fs = yield* FileSystem.FileSystem
  yield* writeDurably(target, text, (temporary) => fs.rename(temporary, target), syncFolder)
})

/** Makes the file as a whole. False, and nothing is changed, when it is there already: of several processes one makes it. */
export const createFileAtomic = Effect.fnUntraced(function* (target: string, text: string, syncFolder?: SyncFolder) {
  const fs = yield* FileSystem.FileSystem
  const settle = (temporary: string) =>
    fs.link(temporary, target).pipe(
      Effect.as(true),
      Effect.catchIf(
        (error) => error.reason._tag === "AlreadyExists",
        () => Effect.succeed(false)
      ),
      Effect.tap(() => fs.remove(temporary, { force: true })),
      // Some network and removable disks have no hard links.
      Effect.catchIf(
        (error) => unlinkable.has(errorCode(error) ?? ""),
        () => Effect.as(fs.rename(temporary, target), true)
      )
    )
  return yield* writeDurably(target, text, settle, syncFolder)
})

const unlinkable: ReadonlySet<string> = new Set(["EPERM", "ENOTSUP", "EOPNOTSUPP", "ENOSYS", "EMLINK"])

/** Two-space JSON with a final newline. */
export const jsonText = (value: unknown): string => `${JSON.stringify(value, null, 2)}\n`

/** `jsonText`, written atomically. */
export const writeJsonAtomic = (target: string, value: unknown) => writeFileAtomic(target, jsonText(value))

/** The errno name of the cause, where the platform told one: "ENOSPC". */
export const errorCode = (error: PlatformError.PlatformError): string | undefined => {
  const cause = error.reason.cause
  return cause instanceof Error && "code" in cause && typeof cause.code === "string" ? cause.code : undefined
}

/** A file system's refusal as a stage failure: a full disk has a class of its own, the rest is internal. */
export const storageFailure =
  (path: string) =>
  (error: PlatformError.PlatformError): StageError =>
    refusal(errorCode(error), path, error.message) ??
    new StageError({
      failure: "internal",
      message: `${path}: ${error.message}`,
      next: "check that the folder is there and writable, then run again"
    })

/** A failure of the disk, if that is what an error of Node or of a FileSystem is: for code that did not expect one. */
export const diskFailure = (error: unknown): StageError | undefined => {
  if (error instanceof PlatformError.PlatformError) {
    const { reason } = error
    const path = "pathOrDescriptor" in reason ? String(reason.pathOrDescriptor) : "a file"
    return refusal(errorCode(error), path, error.message)
  }
  if (!(error instanceof Error)) return undefined
  // Effect.try wraps what it caught.
  if (!("code" in error) || typeof error.code !== "string") return diskFailure(error.cause)
  const path = "path" in error && typeof error.path === "string" ? error.path : "a file of this stage"
  return refusal(error.code, path, error.message)
}

const refusal = (code: string | undefined, path: string, said: string): StageError | undefined => {
  switch (code) {
    case "ENOSPC":
    case "EDQUOT":
      return new StageError({
        failure: "disk-full",
        message: `no room left on the disk of ${path} (${code})`,
        next: "free some space, then run again: everything complete is kept"
      })
    case "EROFS":
    case "EACCES":
    case "EPERM":
      return new StageError({
        failure: "internal",
        message: `the disk of ${path} cannot be written (${code}${code === "EROFS" ? ": it is read-only" : ""})`,
        next: "make it writable, or choose another folder with --runs, then run again: everything complete is kept"
      })
    case "EIO":
      return new StageError({
        failure: "internal",
        message: `the disk of ${path} reports an input/output error (EIO): ${said}`,
        next: "check the disk and the system's log, then run again: everything complete is kept"
      })
    default:
      return undefined
  }
}
