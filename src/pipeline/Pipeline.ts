/** Reads a pipeline file: YAML, profiles, overrides, variables, stage types; all errors at once, each with its place. */
import { Effect, FileSystem, Path } from "effect"
import { type Diagnostic, didYouMean, PipelineInvalid } from "./Diagnostics.ts"
import { checkEdges, type GraphStage, topologicalOrder } from "./Graph.ts"
import { applyOverride, applyProfiles, checkKeys, interpolate, stageFields, Variables } from "./Overlay.ts"
import { decodeBlock } from "./Parameters.ts"
import type { Origin, ResolvedPipeline, ResolvedStage, RetryPolicy } from "./ResolvedPipeline.ts"
import {
  decodeAfter,
  decodeInputs,
  decodeResources,
  decodeRetry,
  defaultGrace,
  defaultRetry,
  durationAt,
  mappingAt
} from "./StageBlock.ts"
import { StageRegistry } from "./StageRegistry.ts"
import type { AnyStageType } from "./StageType.ts"
import {
  diagnose,
  type Entry,
  type MappingNode,
  type Node,
  originOf,
  parseYaml,
  Source,
  type Span,
  toJson
} from "./YamlSource.ts"

/** Keys of the file, in the order in which the formatter writes them. */
export const topLevel = ["version", "name", "vars", "defaults", "stages", "profiles"]

/** What is laid over the document before it is decoded. */
export interface OverlayOptions {
  /** Overlays of the file's `profiles`, applied in order. */
  readonly profiles?: ReadonlyArray<string>
  /** "path=value", as -S takes them. */
  readonly overrides?: ReadonlyArray<string>
}

export interface LoadOptions extends OverlayOptions {
  readonly file: string
}

export interface TextOptions extends OverlayOptions {
  /** What places in errors begin with, and `file` of the result: a file's name, or say "main:pipeline.yaml". */
  readonly label: string
  readonly text: string
  /** Where relative paths in parameters start; made absolute. */
  readonly baseDirectory: string
}

export const loadPipeline = Effect.fn("loadPipeline")(function* ({ file, ...overlay }: LoadOptions) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const text = yield* fs.readFileString(file).pipe(
    Effect.mapError((error) => {
      const cause = error.reason._tag === "NotFound" ? "no such file" : error.message
      return new PipelineInvalid({
        file,
        diagnostics: [{ place: file, path: "", message: `cannot be read: ${cause}` }]
      })
    })
  )
  return yield* loadPipelineText({ ...overlay, label: file, text, baseDirectory: path.dirname(path.resolve(file)) })
})

/** A pipeline whose text is at hand: of a git revision, of a past run. */
export const loadPipelineText = Effect.fn("loadPipelineText")(function* (options: TextOptions) {
  const path = yield* Path.Path
  const { label, overrides = [], profiles = [], text } = options
  const report: Array<Diagnostic> = []
  const document = overlaid(new Source("file", label, text), profiles, overrides, report)
  if (document === undefined) return yield* new PipelineInvalid({ file: label, diagnostics: report })

  const decoded = yield* decodeDocument(document.root, document.spans, report)
  if (report.length > 0) return yield* new PipelineInvalid({ file: label, diagnostics: inFileOrder(report) })
  const resolved: ResolvedPipeline = {
    ...decoded,
    file: label,
    baseDirectory: path.resolve(options.baseDirectory),
    text,
    profiles,
    overrides
  }
  return resolved
})

