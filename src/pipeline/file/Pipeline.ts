/** Reads a pipeline file: YAML, profiles, overrides, variables, stage types; all errors at once, each with its place. */
import { Effect, FileSystem, Path, Result } from "effect"
import { decodeChecks } from "./Checks.ts"
import { type Diagnostic, didYouMean, PipelineInvalid } from "./Diagnostics.ts"
import { executorOf } from "./ExecutorBlock.ts"
import { checkEdges, type GraphStage, topologicalOrder } from "./Graph.ts"
import { type Expanded, expandMatrix, fanIn } from "./Matrix.ts"
import {
  applyOverride,
  applyProfiles,
  checkKeys,
  interpolate,
  stageFields,
  topLevelFields,
  Variables
} from "./Overlay.ts"
import { decodeBlock } from "./Parameters.ts"
import { decodePrice } from "./Price.ts"
import type { Origin, ResolvedPipeline, ResolvedStage, RetryPolicy } from "./ResolvedPipeline.ts"
import { decodeSecrets } from "./Secrets.ts"
import {
  decodeAfter,
  decodeInputs,
  decodeResources,
  decodeRetry,
  defaultGrace,
  defaultRetry,
  durationAt,
  integerAt,
  mappingAt
} from "./StageBlock.ts"
import { decodeStopRules } from "./StopRules.ts"
import { StageRegistry } from "../StageRegistry.ts"
import type { AnyStageType } from "../StageType.ts"
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
  const path = yield* Path.Path
  const text = yield* readPipelineText(file)
  return yield* loadPipelineText({ ...overlay, label: file, text, baseDirectory: path.dirname(path.resolve(file)) })
})

/** The file's text; PipelineInvalid where it cannot be read. */
export const readPipelineText = Effect.fn("readPipelineText")(function* (file: string) {
  const fs = yield* FileSystem.FileSystem
  return yield* fs.readFileString(file).pipe(
    Effect.mapError((error) => {
      const cause = error.reason._tag === "NotFound" ? "no such file" : error.message
      return new PipelineInvalid({
        file,
        diagnostics: [{ place: file, path: "", message: `cannot be read: ${cause}` }]
      })
    })
  )
})

