/** `tinyllama plan FILE`: what a run would do, and why, before anything runs. */
import { Console, Effect } from "effect"
import { Command } from "effect/cli"
import * as LocalRunner from "../../pipeline/LocalRunner.ts"
import * as Plan from "../../pipeline/Plan.ts"
import * as Flags from "../Flags.ts"
import * as Format from "../Format.ts"

export const planCommand = Command.make(
  "plan",
  { file: Flags.pipelineFile, ...Flags.selection, ...Flags.overlays, runs: Flags.runs, json: Flags.json },
  Effect.fn(function* (flags) {
    const pipeline = yield* Flags.loadPipeline(flags)
    const stages = yield* Plan.plan(pipeline, Flags.toSelection(flags)).pipe(
      Effect.provide(LocalRunner.layer({ runs: flags.runs }))
    )
    if (flags.json) return yield* Console.log(JSON.stringify({ version: 1, pipeline: pipeline.name, stages }))
    yield* Console.log(Format.table(["stage", "uses", "status", "why", "last time"], stages.map(row)))
    const work = stages.filter(({ status }) => status === "stale" || status === "pending").length
    yield* Console.log(
      work === 0
        ? "\nEverything is up to date."
        : `\n${work} of ${stages.length} stages to run. Next: npx tinyllama run ${flags.file}`
    )
  })
).pipe(Command.withDescription("Show what a run would do, and why"))

const row = (stage: Plan.StagePlan): ReadonlyArray<string> => [
  stage.stage,
  stage.uses,
  stage.resumes ? `${stage.status}, resumes` : stage.status,
  stage.message ??
    (stage.status === "fresh" || stage.status === "reuse"
      ? `from ${stage.from ?? "?"}`
      : stage.reasons.map(Plan.describeReason).join("; ")),
  stage.lastSeconds === undefined ? "" : Format.duration(stage.lastSeconds)
]
