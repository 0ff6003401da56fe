/** Reads what comes next while the present is worked on: a slow disk is evened out, and the order stays. */
import { Effect, Fiber } from "effect"

/**
 * Gives `read(0)`, `read(1)`, … one after the other, as often as it is run: at most `count` times. Up to `ahead` reads are under way or done besides.
 * A read that fails fails its own turn, not an earlier one. The reads belong to the fiber that runs it.
 */
export const readAhead = <A, E, R>(
  read: (index: number) => Effect.Effect<A, E, R>,
  count: number,
  ahead: number
): Effect.Effect<A, E, R> => {
  const reading: Array<Fiber.Fiber<A, E>> = []
  let given = 0
  const upTo = Effect.fnUntraced(function* (end: number) {
    while (given + reading.length < Math.min(end, count))
      reading.push(yield* Effect.forkChild(read(given + reading.length), { startImmediately: true }))
  })
  return Effect.gen(function* () {
    yield* upTo(given + 1)
    const [next] = reading
    if (next === undefined)
      return yield* Effect.die(new Error(`there is nothing behind the ${count} that were to be read`))
    reading.shift()
    given++
    yield* upTo(given + ahead)
    return yield* Fiber.join(next)
  })
}
