/** `tinyllama gc`: removes from the store what no run reaches. */
import { Console, Effect } from "effect"
import { Command, Flag } from "effect/cli"
import * as Collection from "../../pipeline/runs/Collection.ts"
import * as LocalRunner from "../../pipeline/run/LocalRunner.ts"
import * as StoreLock from "../../pipeline/runs/StoreLock.ts"
import * as Flags from "../Flags.ts"
import * as Format from "../Format.ts"

export const gcCommand = Command.make(
  "gc",
  {
    dryRun: Flag.Boolean("dry-run").pipe(
      Flag.withDefault(false),
      Flag.withDescription("Only show what would be removed")
    ),
    runs: Flags.runs,
    json: Flags.json
  },
  Effect.fn(function* (flags) {
    yield* Effect.gen(function* () {
      const busy = flags.dryRun ? (yield* StoreLock.storeUsers).length > 0 : false
      if (!flags.dryRun) yield* StoreLock.ownStore
      const garbage = yield* Collection.findGarbage
      if (!flags.dryRun) yield* Collection.collect(garbage)
      const bytes = garbage.reduce((total, one) => total + one.bytes, 0)
      if (flags.json) {
        const removed = garbage.map(({ bytes, kind, paths, what, why }) => ({ kind, what, why, bytes, paths }))
        return yield* Console.log(JSON.stringify({ version: 1, dryRun: flags.dryRun, bytes, removed }))
      }
      if (garbage.length === 0) return yield* Console.log("Nothing to remove: the runs reach everything in the store.")
      yield* Console.log(
        Format.table(
          ["what", "why", "bytes"],
          garbage.map((one) => [one.what, one.why, Format.bytes(one.bytes)])
        )
      )
      yield* Console.log(`\n${flags.dryRun ? "Would free" : "Freed"} ${Format.bytes(bytes)}.`)
      if (busy)
        yield* Console.log(
          "A run is going on: what it is making may be listed above. gc itself refuses until it has ended."
        )
    }).pipe(Effect.scoped, Effect.provide(LocalRunner.layer({ runs: flags.runs })))
  })
).pipe(
  Command.withDescription("Remove from the store what no run reaches any more"),
  Command.withExamples([{ command: "tinyllama gc --dry-run" }, { command: "tinyllama gc" }])
)