/** A pipeline whose text is at hand: of a git revision, of a past run. */
export const loadPipelineText = Effect.fn("loadPipelineText")(function* (options: TextOptions) {
  const path = yield* Path.Path
  const { label, overrides = [], profiles = [], text } = options
  const report: Array<Diagnostic> = []
  const document = overlaid(new Source("file", label, text), profiles, overrides, report)
  if (document === undefined) return yield* new PipelineInvalid({ file: label, diagnostics: report })

  const baseDirectory = path.resolve(options.baseDirectory)
  const decoded = yield* decodeDocument(document.root, document.spans, baseDirectory, report)
  if (report.length > 0) return yield* new PipelineInvalid({ file: label, diagnostics: inFileOrder(distinct(report)) })
  const resolved: ResolvedPipeline = {
    ...decoded,
    file: label,
    baseDirectory,
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
    report.push(diagnose(parsed.root.span, "", `must be a mapping with ${topLevelFields.join(", ")}`))
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
  baseDirectory: string,
  report: Array<Diagnostic>
) {
  checkKeys(root, "", topLevelFields, "a pipeline", report)
  checkVersion(root, report)
  const defaults = mappingAt(root, "defaults", "", report)
  if (defaults !== undefined) checkKeys(defaults, "defaults", ["retry", "timeout", "executor"], "defaults", report)
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

  const secrets = decodeSecrets(root.entries.get("secrets")?.value, "secrets", report)
  const origins = originsOf(root, ["vars", "defaults", "secrets", "price"], profileSpans)
  const executor = defaults?.entries.get("executor")?.value
  const inherited: Inherited = { retry, timeout, executor, secrets, origins, profileSpans, baseDirectory }

  const decoded = new Map<string, DecodedStage>()
  const broken = new Set<string>()
  for (const [name, entry] of stagesNode?.entries ?? []) {
    const expanded = expandMatrix(name, entry, report)
    if (expanded.length === 0) broken.add(name)
    for (const stage of expanded) {
      const one = yield* decodeStage(stage, inherited, report)
      if (one !== undefined) decoded.set(stage.name, one)
    }
  }
  fanIn(decoded, broken, report)
  checkEdges(decoded, report)
  const order = topologicalOrder(decoded, report)
  const stages = order.flatMap((name, index) => {
    const stage = decoded.get(name)
    return stage?.type === undefined ? [] : [resolveStage(stage, stage.type, index)]
  })
  return {
    name: pipelineName(root, report),
    vars: vars === undefined ? {} : jsonEntries(vars),
    secrets,
    price: decodePrice(root.entries.get("price")?.value, report),
    origins,
    stages
  }
})

/** What a stage takes from outside its block. */
interface Inherited {
  readonly retry: RetryPolicy
  readonly timeout: ResolvedStage["timeout"]
  /** As written: a stage lays its own over it. */
  readonly executor: Node | undefined
  readonly secrets: ReadonlyArray<string>
  readonly origins: Readonly<Record<string, Origin>>
  readonly profileSpans: ReadonlyMap<string, Span>
  /** Where plugins are found from. */
  readonly baseDirectory: string
}

interface DecodedStage
  extends GraphStage, Omit<ResolvedStage, "name" | "index" | "type" | "inputs" | "after" | "needs" | "origins"> {
  readonly findOrigins: () => ResolvedStage["origins"]
}

/** Faults are reported under the name in the file: instances of a matrix share their block. */
const decodeStage = Effect.fnUntraced(function* (
  { axes, entry, matrix, name }: Expanded,
  inherited: Inherited,
  report: Array<Diagnostic>
) {
  const written = matrix?.group ?? name
  const path = `stages.${written}`
  if (!/^[A-Za-z][\w-]*$/u.test(written)) {
    report.push(diagnose(entry.key, path, "a stage's name is letters, digits, - and _, and starts with a letter"))
  }
  const block = entry.value
  if (block._tag !== "mapping") {
    report.push(diagnose(block.span, path, `must be a mapping with ${stageFields.join(", ")}`))
    return undefined
  }
  checkKeys(block, path, stageFields, "a stage", report)
  const type = yield* stageType(block, entry.key, path, inherited.baseDirectory, report)
  const owner = entry.key
  const at = (key: string) => block.entries.get(key)?.value
  const mapping = (key: string) => mappingAt(block, key, path, report)
  const maxParallel = integerAt(block, "max_parallel", path, 1, report)
  if (at("max_parallel") !== undefined && matrix === undefined) {
    const message = "limits the instances of a matrix, and this stage has none"
    report.push(diagnose(block.entries.get("max_parallel")?.key ?? owner, `${path}.max_parallel`, message))
  }
  const ownSecrets = decodeSecrets(at("secrets"), `${path}.secrets`, report)
  const stage: DecodedStage = {
    name,
    span: owner,
    type,
    inputs:
      type === undefined
        ? {}
        : decodeInputs(mapping("in"), type, block.entries.get("in")?.key ?? owner, `${path}.in`, report),
    after: decodeAfter(at("after"), `${path}.after`, report),
    params:
      type === undefined
        ? {}
        : decodeBlock(type, mapping("with"), block.entries.get("with")?.key ?? owner, `${path}.with`, report),
    resources: decodeResources(mapping("resources"), type, `${path}.resources`, report),
    executor: executorOf(at("executor"), inherited.executor, `${path}.executor`, report),
    retry: decodeRetry(mapping("retry"), inherited.retry, `${path}.retry`, report),
    timeout: durationAt(block, "timeout", path, report) ?? inherited.timeout,
    grace: durationAt(block, "grace", path, report) ?? defaultGrace,
    matrix,
    maxParallel,
    checks: decodeChecks(at("checks"), `${path}.checks`, report),
    stopIf: decodeStopRules(at("stop_if"), `${path}.stop_if`, report),
    secrets: [...ownSecrets, ...inherited.secrets.filter((secret) => !ownSecrets.includes(secret))],
    findOrigins: () => stageOrigins(block, axes, ownSecrets, inherited)
  }
  return stage
})

const stageType = Effect.fnUntraced(function* (
  block: MappingNode,
  owner: Span,
  path: string,
  baseDirectory: string,
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
  const loaded = yield* Effect.result(registry.load(name, baseDirectory))
  if (Result.isFailure(loaded)) {
    const { message, next } = loaded.failure
    report.push(diagnose(uses.span, `${path}.uses`, `${message}. Next: ${next}`))
    return undefined
  }
  if (loaded.success === undefined) {
    const message = `unknown stage type "${name}"; there are ${registry.names.join(", ")}, files (./my-stage.ts) and installed packages`
    report.push(diagnose(uses.span, `${path}.uses`, message, { suggestion: didYouMean(name, registry.names) }))
  }
  return loaded.success
})

const resolveStage = (stage: DecodedStage, type: AnyStageType, index: number): ResolvedStage => {
  const inputs = Object.fromEntries(
    Object.entries(stage.inputs).map(([port, edges]) => [port, edges.map(({ port, stage }) => ({ stage, port }))])
  )
  const after = stage.after.map(({ stage }) => stage)
  const sources = Object.values(inputs).flatMap((edges) => edges.map((edge) => edge.stage))
  const { findOrigins, span: _, ...decoded } = stage
  let origins: ResolvedStage["origins"] | undefined
  return {
    ...decoded,
    /** Few commands ask, and a large file has many. */
    get origins() {
      return (origins ??= findOrigins())
    },
    index,
    type,
    inputs,
    after,
    needs: Array.from(new Set([...sources, ...after]))
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

/** The origin of each value below the block's named keys (all of them where none are named), by its path. */
const originsOf = (
  block: MappingNode,
  keys: ReadonlyArray<string> | undefined,
  profileSpans: ReadonlyMap<string, Span>
): Record<string, Origin> => {
  const origins: Record<string, Origin> = {}
  const visit = (node: Node, path: string): void => {
    if (node._tag === "mapping")
      for (const [key, entry] of node.entries) visit(entry.value, path === "" ? key : `${path}.${key}`)
    else if (node._tag === "sequence")
      for (const [index, item] of node.items.entries()) visit(item, `${path}[${index}]`)
    else origins[path] = placedIn(profileSpans, node.via?.span ?? node.span)
  }
  for (const [key, entry] of block.entries) if (keys?.includes(key) !== false) visit(entry.value, key)
  return origins
}

/** Those of its own block over those of what it inherits. */
const stageOrigins = (
  block: MappingNode,
  axes: Expanded["axes"],
  ownSecrets: ReadonlyArray<string>,
  inherited: Inherited
): ResolvedStage["origins"] => {
  const { profileSpans } = inherited
  const origins: Record<string, Origin> = {}
  for (const [path, origin] of Object.entries(inherited.origins)) {
    if (path.startsWith("defaults.")) origins[path.slice("defaults.".length)] = origin
  }
  const added = inherited.secrets.filter((secret) => !ownSecrets.includes(secret))
  for (const [index, secret] of added.entries()) {
    const origin = inherited.origins[`secrets[${inherited.secrets.indexOf(secret)}]`]
    if (origin !== undefined) origins[`secrets[${ownSecrets.length + index}]`] = origin
  }
  for (const [axis, { span, via }] of axes) origins[`matrix.${axis}`] = placedIn(profileSpans, via?.span ?? span)
  return Object.assign(origins, originsOf(block, undefined, profileSpans))
}

const placedIn = (profileSpans: ReadonlyMap<string, Span>, span: Span): Origin =>
  originOf(span, Array.from(profileSpans).find(([, within]) => contains(within, span))?.[0])

const contains = (outer: Span, inner: Span): boolean =>
  outer.source === inner.source && outer.start <= inner.start && inner.end <= outer.end

/** By place in the file; what has none (command line, whole file) first. */
const inFileOrder = (report: ReadonlyArray<Diagnostic>): ReadonlyArray<Diagnostic> =>
  report.toSorted((a, b) => (a.line ?? 0) - (b.line ?? 0) || (a.column ?? 0) - (b.column ?? 0))

/** Instances of a matrix share a block, and report its faults one by one. */
const distinct = (report: ReadonlyArray<Diagnostic>): ReadonlyArray<Diagnostic> =>
  Array.from(new Map(report.map((one) => [JSON.stringify([one.place, one.path, one.message]), one])).values())
