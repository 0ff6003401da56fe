/** `tinyllama diff A [B]`: what an edit changes, what that makes stale, and what it costs. Made for reviews: it runs nothing and asks no run. */
import { availableParallelism } from "node:os"
import { Console, Effect } from "effect"
import { Argument, Command, Flag } from "effect/cli"
import { diffPipelines, isWork } from "../../pipeline/plan/Diff.ts"
import * as LocalRunner from "../../pipeline/run/LocalRunner.ts"
import { loadSource } from "../../pipeline/plan/PipelineSource.ts"
import { plan } from "../../pipeline/plan/Plan.ts"
import { totals } from "../../pipeline/plan/PlanTotals.ts"
import { diffJson, diffMarkdown, diffText } from "../DiffText.ts"
import * as Flags from "../Flags.ts"

const source = (name: string) => Argument.String(name)

export const diffCommand = Command.make(
  "diff",
  {
    before: source("A").pipe(Argument.withDescription("A file, a git revision (main or main:pipeline.yaml), or a run")),
    after: source("B").pipe(
      Argument.withDefault("pipeline.yaml"),
      Argument.withDescription("The same; pipeline.yaml where none is given. -S applies to this side alone")
    ),
    ...Flags.overlays,
    runs: Flags.runs,
    format: Flag.Literals("format", ["text", "md", "json"]).pipe(
      Flag.withDefault("text"),
      Flag.withDescription("text for people, md for a pull request, json for programs")
    )
  },
  Effect.fn(function* (flags) {
    yield* Effect.gen(function* () {
      const profiles = flags.profile.flatMap((names) => names.split(","))
      const file = flags.after.includes(":") ? flags.after.slice(flags.after.indexOf(":") + 1) : flags.after
      const before = yield* loadSource({ source: flags.before, file, profiles, overrides: [] })
      const after = yield* loadSource({ source: flags.after, file: "pipeline.yaml", profiles, overrides: flags.set })
      const diff = diffPipelines(before, after)
      const affected = new Set(diff.stages.filter(isWork).map(({ stage }) => stage))
      const cpus = availableParallelism()
      const planned = yield* plan(after, {}, { cpus })
      const cost = totals(
        after,
        planned.stages.filter(({ stage }) => affected.has(stage)),
        cpus
      )
      const overridden = flags.set.map((override) => ` -S ${override}`).join("")
      const report = { before: before.file, after: `${after.file}${overridden}`, diff, cost }
      yield* Console.log(
        flags.format === "json"
          ? JSON.stringify(diffJson(report))
          : flags.format === "md"
            ? diffMarkdown(report)
            : diffText(report)
      )
    }).pipe(Effect.provide(LocalRunner.layer({ runs: flags.runs })))
  })
).pipe(
  Command.withDescription("Show what differs between two pipelines, what that makes stale, and what it costs"),
  Command.withExamples([
    { command: "tinyllama diff main:pipeline.yaml pipeline.yaml" },
    { command: "tinyllama diff pipeline.yaml -S base.lr.peak=1e-3" },
    { command: "tinyllama diff main --format md" }
  ])
)
