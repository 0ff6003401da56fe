/** `tinyllama watch [RUN]`: the display of a run that another process runs, from its journal, until it ends. */
import { Console, Effect, Stream } from "effect"
import { Command, Flag } from "effect/cli"
import * as LocalRunner from "../../pipeline/run/LocalRunner.ts"
import * as Logs from "../../pipeline/runs/Logs.ts"
import type { RunEvent } from "../../pipeline/runs/RunEvent.ts"
import { Runs } from "../../pipeline/runs/Runs.ts"
import { displayMode, showIn } from "../Display.ts"
import * as Flags from "../Flags.ts"
import { warnOfDamage } from "./logs.ts"
import { statusWord } from "./status.ts"

export const watchCommand = Command.make(
  "watch",
  {
    run: Flags.runName,
    runs: Flags.runs,
    json: Flags.json,
    plain: Flag.Boolean("plain").pipe(Flag.withDefault(false), Flag.withDescription("Plain lines, on a terminal too"))
  },
  Effect.fn(function* (flags) {
    yield* Effect.gen(function* () {
      const runs = yield* Runs
      const run = yield* runs.find(flags.run)
      const show = yield* showIn(displayMode(flags))
      let past = true
      yield* Logs.follow(run).pipe(
        Stream.runForEach((lines) =>
          Effect.gen(function* () {
            const events = lines.flatMap((line) => (line._tag === "Event" ? [line.event] : []))
            // The first piece is what happened before: of that, only what the present is made of.
            for (const event of past && !flags.json ? condensed(events) : events) yield* show.event(event)
            past = false
            yield* warnOfDamage(
              runs.journalPath(run),
              lines.filter((line) => line._tag === "Damaged")
            )
          })
        )
      )
      yield* show.end
      if (!flags.json) yield* Console.log(`run ${run.id}: ${statusWord(yield* runs.find(run.id))}`)
    }).pipe(Effect.scoped, Effect.provide(LocalRunner.layer({ runs: flags.runs })))
  })
).pipe(Command.withDescription("Watch a run that goes on in another terminal"))

/** What stages said is left out, and so is the progress of all attempts but those that may still go on. */
const condensed = (events: ReadonlyArray<RunEvent>): ReadonlyArray<RunEvent> => {
  const ends = new Map<string, number>()
  for (const [index, event] of events.entries())
    if (event._tag === "StageFinished" || event._tag === "AttemptFailed") ends.set(event.stage, index)
  return events.filter(
    (event, index) => event._tag !== "Log" && (event._tag !== "Progress" || index > (ends.get(event.stage) ?? -1))
  )
}
