/** What dead processes left half done, taken away at the end of a run: nobody has to delete a file, and no disk fills up with leftovers. */
import { Effect, FileSystem, Path } from "effect"
import { removeTemporaries } from "../../artifacts/DurableFile.ts"
import { findJob } from "./ClusterJob.ts"
import { acquireLock, removeDeadClaims } from "../runs/RunLock.ts"

/** Leftovers of dead runners: in the store, among the runs, and in the folder of a run whose lock we hold and in which nothing works any more. */
export const sweep = Effect.fn("sweep")(function* (runs: string, run: string | undefined) {
  const path = yield* Path.Path
  const store = path.join(runs, "store")
  yield* removeDeadClaims(path.join(store, "locks"))
  for (const folder of [
    runs,
    ...["artifacts", "keys", "locks", "parts", "accepted"].map((name) => path.join(store, name))
  ])
    yield* removeTemporaries(folder)
  yield* removeUnpublished(store)
  if (run !== undefined) yield* sweepRun(run)
})

const sweepRun = Effect.fnUntraced(function* (run: string) {
  const path = yield* Path.Path
  yield* removeTemporaries(run)
  const stages = path.join(run, "stages")
  for (const name of yield* namesIn(stages)) {
    const stage = path.join(stages, name)
    yield* removeTemporaries(stage)
    yield* removeTemporaries(path.join(stage, "out"))
    for (const attempt of yield* namesIn(path.join(stage, "attempts")))
      yield* removeTemporaries(path.join(stage, "attempts", attempt))
  }
})

/** Outputs of attempts that ended without publishing them. What can be resumed lies in the work folder. */
const removeUnpublished = Effect.fnUntraced(function* (store: string) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const making = path.join(store, "making")
  for (const name of yield* namesIn(making)) {
    const [key = ""] = name.split(".")
    // A cluster's job fills it, with or without a runner.
    if ((yield* Effect.orElseSucceed(findJob(store, key.split("-")[0] ?? key), () => undefined)) !== undefined) continue
    const remove = fs.remove(path.join(making, name), { recursive: true, force: true })
    // While the key's lock is held its attempt may be at work.
    yield* Effect.ignore(
      Effect.scoped(Effect.andThen(acquireLock(path.join(store, "locks", key), "the stage"), remove))
    )
  }
})

const namesIn = (folder: string) =>
  Effect.flatMap(FileSystem.FileSystem, (fs) => Effect.orElseSucceed(fs.readDirectory(folder), () => []))
