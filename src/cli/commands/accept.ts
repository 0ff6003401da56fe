/** `tinyllama accept STAGE --because TEXT`: an older result stands for what the file asks now, on record, in place of a rerun. */
import { Console, Effect, Option } from "effect"
import { Argument, Command, Flag } from "effect/cli"
import { accept, revoke } from "../../pipeline/plan/Accept.ts"
import { type Acceptance, KeyLedger } from "../../pipeline/plan/KeyLedger.ts"
import * as LocalRunner from "../../pipeline/run/LocalRunner.ts"
import { UsageError } from "../../pipeline/plan/Selection.ts"
import * as Flags from "../Flags.ts"
import * as Format from "../Format.ts"

export const acceptCommand = Command.make(
  "accept",
  {
    stage: Argument.String("stage").pipe(Argument.optional, Argument.withDescription("A stage of the file")),
    file: Flags.pipelineFile,
    ...Flags.overlays,
    runs: Flags.runs,
    paranoid: Flags.paranoid,
    json: Flags.json,
    because: Flag.String("because").pipe(
      Flag.withMetavar("text"),
      Flag.optional,
      Flag.withDescription("Why the older result is as good; kept on record and shown wherever it is used")
    ),
    revoke: Flag.Boolean("revoke").pipe(Flag.withDefault(false), Flag.withDescription("Take the acceptance back")),
    list: Flag.Boolean("list").pipe(Flag.withDefault(false), Flag.withDescription("List what was accepted"))
  },
  Effect.fn(function* (flags) {
    yield* Effect.gen(function* () {
      if (flags.list) return yield* showAll(flags.json)
      if (Option.isNone(flags.stage))
        return yield* new UsageError({ message: "which stage? tinyllama accept STAGE --because TEXT" })
      const stage = flags.stage.value
      const pipeline = yield* Flags.loadPipeline(flags)
      if (flags.revoke) {
        const taken = yield* revoke(pipeline, stage)
        return yield* Console.log(
          `${stage} is no longer accepted (it was, because: ${taken.because}). Next: tinyllama plan ${flags.file}`
        )
      }
      if (Option.isNone(flags.because)) {
        return yield* new UsageError({
          message: `accept ${stage} needs --because TEXT: it is what the next reader will see`
        })
      }
      const { acceptance, from } = yield* accept(pipeline, stage, flags.because.value)
      if (flags.json) return yield* Console.log(JSON.stringify(acceptance))
      yield* Console.log(
        [
          `${stage}: the result of ${from} stands for what the file asks now, by ${acceptance.by}, because: ${acceptance.because}`,
          ...acceptance.changes.map((change) => `  ${change}`),
          `Next: tinyllama plan ${flags.file}   shows what is below; accept ${stage} --revoke takes it back`
        ].join("\n")
      )
    }).pipe(Effect.provide(LocalRunner.layer(flags)))
  })
).pipe(Command.withDescription("Let an older result stand for changed parameters or inputs, on record"))

const showAll = Effect.fnUntraced(function* (json: boolean) {
  const all = yield* (yield* KeyLedger).acceptances
  if (json) return yield* Console.log(JSON.stringify({ version: 1, acceptances: all }))
  if (all.length === 0) return yield* Console.log("Nothing was accepted.")
  yield* Console.log(Format.table(["pipeline", "stage", "by", "at", "because", "changes"], all.map(row)))
})

const row = ({ at, because, by, changes, pipeline, stage }: Acceptance): ReadonlyArray<string> => [
  pipeline,
  stage,
  by,
  at,
  because,
  changes.join("; ")
]