/** The document with profiles, overrides and variables applied; undefined when it is no mapping. */
const overlaid = (
  source: Source,
  profiles: ReadonlyArray<string>,
  overrides: ReadonlyArray<string>,
  report: Array<Diagnostic>
): { readonly root: MappingNode; readonly spans: ReadonlyMap<string, Span> } | undefined => {
  const parsed = parseYaml(source)
  report.push(...parsed.diagnostics)
  if (parsed.root === undefined) return undefined
  if (parsed.root._tag !== "mapping") {
    report.push(diagnose(parsed.root.span, "", `must be a mapping with ${topLevel.join(", ")}`))
    return undefined
  }
  const overlay = applyProfiles(parsed.root, profiles, report)
  // Variables first: every reference sees their final values. Then the rest, which may reach inside what a reference brought.
  const ofVariables = overrides.filter((override) => override.startsWith("vars."))
  let { root } = overlay
  for (const override of ofVariables) root = applyOverride(root, override, new Variables(new Map()), report)
  const vars = root.entries.get("vars")?.value
  const variables = new Variables(vars?._tag === "mapping" ? vars.entries : new Map())
  const entries = new Map<string, Entry>()
  for (const [key, entry] of root.entries) {
    entries.set(key, key === "profiles" ? entry : { ...entry, value: interpolate(entry.value, key, variables, report) })
  }
  root = { ...root, entries }
  for (const override of overrides) {
    if (!ofVariables.includes(override)) root = applyOverride(root, override, variables, report)
  }
  return { root, spans: overlay.spans }
}

const decodeDocument = Effect.fnUntraced(function* (
  root: MappingNode,
  profileSpans: ReadonlyMap<string, Span>,
  report: Array<Diagnostic>
) {
  checkKeys(root, "", topLevel, "a pipeline", report)
  checkVersion(root, report)
  const defaults = mappingAt(root, "defaults", "", report)
  if (defaults !== undefined) checkKeys(defaults, "defaults", ["retry", "timeout"], "defaults", report)
  const retry = decodeRetry(
    defaults === undefined ? undefined : mappingAt(defaults, "retry", "defaults", report),
    defaultRetry,
    "defaults.retry",
    report
  )
  const timeout = durationAt(defaults, "timeout", "defaults", report)
  const vars = mappingAt(root, "vars", "", report)
  const stagesNode = mappingAt(root, "stages", "", report)
  if (stagesNode === undefined || stagesNode.entries.size === 0) {
    const at = root.entries.get("stages")?.key ?? root.span
    report.push(diagnose(at, "stages", "a pipeline needs at least one stage", { text: "" }))
  }

  const decoded = new Map<string, DecodedStage>()
  for (const [name, entry] of stagesNode?.entries ?? []) {
    const stage = yield* decodeStage(name, entry, { retry, timeout }, profileSpans, report)
    if (stage !== undefined) decoded.set(name, stage)
  }
  checkEdges(decoded, report)
  const order = topologicalOrder(decoded, report)
  const stages = order.flatMap((name, index) => {
    const stage = decoded.get(name)
    return stage?.type === undefined ? [] : [resolveStage(stage, stage.type, index)]
  })
  return { name: pipelineName(root, report), vars: vars === undefined ? {} : jsonEntries(vars), stages }
})

interface DecodedStage
  extends GraphStage, Pick<ResolvedStage, "params" | "resources" | "retry" | "timeout" | "grace" | "origins"> {}

const decodeStage = Effect.fnUntraced(function* (
  name: string,
  entry: Entry,
  defaults: { readonly retry: RetryPolicy; readonly timeout: ResolvedStage["timeout"] },
  profileSpans: ReadonlyMap<string, Span>,
  report: Array<Diagnostic>
) {
  const path = `stages.${name}`
  if (!/^[A-Za-z][\w-]*$/u.test(name)) {
    report.push(diagnose(entry.key, path, "a stage's name is letters, digits, - and _, and starts with a letter"))
  }
  const block = entry.value
  if (block._tag !== "mapping") {
    report.push(diagnose(block.span, path, `must be a mapping with ${stageFields.join(", ")}`))
    return undefined
  }
  checkKeys(block, path, stageFields, "a stage", report)
  const type = yield* stageType(block, entry.key, path, report)
  const owner = entry.key
  const withBlock = mappingAt(block, "with", path, report)
  const inBlock = mappingAt(block, "in", path, report)
  const stage: DecodedStage = {
    name,
    span: owner,
    type,
    inputs:
      type === undefined
        ? {}
        : decodeInputs(inBlock, type, block.entries.get("in")?.key ?? owner, `${path}.in`, report),
    after: decodeAfter(block.entries.get("after")?.value, `${path}.after`, report),
    params:
      type === undefined
        ? {}
        : decodeBlock(type, withBlock, block.entries.get("with")?.key ?? owner, `${path}.with`, report),
    resources: decodeResources(mappingAt(block, "resources", path, report), type, `${path}.resources`, report),
    retry: decodeRetry(mappingAt(block, "retry", path, report), defaults.retry, `${path}.retry`, report),
    timeout: durationAt(block, "timeout", path, report) ?? defaults.timeout,
    grace: durationAt(block, "grace", path, report) ?? defaultGrace,
    origins: originsOf(block, profileSpans)
  }
  return stage
})

