/**
 * What must hold between runs, for `runs compare --assert`. The runs after the first are held to the first, or to a value:
 *
 *   val_loss within 0.5%     differs from the first run's by at most so much of it; without % by at most so much
 *   val_loss <=              not above the first run's; likewise <, >, >=, ==, !=
 *   val_loss <= 2.5          not above this; == and != take any JSON value
 */
import { Result, Runtime, Schema } from "effect"
import { canonicalJson } from "../../artifacts/CanonicalJson.ts"
import type { Comparison, Metric } from "./Compare.ts"
import { didYouMean } from "../file/Diagnostics.ts"

/** The assertion is not one. Exit code 2. */
export class AssertionInvalid extends Schema.TaggedError<AssertionInvalid>()("AssertionInvalid", {
  text: Schema.String
}) {
  override readonly [Runtime.errorExitCode] = 2
  override get message(): string {
    return `--assert "${this.text}": must be like "val_loss within 0.5%", "val_loss <=" (the first run's) or "base.state.step == 400"`
  }
}

/** No run states such a fact, or the short name fits several. Exit code 2. */
export class MetricUnknown extends Schema.TaggedError<MetricUnknown>()("MetricUnknown", {
  metric: Schema.String,
  /** Names that it fits. */
  fits: Schema.Array(Schema.String),
  suggestion: Schema.optionalKey(Schema.String),
  /** How many metrics there are. */
  known: Schema.Int
}) {
  override readonly [Runtime.errorExitCode] = 2
  override get message(): string {
    if (this.fits.length > 0)
      return `metric "${this.metric}" fits ${this.fits.length}: ${this.fits.join(", ")}; write which`
    if (this.suggestion !== undefined) return `no run has a metric "${this.metric}"; did you mean "${this.suggestion}"?`
    return `no run has a metric "${this.metric}"${this.known === 0 ? ": the runs state no facts at all" : ""}`
  }
  get next(): string | undefined {
    return this.known === 0 ? undefined : `tinyllama runs compare … --all names the ${this.known} metrics there are`
  }
}

type Operator = "<" | "<=" | ">" | ">=" | "==" | "!="

export type Assertion = { readonly text: string; readonly metric: string } & (
  | { readonly _tag: "Within"; readonly amount: number; readonly relative: boolean }
  /** undefined: the first run's value. */
  | { readonly _tag: "Compared"; readonly operator: Operator; readonly bound: Schema.Json | undefined }
)

const within = /^(\S+)\s+within\s+(\d+(?:\.\d+)?(?:e[+-]?\d+)?)\s*(%?)$/iu
const compared = /^([^\s<>=!]+)\s*(<=|>=|==|!=|<|>)\s*(.*)$/u
const decodeJson = Schema.decodeResult(Schema.fromJsonString(Schema.Json))

export const parseAssertion = (text: string): Result.Result<Assertion, AssertionInvalid> => {
  const near = within.exec(text.trim())
  if (near !== null) {
    const relative = near[3] === "%"
    const amount = Number(near[2]) / (relative ? 100 : 1)
    return Result.succeed({ _tag: "Within", text, metric: near[1] ?? "", amount, relative })
  }
  const [, metric = "", operator = "", right = ""] = compared.exec(text.trim()) ?? []
  if (metric === "" || !isOperator(operator)) return Result.fail(new AssertionInvalid({ text }))
  if (right === "") return Result.succeed({ _tag: "Compared", text, metric, operator, bound: undefined })
  const bound = decodeJson(right)
  return Result.isSuccess(bound)
    ? Result.succeed({ _tag: "Compared", text, metric, operator, bound: bound.success })
    : Result.fail(new AssertionInvalid({ text }))
}

const isOperator = (text: string): text is Operator => ["<", "<=", ">", ">=", "==", "!="].includes(text)

export interface Finding {
  readonly assertion: string
  readonly metric: string
  /** The run that is held to the first one. */
  readonly run: string
  readonly holds: boolean
  /** The two values, and how far they are apart. */
  readonly detail: string
}

