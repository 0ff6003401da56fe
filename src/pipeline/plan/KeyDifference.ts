/** What differs between two stage keys, field by field, and what each difference does to results that exist. */
import type { Schema } from "effect"
import { canonicalJson } from "../../artifacts/CanonicalJson.ts"
import type { Edge } from "../file/ResolvedPipeline.ts"
import { isObject } from "../file/Settings.ts"
import type { KeyParts } from "./StageKey.ts"
import type { AnyStageType, ChangeClass, EncodedParams } from "../StageType.ts"

export type Difference =
  /** undefined: the parameter or key is not there on that side. */
  | {
      readonly _tag: "ParameterChanged"
      readonly path: string
      readonly before: Schema.Json | undefined
      readonly after: Schema.Json | undefined
      readonly change: ChangeClass
    }
  | { readonly _tag: "InputChanged"; readonly port: string; readonly origin: string; readonly change: ChangeClass }
  /** What the stage reads from outside the pipeline is not what it was. */
  | { readonly _tag: "ObservationChanged"; readonly change: ChangeClass }
  | { readonly _tag: "VersionChanged"; readonly before: number; readonly after: number }
  | { readonly _tag: "TypeChanged"; readonly before: string; readonly after: string }
  /** A plugin's module, or what it imports, is not what it was. */
  | { readonly _tag: "CodeChanged" }

/** A difference in words: "lr.peak: 0.0004 → 0.001". */
export const describeDifference = (difference: Difference): string => {
  switch (difference._tag) {
    case "ParameterChanged":
      return `${difference.path}: ${describeChange(difference.before, difference.after)}`
    case "InputChanged":
      return `input ${difference.port} (${difference.origin}) changed`
    case "ObservationChanged":
      return "what it reads from outside changed"
    case "VersionChanged":
      return `stage version: ${difference.before} → ${difference.after}`
    case "TypeChanged":
      return `stage type: ${difference.before} → ${difference.after}`
    case "CodeChanged":
      return "stage code changed"
  }
}

/** Of two lists only what came and went: `+["mmlu"]`. */
export const describeChange = (before: Schema.Json | undefined, after: Schema.Json | undefined): string => {
  if (Array.isArray(before) && Array.isArray(after)) {
    const [old, now] = [new Set(before.map(canonicalJson)), new Set(after.map(canonicalJson))]
    const gone = Array.from(old).filter((item) => !now.has(item))
    const come = Array.from(now).filter((item) => !old.has(item))
    const kept = gone.length < old.size
    if (kept && come.length + gone.length > 0) {
      return [...come.map((item) => `+${item}`), ...gone.map((item) => `−${item}`)].join(" ")
    }
  }
  return `${describeValue(before)} → ${describeValue(after)}`
}

const describeValue = (value: Schema.Json | undefined): string =>
  value === undefined ? "absent" : canonicalJson(value)

export const changeOf = (difference: Difference): ChangeClass =>
  "change" in difference ? difference.change : "identity"

const strength: ReadonlyArray<ChangeClass> = ["operational", "additive", "continuation", "identity"]

/** The class of all differences together: the one that spares least. */
export const strongest = (changes: Iterable<ChangeClass>): ChangeClass =>
  Array.from(changes).reduce<ChangeClass>(
    (most, change) => (strength.indexOf(change) > strength.indexOf(most) ? change : most),
    "operational"
  )