const stageType = Effect.fnUntraced(function* (
  block: MappingNode,
  owner: Span,
  path: string,
  report: Array<Diagnostic>
) {
  const registry = yield* StageRegistry
  const uses = block.entries.get("uses")?.value
  if (uses === undefined) {
    report.push(
      diagnose(owner, `${path}.uses`, `missing "uses": which stage type is it? There are ${registry.names.join(", ")}`)
    )
    return undefined
  }
  const name = uses._tag === "scalar" ? String(uses.value) : ""
  const type = yield* registry.load(name)
  if (type === undefined) {
    const message = `unknown stage type "${name}"; there are ${registry.names.join(", ")}`
    report.push(diagnose(uses.span, `${path}.uses`, message, { suggestion: didYouMean(name, registry.names) }))
  }
  return type
})

const resolveStage = (stage: DecodedStage, type: AnyStageType, index: number): ResolvedStage => {
  const inputs = Object.fromEntries(
    Object.entries(stage.inputs).map(([port, edges]) => [port, edges.map(({ port, stage }) => ({ stage, port }))])
  )
  const after = stage.after.map(({ stage }) => stage)
  const sources = Object.values(inputs).flatMap((edges) => edges.map((edge) => edge.stage))
  return {
    name: stage.name,
    index,
    type,
    params: stage.params,
    inputs,
    after,
    needs: Array.from(new Set([...sources, ...after])),
    resources: stage.resources,
    retry: stage.retry,
    timeout: stage.timeout,
    grace: stage.grace,
    origins: stage.origins
  }
}

const checkVersion = (root: MappingNode, report: Array<Diagnostic>): void => {
  const version = root.entries.get("version")?.value
  if (version === undefined) report.push(diagnose(root.span, "version", 'missing "version: 1"', { text: "" }))
  else if (version._tag !== "scalar" || version.value !== 1) {
    report.push(diagnose(version.span, "version", "this program reads version 1"))
  }
}

const pipelineName = (root: MappingNode, report: Array<Diagnostic>): string => {
  const name = root.entries.get("name")?.value
  if (name?._tag === "scalar" && typeof name.value === "string" && name.value !== "") return name.value
  if (name === undefined) report.push(diagnose(root.span, "name", 'missing "name"', { text: "" }))
  else report.push(diagnose(name.span, "name", "must be a text"))
  return ""
}

const jsonEntries = (node: MappingNode) =>
  Object.fromEntries(Array.from(node.entries, ([key, entry]) => [key, toJson(entry.value)]))

/** The origin of each value in a stage's block, by its path. */
const originsOf = (block: MappingNode, profileSpans: ReadonlyMap<string, Span>): Readonly<Record<string, Origin>> => {
  const origins: Record<string, Origin> = {}
  const visit = (node: Node, path: string): void => {
    if (node._tag === "mapping")
      for (const [key, entry] of node.entries) visit(entry.value, path === "" ? key : `${path}.${key}`)
    else if (node._tag === "sequence")
      for (const [index, item] of node.items.entries()) visit(item, `${path}[${index}]`)
    else {
      const span = node.via?.span ?? node.span
      const profile = Array.from(profileSpans).find(([, within]) => contains(within, span))?.[0]
      origins[path] = originOf(span, profile)
    }
  }
  visit(block, "")
  return origins
}

const contains = (outer: Span, inner: Span): boolean =>
  outer.source === inner.source && outer.start <= inner.start && inner.end <= outer.end

/** By place in the file; what has none (command line, whole file) first. */
const inFileOrder = (report: ReadonlyArray<Diagnostic>): ReadonlyArray<Diagnostic> =>
  report.toSorted((a, b) => (a.line ?? 0) - (b.line ?? 0) || (a.column ?? 0) - (b.column ?? 0))
