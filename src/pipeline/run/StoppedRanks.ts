/**
 * Finds ranks that something outside has stopped (SIGSTOP) and not let go on. Where they wait for each other, the ranks' own watchdog speaks first and can
 * say more; this also sees those that were stopped while they started or ended, for which nobody may ever ask. Linux; elsewhere it finds none.
 */
import { readFileSync } from "node:fs"
import { Clock, Duration, Effect, Result } from "effect"

const LOOK_EVERY = Duration.seconds(1)

/** A little longer than the ranks' own patience. */
const limitOf = (patience: Duration.Duration): number => 1.1 * Duration.toMillis(patience) + 2000
const defaultPatience = Duration.seconds(45)

const textOf = (file: string): string =>
  Result.getOrElse(
    Result.try(() => readFileSync(file, "utf8")),
    () => ""
  )

/** T: stopped by a signal. A process that a debugger holds is in t. */
const isStopped = (pid: number): boolean => /\) T /u.test(textOf(`/proc/${pid}/stat`))

export const childrenOf = (pid: number): ReadonlyArray<number> =>
  textOf(`/proc/${pid}/task/${pid}/children`).split(" ").filter(Boolean).map(Number)

/** Calls `found` for each of the processes that has been stopped for longer than `patience`, with the seconds. Never returns. */
export const watchForStopped = Effect.fnUntraced(function* (
  processes: () => ReadonlyArray<number>,
  patience: Duration.Duration | undefined,
  found: (pid: number, seconds: number) => void
) {
  const limit = limitOf(patience ?? defaultPatience)
  let since = new Map<number, number>()
  for (;;) {
    yield* Effect.sleep(LOOK_EVERY)
    const now = yield* Clock.currentTimeMillis
    const stopped = processes().filter(isStopped)
    since = new Map(stopped.map((pid) => [pid, since.get(pid) ?? now]))
    for (const [pid, from] of since) if (now - from >= limit) found(pid, Math.round((now - from) / 1000))
  }
})
