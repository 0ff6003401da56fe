/** The short table at a run's end: what was made, how good, where, and what to run next. Pure. */
import { relative } from "node:path"
import type { ResolvedPipeline } from "../pipeline/file/ResolvedPipeline.ts"
import type { RunSummary, StageSummary } from "../pipeline/run/Runner.ts"
import * as Format from "./Format.ts"

export const summaryText = (summary: RunSummary, pipeline: ResolvedPipeline): string =>
  [
    "",
    Format.table(
      ["stage", "outcome", "time", "result"],
      summary.stages.map((stage) => [stage.stage, stage.outcome, time(stage), headline(stage, pipeline)])
    ),
    "",
    ...warnings(summary),
    ...where(summary),
    ...next(summary, pipeline)
  ].join("\n")

const time = (stage: StageSummary): string =>
  stage.outcome === "cached" || stage.outcome === "skipped" ? "" : Format.duration(stage.seconds)

const headline = (stage: StageSummary, pipeline: ResolvedPipeline): string => {
  if (stage.note !== undefined) return stage.note
  if (stage.failure !== undefined) return stage.failure.message.split("\n")[0] ?? ""
  const type = pipeline.stages.find(({ name }) => name === stage.stage)?.type
  const facts = Object.fromEntries(Object.entries(stage.outputs).map(([port, artifact]) => [port, artifact.facts]))
  if (Object.keys(facts).length === 0) return ""
  return (
    type?.headline?.(facts) ??
    Object.values(stage.outputs)
      .map((artifact) => artifact.type)
      .join(", ")
  )
}

const warnings = (summary: RunSummary): ReadonlyArray<string> =>
  summary.warnings.length === 0 ? [] : [...summary.warnings.map((warning) => `! ${warning}`), ""]

const where = (summary: RunSummary): ReadonlyArray<string> => [
  `Run ${summary.run} is ${summary.status} after ${Format.duration(summary.seconds)}. All of it lies in ${relative(process.cwd(), summary.folder) || "."}/stages/*/out/`
]

const next = (summary: RunSummary, pipeline: ResolvedPipeline): ReadonlyArray<string> => {
  const again = `npx tinyllama run ${pipeline.file}`
  if (summary.status === "preempted") return [`Next: ${again}   goes on from where it stopped`]
  if (summary.status === "failed") {
    const failed = summary.stages.find((stage) => stage.failure !== undefined)
    return [`Next: ${failed?.failure?.next ?? "see the messages above"}; then ${again}: what is complete is kept`]
  }
  if (summary.status === "partial")
    return ["Next: the other shares; the last of them makes the result, and so does a run without --shard"]
  const chattable = summary.stages.some((stage) =>
    Object.values(stage.outputs).some((artifact) => artifact.type === "GgufModel" && artifact.facts["chat"] !== null)
  )
  return [
    ...(chattable ? [`Next: npx tinyllama chat ${summary.run}   talks to the model`] : []),
    `      npx tinyllama runs show ${summary.run}   shows every artifact and its numbers`
  ]
}
