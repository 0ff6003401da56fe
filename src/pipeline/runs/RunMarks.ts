/**
 * What people say of runs: names and pins. They lie beside the run folders, not in run.json, because a runner may be writing that.
 *
 *   <runs>/tags/<name> → ../<run>     a second name of the run, usable wherever a run is named
 *   <runs>/pins/<run> → ../<run>      the run is kept: runs rm refuses it
 */
import { Effect, FileSystem, Option, Path, type PlatformError, Runtime, Schema } from "effect"

/** A name that cannot be given, or a mark that is not there. Exit code 2. */
export class MarkRefused extends Schema.TaggedError<MarkRefused>()("MarkRefused", {
  message: Schema.String,
  next: Schema.String
}) {
  override readonly [Runtime.errorExitCode] = 2
}

export interface Marks {
  /** Name → run id. */
  readonly tags: ReadonlyMap<string, string>
  /** Run ids. */
  readonly pins: ReadonlySet<string>
}

/** Ids begin with a digit, so a tag is never taken for one. */
const tagForm = /^[A-Za-z][\w.-]*$/u
const reserved: ReadonlySet<string> = new Set(["latest", "new"])

export const readMarks = Effect.fn("readMarks")(function* (root: string) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const names = (folder: string) => Effect.orElseSucceed(fs.readDirectory(path.join(root, folder)), () => [])
  const tags = new Map<string, string>()
  for (const name of yield* names("tags")) {
    const target = yield* Effect.option(fs.readLink(path.join(root, "tags", name)))
    if (Option.isSome(target) && tagForm.test(name)) tags.set(name, path.basename(target.value))
  }
  const marks: Marks = { tags, pins: new Set(yield* names("pins")) }
  return marks
})

/** Names the run. A name belongs to one run at a time. */
export const tagRun = Effect.fn("tagRun")(function* (root: string, run: string, name: string) {
  if (!tagForm.test(name) || reserved.has(name)) {
    return yield* new MarkRefused({
      message: `"${name}" cannot name a run`,
      next: `a tag is letters, digits, ".", "_" and "-", begins with a letter, and is not "latest" or "new"`
    })
  }
  const holder = (yield* readMarks(root)).tags.get(name)
  if (holder === run) return
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const file = path.join(root, "tags", name)
  // A tag whose run is gone, by hand or by a crash, is free.
  if (holder !== undefined && !(yield* fs.exists(path.join(root, holder)))) yield* fs.remove(file, { force: true })
  yield* makeLink(file, run).pipe(
    Effect.catchIf(
      (error) => error.reason._tag === "AlreadyExists",
      () =>
        Effect.fail(
          new MarkRefused({
            message: `"${name}" is the tag of run ${holder ?? "another"} already`,
            next: `take another name, or tinyllama runs tag ${holder ?? name} ${name} --remove first`
          })
        )
    )
  )
})

export const untagRun = Effect.fn("untagRun")(function* (root: string, run: string, name: string) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const { tags } = yield* readMarks(root)
  if (tags.get(name) !== run) {
    const own = Array.from(tags).flatMap(([tag, of]) => (of === run ? [tag] : []))
    return yield* new MarkRefused({
      message: `run ${run} has no tag "${name}"`,
      next: own.length === 0 ? "it has no tags at all" : `its tags are ${own.join(", ")}`
    })
  }
  yield* fs.remove(path.join(root, "tags", name), { force: true })
})

export const pinRun = Effect.fn("pinRun")(function* (root: string, run: string) {
  const path = yield* Path.Path
  yield* makeLink(path.join(root, "pins", run), run).pipe(
    Effect.catchIf(
      (error) => error.reason._tag === "AlreadyExists",
      () => Effect.void
    )
  )
})

export const unpinRun = Effect.fn("unpinRun")(function* (root: string, run: string) {
  const path = yield* Path.Path
  yield* (yield* FileSystem.FileSystem).remove(path.join(root, "pins", run), { force: true })
})

/** Relative, so that the runs folder can be moved as a whole; fails when the name is taken. */
const makeLink = (
  file: string,
  run: string
): Effect.Effect<void, PlatformError.PlatformError, FileSystem.FileSystem | Path.Path> =>
  Effect.gen(function* () {
    const fs = yield* FileSystem.FileSystem
    yield* fs.makeDirectory((yield* Path.Path).dirname(file), { recursive: true })
    yield* fs.symlink(`../${run}`, file)
  })
