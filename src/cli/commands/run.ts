/** `tinyllama run FILE`: runs what is not up to date, shows it, and ends with what was made. */
import { Console, Deferred, Effect } from "effect"
import { Command, Flag } from "effect/cli"
import * as LocalRunner from "../../pipeline/LocalRunner.ts"
import * as Runner from "../../pipeline/Runner.ts"
import * as Signals from "../../pipeline/Signals.ts"
import { displayMode, startDisplay } from "../Display.ts"
import { Ended } from "../Ending.ts"
import * as Flags from "../Flags.ts"
import { summaryText } from "../RunTable.ts"

export const runCommand = Command.make(
  "run",
  {
    file: Flags.pipelineFile,
    ...Flags.selection,
    ...Flags.overlays,
    runs: Flags.runs,
    json: Flags.json,
    plain: Flag.Boolean("plain").pipe(Flag.withDefault(false), Flag.withDescription("Plain lines, on a terminal too")),
    fresh: Flag.Boolean("new").pipe(
      Flag.withDefault(false),
      Flag.withDescription("Start a new run even if the latest one did not finish")
    ),
    cpus: Flag.Int("cpus").pipe(
      Flag.withMetavar("n"),
      Flag.atMost(1),
      Flag.withDescription("Cores to share among stages; all by default")
    )
  },
  Effect.fn(function* (flags) {
    const pipeline = yield* Flags.loadPipeline(flags)
    const summary = yield* Effect.gen(function* () {
      const stop = yield* Signals.stopSignal
      const finishDisplay = yield* startDisplay(displayMode(flags))
      const cpus = flags.cpus[0]
      const ran = yield* Runner.run(pipeline, {
        ...Flags.toSelection(flags),
        ...(cpus === undefined ? {} : { cpus }),
        fresh: flags.fresh,
        stop: Effect.asVoid(Deferred.await(stop))
      })
      yield* finishDisplay
      return ran
    }).pipe(Effect.scoped, Effect.provide(LocalRunner.layer({ runs: flags.runs })))
    if (!flags.json) yield* Console.log(summaryText(summary, pipeline))
    const code = Runner.exitCodeOf(summary)
    if (code !== 0) return yield* new Ended({ code })
  })
).pipe(
  Command.withDescription("Run a pipeline: only what is not up to date, resuming where an earlier run stopped"),
  Command.withExamples([
    { command: "tinyllama run pipeline.yaml" },
    { command: "tinyllama run pipeline.yaml --from-stage eval" },
    { command: "tinyllama run pipeline.yaml -S vars.budget=1e6 -p smoke" }
  ])
)
