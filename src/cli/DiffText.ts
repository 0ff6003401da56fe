/** A diff of two pipelines for a terminal and, as Markdown, for a pull request. Pure. */
import type { Schema } from "effect"
import { describeChange } from "../pipeline/plan/KeyDifference.ts"
import { type FieldChange, isWork, type PipelineDiff, type StageEffect } from "../pipeline/plan/Diff.ts"
import type { PlanTotals } from "../pipeline/plan/PlanTotals.ts"
import * as Format from "./Format.ts"

export interface DiffReport {
  readonly before: string
  readonly after: string
  readonly diff: PipelineDiff
  /** What the work takes that is not there yet. */
  readonly cost: PlanTotals
}

export const diffText = ({ after, before, cost, diff }: DiffReport): string => {
  if (diff.fields.length === 0) return `${before} and ${after} ask for the same.`
  return [
    Format.table(
      ["field", "change", "class", "effect"],
      diff.fields.map((field) => [field.path, changeText(field), field.change, effectText(field, diff.stages)])
    ),
    "",
    summaryLine(diff, " · "),
    costLine(diff, cost)
  ].join("\n")
}

export const diffMarkdown = ({ after, before, cost, diff }: DiffReport): string => {
  if (diff.fields.length === 0) return `**No effect:** \`${before}\` and \`${after}\` ask for the same.`
  return [
    `### What this change does: \`${before}\` → \`${after}\``,
    "",
    "| field | change | class | effect |",
    "|---|---|---|---|",
    ...diff.fields.map((field) => {
      const cells = [`\`${field.path}\``, `\`${changeText(field)}\``, field.change, effectText(field, diff.stages)]
      return `| ${cells.map((cell) => cell.replaceAll("|", "\\|")).join(" | ")} |`
    }),
    "",
    ...groups(diff).map(([word, names]) => `- **${word}**: ${names.map((name) => `\`${name}\``).join(", ")}`),
    "",
    costLine(diff, cost)
  ].join("\n")
}

/** Version 1. */
export const diffJson = ({ after, before, cost, diff }: DiffReport) => ({
  format: "tinyllama-diff",
  version: 1,
  before,
  after,
  fields: diff.fields.map((field) => ({
    path: field.path,
    stage: field.stage ?? null,
    ...(field.before === undefined ? {} : { before: field.before }),
    ...(field.after === undefined ? {} : { after: field.after }),
    class: field.change
  })),
  stages: diff.stages.map((stage) => ({
    stage: stage.stage,
    uses: stage.uses,
    effect: stage.effect,
    through: stage.through,
    ...(stage.from === undefined ? {} : { from: stage.from })
  })),
  cost
})

const changeText = ({ after, before }: FieldChange): string =>
  before === undefined ? `+ ${word(after)}` : after === undefined ? `− ${word(before)}` : describeChange(before, after)

const word = (value: Schema.Json | undefined): string =>
  typeof value === "string" ? value : JSON.stringify(value ?? null)

const effectText = (field: FieldChange, stages: ReadonlyArray<StageEffect>): string => {
  if (field.change === "operational") return "nothing stale"
  const effect = stages.find(({ stage }) => stage === field.stage)?.effect
  switch (effect) {
    case undefined:
      return ""
    case "added":
      return `${field.stage ?? ""} runs`
    case "removed":
      return "its results stay in the store"
    case "continues":
      return `${field.stage ?? ""} goes on from its last checkpoint`
    case "additive":
      return `${field.stage ?? ""} runs the new items only`
    case "stale":
      return field.change === "identity"
        ? `${field.stage ?? ""} stale: runs anew`
        : `${field.stage ?? ""} runs anew for another reason`
    default:
      return "nothing stale"
  }
}

const groups = ({ stages }: PipelineDiff): ReadonlyArray<readonly [string, ReadonlyArray<string>]> => {
  const named = (effect: StageEffect["effect"]) =>
    stages
      .filter((stage) => stage.effect === effect)
      .map(({ from, stage }) => (from === undefined ? stage : `${from} → ${stage}`))
  const all = [
    ["stale", named("stale")],
    ["continues", named("continues")],
    ["additive", named("additive")],
    ["added", named("added")],
    ["kept", named("kept")],
    ["renamed, kept", named("renamed")],
    ["removed", named("removed")]
  ] as const
  return all.filter(([, names]) => names.length > 0)
}

const summaryLine = (diff: PipelineDiff, separator: string): string =>
  groups(diff)
    .map(([word, names]) => `${word}: ${names.join(" ")}`)
    .join(separator)

const costLine = (diff: PipelineDiff, { bytes, money, seconds, unknown }: PlanTotals): string => {
  if (!diff.stages.some(isWork)) return "Nothing runs."
  const time = seconds === null ? "time unknown" : `at most about ${Format.duration(seconds)}`
  const without =
    unknown.length === 0 || seconds === null ? "" : `, without ${unknown.join(", ")}, whose time is unknown`
  const price = money === null ? "" : `, ${money.currency}${money.amount.toFixed(2)}`
  return `Cost: ${time}${without}, ${Format.bytes(bytes)} of disk${price}.`
}
