/** Decodes what surrounds a stage's parameters: edges, order, resources, retry policy, time limits. */
import { Duration } from "effect"
import { type Diagnostic, didYouMean } from "./Diagnostics.ts"
import { type GpuKind, gpuKinds, isGpuKind } from "./Gpu.ts"
import { checkKeys, describeVia, suggest } from "./Overlay.ts"
import { bytesForm, durationForm, parseBytes, parseDuration } from "./Quantity.ts"
import type { Edge, Resources, RetryPolicy } from "./ResolvedPipeline.ts"
import { type AnyStageType, FailureClass } from "../StageType.ts"
import { diagnose, type MappingNode, type Node, type Span } from "./YamlSource.ts"

/** Trying again unchanged cannot help against these. */
const hopeless: ReadonlyArray<FailureClass> = ["out-of-memory", "invalid-input", "diverged", "check-failed"]
/** What a retry policy may name. */
export const retryable = FailureClass.literals.filter((failure) => !hopeless.includes(failure))

export const defaultRetry: RetryPolicy = {
  times: 2,
  backoff: "exponential",
  base: Duration.seconds(1),
  max: Duration.minutes(5),
  jitter: true,
  for: ["network", "worker-lost"]
}
export const defaultGrace = Duration.seconds(60)

/** An edge as the file writes it, with its place. */
export interface WrittenEdge extends Edge {
  readonly span: Span
  readonly path: string
}

/** The mapping at a key; anything else there is reported. */
export const mappingAt = (
  block: MappingNode,
  key: string,
  path: string,
  report: Array<Diagnostic>
): MappingNode | undefined => {
  const value = block.entries.get(key)?.value
  if (value === undefined || value._tag === "mapping") return value
  if (value._tag === "scalar" && value.value === null) return undefined
  report.push(diagnose(value.span, `${path}.${key}`, "must be a mapping"))
  return undefined
}

const wrong = (node: Node, path: string, wanted: string, report: Array<Diagnostic>): undefined => {
  report.push(diagnose(node.span, path, `must be ${wanted}${describeVia(node)}`))
  return undefined
}

const nodeOf = (block: MappingNode | undefined, key: string): Node | undefined => block?.entries.get(key)?.value

export const integerAt = (
  block: MappingNode | undefined,
  key: string,
  path: string,
  minimum: number,
  report: Array<Diagnostic>
): number | undefined => {
  const node = nodeOf(block, key)
  if (node === undefined) return undefined
  if (node._tag === "scalar" && Number.isInteger(node.value) && Number(node.value) >= minimum) return Number(node.value)
  return wrong(node, `${path}.${key}`, `a whole number of at least ${minimum}`, report)
}

export const durationAt = (
  block: MappingNode | undefined,
  key: string,
  path: string,
  report: Array<Diagnostic>
): Duration.Duration | undefined => {
  const node = nodeOf(block, key)
  if (node === undefined) return undefined
  const duration = node._tag === "scalar" && typeof node.value === "string" ? parseDuration(node.value) : undefined
  return duration ?? wrong(node, path === "" ? key : `${path}.${key}`, durationForm, report)
}

/** The block's policy over `base`, key by key. */
export const decodeRetry = (
  block: MappingNode | undefined,
  base: RetryPolicy,
  path: string,
  report: Array<Diagnostic>
): RetryPolicy => {
  if (block === undefined) return base
  checkKeys(block, path, ["times", "backoff", "base", "max", "jitter", "for"], "retry", report)
  const backoff = nodeOf(block, "backoff")
  const jitter = nodeOf(block, "jitter")
  const classes = nodeOf(block, "for")
  return {
    times: integerAt(block, "times", path, 0, report) ?? base.times,
    base: durationAt(block, "base", path, report) ?? base.base,
    max: durationAt(block, "max", path, report) ?? base.max,
    backoff: backoff === undefined ? base.backoff : (decodeBackoff(backoff, `${path}.backoff`, report) ?? base.backoff),
    jitter:
      jitter === undefined
        ? base.jitter
        : jitter._tag === "scalar" && typeof jitter.value === "boolean"
          ? jitter.value
          : (wrong(jitter, `${path}.jitter`, "true or false", report) ?? base.jitter),
    for: classes === undefined ? base.for : decodeClasses(classes, `${path}.for`, report)
  }
}

const decodeBackoff = (node: Node, path: string, report: Array<Diagnostic>): RetryPolicy["backoff"] | undefined =>
  node._tag === "scalar" && (node.value === "exponential" || node.value === "constant")
    ? node.value
    : wrong(node, path, "exponential or constant", report)

