/** `tinyllama runs ls` and `runs show RUN`: what was run, and what it made. */
import { Console, Effect } from "effect"
import { Command, Flag } from "effect/cli"
import { ArtifactStore } from "../../artifacts/ArtifactStore.ts"
import * as LocalRunner from "../../pipeline/LocalRunner.ts"
import { Runs } from "../../pipeline/Runs.ts"
import { eventLine } from "../EventLines.ts"
import * as Flags from "../Flags.ts"
import * as Format from "../Format.ts"
import { statusWord } from "./status.ts"

const list = Command.make(
  "ls",
  { runs: Flags.runs, json: Flags.json },
  Effect.fn(function* (flags) {
    yield* Effect.gen(function* () {
      const known = yield* (yield* Runs).list
      if (flags.json) return yield* Console.log(JSON.stringify({ version: 1, runs: known }))
      if (known.length === 0) return yield* Console.log("No runs yet. Next: npx tinyllama run pipeline.yaml")
      yield* Console.log(
        Format.table(
          ["run", "pipeline", "status", "started"],
          known.map((run) => [run.id, run.pipeline, statusWord(run), run.createdAt])
        )
      )
    }).pipe(Effect.provide(LocalRunner.layer({ runs: flags.runs })))
  })
).pipe(Command.withDescription("List the runs, newest first"))

const show = Command.make(
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
      const store = yield* ArtifactStore
      const run = yield* runs.find(flags.run)
      const outputs = yield* Effect.forEach(yield* runs.outputs(run), (output) =>
        Effect.map(store.get(output.digest), (found) => ({
          ...output,
          type: found?.manifest.type,
          facts: found?.manifest.facts ?? {},
          bytes: (found?.manifest.files ?? []).reduce((sum, file) => sum + file.bytes, 0)
        }))
      )
      if (flags.json) return yield* Console.log(JSON.stringify({ ...run, outputs }))
      yield* Console.log(
        `run ${run.id}: ${statusWord(run)}\npipeline ${run.pipeline} (${run.file}), started ${run.createdAt}\n`
      )
      for (const output of outputs) {
        yield* Console.log(
          `${output.stage}.${output.port}  ${output.type ?? "missing from the store"}  ${Format.bytes(output.bytes)}  ${output.digest.slice(0, 12)}\n  ${output.folder}`
        )
        for (const [fact, value] of Object.entries(output.facts))
          yield* Console.log(`  ${fact}: ${typeof value === "object" ? JSON.stringify(value) : String(value)}`)
      }
      if (flags.events) {
        for (const event of yield* runs.readEvents(run)) {
          const line = eventLine(event)
          if (line !== undefined) yield* Console.log(`${event.at}  ${line}`)
        }
      }
    }).pipe(Effect.provide(LocalRunner.layer({ runs: flags.runs })))
  })
).pipe(Command.withDescription("Show a run's artifacts with their numbers, and with --events its journal"))

export const runsCommand = Command.make("runs").pipe(
  Command.withDescription("What was run"),
  Command.withSubcommands([list, show])
)
