/** A worker that ended without a word: by a signal, or a runtime that gave up. */
import { Effect, FileSystem, Option, Path, Stream } from "effect"
import { StageError } from "../StageType.ts"

/** How a process ended. */
export interface Exit {
  readonly code: number | null
  readonly signal: NodeJS.Signals | null
}

/**
 * What the watchdog of ranks said since a time in milliseconds, of whom they waited for, where and how long; undefined where it said nothing. It writes
 * this line into the work folder (native/distributed/watchdog.cpp).
 */
export const watchdogLine = Effect.fnUntraced(function* (work: string, since: number) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const file = path.join(work, "ranks", "watchdog.txt")
  return yield* Effect.gen(function* () {
    const { mtime } = yield* fs.stat(file)
    const written = Option.match(mtime, { onNone: () => 0, onSome: (date) => date.getTime() })
    return written < since ? undefined : (yield* fs.readFileString(file)).trim()
  }).pipe(Effect.orElseSucceed(() => undefined))
})

/** Beside the exit: whose it was, where that process wrote its errors to, and what the watchdog of its ranks said. */
export interface LostDetails {
  /** "the worker", "rank 2 of 4" */
  readonly who?: string
  readonly log?: string
  readonly watchdog?: string | undefined
}

/** Fails with what the exit, the watchdog and the log tell. */
export const lost = Effect.fnUntraced(function* (
  folder: string,
  exit: Exit,
  { log = "stderr.log", watchdog, who = "the worker" }: LostDetails = {}
) {
  const path = yield* Path.Path
  if (watchdog !== undefined && exit.signal === null)
    return yield* new StageError({
      failure: "worker-lost",
      message: `${who} gave up waiting for the others: ${watchdog}`,
      next: `run again: the stage goes on from its last checkpoint; the ranks' output is in ${folder}`
    })
  const tail = yield* tailOf(path.join(folder, log))
  const how = exit.signal !== null ? `by ${exit.signal}` : exit.code === null ? "unseen" : `with exit code ${exit.code}`
  const said = tail === "" ? "" : `; its last words:\n${tail}`
  if (/heap out of memory|bad_alloc|Cannot allocate memory/u.test(tail)) {
    return yield* new StageError({
      failure: "out-of-memory",
      message: `${who} ran out of memory and ended ${how}${said}`,
      next: "ask for less at once (a smaller micro_batch or seq_len), or give the machine more memory"
    })
  }
  const hint =
    exit.signal === "SIGKILL"
      ? " (SIGKILL from outside is most often the system's reaction to running out of memory)"
      : ""
  return yield* new StageError({
    failure: "worker-lost",
    message: `${who} ended ${how}${hint}${watchdog === undefined ? "" : `; the others waited: ${watchdog}`}${said}`,
    next: `run again: the stage goes on from its last checkpoint; the worker's output is in ${folder}`
  })
})

/** The last lines of a log, at most 20 of them and 4 KiB. */
export const tailOf = Effect.fnUntraced(function* (file: string) {
  const fs = yield* FileSystem.FileSystem
  const text = yield* Effect.gen(function* () {
    const size = Number((yield* fs.stat(file)).size)
    return yield* Stream.mkString(Stream.decodeText(fs.stream(file, { offset: Math.max(0, size - 4096) })))
  }).pipe(Effect.orElseSucceed(() => ""))
  return text.trimEnd().split("\n").slice(-20).join("\n")
})