const decodeClasses = (node: Node, path: string, report: Array<Diagnostic>): ReadonlyArray<FailureClass> => {
  if (node._tag !== "sequence") {
    wrong(node, path, `a list of failure classes (${retryable.join(", ")})`, report)
    return []
  }
  return node.items.flatMap((item, index) => {
    const name = item._tag === "scalar" ? String(item.value) : ""
    const found = retryable.find((failure) => failure === name)
    if (found !== undefined) return [found]
    const message = hopeless.some((failure) => failure === name)
      ? `${name} is never tried again unchanged: the same attempt would fail the same way`
      : `unknown failure class "${name}"; known are ${retryable.join(", ")}`
    report.push(diagnose(item.span, `${path}[${index}]`, message, { suggestion: didYouMean(name, retryable) }))
    return []
  })
}

export const decodeResources = (
  block: MappingNode | undefined,
  type: AnyStageType | undefined,
  path: string,
  report: Array<Diagnostic>
): Resources => {
  if (block !== undefined)
    checkKeys(block, path, ["cpus", "memory", "disk", "gpus", "gpu", "ranks", "elastic", "nodes"], "resources", report)
  const cpus = nodeOf(block, "cpus")
  const all = cpus?._tag === "scalar" && cpus.value === "all"
  const memory = bytesAt(block, "memory", path, report)
  const disk = bytesAt(block, "disk", path, report)
  const gpu = gpuAt(block, path, report)
  const gpus = integerAt(block, "gpus", path, 0, report) ?? 0
  const elastic = elasticAt(block, path, report)
  const ranks = ranksAt(block, type, { gpus, most: elastic?.max }, path, report)
  checkElastic(block, elastic, ranks, path, report)
  const nodes = nodesAt(block, { gpus, ranks }, path, report)
  return {
    cpus: all ? "all" : (integerAt(block, "cpus", path, 1, report) ?? type?.cpus ?? 1),
    gpus,
    ranks,
    ...(elastic === undefined ? {} : { elastic }),
    ...(nodes === undefined ? {} : { nodes }),
    ...(memory === undefined ? {} : { memory }),
    ...(disk === undefined ? {} : { disk }),
    ...(gpu === undefined ? {} : { gpu })
  }
}

/** [fewest, most] */
const elasticAt = (
  block: MappingNode | undefined,
  path: string,
  report: Array<Diagnostic>
): Resources["elastic"] | undefined => {
  const node = nodeOf(block, "elastic")
  if (node === undefined) return undefined
  const items = node._tag === "sequence" ? node.items : []
  const [min, max, ...more] = items.map((item) => (item._tag === "scalar" ? Number(item.value) : Number.NaN))
  const fits = Number.isInteger(min) && Number.isInteger(max) && more.length === 0
  if (fits && min !== undefined && max !== undefined && min >= 1 && min <= max) return { min, max }
  return wrong(node, `${path}.elastic`, "the fewest and the most ranks, say [2, 4]", report)
}

/** An attempt begins with `ranks`, so they lie in the range. */
const checkElastic = (
  block: MappingNode | undefined,
  elastic: Resources["elastic"],
  ranks: number,
  path: string,
  report: Array<Diagnostic>
): void => {
  const node = nodeOf(block, "elastic")
  if (node === undefined || elastic === undefined || (ranks >= elastic.min && ranks <= elastic.max)) return
  const message = `is [${elastic.min}, ${elastic.max}], and the stage begins with ${ranks} ranks, which are not among them`
  report.push(diagnose(node.span, `${path}.elastic`, message))
}

/** One a GPU by default, for types whose work can be done in ranks; without GPUs the most that `elastic` allows. */
const ranksAt = (
  block: MappingNode | undefined,
  type: AnyStageType | undefined,
  { gpus, most = 1 }: { readonly gpus: number; readonly most: number | undefined },
  path: string,
  report: Array<Diagnostic>
): number => {
  const written = integerAt(block, "ranks", path, 1, report)
  const able = type === undefined || type.ranks === true
  const node = nodeOf(block, "ranks")
  const elastic = nodeOf(block, "elastic")
  if (elastic !== undefined && !able)
    report.push(diagnose(elastic.span, `${path}.elastic`, `one process does the work of ${type.name}; leave it out`))
  if (written !== undefined && written > 1 && !able && node !== undefined) {
    const message = `is ${written}, but one process does the work of ${type.name}; leave it out`
    report.push(diagnose(node.span, `${path}.ranks`, message))
  }
  return written ?? (type?.ranks === true ? (gpus > 0 ? gpus : most) : 1)
}

