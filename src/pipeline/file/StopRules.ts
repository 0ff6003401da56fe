/** `stop_if`: conditions on live metrics that end an attempt as diverged, before more time goes into it. */
import { Result, type Schema } from "effect"
import { decodeConditions } from "./Checks.ts"
import type { Diagnostic } from "./Diagnostics.ts"
import { type Condition, decideCondition, type Lookup, namesIn } from "./Expression.ts"
import { StageError } from "../StageType.ts"
import { type Node, placeOf } from "./YamlSource.ts"

export interface StopRule extends Condition {
  /** As the file has it, variables replaced. */
  readonly text: string
  readonly place: string
}

/** One live reading, as the worker reports it: NaN and infinity arrive as null. */
export interface Reading {
  readonly done: number
  readonly total: number
  readonly unit: string
  readonly metrics: Readonly<Record<string, number | null>>
}

/** `stop_if`: one rule or a list of them. */
export const decodeStopRules = (
  node: Node | undefined,
  path: string,
  report: Array<Diagnostic>
): ReadonlyArray<StopRule> =>
  decodeConditions(node, path, report).map(({ condition, node, text }) => ({
    ...condition,
    text,
    place: placeOf(node.span)
  }))

/** The failure that the first rule which holds for this reading asks for; a rule about a metric that is not reported does not hold. */
export const stopFailure = (rules: ReadonlyArray<StopRule>, reading: Reading): StageError | undefined => {
  const lookup = lookupIn(reading)
  const rule = rules.find(
    ({ after, expression }) => begun(after, reading) && decideCondition(expression, lookup) === true
  )
  if (rule === undefined) return undefined
  const values = namesIn(rule.expression).flatMap((segments) => {
    const value = lookup(segments)
    return Result.isSuccess(value) ? [`${segments.join(".")} is ${shortNumber(value.success)}`] : []
  })
  const { done, total, unit } = reading
  const step = singular(unit) === "step" ? undefined : reading.metrics["step"]
  const at = `${typeof step === "number" ? `step ${step}, ` : ""}${done} of ${total} ${unit}`
  return new StageError({
    failure: "diverged",
    message: `stopped by stop_if "${rule.text}" (${rule.place}): ${values.join(", ")} at ${at}`,
    next: "change what made it diverge, most often a lower learning rate; with a corrected rule it goes on from where it stopped"
  })
}

/** Six digits say enough of a metric. */
const shortNumber = (value: Schema.Json): string =>
  value === null ? "nan" : typeof value === "number" ? String(Number(value.toPrecision(6))) : JSON.stringify(value)

/** The unit of the progress itself, or a metric that counts: "steps" is read from the metric step. */
const begun = (after: StopRule["after"], { done, metrics, unit }: Reading): boolean => {
  if (after === undefined) return true
  const one = singular(after.unit)
  const reached = one === singular(unit) ? done : (metrics[one] ?? metrics[after.unit])
  return typeof reached === "number" && reached >= after.amount
}

const singular = (unit: string): string => unit.replace(/s$/u, "")

const lookupIn =
  ({ done, metrics, unit }: Reading): Lookup =>
  (segments) => {
    const name = segments.join(".")
    if (Object.hasOwn(metrics, name)) return Result.succeed(metrics[name] ?? null)
    return name === unit ? Result.succeed(done) : Result.fail(`${name} is not reported`)
  }
