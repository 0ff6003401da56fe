/** What dead processes left half done, taken away at the end of a run: nobody has to delete a file, and no disk fills up with leftovers. */
import { Effect, FileSystem, Path } from "effect"
import { removeTemporaries } from "../../artifacts/DurableFile.ts"
import { removeDeadClaims } from "../runs/RunLock.ts"

/** Leftovers of dead runners: in the store, among the runs, and in the folder of a run whose lock we hold and in which nothing works any more. */
export const sweep = Effect.fn("sweep")(function* (runs: string, run: string) {
  const path = yield* Path.Path
  const store = path.join(runs, "store")
  yield* removeDeadClaims(path.join(store, "locks"))
  for (const folder of [
    runs,
    ...["artifacts", "keys", "locks", "parts", "accepted"].map((name) => path.join(store, name))
  ])
    yield* removeTemporaries(folder)
  yield* sweepRun(run)
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
    yield* removeAttemptOutputs(stage)
  }
})

/** Outputs of attempts that ended without publishing them. What can be resumed lies in the work folder. Only while no attempt of the stage runs. */
export const removeAttemptOutputs = Effect.fnUntraced(function* (stage: string) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const attempts = path.join(stage, "attempts")
  for (const name of yield* namesIn(attempts)) {
    const output = path.join(attempts, name, "output")
    for (const port of yield* namesIn(output))
      yield* Effect.ignore(fs.remove(path.join(output, port), { recursive: true, force: true }))
  }
})

const namesIn = (folder: string) =>
  Effect.flatMap(FileSystem.FileSystem, (fs) => Effect.orElseSucceed(fs.readDirectory(folder), () => []))
