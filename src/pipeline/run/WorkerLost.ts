/** A worker that ended without a word: by a signal, or a runtime that gave up. */
import { Effect, FileSystem, Path, Stream } from "effect"
import { StageError } from "../StageType.ts"

/** How a process ended. */
export interface Exit {
  readonly code: number | null
  readonly signal: NodeJS.Signals | null
}

/** Fails with what the exit and the log tell. `who`: "the worker", "rank 2 of 4". */
export const lost = Effect.fnUntraced(function* (
  folder: string,
  exit: Exit,
  { log = "stderr.log", who = "the worker" }: { readonly who?: string; readonly log?: string } = {}
) {
  const path = yield* Path.Path
  const tail = yield* tailOf(path.join(folder, log))
  const how = exit.signal === null ? `with exit code ${exit.code}` : `by ${exit.signal}`
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
    message: `${who} ended ${how}${hint}${said}`,
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
