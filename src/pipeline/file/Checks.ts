/** `checks`: conditions on the facts of a stage's outputs. A result that fails one is not published, and a stored one does not serve. */
import { Result, type Schema } from "effect"
import type { Facts } from "../../artifacts/Artifact.ts"
import { type Diagnostic, didYouMean } from "./Diagnostics.ts"
import { type Condition, decideCondition, type Expression, type Lookup, namesIn, parseCondition } from "./Expression.ts"
import { describeVia } from "./Overlay.ts"
import { StageError } from "../StageType.ts"
import { diagnose, type Node, placeOf } from "./YamlSource.ts"

export interface Check {
  /** As the file has it, variables replaced. */
  readonly text: string
  /** "file:line:column" or "-S base.checks=…". */
  readonly place: string
  readonly expression: Expression
}

/** `checks`: one condition or a list of them. */
export const decodeChecks = (node: Node | undefined, path: string, report: Array<Diagnostic>): ReadonlyArray<Check> =>
  decodeConditions(node, path, report).flatMap(({ condition, node, path, text }) => {
    if (condition.after === undefined) return [{ text, place: placeOf(node.span), expression: condition.expression }]
    report.push(diagnose(node.span, path, '"after" belongs into stop_if: a check looks at the finished result'))
    return []
  })

interface WrittenCondition {
  readonly text: string
  readonly condition: Condition
  readonly node: Node
  readonly path: string
}

/** One condition or a list of them; what cannot be read is reported and left out. */
export const decodeConditions = (
  node: Node | undefined,
  path: string,
  report: Array<Diagnostic>
): ReadonlyArray<WrittenCondition> => {
  if (node === undefined || (node._tag === "scalar" && node.value === null)) return []
  const items = node._tag === "sequence" ? node.items : [node]
  return items.flatMap((item, index) => {
    const inner = node._tag === "sequence" ? `${path}[${index}]` : path
    if (item._tag !== "scalar" || typeof item.value !== "string") {
      report.push(diagnose(item.span, inner, 'must be a condition in quotes, as in "loss < 5"'))
      return []
    }
    const condition = parseCondition(item.value)
    if (Result.isSuccess(condition))
      return [{ text: item.value, condition: condition.success, node: item, path: inner }]
    report.push(diagnose(item.span, inner, `${condition.failure}${describeVia(item)}`))
    return []
  })
}

export interface FailedCheck {
  readonly text: string
  readonly place: string
  /** 'check "tokens >= 1000" (pipeline.yaml:9:14): tokens is 471'. */
  readonly message: string
}

/** Those of the stage's checks that its outputs' facts (by port) do not meet; one that cannot be decided is not met. */
export const failedChecks = (
  stage: { readonly checks: ReadonlyArray<Check> },
  facts: Readonly<Record<string, Facts>>
): ReadonlyArray<FailedCheck> =>
  stage.checks.flatMap(({ expression, place, text }) => {
    const lookup = lookupIn(facts)
    const answer = decideCondition(expression, lookup)
    if (answer === true) return []
    const found = namesIn(expression).flatMap((segments) => {
      const value = lookup(segments)
      return Result.isSuccess(value) ? [`${segments.join(".")} is ${JSON.stringify(value.success)}`] : []
    })
    const reasons = answer === false ? found : [...found, answer.undecided]
    return [{ text, place, message: `check "${text}" (${place}): ${reasons.join("; ") || "is never true"}` }]
  })

/** The failure of a stage whose new result (cached: whose stored result) does not meet these checks. */
export const checkFailure = (failed: ReadonlyArray<FailedCheck>, cached: boolean): StageError =>
  new StageError({
    failure: "check-failed",
    message: `${cached ? "the stored result" : "the result"} does not meet ${failed.map(({ message }) => message).join("; nor ")}`,
    next: cached
      ? "correct the check, or change what makes the result; a check that is met takes the stored result as it is"
      : "correct the check and run again, which publishes the result that is kept, without the work; or change what makes it"
  })

/** `fact` where one port alone has it, `port.fact` else; further parts lead inwards, numbers into lists. */
const lookupIn =
  (facts: Readonly<Record<string, Facts>>): Lookup =>
  (segments) => {
    const name = segments.join(".")
    const [first = "", ...rest] = segments
    const ofPort = Object.hasOwn(facts, first) && rest.length > 0 ? inside(facts[first], rest) : undefined
    if (ofPort !== undefined) return Result.succeed(ofPort)
    const holders = Object.entries(facts).filter(([, own]) => inside(own, segments) !== undefined)
    const [only] = holders
    if (only !== undefined && holders.length === 1) return Result.succeed(inside(only[1], segments) ?? null)
    if (only !== undefined) {
      return Result.fail(`${name} is ambiguous: write ${holders.map(([port]) => `${port}.${name}`).join(" or ")}`)
    }
    const known = Object.entries(facts).flatMap(([port, own]) =>
      namesOf(own).flatMap((fact) => [fact, `${port}.${fact}`])
    )
    const meant = didYouMean(name, known)
    const plain = known.filter((_, index) => index % 2 === 0)
    const hint = meant === undefined ? `there are ${plain.join(", ") || "none"}` : `did you mean ${meant}?`
    return Result.fail(`no fact "${name}"; ${hint}`)
  }

const inside = (value: Schema.Json | undefined, segments: ReadonlyArray<string>): Schema.Json | undefined => {
  const [segment, ...rest] = segments
  if (segment === undefined) return value
  if (typeof value !== "object" || value === null) return undefined
  return inside(Object.entries(value).find(([key]) => key === segment)?.[1], rest)
}

/** Names of the facts that are plain values, as conditions write them. */
const namesOf = (value: Schema.Json, path = ""): ReadonlyArray<string> =>
  typeof value === "object" && value !== null
    ? Object.entries(value).flatMap(([key, inner]) => namesOf(inner, path === "" ? key : `${path}.${key}`))
    : [path]
