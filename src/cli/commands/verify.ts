/** `tinyllama verify [RUN]`: reads every byte of what was made and compares it with its digests. */
import { Console, Effect, Option } from "effect"
import { Argument, Command, Flag } from "effect/cli"
import * as LocalRunner from "../../pipeline/run/LocalRunner.ts"
import { Runs } from "../../pipeline/runs/Runs.ts"
import { UsageError } from "../../pipeline/plan/Selection.ts"
import { setAside, verify, type Verified } from "../../pipeline/runs/Verification.ts"
import { Ended } from "../Ending.ts"
import * as Flags from "../Flags.ts"
import * as Format from "../Format.ts"

export const verifyCommand = Command.make(
  "verify",
  {
    run: Argument.String("run").pipe(
      Argument.optional,
      Argument.withDescription(
        "A run's id, tag, the beginning of its id, or latest; the whole store where none is given"
      )
    ),
    all: Flag.Boolean("all").pipe(Flag.withDefault(false), Flag.withDescription("The whole store and all runs")),
    setAside: Flag.Boolean("set-aside").pipe(
      Flag.withDefault(false),
      Flag.withDescription("Take what is damaged out of use, so that the next run makes it again")
    ),
    runs: Flags.runs,
    json: Flags.json
  },
  Effect.fn(function* (flags) {
    yield* Effect.gen(function* () {
      const query = Option.getOrUndefined(flags.run)
      if (query !== undefined && flags.all) {
        return yield* new UsageError({ message: "--all verifies every run: leave the run's name out" })
      }
      const run = query === undefined ? undefined : yield* (yield* Runs).find(query)
      const verified = yield* verify(run)
      const aside = flags.setAside ? yield* setAside(verified.faults) : 0
      if (flags.json) yield* Console.log(JSON.stringify({ version: 1, ...verified, setAside: aside }))
      else yield* print(verified, aside)
      if (verified.faults.length > 0) return yield* new Ended({ code: 7 })
    }).pipe(Effect.provide(LocalRunner.layer({ runs: flags.runs })))
  })
).pipe(Command.withDescription("Check every digest of a run, or of the whole store"))

const print = Effect.fnUntraced(function* (verified: Verified, aside: number) {
  const { artifacts, bytes, faults, keys, runs, warnings } = verified
  for (const warning of warnings) yield* Console.error(`! ${warning}`)
  for (const { file, next, what } of faults) yield* Console.log(`x ${file}: ${what}\n  Next: ${next}`)
  if (aside > 0) yield* Console.log(`${aside} set aside; the next run makes them again, gc removes them.`)
  const what = `${counted(artifacts, "artifact")} (${Format.bytes(bytes)}), ${counted(keys, "key")}, ${counted(runs, "run")}`
  yield* Console.log(`Verified ${what}: ${faults.length === 0 ? "all as written" : counted(faults.length, "fault")}.`)
})

const counted = (count: number, what: string): string => `${count} ${what}${count === 1 ? "" : "s"}`
