/** A plan as a person reads it: a row for each stage, then what it takes as a whole. Pure. */
import { describeReason, type StagePlan, willRun } from "../pipeline/plan/Plan.ts"
import type { PlanTotals } from "../pipeline/plan/PlanTotals.ts"
import * as Format from "./Format.ts"

/** `argument` is what `tinyllama run` takes to do this. */
export const planText = (plans: ReadonlyArray<StagePlan>, whole: PlanTotals, argument: string): string =>
  [
    Format.table(["stage", "uses", "status", "why", "time", "disk"], plans.map(row)),
    "",
    ...outlooks(plans),
    ...submissions(plans),
    ...(whole.stages === 0 ? ["Everything is up to date."] : toDo(plans, whole, argument))
  ].join("\n")

/** What the stages that run will make, as far as it can be told. */
const outlooks = (plans: ReadonlyArray<StagePlan>): ReadonlyArray<string> => {
  const known = plans.flatMap((plan) =>
    willRun(plan) && plan.outlook !== undefined ? [[plan.stage, plan.outlook] as const] : []
  )
  return known.length === 0 ? [] : [Format.table(["stage", "will make (~: estimated)"], known), ""]
}

/** What goes elsewhere than to this machine. */
const submissions = (plans: ReadonlyArray<StagePlan>): ReadonlyArray<string> => {
  const known = plans.flatMap((plan) =>
    willRun(plan) && plan.submits !== undefined ? [[plan.stage, plan.submits] as const] : []
  )
  return known.length === 0 ? [] : [Format.table(["stage", "would be submitted to"], known), ""]
}

const row = (plan: StagePlan): ReadonlyArray<string> => [
  plan.stage,
  plan.uses,
  statusText(plan),
  why(plan),
  willRun(plan) ? timeText(plan) : "",
  willRun(plan) && plan.estimate?.bytes !== undefined ? Format.bytes(plan.estimate.bytes) : ""
]

/** "stale", "stale (continuation)", "fresh". */
const statusText = ({ change, status }: StagePlan): string => (change === undefined ? status : `${status} (${change})`)

const why = (plan: StagePlan): string => {
  const { from, message, reasons, status } = plan
  if (message !== undefined) return message
  const words = reasons.map(describeReason).join("; ")
  if (status === "fresh") return `from ${from ?? "?"}`
  if (status === "reuse") return `from ${from ?? "?"}${words === "" ? "" : `, although ${words}`}`
  return [words, resumeText(plan)].filter((part) => part !== "").join("; ")
}

const resumeText = ({ resumesAt, resumesFrom }: StagePlan): string => {
  if (resumesFrom === undefined) return ""
  const verb = resumesFrom === "own" ? "resumes" : "builds on the last result"
  return resumesAt === undefined
    ? verb
    : `${verb} at ${Format.count(resumesAt.done)} of ${Format.count(resumesAt.total)} ${resumesAt.unit}`
}

const timeText = ({ estimate }: StagePlan): string => {
  if (estimate?.seconds === undefined || estimate.basis === undefined) return "?"
  const rests =
    estimate.basis._tag === "Model"
      ? "model"
      : estimate.basis.runs === 1
        ? "1 past run"
        : `${estimate.basis.runs} past runs`
  return `${Format.duration(estimate.seconds)} (${rests})`
}

const toDo = (plans: ReadonlyArray<StagePlan>, whole: PlanTotals, argument: string): ReadonlyArray<string> => {
  const blocked = plans.filter(({ status }) => status === "blocked").length
  const { money, seconds, unknown } = whole
  const time = seconds === null ? "time unknown" : `at most about ${Format.duration(seconds)}`
  const without =
    unknown.length === 0 || seconds === null ? "" : ` without ${unknown.join(", ")}, whose time is unknown`
  const price = money === null ? "" : `, ${money.currency}${money.amount.toFixed(2)}`
  return [
    `${whole.stages} of ${plans.length} stages to run${blocked === 0 ? "" : `, ${blocked} blocked`}: ${time}${without}, ${Format.bytes(whole.bytes)} of disk${price}.`,
    `Next: npx tinyllama run ${argument}`
  ]
}