/** One finding for each metric that the assertion means and each run after the first. */
export const checkAssertion = (
  comparison: Comparison,
  assertion: Assertion
): Result.Result<ReadonlyArray<Finding>, MetricUnknown> =>
  Result.map(findMetrics(assertion.metric, comparison.metrics), (metrics) =>
    metrics.flatMap((metric) =>
      metric.values.slice(1).map((actual, index) => ({
        assertion: assertion.text,
        metric: metric.name,
        run: comparison.runs[index + 1] ?? "",
        ...judge(assertion, metric.values[0], actual)
      }))
    )
  )

const judge = (
  assertion: Assertion,
  first: Schema.Json | undefined,
  actual: Schema.Json | undefined
): Pick<Finding, "holds" | "detail"> => {
  const bound = assertion._tag === "Compared" && assertion.bound !== undefined ? assertion.bound : first
  if (bound === undefined || actual === undefined) return { holds: false, detail: `${said(bound)} → ${said(actual)}` }
  const detail = `${said(bound)} → ${said(actual)}${apart(bound, actual)}`
  if (assertion._tag === "Compared") return { holds: holds(assertion.operator, actual, bound), detail }
  if (typeof bound !== "number" || typeof actual !== "number") return { holds: false, detail: `${detail}, not numbers` }
  const limit = assertion.relative ? assertion.amount * Math.abs(bound) : assertion.amount
  return { holds: Math.abs(actual - bound) <= limit, detail }
}

const holds = (operator: Operator, left: Schema.Json, right: Schema.Json): boolean => {
  const same = canonicalJson(left) === canonicalJson(right)
  if (operator === "==") return same
  if (operator === "!=") return !same
  if (typeof left !== "number" || typeof right !== "number") return false
  switch (operator) {
    case "<":
      return left < right
    case "<=":
      return left <= right
    case ">":
      return left > right
    case ">=":
      return left >= right
  }
}

const said = (value: Schema.Json | undefined): string => (value === undefined ? "absent" : canonicalJson(value))

/** " (+1.25 %)" for numbers. */
export const apart = (before: Schema.Json | undefined, after: Schema.Json | undefined): string => {
  if (typeof before !== "number" || typeof after !== "number" || before === 0 || before === after) return ""
  const percent = ((after - before) / Math.abs(before)) * 100
  return ` (${percent > 0 ? "+" : "−"}${Math.abs(percent).toPrecision(3)} %)`
}

/**
 * By full name; by a part of it that fits one alone ("step", "base.step"); and val_loss or validation_loss means those of all training states.
 */
export const findMetrics = (
  query: string,
  metrics: ReadonlyArray<Metric>
): Result.Result<ReadonlyArray<Metric>, MetricUnknown> => {
  const exact = metrics.filter((metric) => metric.name === query)
  if (exact.length > 0) return Result.succeed(exact)
  const wanted = segments(query.replace(/(^|\.)val_loss$/u, "$1validation_loss"))
  const fits = metrics.filter((metric) => isPart(wanted, segments(metric.name)))
  const states = fits.filter((metric) => metric.type === "TrainingState")
  if (wanted.at(-1) === "validation_loss" && states.length > 0) return Result.succeed(states)
  if (fits.length === 1) return Result.succeed(fits)
  const names = metrics.map((metric) => metric.name)
  const suggestion = didYouMean(query, [...names, ...names.flatMap(shortNames), "val_loss"])
  return Result.fail(
    new MetricUnknown({
      metric: query,
      fits: fits.map((metric) => metric.name),
      known: names.length,
      ...(suggestion === undefined ? {} : { suggestion })
    })
  )
}

/** "base.state.steps" → "base.steps", "steps". */
const shortNames = (name: string): ReadonlyArray<string> => {
  const [stage = "", ...rest] = segments(name)
  const fact = rest.at(-1)
  return fact === undefined ? [] : [`${stage}.${fact}`, fact]
}

/** "scores.report.models[chat.model].acc" → scores, report, models[chat.model], acc. */
const segments = (name: string): ReadonlyArray<string> => name.match(/(?:\[[^\]]*\]|[^.[])+/gu) ?? []

/** The last segments are equal, and the others come in the same order. */
const isPart = (wanted: ReadonlyArray<string>, name: ReadonlyArray<string>): boolean => {
  if (wanted.length === 0 || wanted.at(-1) !== name.at(-1)) return false
  let next = 0
  for (const segment of name) if (segment === wanted[next]) next++
  return next === wanted.length
}