const nodesAt = (
  block: MappingNode | undefined,
  { gpus, ranks }: Pick<Resources, "gpus" | "ranks">,
  path: string,
  report: Array<Diagnostic>
): number | undefined => {
  const nodes = integerAt(block, "nodes", path, 1, report)
  const node = nodeOf(block, "nodes")
  if (nodes === undefined || node === undefined) return nodes
  const fault =
    nodes > ranks
      ? `is ${nodes}, more than the stage has ranks (${ranks}): a machine without a rank does nothing`
      : ranks % nodes !== 0
        ? `is ${nodes}, by which ${ranks} ranks cannot be divided evenly`
        : gpus % nodes !== 0
          ? `is ${nodes}, by which ${gpus} GPUs cannot be divided evenly`
          : undefined
  if (fault !== undefined) report.push(diagnose(node.span, `${path}.nodes`, fault))
  return nodes
}

const gpuAt = (block: MappingNode | undefined, path: string, report: Array<Diagnostic>): GpuKind | undefined => {
  const node = nodeOf(block, "gpu")
  if (node === undefined) return undefined
  const name = node._tag === "scalar" ? String(node.value) : ""
  if (isGpuKind(name)) return name
  const message = `unknown kind of GPU "${name}"; known are ${gpuKinds.join(", ")}`
  report.push(diagnose(node.span, `${path}.gpu`, message, { suggestion: didYouMean(name, gpuKinds) }))
  return undefined
}

const bytesAt = (
  block: MappingNode | undefined,
  key: string,
  path: string,
  report: Array<Diagnostic>
): number | undefined => {
  const node = nodeOf(block, key)
  if (node === undefined) return undefined
  const size =
    node._tag === "scalar" && (typeof node.value === "string" || typeof node.value === "number")
      ? parseBytes(node.value)
      : undefined
  return size ?? wrong(node, `${path}.${key}`, bytesForm, report)
}

/** `in`: for each port the edges as written. Whether stages and types fit is for the graph to say. */
export const decodeInputs = (
  block: MappingNode | undefined,
  type: AnyStageType,
  owner: Span,
  path: string,
  report: Array<Diagnostic>
): Readonly<Record<string, ReadonlyArray<WrittenEdge>>> => {
  const ports = Object.keys(type.inputs)
  for (const [key, entry] of block?.entries ?? []) {
    if (key in type.inputs) continue
    const message = `${type.name} has no input port "${key}"; it has ${ports.join(", ") || "none"}`
    report.push(diagnose(entry.key, `${path}.${key}`, message, suggest(key, ports)))
  }
  const inputs: Record<string, ReadonlyArray<WrittenEdge>> = {}
  for (const [name, port] of Object.entries(type.inputs)) {
    const value = block?.entries.get(name)?.value
    if (value === undefined) {
      if (port.optional) inputs[name] = []
      else report.push(diagnose(owner, `${path}.${name}`, `missing input "${name}" (${port.type}): ${port.describe}`))
      continue
    }
    const items = value._tag === "sequence" ? value.items : [value]
    if (value._tag === "sequence" && !port.many && items.length !== 1) {
      report.push(diagnose(value.span, `${path}.${name}`, `takes one edge, not a list of ${items.length}`))
      continue
    }
    if (items.length === 0 && !port.optional) {
      report.push(diagnose(value.span, `${path}.${name}`, `needs at least one edge (${port.type}): ${port.describe}`))
    }
    inputs[name] = items.flatMap((item, index) =>
      decodeEdge(item, value._tag === "sequence" ? `${path}.${name}[${index}]` : `${path}.${name}`, report)
    )
  }
  return inputs
}

/** "stage.port", or "stage[axis=value].port" for instances of a matrix, whose values may hold dots. */
export const edgePattern = /^([^.\s[\]]+(?:\[.*\])?)\.([^.\s[\]]+)$/su

const decodeEdge = (node: Node, path: string, report: Array<Diagnostic>): ReadonlyArray<WrittenEdge> => {
  const match = node._tag === "scalar" ? edgePattern.exec(String(node.value)) : null
  const [, stage, port] = match ?? []
  if (stage !== undefined && port !== undefined) return [{ stage, port, span: node.span, path }]
  wrong(node, path, 'an edge "stage.port"', report)
  return []
}

/** `after`: names of stages, one or a list. */
export const decodeAfter = (
  node: Node | undefined,
  path: string,
  report: Array<Diagnostic>
): ReadonlyArray<{ readonly stage: string; readonly span: Span; readonly path: string }> => {
  if (node === undefined) return []
  const items = node._tag === "sequence" ? node.items : [node]
  return items.flatMap((item, index) => {
    const inner = node._tag === "sequence" ? `${path}[${index}]` : path
    if (item._tag === "scalar" && typeof item.value === "string")
      return [{ stage: item.value, span: item.span, path: inner }]
    wrong(item, inner, "the name of a stage", report)
    return []
  })
}
