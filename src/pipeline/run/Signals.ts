/**
 * SIGINT and SIGTERM as a request to save and stop. NodeRuntime.runMain would interrupt the main fiber at once; `runMain` here does so only
 * where nobody listens: while a run executes, the first signal asks it to stop, and a second one ends the process on the spot (which loses
 * nothing that was complete: workers end with their runner, locks are taken over, work goes on from the last checkpoint).
 */
import { Deferred, Effect, Runtime, type Scope } from "effect"

export type StopSignal = "SIGINT" | "SIGTERM"

const exitCodes: Readonly<Record<StopSignal, number>> = { SIGINT: 130, SIGTERM: 143 }
const listeners = new Set<(signal: StopSignal) => void>()

/** A latch for the first stop signal; while the scope lives, signals go here and not to the main fiber. Pass `Deferred.await` of it to `run` as `stop`. */
export const stopSignal: Effect.Effect<Deferred.Deferred<StopSignal>, never, Scope.Scope> = Effect.gen(function* () {
  const requested = yield* Deferred.make<StopSignal>()
  const listener = (signal: StopSignal) => Deferred.doneUnsafe(requested, Effect.succeed(signal))
  yield* Effect.acquireRelease(
    Effect.sync(() => listeners.add(listener)),
    () => Effect.sync(() => listeners.delete(listener))
  )
  return requested
})

/** NodeRuntime.runMain with the signals as above. */
export const runMain = Runtime.makeRunMain(({ fiber, teardown }) => {
  let received: StopSignal | undefined
  const onSignal = (signal: StopSignal) => {
    if (received !== undefined) process.exit(exitCodes[signal])
    received = signal
    if (listeners.size === 0) return fiber.interruptUnsafe(fiber.id)
    for (const listener of listeners) listener(signal)
  }
  process.on("SIGINT", onSignal)
  process.on("SIGTERM", onSignal)
  fiber.addObserver((exit) => {
    process.off("SIGINT", onSignal)
    process.off("SIGTERM", onSignal)
    teardown(exit, (code) => {
      if (received === undefined && code === 0) return
      // Success keeps an exit code that the program has set.
      process.exit(code === 0 ? process.exitCode : code === 130 && received !== undefined ? exitCodes[received] : code)
    })
  })
})
