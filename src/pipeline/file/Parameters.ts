/** Decodes a stage's `with` block through its type's schemas, and turns schema issues into diagnostics that point at the source. */
import { Effect, Result, Schema, SchemaIssue } from "effect"
import { type Diagnostic, didYouMean } from "./Diagnostics.ts"
import { describeVia } from "./Overlay.ts"
import type { AnyStageType, Decoded, Parameter, Parameters } from "../StageType.ts"
import { diagnose, type MappingNode, type Node, nodeAt, type Span, toJson } from "./YamlSource.ts"

const strict = { errors: "all", onExcessProperty: "error", reportInput: true } as const

/** One fault in a value. `names` are the valid ones where a name was expected. */
export interface Fault {
  readonly path: ReadonlyArray<PropertyKey>
  readonly message: string
  readonly found?: string
  readonly names?: ReadonlyArray<string>
  /** The fault is the key at `path`, not its value. */
  readonly atKey?: boolean
}

const standard = SchemaIssue.makeFormatterStandardSchemaV1()

/** A schema issue as a flat list, in the words of the file. */
export const faultsOf = (issue: SchemaIssue.Issue, path: ReadonlyArray<PropertyKey> = []): ReadonlyArray<Fault> => {
  switch (issue._tag) {
    case "Pointer":
      return faultsOf(issue.issue, [...path, ...issue.path])
    case "Encoding":
      return faultsOf(issue.issue, path)
    case "Composite":
      return issue.issues.flatMap((inner) => faultsOf(inner, path))
    case "UnexpectedKey": {
      const names =
        issue.ast._tag === "Objects" ? issue.ast.propertySignatures.map((property) => String(property.name)) : []
      const key = String(path.at(-1))
      return [{ path, message: `unknown key "${key}"; known are ${names.join(", ")}`, found: key, names, atKey: true }]
    }
    case "MissingKey":
      return [{ path, message: `missing key "${String(path.at(-1))}"` }]
    case "AnyOf": {
      const literals = literalsOf(issue)
      const input = SchemaIssue.hasInput(issue) ? issue.input : undefined
      if (typeof input === "string" && literals.length > 0) {
        const message = `expected one of ${literals.join(", ")}, got "${input}"`
        return [{ path, message, found: input, names: literals }]
      }
      // A union of shapes: the alternative with the fewest faults is the one that was meant.
      const alternatives = issue.issues
        .map((inner) => faultsOf(inner, path))
        .sort((a, b) => closeness(a, path) - closeness(b, path))
      return alternatives[0] ?? leaf(issue, path)
    }
    default:
      return leaf(issue, path)
  }
}

/** Alternatives that fail further inside come first: their outer shape fits. */
const closeness = (faults: ReadonlyArray<Fault>, path: ReadonlyArray<PropertyKey>): number =>
  faults.length + (faults.some((fault) => fault.path.length === path.length) ? 1000 : 0)

const leaf = (issue: SchemaIssue.Issue, path: ReadonlyArray<PropertyKey>): ReadonlyArray<Fault> =>
  standard(issue).issues.map(({ message }) => ({ path, message: message.charAt(0).toLowerCase() + message.slice(1) }))

const literalsOf = (issue: SchemaIssue.AnyOf): ReadonlyArray<string> =>
  issue.ast._tag === "Union"
    ? issue.ast.types.flatMap((type) =>
        type._tag === "Literal" && typeof type.literal === "string" ? [type.literal] : []
      )
    : []

/** Decodes one value and encodes it again, so that two spellings of one value become equal. */
export const canonical = (
  schema: Schema.Codec<unknown, unknown>,
  value: unknown
): Result.Result<Schema.Json, ReadonlyArray<Fault>> =>
  Schema.decodeUnknownResult(
    schema,
    strict
  )(value).pipe(
    Result.mapError((error) => faultsOf(error.issue)),
    Result.flatMap((decoded) =>
      Result.mapError(Schema.encodeResult(schema)(decoded), (error) => faultsOf(error.issue))
    ),
    Result.flatMap((encoded) =>
      Result.mapError(Schema.decodeUnknownResult(Schema.Json)(withoutUndefined(encoded)), (error) =>
        faultsOf(error.issue)
      )
    )
  )

