/**
 * Node's file system with its quick calls made in place. Looking a file up or writing a small one takes some ten microseconds; handing that to
 * the thread pool and back takes ten times as long, and a run does some fifty of them for each stage. What waits for the disk (fsync, big files,
 * whole trees) stays asynchronous. On a slow network disk the quick calls hold up this process for as long as they take.
 */
import * as NFS from "node:fs"
import { ByteSize, Context, Effect, FileSystem, Layer, Option, PlatformError } from "effect"

/** fsync of a file, or of a folder: the latter makes renames and new names in it durable. */
export interface Durability {
  readonly sync: (path: string) => Effect.Effect<void, PlatformError.PlatformError, FileSystem.FileSystem>
  /** Writes a file that must not be there yet, and waits until it is durable; its name is not yet: that takes `sync` of the folder. */
  readonly writeNew: (
    path: string,
    text: string
  ) => Effect.Effect<void, PlatformError.PlatformError, FileSystem.FileSystem>
}

/** Through the FileSystem service, unless a layer knows a shorter way. */
export const Durability = Context.Reference<Durability>("tinyllama/artifacts/Durability", {
  defaultValue: () => ({
    sync: (path) =>
      Effect.scoped(
        Effect.flatMap(FileSystem.FileSystem, (fs) => Effect.flatMap(fs.open(path, { flag: "r" }), (file) => file.sync))
      ),
    writeNew: (path, text) =>
      Effect.scoped(
        Effect.gen(function* () {
          const file = yield* (yield* FileSystem.FileSystem).open(path, { flag: "wx" })
          yield* file.writeAll(new TextEncoder().encode(text))
          yield* file.sync
        })
      )
  })
})

/**
 * A quick call, its error as NodeFileSystem tells it. Without a stack: that would cost more than the call, for files that are often just not there,
 * and name only this line.
 */
const promptly = <A>(method: string, path: string, call: () => A): Effect.Effect<A, PlatformError.PlatformError> =>
  Effect.suspend(() => {
    const { stackTraceLimit } = Error
    Error.stackTraceLimit = 0
    try {
      return Effect.succeed(call())
    } catch (error) {
      return Effect.fail(platformError(method, path, error))
    } finally {
      Error.stackTraceLimit = stackTraceLimit
    }
  })

const tagOf: Readonly<Record<string, PlatformError.SystemErrorTag>> = {
  ENOENT: "NotFound",
  EACCES: "PermissionDenied",
  EPERM: "PermissionDenied",
  EEXIST: "AlreadyExists",
  EISDIR: "BadResource",
  ENOTDIR: "BadResource",
  ELOOP: "BadResource",
  EBUSY: "Busy"
}

const platformError = (method: string, path: string, cause: unknown): PlatformError.PlatformError => {
  const code = cause instanceof Error && "code" in cause ? String(cause.code) : ""
  const syscall = cause instanceof Error && "syscall" in cause ? String(cause.syscall) : undefined
  return PlatformError.systemError({
    _tag: tagOf[code] ?? "Unknown",
    module: "FileSystem",
    method,
    pathOrDescriptor: path,
    ...(syscall === undefined ? {} : { syscall }),
    cause
  })
}

const typeOf = (stats: NFS.BigIntStats): FileSystem.File.Type =>
  stats.isFile() ? "File" : stats.isDirectory() ? "Directory" : stats.isSymbolicLink() ? "SymbolicLink" : "Unknown"

const infoOf = (stats: NFS.BigIntStats): FileSystem.File.Info => ({
  type: typeOf(stats),
  mtime: Option.some(stats.mtime),
  atime: Option.some(stats.atime),
  birthtime: Option.some(stats.birthtime),
  dev: stats.dev,
  rdev: Option.some(stats.rdev),
  ino: Option.some(stats.ino),
  mode: Number(stats.mode),
  nlink: Option.some(stats.nlink),
  uid: Option.some(Number(stats.uid)),
  gid: Option.some(Number(stats.gid)),
  size: ByteSize.bytes(stats.size),
  blksize: Option.some(ByteSize.bytes(stats.blksize)),
  blocks: Option.some(stats.blocks)
})

/** Files up to this size are read and written in place. */
const smallBytes = 1 << 20

