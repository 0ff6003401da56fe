/** `tinyllama logs [RUN[/STAGE]]`: a run's journal as lines of text; -f goes along with a run in another process. */
import { Console, Effect, Schema, Stream } from "effect"
import { Argument, Command, Flag } from "effect/cli"
import type { DamagedLine, JournalLine } from "../../pipeline/runs/JournalReader.ts"
import * as LocalRunner from "../../pipeline/run/LocalRunner.ts"
import * as Logs from "../../pipeline/runs/Logs.ts"
import { RunEvent } from "../../pipeline/runs/RunEvent.ts"
import { Runs } from "../../pipeline/runs/Runs.ts"
import { eventLine } from "../EventLines.ts"
import * as Flags from "../Flags.ts"

const encodeEvent = Schema.encodeSync(Schema.fromJsonString(RunEvent))

export const logsCommand = Command.make(
  "logs",
  {
    of: Argument.String("run/stage").pipe(
      Argument.withDefault("latest"),
      Argument.withDescription("A run, or one of its stages: latest, latest/base, /base")
    ),
    follow: Flag.Boolean("follow").pipe(
      Flag.withAlias("f"),
      Flag.withDefault(false),
      Flag.withDescription("Go on with what the run does, until it ends")
    ),
    runs: Flags.runs,
    json: Flags.json
  },
  Effect.fn(function* (flags) {
    yield* Effect.gen(function* () {
      const runs = yield* Runs
      const { run, stage } = yield* Logs.findTopic(flags.of)
      const print = (lines: ReadonlyArray<JournalLine>) =>
        Effect.gen(function* () {
          const events = lines.flatMap((line) =>
            line._tag === "Event" && Logs.concerns(line.event, stage) ? [line.event] : []
          )
          const text = events.flatMap((event) => (flags.json ? [encodeEvent(event)] : logLine(event)))
          if (text.length > 0) yield* Console.log(text.join("\n"))
          yield* warnOfDamage(
            runs.journalPath(run),
            lines.filter((line) => line._tag === "Damaged")
          )
        })
      yield* (flags.follow ? Logs.follow(run) : Logs.read(run)).pipe(Stream.runForEach(print))
    }).pipe(Effect.provide(LocalRunner.layer({ runs: flags.runs })))
  })
).pipe(
  Command.withDescription("Show what a run did and said, line by line"),
  Command.withExamples([{ command: "tinyllama logs" }, { command: "tinyllama logs latest/base -f" }])
)

const logLine = (event: RunEvent): ReadonlyArray<string> => {
  const line = eventLine(event)
  return line === undefined ? [] : [`${event.at}  ${line}`]
}

/** One warning for each damaged line, with its place; the rest of the journal is used. */
export const warnOfDamage = (file: string, damaged: ReadonlyArray<DamagedLine>) =>
  Effect.forEach(damaged, ({ line, reason }) => Console.error(`! ${file}:${line}: damaged, left out: ${reason}`), {
    discard: true
  })