const known = new WeakMap<Parameter, WeakMap<object, ReturnType<typeof canonical>>>()

/** The parameter's value, or its default: decoded once, however many stages share it (defaults, instances of a matrix, anchors). */
const canonicalOnce = (parameter: Parameter, value: Node | undefined): ReturnType<typeof canonical> => {
  const results = known.get(parameter) ?? new WeakMap<object, ReturnType<typeof canonical>>()
  known.set(parameter, results)
  const subject = value ?? parameter
  const before = results.get(subject)
  if (before !== undefined) return before
  const result = canonical(parameter.schema, value === undefined ? parameter.default : toJson(value))
  results.set(subject, result)
  return result
}

/** Optional keys may come out of a codec as undefined; in JSON they are absent. */
const withoutUndefined = (value: unknown): unknown => {
  if (Array.isArray(value)) return value.map(withoutUndefined)
  if (typeof value !== "object" || value === null) return value
  return Object.fromEntries(
    Object.entries(value).flatMap(([key, inner]) => (inner === undefined ? [] : [[key, withoutUndefined(inner)]]))
  )
}

/**
 * The stage's parameters in canonical encoded form, defaults filled in. Faults are reported; a parameter with faults is left out. `block` is
 * absent when the stage has no `with`; `owner` is where a missing parameter is reported.
 */
export const decodeBlock = (
  type: Pick<AnyStageType, "name" | "params">,
  block: MappingNode | undefined,
  owner: Span,
  path: string,
  report: Array<Diagnostic>
): Readonly<Record<string, Schema.Json>> => {
  const names = Object.keys(type.params)
  for (const [key, entry] of block?.entries ?? []) {
    if (key in type.params) continue
    const message = `unknown parameter "${key}" of ${type.name}; it has ${names.join(", ") || "none"}`
    report.push(diagnose(entry.key, `${path}.${key}`, message, { suggestion: didYouMean(key, names) }))
  }
  const params: Record<string, Schema.Json> = {}
  for (const [name, parameter] of Object.entries(type.params)) {
    const entry = block?.entries.get(name)
    if (entry === undefined && !("default" in parameter)) {
      report.push(
        diagnose(owner, `${path}.${name}`, `missing parameter "${name}" of ${type.name}: ${parameter.describe}`)
      )
      continue
    }
    const result = canonicalOnce(parameter, entry?.value)
    if (Result.isSuccess(result)) params[name] = result.success
    else
      for (const fault of result.failure)
        report.push(located(fault, entry?.value, entry?.key ?? owner, `${path}.${name}`))
  }
  return params
}

const located = (fault: Fault, value: Node | undefined, owner: Span, path: string): Diagnostic => {
  const full = fault.path.reduce<string>(
    (joined, segment) => (typeof segment === "number" ? `${joined}[${segment}]` : `${joined}.${String(segment)}`),
    path
  )
  const suggestion = fault.found === undefined ? undefined : didYouMean(fault.found, fault.names ?? [])
  if (value === undefined) return diagnose(owner, full, `default value: ${fault.message}`, { suggestion })
  const { node } = nodeAt(value, fault.path)
  const parent = nodeAt(value, fault.path.slice(0, -1)).node
  const key = fault.atKey && parent._tag === "mapping" ? parent.entries.get(String(fault.path.at(-1)))?.key : undefined
  // A missing key has no place of its own: the mapping that lacks it stands for it.
  return diagnose(key ?? node.span, full, fault.message + describeVia(node), { suggestion })
}

/** Parameters from their canonical form back to what `run` and `observe` take. For values that `decodeBlock` let through. */
export const decodeParams = (
  type: AnyStageType,
  params: Readonly<Record<string, Schema.Json>>
): Effect.Effect<Decoded<Parameters>, Schema.SchemaError> =>
  Effect.forEach(Object.entries(type.params), ([name, parameter]) =>
    Effect.map(Schema.decodeEffect(parameter.schema)(params[name]), (value) => [name, value] as const)
  ).pipe(Effect.map((entries) => Object.fromEntries(entries)))
