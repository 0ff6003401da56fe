/**
 * What is laid over a pipeline file before it is decoded: profiles, -S overrides, and ${vars.name}. All of it works on trees with positions, so
 * that every value still knows where it came from.
 */
import { type Diagnostic, didYouMean } from "./Diagnostics.ts"
import { isMatrixReference } from "./Matrix.ts"
import {
  diagnose,
  type Entry,
  mapEntries,
  mapItems,
  type MappingNode,
  type Node,
  parseYaml,
  placeOf,
  type ScalarNode,
  Source,
  type Span
} from "./YamlSource.ts"

/** Blocks that may stand in a stage, hence may follow a stage's name in an override's path; all else is a parameter. */
export const stageFields = [
  "uses",
  "matrix",
  "max_parallel",
  "in",
  "with",
  "resources",
  "executor",
  "retry",
  "timeout",
  "grace",
  "after",
  "checks",
  "stop_if",
  "secrets"
] as const

export const topLevelFields = ["version", "name", "vars", "defaults", "secrets", "price", "stages", "profiles"] as const

/** What a profile may lay over the file. `executor` is short for `defaults: { executor }`. */
export const profileFields = ["vars", "defaults", "executor", "secrets", "price", "stages"] as const

/** Mappings merge key by key; everything else is replaced. */
export const merge = (base: Node, overlay: Node): Node => {
  if (base._tag !== "mapping" || overlay._tag !== "mapping") return overlay
  const entries = new Map(base.entries)
  for (const [key, entry] of overlay.entries) {
    const before = entries.get(key)
    entries.set(key, before === undefined ? entry : { key: entry.key, value: merge(before.value, entry.value) })
  }
  return { ...base, entries }
}

/** The document with the named profiles laid over it, in order. */
export const applyProfiles = (
  root: MappingNode,
  names: ReadonlyArray<string>,
  report: Array<Diagnostic>
): { readonly root: MappingNode; readonly spans: ReadonlyMap<string, Span> } => {
  const spans = new Map<string, Span>()
  const declared = root.entries.get("profiles")?.value
  const profiles = declared?._tag === "mapping" ? declared.entries : new Map<string, Entry>()
  if (declared !== undefined && declared._tag !== "mapping") {
    report.push(diagnose(declared.span, "profiles", "must be a mapping of profile name to overlay"))
  }
  for (const [name, { value }] of profiles) {
    const path = `profiles.${name}`
    if (value._tag !== "mapping")
      report.push(diagnose(value.span, path, `must be a mapping of ${profileFields.join(", ")}`))
    else checkKeys(value, path, profileFields, "a profile", report)
  }
  let merged: Node = root
  for (const name of names) {
    const profile = profiles.get(name)
    if (profile === undefined) {
      const known = Array.from(profiles.keys())
      report.push({
        place: `-p ${name}`,
        path: "",
        message: `no profile "${name}" in the file${known.length === 0 ? "" : ` (it has ${known.join(", ")})`}`,
        ...suggest(name, known)
      })
    } else if (profile.value._tag === "mapping") {
      spans.set(name, profile.value.span)
      merged = merge(merged, longForm(profile.value))
    }
  }
  return { root: merged._tag === "mapping" ? merged : root, spans }
}

const longForm = (profile: MappingNode): MappingNode => {
  const executor = profile.entries.get("executor")
  if (executor === undefined) return profile
  const entries = new Map(profile.entries)
  entries.delete("executor")
  const block: MappingNode = { ...profile, entries: new Map([["executor", executor]]) }
  const defaults = entries.get("defaults")
  return {
    ...profile,
    entries: entries.set("defaults", {
      key: defaults?.key ?? executor.key,
      value: defaults === undefined ? block : merge(defaults.value, block)
    })
  }
}

export const suggest = (name: string, candidates: Iterable<string>): { readonly suggestion?: string } => {
  const suggestion = didYouMean(name, candidates)
  return suggestion === undefined ? {} : { suggestion }
}

/** Reports every key of `node` that is not among `allowed`. */
export const checkKeys = (
  node: MappingNode,
  path: string,
  allowed: ReadonlyArray<string>,
  what: string,
  report: Array<Diagnostic>
): void => {
  for (const [key, entry] of node.entries) {
    if (allowed.includes(key)) continue
    const inner = path === "" ? key : `${path}.${key}`
    const message = `unknown key "${key}"; ${what} has ${allowed.length === 0 ? "none" : allowed.join(", ")}`
    report.push(diagnose(entry.key, inner, message, { suggestion: didYouMean(key, allowed) }))
  }
}

