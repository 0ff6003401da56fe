/**
 * The conditions of `checks` and `stop_if`: comparisons over names, joined by and, or, not.
 *
 *   condition  = conjunction { "or" conjunction }
 *   conjunction = factor { "and" factor }
 *   factor     = "not" factor | comparison
 *   comparison = operand [ ("==" | "!=" | "<" | "<=" | ">" | ">=") operand | "is" ["not"] "nan" ]
 *   operand    = number | text in quotes | true | false | null | name { "." name } | "(" condition ")"
 *
 * Numbers read as in the file: 1e6, 400_000. Evaluation knows three answers: what depends on a name without a value, or on NaN, is undecided.
 */
import { Result, type Schema } from "effect"

type Operator = "==" | "!=" | "<" | "<=" | ">" | ">="

export type Expression =
  | { readonly _tag: "Literal"; readonly value: string | number | boolean | null }
  | { readonly _tag: "Name"; readonly segments: ReadonlyArray<string> }
  | { readonly _tag: "Compare"; readonly operator: Operator; readonly left: Expression; readonly right: Expression }
  | { readonly _tag: "IsNan"; readonly operand: Expression }
  | { readonly _tag: "Not"; readonly operand: Expression }
  | { readonly _tag: "And" | "Or"; readonly left: Expression; readonly right: Expression }

export interface Condition {
  readonly expression: Expression
  /** "… after 1e8 tokens": the condition counts from there on. */
  readonly after: { readonly amount: number; readonly unit: string } | undefined
}

/** The failure says what is wrong and where in the text. */
export const parseCondition = (text: string): Result.Result<Condition, string> => {
  const tokens = tokenize(text)
  return Result.isFailure(tokens) ? Result.fail(tokens.failure) : new Parser(tokens.success).condition()
}

interface Token {
  readonly kind: "number" | "text" | "name" | "symbol" | "end"
  readonly text: string
  readonly value?: string | number
}

