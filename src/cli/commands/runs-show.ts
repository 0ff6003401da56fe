/** `tinyllama runs show RUN`: what a run made, with its numbers; with --events its journal. */
import { Console, Effect } from "effect"
import { Command, Flag } from "effect/cli"
import { ArtifactStore } from "../../artifacts/ArtifactStore.ts"
import * as LocalRunner from "../../pipeline/run/LocalRunner.ts"
import { type RunInfo, Runs } from "../../pipeline/runs/Runs.ts"
import { eventLine } from "../EventLines.ts"
import * as Flags from "../Flags.ts"
import * as Format from "../Format.ts"
import { warnOfDamage } from "./logs.ts"
import { statusWord } from "./status.ts"

export const show = Command.make(
  "show",
  {
    run: Flags.runName,
    runs: Flags.runs,
    json: Flags.json,
    events: Flag.Boolean("events").pipe(
      Flag.withDefault(false),
      Flag.withDescription("The run's journal, line by line")
    )
  },
  Effect.fn(function* (flags) {
    yield* Effect.gen(function* () {
      const runs = yield* Runs
      const run = yield* runs.find(flags.run)
      const outputs = yield* describeOutputs(run)
      if (flags.json) {
        const events = flags.events ? { events: yield* runs.readEvents(run) } : {}
        return yield* Console.log(JSON.stringify({ ...run, outputs, ...events }))
      }
      const marks = [...run.tags, ...(run.pinned ? ["pinned"] : [])].join(", ")
      yield* Console.log(
        `run ${run.id}${marks === "" ? "" : ` (${marks})`}: ${statusWord(run)}\npipeline ${run.pipeline} (${run.file}), started ${run.createdAt}\n`
      )
      for (const output of outputs) {
        yield* Console.log(
          `${output.stage}.${output.port}  ${output.type ?? "missing from the store"}  ${Format.bytes(output.bytes)}  ${output.digest.slice(0, 12)}\n  ${output.folder}`
        )
        for (const [fact, value] of Object.entries(output.facts))
          yield* Console.log(`  ${fact}: ${typeof value === "object" ? JSON.stringify(value) : String(value)}`)
      }
      if (flags.events) yield* showEvents(run)
    }).pipe(Effect.provide(LocalRunner.layer({ runs: flags.runs })))
  })
).pipe(Command.withDescription("Show a run's artifacts with their numbers, and with --events its journal"))

const describeOutputs = Effect.fnUntraced(function* (run: RunInfo) {
  const store = yield* ArtifactStore
  return yield* Effect.forEach(yield* (yield* Runs).outputs(run), (output) =>
    Effect.map(store.get(output.digest), (found) => ({
      ...output,
      type: found?.manifest.type,
      facts: found?.manifest.facts ?? {},
      bytes: (found?.manifest.files ?? []).reduce((sum, file) => sum + file.bytes, 0)
    }))
  )
})

const showEvents = Effect.fnUntraced(function* (run: RunInfo) {
  const runs = yield* Runs
  const { damaged, events } = yield* runs.readJournal(run)
  const lines = events.flatMap((event) => {
    const line = eventLine(event)
    return line === undefined ? [] : [`${event.at}  ${line}`]
  })
  if (lines.length > 0) yield* Console.log(lines.join("\n"))
  yield* warnOfDamage(runs.journalPath(run), damaged)
})