/**
 * Applies one "path=value". The path is `vars.x`, `stages.base.with.max_tokens`, or short `base.max_tokens`; the value is YAML and may refer to
 * `vars`.
 */
export const applyOverride = (
  root: MappingNode,
  text: string,
  vars: Variables,
  report: Array<Diagnostic>
): MappingNode => {
  const label = `-S ${text}`
  const fail = (message: string, options?: { readonly suggestion?: string }) => {
    report.push({ place: label, path: "", message, ...options })
    return root
  }
  const equals = text.indexOf("=")
  if (equals < 1) return fail("must read path=value, say vars.budget=1000")
  const resolved = overridePath(root, text.slice(0, equals).split("."))
  if (!Array.isArray(resolved)) return fail(resolved.message, suggest(resolved.name, resolved.candidates))
  const source = new Source("override", label, text.slice(equals + 1))
  const empty: ScalarNode = { _tag: "scalar", value: null, span: { source, start: 0, end: 0 } }
  const parsed = source.text.trim() === "" ? { root: empty, diagnostics: [] } : parseYaml(source)
  report.push(...parsed.diagnostics)
  if (parsed.root === undefined) return root
  const result = replaceAt(root, resolved, interpolate(parsed.root, resolved.join("."), vars, report))
  if (result === undefined)
    return fail(`no item ${resolved.join(".")}: a list takes the index of an item that is there`)
  return result._tag === "mapping" ? result : root
}

interface UnknownPath {
  readonly message: string
  readonly name: string
  readonly candidates: ReadonlyArray<string>
}

