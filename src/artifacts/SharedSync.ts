/** One fsync for many who want the same file or folder durable at about the same time. */
import { Deferred, Effect, Exit, Semaphore } from "effect"

/**
 * Runs `effect` for every caller, but callers that come while it is still to begin share that one run. Each caller's run begins after its call, so
 * what it wrote before is covered.
 */
export const shared = <E, R>(effect: Effect.Effect<void, E, R>): Effect.Effect<void, E, R> => {
  const one = Semaphore.makeUnsafe(1)
  let next: Deferred.Deferred<void, E> | undefined
  return Effect.suspend(() => {
    if (next !== undefined) return Deferred.await(next)
    const mine = Deferred.makeUnsafe<void, E>()
    next = mine
    const begin = Effect.suspend(() => {
      next = undefined
      return effect
    })
    // Others rely on it: it is not interrupted with its first caller.
    return one.withPermit(begin).pipe(
      Effect.onExit((exit) => Deferred.done(mine, Exit.asVoid(exit))),
      Effect.uninterruptible
    )
  })
}