const prompt = (fs: FileSystem.FileSystem): FileSystem.FileSystem => ({
  ...FileSystem.make({
    ...fs,
    access: (path, options) =>
      promptly("access", path, () =>
        NFS.accessSync(
          path,
          (options?.readable ? NFS.constants.R_OK : 0) | (options?.writable ? NFS.constants.W_OK : 0)
        )
      ),
    stat: (path) => promptly("stat", path, () => infoOf(NFS.statSync(path, { bigint: true }))),
    readFile: (path) =>
      Effect.suspend(() => {
        const stats = NFS.statSync(path, { throwIfNoEntry: false })
        // What is not there says so at once.
        return stats === undefined || (stats.isFile() && stats.size <= smallBytes)
          ? promptly("readFile", path, () => NFS.readFileSync(path))
          : fs.readFile(path)
      }),
    writeFile: (path, data, options) =>
      data.length <= smallBytes
        ? promptly("writeFile", path, () => NFS.writeFileSync(path, data, { flag: options?.flag, mode: options?.mode }))
        : fs.writeFile(path, data, options),
    makeDirectory: (path, options) =>
      promptly("makeDirectory", path, () => {
        NFS.mkdirSync(path, { recursive: options?.recursive ?? false, mode: options?.mode })
      }),
    rename: (from, to) => promptly("rename", from, () => NFS.renameSync(from, to)),
    link: (from, to) => promptly("link", from, () => NFS.linkSync(from, to)),
    symlink: (target, path) => promptly("symlink", path, () => NFS.symlinkSync(target, path)),
    readLink: (path) => promptly("readLink", path, () => NFS.readlinkSync(path)),
    readDirectory: (path, options) =>
      options?.recursive === true
        ? fs.readDirectory(path, options)
        : promptly("readDirectory", path, () => NFS.readdirSync(path)),
    utimes: (path, atime, mtime) => promptly("utime", path, () => NFS.utimesSync(path, atime, mtime)),
    remove: (path, options) =>
      Effect.suspend(() => {
        const stats = NFS.lstatSync(path, { throwIfNoEntry: false })
        if (stats === undefined && options?.force === true) return Effect.void
        return stats !== undefined && !stats.isDirectory()
          ? promptly("remove", path, () => NFS.unlinkSync(path))
          : fs.remove(path, options)
      })
  }),
  exists: (path) => promptly("exists", path, () => NFS.statSync(path, { throwIfNoEntry: false }) !== undefined)
})

/** Uses an open file and closes it. */
const within = (
  path: string,
  flag: string,
  use: (descriptor: number) => Effect.Effect<void, PlatformError.PlatformError>
): Effect.Effect<void, PlatformError.PlatformError> =>
  Effect.acquireUseRelease(
    promptly("open", path, () => NFS.openSync(path, flag)),
    use,
    (descriptor) => Effect.ignore(promptly("close", path, () => NFS.closeSync(descriptor)))
  )

interface Flush {
  readonly descriptor: number
  readonly done: (error: NodeJS.ErrnoException | null) => void
}
const waiting: Array<Flush> = []
let inFlight = 0

/**
 * What comes while a batch is on its way to the disk goes with the next: a journaling file system then commits once for many files, and all other
 * calls, which wait for its commits, wait less often.
 */
const flushWaiting = (): void => {
  const batch = waiting.splice(0)
  inFlight = batch.length
  for (const { descriptor, done } of batch)
    NFS.fsync(descriptor, (error) => {
      inFlight--
      done(error)
      if (inFlight === 0 && waiting.length > 0) flushWaiting()
    })
}

/** The one call here that takes milliseconds. */
const flush = (path: string, descriptor: number): Effect.Effect<void, PlatformError.PlatformError> =>
  Effect.callback((resume) => {
    const done: Flush["done"] = (error) =>
      resume(error === null ? Effect.void : Effect.fail(platformError("sync", path, error)))
    waiting.push({ descriptor, done })
    if (inFlight === 0) flushWaiting()
  })

const durability: Durability = {
  sync: (path) => within(path, "r", (descriptor) => flush(path, descriptor)),
  writeNew: (path, text) =>
    within(path, "wx", (descriptor) =>
      Effect.andThen(
        promptly("writeFile", path, () => NFS.writeFileSync(descriptor, text)),
        flush(path, descriptor)
      )
    )
}

/** Over Node's FileSystem. */
export const layer: Layer.Layer<FileSystem.FileSystem, never, FileSystem.FileSystem> = Layer.mergeAll(
  Layer.effect(FileSystem.FileSystem, Effect.map(FileSystem.FileSystem, prompt)),
  Layer.succeed(Durability, durability)
)
