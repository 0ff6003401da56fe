/** Which run, which stage of it, and the lines of its journal: all that there are, or all that come. */
import { Effect, FileSystem, Option, Path, Runtime, Schema, Stream } from "effect"
import { didYouMean } from "../file/Diagnostics.ts"
import { followJournal, journalLines } from "./JournalReader.ts"
import type { RunEvent } from "./RunEvent.ts"
import { lockHolder } from "./RunLock.ts"
import { type RunInfo, Runs, storageError } from "./Runs.ts"

/** The run has no such stage. Exit code 2. */
export class StageUnknown extends Schema.TaggedError<StageUnknown>()("StageUnknown", {
  run: Schema.String,
  stage: Schema.String,
  stages: Schema.Array(Schema.String)
}) {
  override readonly [Runtime.errorExitCode] = 2
  override get message(): string {
    const meant = didYouMean(this.stage, this.stages)
    const hint = meant === undefined ? `its stages are ${this.stages.join(", ")}` : `did you mean "${meant}"?`
    return `run ${this.run} has no stage "${this.stage}"; ${hint}`
  }
}

/** "RUN", "RUN/STAGE" or "/STAGE" of the latest run. */
export const findTopic = Effect.fn("findTopic")(function* (topic: string) {
  const runs = yield* Runs
  const slash = topic.indexOf("/")
  const query = slash < 0 ? topic : topic.slice(0, slash)
  const run = yield* runs.find(query === "" ? "latest" : query)
  const stage = slash < 0 ? undefined : topic.slice(slash + 1)
  if (stage !== undefined) {
    const stages = new Set((yield* runs.readEvents(run)).flatMap(stagesOf))
    if (!stages.has(stage)) return yield* new StageUnknown({ run: run.id, stage, stages: Array.from(stages) })
  }
  return { run, stage }
})

const stagesOf = (event: RunEvent): ReadonlyArray<string> =>
  event._tag === "RunStarted" ? event.stages : "stage" in event && event.stage !== undefined ? [event.stage] : []

/** Whether the event is of the stage; without one, whether it is of the run at all: always. */
export const concerns = (event: RunEvent, stage: string | undefined): boolean =>
  stage === undefined || ("stage" in event && event.stage === stage)

/** The journal as it stands, as one piece. */
export const read = (run: RunInfo) =>
  Stream.unwrap(
    Effect.gen(function* () {
      const fs = yield* FileSystem.FileSystem
      const file = (yield* Runs).journalPath(run)
      const text = yield* Effect.option(fs.readFileString(file))
      // What follows the last line feed is being written, or was torn.
      const lines = Option.match(text, {
        onNone: () => [],
        onSome: (all) => journalLines(all.slice(0, all.lastIndexOf("\n") + 1))
      })
      return Stream.make(lines)
    })
  )

/** The journal from its start, then as it grows, until nobody runs the run any more. */
export const follow = (run: RunInfo) =>
  Stream.unwrap(
    Effect.gen(function* () {
      const runs = yield* Runs
      const services = yield* Effect.context<FileSystem.FileSystem | Path.Path>()
      const ended = Effect.provideContext(isOver(runs.lockPath(run)), services)
      return followJournal(runs.journalPath(run), { ended }).pipe(
        Stream.mapError(storageError(run.folder)),
        Stream.provideContext(services)
      )
    })
  )

/** Nobody holds the run's lock. */
export const isOver = (lockPath: string) =>
  lockHolder(lockPath).pipe(
    Effect.map((holder) => holder === undefined),
    Effect.orElseSucceed(() => true)
  )
