/** `tinyllama status [RUN]`: how far a run is, from its journal; it may be running in another terminal. */
import { Clock, Console, Effect } from "effect"
import { Command } from "effect/cli"
import { ArtifactStore } from "../../artifacts/ArtifactStore.ts"
import { allJobs } from "../../pipeline/run/ClusterJob.ts"
import * as LocalRunner from "../../pipeline/run/LocalRunner.ts"
import type { RunEvent } from "../../pipeline/runs/RunEvent.ts"
import { type RunInfo, Runs } from "../../pipeline/runs/Runs.ts"
import { follow, readingLine, type StageReading } from "../EventLines.ts"
import * as Flags from "../Flags.ts"
import * as Format from "../Format.ts"

export const statusCommand = Command.make(
  "status",
  { run: Flags.runName, runs: Flags.runs, json: Flags.json },
  Effect.fn(function* (flags) {
    yield* Effect.gen(function* () {
      const runs = yield* Runs
      const run = yield* runs.find(flags.run)
      const events = yield* runs.readEvents(run)
      const jobs = (yield* allJobs((yield* ArtifactStore).root)).filter((job) => job.run === run.id)
      const states = new Map(stageStates(events))
      const followed = run.status === "running" && !run.abandoned
      // What ended with its runner goes on without it.
      if (!followed)
        for (const { id, name, stage } of jobs)
          states.set(stage, `left to Slurm job ${id ?? name}; run again to follow it`)
      if (flags.json) return yield* Console.log(JSON.stringify({ ...run, stages: Object.fromEntries(states) }))
      const now = yield* Clock.currentTimeMillis
      const readings = events.reduce<ReadonlyMap<string, StageReading>>(follow, new Map())
      yield* Console.log(`run ${run.id}: ${statusWord(run)}`)
      yield* Console.log(
        Format.table(
          ["stage", "state"],
          [...states].map(([stage, state]) => {
            const reading = followed ? readings.get(stage) : undefined
            return [stage, reading === undefined ? state : readingLine({ ...reading, stage: "" }, now, 0, 160).trim()]
          })
        )
      )
    }).pipe(Effect.provide(LocalRunner.layer({ runs: flags.runs })))
  })
).pipe(Command.withDescription("Show how far a run is"))

/** The run's status for people: a run whose runner died says so. */
export const statusWord = (run: RunInfo): string =>
  run.abandoned ? "interrupted; the same run command goes on with it" : run.status

const stageStates = (events: ReadonlyArray<RunEvent>): ReadonlyMap<string, string> => {
  const states = new Map<string, string>()
  for (const event of events) {
    if (event._tag === "RunStarted") for (const stage of event.stages) states.set(stage, "waiting")
    if (event._tag === "StageCached") states.set(event.stage, "up to date")
    if (event._tag === "AttemptStarted") states.set(event.stage, `running, attempt ${event.attempt}`)
    if (event._tag === "AttemptFailed")
      states.set(event.stage, `attempt ${event.attempt} failed: ${event.message.split("\n")[0]}`)
    if (event._tag === "StageFinished" && event.outcome !== "cached") {
      states.set(
        event.stage,
        event.message === undefined
          ? `${event.outcome} in ${Format.duration(event.seconds)}`
          : `${event.outcome}: ${event.message.split("\n")[0]}`
      )
    }
  }
  return states
}