const overridePath = (root: MappingNode, segments: ReadonlyArray<string>): Array<string> | UnknownPath => {
  const stages = keysOf(root, "stages")
  const [first = "", second, ...rest] = segments
  if (first === "vars") {
    const vars = keysOf(root, "vars")
    if (second !== undefined && vars.includes(second)) return [...segments]
    return { message: `no variable "${second ?? ""}"`, name: second ?? "", candidates: vars }
  }
  if (first === "defaults" || first === "price" || first === "secrets") return [...segments]
  if (first === "name" && second === undefined) return [...segments]
  if (/[[\]]/u.test(segments.join("."))) {
    const message = "an override addresses all instances of a matrix together: write the stage's name without [...]"
    return { message, name: first.replace(/\[.*/u, ""), candidates: stages }
  }
  if (first === "stages") {
    if (second !== undefined && stages.includes(second)) return stagePath(second, rest)
    return { message: `no stage "${second ?? ""}"`, name: second ?? "", candidates: stages }
  }
  if (stages.includes(first)) return stagePath(first, second === undefined ? [] : [second, ...rest])
  return {
    message: `unknown path: "${first}" is no stage, nor vars, defaults, secrets, price or stages`,
    name: first,
    candidates: [...stages, "vars", "defaults", "secrets", "price", "stages"]
  }
}

const stagePath = (stage: string, rest: ReadonlyArray<string>): Array<string> | UnknownPath => {
  const [field] = rest
  if (field === undefined || field === "") {
    return { message: `which field of stage "${stage}"? Write ${stage}.<parameter>=value`, name: "", candidates: [] }
  }
  const isField = (stageFields as ReadonlyArray<string>).includes(field)
  return ["stages", stage, ...(isField ? [] : ["with"]), ...rest]
}

const keysOf = (root: MappingNode, key: string): ReadonlyArray<string> => {
  const node = root.entries.get(key)?.value
  return node?._tag === "mapping" ? Array.from(node.entries.keys()) : []
}

/** Undefined when the path runs through a list at an index that does not exist. */
const replaceAt = (node: Node | undefined, path: ReadonlyArray<string>, value: Node): Node | undefined => {
  const [segment, ...rest] = path
  if (segment === undefined) return value
  if (node?._tag === "sequence") {
    const index = Number(segment)
    const item = node.items[index]
    if (item === undefined) return undefined
    const replaced = replaceAt(item, rest, value)
    return replaced === undefined ? undefined : { ...node, items: node.items.with(index, replaced) }
  }
  const entries = node?._tag === "mapping" ? new Map(node.entries) : new Map<string, Entry>()
  const before = entries.get(segment)
  const replaced = replaceAt(before?.value, rest, value)
  if (replaced === undefined) return undefined
  entries.set(segment, { key: before?.key ?? value.span, value: replaced })
  return { _tag: "mapping", entries, span: node?._tag === "mapping" ? node.span : value.span }
}

/** Replaces ${vars.name} in every string below `node`; a string that is nothing else takes the variable's value with its type. */
export const interpolate = (node: Node, path: string, vars: Variables, report: Array<Diagnostic>): Node => {
  switch (node._tag) {
    case "mapping":
      return mapEntries(node, (value, key) => interpolate(value, path === "" ? key : `${path}.${key}`, vars, report))
    case "sequence":
      return mapItems(node, (item, index) => interpolate(item, `${path}[${index}]`, vars, report))
    case "scalar":
      return typeof node.value === "string" && node.value.includes("${") ? vars.expand(node, path, report) : node
  }
}

/** What an axis is in a stage, its own block says; that is read once all overlays are applied. */
const leftToMatrix = (reference: string, path: string): boolean =>
  path.startsWith("stages.") && isMatrixReference(reference)

/** The file's variables; they may refer to each other. */
export class Variables {
  readonly #declared: ReadonlyMap<string, Entry>
  readonly #expanding = new Set<string>()
  /** Variables of circles that were reported: once is enough. */
  readonly #circular = new Set<string>()

  constructor(declared: ReadonlyMap<string, Entry>) {
    this.#declared = declared
  }

  expand(node: ScalarNode, path: string, report: Array<Diagnostic>): Node {
    const text = String(node.value)
    const whole = /^\$\{([^}]*)\}$/u.exec(text)
    if (whole !== null) {
      if (leftToMatrix(whole[1] ?? "", path)) return node
      const value = this.#lookup(whole[1] ?? "", node, path, report)
      if (value?.node._tag !== "scalar") return value?.node ?? node
      return { ...value.node, span: node.span, via: value.node.via ?? { name: value.name, span: value.node.span } }
    }
    let via: ScalarNode["via"]
    const expanded = text.replaceAll(/\$\{([^}]*)\}/gu, (reference, inner: string) => {
      if (leftToMatrix(inner, path)) return reference
      const value = this.#lookup(inner, node, path, report)
      if (value === undefined) return reference
      if (value.node._tag === "scalar") {
        via ??= { name: value.name, span: value.node.span }
        return String(value.node.value)
      }
      report.push(diagnose(node.span, path, `${value.name} is no plain value, so it cannot stand inside a text`))
      return reference
    })
    return { ...node, value: expanded, ...(via === undefined ? {} : { via }) }
  }

  #lookup(
    reference: string,
    at: ScalarNode,
    path: string,
    report: Array<Diagnostic>
  ): { readonly name: string; readonly node: Node } | undefined {
    const name = /^\s*vars\.([\w-]+)\s*$/u.exec(reference)?.[1]
    const known = Array.from(this.#declared.keys())
    if (name === undefined) {
      const message = isMatrixReference(reference)
        ? `\${${reference}} has a meaning only in a stage with a matrix`
        : `\${${reference}} means nothing; references read \${vars.name}`
      report.push(
        diagnose(at.span, path, message, {
          suggestion: didYouMean(
            reference,
            known.map((key) => `vars.${key}`)
          )
        })
      )
      return undefined
    }
    const entry = this.#declared.get(name)
    if (entry === undefined) {
      const suggestion = didYouMean(name, known)
      const message = `no variable "${name}" in vars`
      report.push(
        diagnose(at.span, path, message, { suggestion: suggestion === undefined ? undefined : `vars.${suggestion}` })
      )
      return undefined
    }
    if (this.#circular.has(name)) return undefined
    if (this.#expanding.has(name)) {
      const circle = [...this.#expanding, name]
      for (const member of circle) this.#circular.add(member)
      report.push(diagnose(at.span, path, `vars.${name} refers to itself (${circle.join(" → ")})`))
      return undefined
    }
    this.#expanding.add(name)
    const node = interpolate(entry.value, `vars.${name}`, this, report)
    this.#expanding.delete(name)
    return { name: `vars.${name}`, node }
  }
}

/** " (vars.budget from -S vars.budget=x)" for a value that a variable brought, else "". */
export const describeVia = (node: Node): string =>
  node._tag === "scalar" && node.via !== undefined ? ` (${node.via.name} from ${placeOf(node.via.span)})` : ""
