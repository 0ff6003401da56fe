/** The result of an evaluation: report.json for programs, report.md for people. Same inputs, same bytes. */
import { Schema } from "effect"
import { Profile } from "./LogLikelihood.ts"
import { Metrics } from "./Task.ts"

export const ModelScores = Schema.Struct({
  /** "stage.port" that made the model. */
  model: Schema.String,
  digest: Schema.String,
  parameters: Schema.Int,
  context_length: Schema.Int,
  tasks: Schema.Record(Schema.String, Metrics)
})
export type ModelScores = typeof ModelScores.Type

export const Report = Schema.Struct({
  format: Schema.Literal("tinyllama-evaluation"),
  version: Schema.Literal(1),
  profile: Profile,
  /** What was asked: task and the digest of the artifact it came from. */
  tasks: Schema.Array(Schema.Struct({ name: Schema.String, source: Schema.String, digest: Schema.String })),
  models: Schema.Array(ModelScores)
})
export type Report = typeof Report.Type

/** Shown metrics in the table's order; the others are counts and errors that ride along. */
const shown = [
  { metric: "perplexity", better: "lower", show: (value: number) => value.toPrecision(5) },
  { metric: "bits_per_byte", better: "lower", show: (value: number) => value.toFixed(4) },
  { metric: "acc", better: "higher", show: (value: number) => `${(100 * value).toFixed(1)} %` },
  { metric: "acc_norm", better: "higher", show: (value: number) => `${(100 * value).toFixed(1)} %` }
] as const

const cell = (metrics: Metrics | undefined, { metric, show }: (typeof shown)[number]): string => {
  const value = metrics?.[metric]
  if (value === undefined) return "–"
  const error = metrics?.[`${metric}_stderr`]
  return error === undefined ? show(value) : `${show(value)} ± ${show(error)}`
}

/** Against the first model: percent of its value for perplexities, points for accuracies. */
const change = (before: number | undefined, after: number | undefined, better: "lower" | "higher"): string => {
  if (before === undefined || after === undefined) return "–"
  const [value, unit] = better === "lower" ? [100 * (after / before - 1), "%"] : [100 * (after - before), "points"]
  return `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(1)} ${unit}`
}

/** One row per task and metric, one column per model; from the second model on, its change against the first. */
export const markdown = (report: Report): string => {
  const header = [
    "task",
    "metric",
    "better",
    ...report.models.flatMap(({ model }, index) => (index === 0 ? [model] : [model, "change"]))
  ]
  const rows = report.tasks.flatMap(({ name }) =>
    shown
      .filter(({ metric }) => report.models.some(({ tasks }) => tasks[name]?.[metric] !== undefined))
      .map((column) => [
        name,
        column.metric,
        column.better,
        ...report.models.flatMap(({ tasks }, index) => {
          const first = report.models[0]?.tasks[name]?.[column.metric]
          const value = cell(tasks[name], column)
          return index === 0 ? [value] : [value, change(first, tasks[name]?.[column.metric], column.better)]
        })
      ])
  )
  const line = (cells: ReadonlyArray<string>) => `| ${cells.join(" | ")} |`
  const counts = report.tasks.map(({ name, source }) => {
    const metrics = report.models[0]?.tasks[name] ?? {}
    const size =
      metrics["n"] === undefined
        ? `${metrics["blocks"]} blocks, ${metrics["tokens"]} tokens, ${metrics["bytes"]} bytes`
        : `${metrics["n"]} questions`
    return `- ${name}: ${size} of ${source}`
  })
  return [
    "# Evaluation",
    "",
    line(header),
    line(header.map(() => "---")),
    ...rows.map(line),
    "",
    `Profile \`${report.profile}\`. ± is one standard error. acc_norm divides each choice's log-likelihood by its length in characters.`,
    "",
    ...counts,
    ""
  ].join("\n")
}