/** Inputs and observations are compared only where both sides know them. */
export const differences = (
  type: AnyStageType,
  before: KeyParts,
  after: Pick<KeyParts, "stageType" | "stageVersion" | "params" | "code"> & Partial<KeyParts>,
  edges: Readonly<Record<string, ReadonlyArray<Edge>>>
): ReadonlyArray<Difference> => {
  if (before.stageType !== after.stageType) {
    return [{ _tag: "TypeChanged", before: before.stageType, after: after.stageType }]
  }
  const found: Array<Difference> = []
  if (before.stageVersion !== after.stageVersion) {
    found.push({ _tag: "VersionChanged", before: before.stageVersion, after: after.stageVersion })
  }
  if (before.code !== after.code) found.push({ _tag: "CodeChanged" })
  found.push(...parameterDifferences(type, before.params, after.params))
  if (after.observed !== undefined && canonicalJson(before.observed) !== canonicalJson(after.observed)) {
    found.push({ _tag: "ObservationChanged", change: type.observationChange ?? "identity" })
  }
  if (after.inputs !== undefined) {
    for (const port of unionOfKeys(before.inputs, after.inputs)) {
      if (canonicalJson(before.inputs[port] ?? []) === canonicalJson(after.inputs[port] ?? [])) continue
      const origin = (edges[port] ?? []).map((edge) => `${edge.stage}.${edge.port}`).join(", ")
      const change = inputChange(type, port, before.inputs[port] ?? [], after.inputs[port] ?? [])
      found.push({ _tag: "InputChanged", port, origin, change })
    }
  }
  return found
}

/** An additive port keeps what belongs to the artifacts that stayed: where a port that must be joined keeps none, nothing is left to add to. */
const inputChange = (
  type: AnyStageType,
  name: string,
  before: ReadonlyArray<string>,
  after: ReadonlyArray<string>
): ChangeClass => {
  const port = type.inputs[name]
  if (port?.change !== "additive") return "identity"
  return port.optional === true || after.some((artifact) => before.includes(artifact)) ? "additive" : "identity"
}

/** Parameter by parameter; inside a parameter leaf by leaf, lists being leaves. Each leaf carries its parameter's class. */
export const parameterDifferences = (
  type: AnyStageType,
  before: EncodedParams,
  after: EncodedParams
): ReadonlyArray<Difference & { readonly _tag: "ParameterChanged" }> =>
  inOrderOf(type, unionOfKeys(before, after)).flatMap((name) => {
    const leaves = changedLeaves(before[name], after[name], name)
    if (leaves.length === 0) return []
    const change = classOf(type, name, before, after)
    return leaves.map((leaf) => ({ _tag: "ParameterChanged", ...leaf, change }) as const)
  })

/** As the stage type declares them; names that it no longer has come last. */
const inOrderOf = (type: AnyStageType, names: ReadonlyArray<string>): ReadonlyArray<string> => {
  const declared = Object.keys(type.params)
  return [...declared.filter((name) => names.includes(name)), ...names.filter((name) => !declared.includes(name))]
}

/** A parameter that one side lacks changed its type's definition: nothing of the old result can be vouched for. */
const classOf = (type: AnyStageType, name: string, before: EncodedParams, after: EncodedParams): ChangeClass => {
  const rule = type.params[name]?.change
  if (rule === undefined) return "identity"
  if (typeof rule === "string") return rule
  const [old, now] = [before[name], after[name]]
  if (old === undefined || now === undefined) return "identity"
  return rule({ before: old, after: now, paramsBefore: before, paramsAfter: after })
}

interface ChangedLeaf {
  readonly path: string
  readonly before: Schema.Json | undefined
  readonly after: Schema.Json | undefined
}

export const changedLeaves = (
  before: Schema.Json | undefined,
  after: Schema.Json | undefined,
  path: string
): ReadonlyArray<ChangedLeaf> => {
  if (isObject(before) && isObject(after)) {
    return unionOfKeys(before, after).flatMap((key) =>
      changedLeaves(before[key], after[key], path === "" ? key : `${path}.${key}`)
    )
  }
  const same =
    before === undefined || after === undefined ? before === after : canonicalJson(before) === canonicalJson(after)
  return same ? [] : [{ path, before, after }]
}

export const unionOfKeys = (a: object, b: object): ReadonlyArray<string> =>
  Array.from(new Set([...Object.keys(a), ...Object.keys(b)]))
