/**
 * Runs and collections must not meet in the store: a collector would remove what a runner is about to use. Runners share a claim; a collector
 * takes a lock of its own, then looks for theirs and gives way. A runner writes its claim first and looks for a collector's lock second, so
 * that of two who start at once at least one sees the other, whoever was first: the collector fails, the runner waits.
 */
import { Effect, FileSystem, Path, Runtime, Schema } from "effect"
import { ArtifactStore } from "../../artifacts/ArtifactStore.ts"
import { acquireLock, type Claim, liveClaims, shareLock } from "./RunLock.ts"
import { storageError } from "./Runs.ts"

/** Somebody is at work in the store. Exit code 5. */
export class StoreInUse extends Schema.TaggedError<StoreInUse>()("StoreInUse", {
  pid: Schema.Int,
  host: Schema.String,
  since: Schema.String,
  next: Schema.String
}) {
  override readonly [Runtime.errorExitCode] = 5
  override get message(): string {
    return `process ${this.pid} on ${this.host} works in the store since ${this.since}; nothing was removed`
  }
}

const collector = "gc"
const users = "use"

/** For runners: nothing is collected until the scope closes. Waits for a collection that is going on; `onWait` runs once, before that. */
export const useStore = Effect.fn("useStore")(function* (onWait: (collector: Claim) => Effect.Effect<void>) {
  const locks = yield* locksFolder
  const path = yield* Path.Path
  yield* shareLock(path.join(locks, users)).pipe(Effect.mapError(storageError(locks)))
  for (let waited = false; ; waited = true) {
    const [claim] = yield* liveClaims(path.join(locks, collector)).pipe(Effect.mapError(storageError(locks)))
    if (claim === undefined) return
    if (!waited) yield* onWait(claim)
    yield* Effect.sleep("50 millis")
  }
})

/** For collectors: until the scope closes no runner goes on. Fails when one is at work. */
export const ownStore = Effect.gen(function* () {
  const path = yield* Path.Path
  const locks = yield* locksFolder
  yield* acquireLock(path.join(locks, collector), "the store").pipe(
    Effect.catchTag("PlatformError", (error) => Effect.fail(storageError(locks)(error)))
  )
  const [user] = yield* storeUsers
  if (user === undefined) return
  const { host, pid, since } = user
  const next = "try again when it has ended (tinyllama runs ls shows what runs), or end it: tinyllama stop"
  return yield* new StoreInUse({ pid, host, since, next })
})

/** Living processes at work in the store: runners, and whoever holds a stage key. */
export const storeUsers = Effect.gen(function* () {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const locks = yield* locksFolder
  const names = yield* Effect.orElseSucceed(fs.readDirectory(locks), () => [])
  // <what>.<token>.lock
  const held = new Set(names.filter((name) => name.endsWith(".lock")).map((name) => name.split(".")[0] ?? ""))
  held.delete(collector)
  const claims = yield* Effect.forEach(held, (what) => liveClaims(path.join(locks, what)))
  return claims.flat()
})

const locksFolder = Effect.gen(function* () {
  const path = yield* Path.Path
  return path.join((yield* ArtifactStore).root, "locks")
})
