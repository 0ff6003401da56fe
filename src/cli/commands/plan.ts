/** `tinyllama plan FILE`: what a run would do, why, and at what cost, before anything runs. */
import { availableParallelism } from "node:os"
import { Console, Effect, Option } from "effect"
import { Command, Flag } from "effect/cli"
import * as LocalRunner from "../../pipeline/run/LocalRunner.ts"
import * as Plan from "../../pipeline/plan/Plan.ts"
import { planDocument, savePlan } from "../../pipeline/plan/PlanDocument.ts"
import { totals } from "../../pipeline/plan/PlanTotals.ts"
import { Ended } from "../Ending.ts"
import * as Flags from "../Flags.ts"
import { planText } from "../PlanTable.ts"

export const planCommand = Command.make(
  "plan",
  {
    file: Flags.pipelineFile,
    ...Flags.selection,
    ...Flags.overlays,
    runs: Flags.runs,
    paranoid: Flags.paranoid,
    json: Flags.json,
    exitCode: Flag.Boolean("exit-code").pipe(
      Flag.withDefault(false),
      Flag.withDescription("Exit 4 when a run would do something")
    ),
    out: Flag.String("out").pipe(
      Flag.withMetavar("plan.json"),
      Flag.optional,
      Flag.withDescription("Save the plan; tinyllama run plan.json does just that, or refuses")
    )
  },
  Effect.fn(function* (flags) {
    const pipeline = yield* Flags.loadPipeline(flags)
    const selection = Flags.toSelection(flags)
    const cpus = availableParallelism()
    const planned = yield* Plan.plan(pipeline, selection, { cpus }).pipe(Effect.provide(LocalRunner.layer(flags)))
    const whole = totals(pipeline, planned.stages, cpus)
    const document = planDocument(pipeline, selection, planned.stages, whole)
    if (Option.isSome(flags.out)) yield* savePlan(flags.out.value, document)
    if (flags.json) yield* Console.log(JSON.stringify(document))
    else
      yield* Console.log(
        planText(
          planned.stages,
          whole,
          Option.getOrElse(flags.out, () => flags.file)
        )
      )
    if (flags.exitCode && whole.stages > 0) return yield* new Ended({ code: 4 })
  })
).pipe(
  Command.withDescription("Show what a run would do, why, from where it resumes, and what it would cost"),
  Command.withExamples([
    { command: "tinyllama plan pipeline.yaml -S base.max_tokens=1e6" },
    { command: "tinyllama plan --out plan.json && tinyllama run plan.json" }
  ])
)
