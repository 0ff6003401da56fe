/** `tinyllama schema [NAME]`: the JSON Schema of a file that the program reads or writes, for editors and other programs. */
import { Effect } from "effect"
import { Argument, Command } from "effect/cli"

const names = ["pipeline", "run", "event", "manifest", "plan", "key"] as const

export const schemaCommand = Command.make(
  "schema",
  {
    name: Argument.Literals("name", names).pipe(
      Argument.withDefault("pipeline"),
      Argument.withDescription("Whose: pipeline (where none is given), run, event, manifest, plan, key")
    )
  },
  Effect.fn(function* (flags) {
    const { schemaText } = yield* Effect.promise(() => import("../../pipeline/file/FileSchemas.ts"))
    const text = yield* schemaText(flags.name)
    yield* Effect.sync(() => process.stdout.write(text))
  })
).pipe(Command.withDescription("Print the JSON Schema of the pipeline file, or of what a run writes"))