/** A name's parts may hold "-"; there is no subtraction that it could be. */
const patterns: ReadonlyArray<readonly [Token["kind"], RegExp]> = [
  ["number", /[-+]?(?:\d{1,3}(?:_\d{3})+|\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?![\w.])/uy],
  ["text", /"[^"]*"|'[^']*'/uy],
  ["name", /[A-Za-z_][\w-]*(?:\.(?:[\w-]+|"[^"]*"|'[^']*'))*/uy],
  ["symbol", /==|!=|<=|>=|<|>|\(|\)/uy]
]

const tokenize = (text: string): Result.Result<ReadonlyArray<Token>, string> => {
  const tokens: Array<Token> = []
  for (let at = 0; at < text.length;) {
    if (/\s/u.test(text[at] ?? "")) {
      at++
      continue
    }
    const token = tokenAt(text, at)
    if (token === undefined) return Result.fail(`cannot be read from "${text.slice(at)}" on${instead(text.slice(at))}`)
    tokens.push(token)
    at += token.text.length
  }
  return Result.succeed([...tokens, { kind: "end", text: "" }])
}

const tokenAt = (text: string, at: number): Token | undefined => {
  for (const [kind, pattern] of patterns) {
    pattern.lastIndex = at
    const found = pattern.exec(text)?.[0]
    if (found === undefined) continue
    if (kind === "number") return { kind, text: found, value: Number(found.replaceAll("_", "")) }
    return kind === "text" ? { kind, text: found, value: found.slice(1, -1) } : { kind, text: found }
  }
  return undefined
}

const instead = (rest: string): string => {
  const written = ["&&", "||", "!", "="].find((symbol) => rest.startsWith(symbol))
  const meant = { "&&": "and", "||": "or", "!": "not", "=": "==" }[written ?? ""]
  return meant === undefined ? "" : `; write ${meant} for ${written}`
}

const operators: ReadonlyArray<string> = ["==", "!=", "<", "<=", ">", ">="] satisfies ReadonlyArray<Operator>
const isOperator = (text: string): text is Operator => operators.includes(text)

/** Thrown inside the parser only, which turns it into a Result. */
class Unreadable extends Error {}

class Parser {
  readonly #tokens: ReadonlyArray<Token>
  #next = 0

  constructor(tokens: ReadonlyArray<Token>) {
    this.#tokens = tokens
  }

  condition(): Result.Result<Condition, string> {
    try {
      const expression = this.#disjunction()
      const after = this.#takes("after") ? this.#amount() : undefined
      const { kind, text } = this.#peek
      if (kind !== "end") {
        throw new Unreadable(
          isOperator(text)
            ? `compares more than twice at "${text}"; join two comparisons with and`
            : `expected and, or, or the end, not "${text}"`
        )
      }
      if (!mayDecide(expression)) throw new Unreadable("is no condition: it must compare something, as in loss < 5")
      return Result.succeed({ expression, after })
    } catch (error) {
      if (error instanceof Unreadable) return Result.fail(error.message)
      throw error
    }
  }

  get #peek(): Token {
    return this.#tokens[this.#next] ?? { kind: "end", text: "" }
  }

  #takes(word: string): boolean {
    if (this.#peek.kind === "text" || this.#peek.text !== word) return false
    this.#next++
    return true
  }

  #disjunction(): Expression {
    let left = this.#conjunction()
    while (this.#takes("or")) left = { _tag: "Or", left, right: this.#conjunction() }
    return left
  }

  #conjunction(): Expression {
    let left = this.#factor()
    while (this.#takes("and")) left = { _tag: "And", left, right: this.#factor() }
    return left
  }

  #factor(): Expression {
    if (this.#takes("not")) return { _tag: "Not", operand: this.#factor() }
    const left = this.#operand()
    const operator = this.#peek.text
    if (this.#peek.kind === "symbol" && isOperator(operator)) {
      this.#next++
      return { _tag: "Compare", operator, left, right: this.#operand() }
    }
    if (!this.#takes("is")) return left
    const negated = this.#takes("not")
    if (!this.#takes("nan") && !this.#takes("NaN")) {
      throw new Unreadable(`after "is" only nan can stand, not "${this.#peek.text}"; write == to compare`)
    }
    const isNan: Expression = { _tag: "IsNan", operand: left }
    return negated ? { _tag: "Not", operand: isNan } : isNan
  }

  #operand(): Expression {
    const token = this.#peek
    this.#next++
    if (token.kind === "number" || token.kind === "text") return { _tag: "Literal", value: token.value ?? null }
    if (token.text === "(") {
      const inner = this.#disjunction()
      if (!this.#takes(")")) throw new Unreadable('a "(" is not closed')
      return inner
    }
    if (token.kind !== "name" || reserved.includes(token.text)) {
      throw new Unreadable(`expected a name or a value, not ${token.kind === "end" ? "the end" : `"${token.text}"`}`)
    }
    if (token.text === "true" || token.text === "false") return { _tag: "Literal", value: token.text === "true" }
    if (token.text === "null") return { _tag: "Literal", value: null }
    return { _tag: "Name", segments: segmentsOf(token.text) }
  }

  #amount(): Condition["after"] {
    const [number, unit] = [this.#peek, this.#tokens[this.#next + 1]]
    if (typeof number.value !== "number" || number.value < 0 || unit?.kind !== "name") {
      throw new Unreadable('after "after" a number and its unit must stand, as in: after 1e8 tokens')
    }
    this.#next += 2
    return { amount: number.value, unit: unit.text }
  }
}

const reserved = ["and", "or", "not", "is", "after"]

const segmentsOf = (text: string): ReadonlyArray<string> =>
  Array.from(text.matchAll(/"([^"]*)"|'([^']*)'|[\w-]+/gu), ([whole, double, single]) => double ?? single ?? whole)

const mayDecide = (expression: Expression): boolean =>
  expression._tag !== "Literal" || typeof expression.value === "boolean"

/** Every name in it, in order, without repeats. */
export const namesIn = (expression: Expression): ReadonlyArray<ReadonlyArray<string>> => {
  const found = new Map<string, ReadonlyArray<string>>()
  const visit = (node: Expression): void => {
    if (node._tag === "Name") found.set(node.segments.join("."), node.segments)
    else if ("operand" in node) visit(node.operand)
    else if ("left" in node) [node.left, node.right].forEach(visit)
  }
  visit(expression)
  return Array.from(found.values())
}

/** A name's value, or why it has none. NaN is null, as in JSON. */
export type Lookup = (segments: ReadonlyArray<string>) => Result.Result<Schema.Json, string>

/** true, false, or why that cannot be said. */
export type Answer = boolean | { readonly undecided: string }

export const decideCondition = (expression: Expression, lookup: Lookup): Answer => {
  switch (expression._tag) {
    case "And":
    case "Or": {
      const decisive = expression._tag === "Or"
      const left = decideCondition(expression.left, lookup)
      if (left === decisive) return decisive
      const right = decideCondition(expression.right, lookup)
      return right === decisive || typeof left === "boolean" ? right : left
    }
    case "Not": {
      const answer = decideCondition(expression.operand, lookup)
      return typeof answer === "boolean" ? !answer : answer
    }
    case "IsNan": {
      const value = valueOf(expression.operand, lookup)
      return Result.isFailure(value) ? { undecided: value.failure } : value.success === null
    }
    case "Compare": {
      const [left, right] = [valueOf(expression.left, lookup), valueOf(expression.right, lookup)]
      if (Result.isFailure(left)) return { undecided: left.failure }
      if (Result.isFailure(right)) return { undecided: right.failure }
      return compare(expression.operator, left.success, right.success)
    }
    default: {
      const value = valueOf(expression, lookup)
      if (Result.isFailure(value)) return { undecided: value.failure }
      if (typeof value.success === "boolean") return value.success
      return { undecided: `${JSON.stringify(value.success)} is neither true nor false` }
    }
  }
}

const valueOf = (expression: Expression, lookup: Lookup): Result.Result<Schema.Json, string> => {
  if (expression._tag === "Literal") return Result.succeed(expression.value)
  if (expression._tag === "Name") return lookup(expression.segments)
  const answer = decideCondition(expression, lookup)
  return typeof answer === "boolean" ? Result.succeed(answer) : Result.fail(answer.undecided)
}

const compare = (operator: Operator, left: Schema.Json, right: Schema.Json): Answer => {
  if (operator === "==") return left === right
  if (operator === "!=") return left !== right
  const comparable =
    (typeof left === "number" && typeof right === "number") || (typeof left === "string" && typeof right === "string")
  if (!comparable) return { undecided: `${JSON.stringify(left)} ${operator} ${JSON.stringify(right)} has no answer` }
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
