/**
 * `matrix`: one stage block becomes one stage for each combination of values. An instance is named after its values,
 * `base[lr=0.001,seed=1]`; `base` alone names all of them, `base[lr=0.001]` those with that value.
 */
import { createHash } from "node:crypto"
import { Result } from "effect"
import { type Diagnostic, didYouMean } from "./Diagnostics.ts"
import type { MatrixInstance } from "./ResolvedPipeline.ts"
import type { WrittenEdge } from "./StageBlock.ts"
import type { AnyStageType } from "../StageType.ts"
import {
  diagnose,
  type Entry,
  mapEntries,
  mapItems,
  type MappingNode,
  type Node,
  type ScalarNode,
  type Span
} from "./YamlSource.ts"

/** More instances than this are a mistake in the file. */
const mostInstances = 1000

/** A stage as it will run: its name, its block with every ${matrix.axis} replaced, and which instance it is. */
export interface Expanded {
  readonly name: string
  readonly entry: Entry
  readonly matrix: MatrixInstance | undefined
  /** The nodes of the matrix's values, by axis. */
  readonly axes: ReadonlyMap<string, ScalarNode>
}

/** The stages of one entry under `stages`, the last axis varying fastest. With a faulty matrix: none. */
export const expandMatrix = (name: string, entry: Entry, report: Array<Diagnostic>): ReadonlyArray<Expanded> => {
  const path = `stages.${name}`
  const block = entry.value
  const matrix = block._tag === "mapping" ? block.entries.get("matrix") : undefined
  if (block._tag !== "mapping" || matrix === undefined) {
    return [
      {
        name,
        entry: { ...entry, value: substitute(block, path, new Map(), report) },
        matrix: undefined,
        axes: new Map()
      }
    ]
  }
  const axes = decodeAxes(matrix, `${path}.matrix`, report)
  if (axes === undefined) return []
  const inner: MappingNode = {
    ...block,
    entries: new Map(Array.from(block.entries).filter(([key]) => key !== "matrix"))
  }
  return combinations(axes).map((chosen) => {
    const values = new Map(chosen.map(({ axis, value }) => [axis, value]))
    return {
      name: instanceName(name, chosen),
      entry: { ...entry, value: substitute(inner, path, values, report) },
      matrix: { group: name, values: Object.fromEntries(chosen.map(({ axis, value }) => [axis, value.value])) },
      axes: values
    }
  })
}

interface Choice {
  readonly axis: string
  readonly value: ScalarNode
  /** How the value reads in a name. */
  readonly label: string
}
type Axes = ReadonlyArray<ReadonlyArray<Choice>>

const decodeAxes = (matrix: Entry, path: string, report: Array<Diagnostic>): Axes | undefined => {
  const fail = (node: Node, at: string, message: string): undefined => {
    report.push(diagnose(node.span, at, message))
    return undefined
  }
  if (matrix.value._tag !== "mapping" || matrix.value.entries.size === 0) {
    return fail(matrix.value, path, "must name axes with their values, as in { lr: [1e-3, 2e-3], seed: [1, 2] }")
  }
  const axes: Array<ReadonlyArray<Choice>> = []
  for (const [axis, { key, value }] of matrix.value.entries) {
    const inner = `${path}.${axis}`
    if (!/^[A-Za-z][\w-]*$/u.test(axis)) {
      report.push(diagnose(key, inner, "an axis is named by letters, digits, - and _, and starts with a letter"))
      return undefined
    }
    if (value._tag !== "sequence") return fail(value, inner, `must be a list of values, as in ${axis}: [1, 2]`)
    if (value.items.length === 0) {
      return fail(value, inner, "is an empty list, so there would be no stage; give it a value or leave the axis out")
    }
    const choices = decodeAxis(axis, value.items, inner, report)
    if (choices === undefined) return undefined
    axes.push(choices)
  }
  const count = axes.reduce((product, { length }) => product * length, 1)
  if (count <= mostInstances) return axes
  const product = axes.map((choices) => `${choices.length} (${choices[0]?.axis})`).join(" × ")
  const number = count.toLocaleString("en")
  return fail(
    matrix.value,
    path,
    `makes ${product} = ${number} stages; ${mostInstances.toLocaleString("en")} are allowed: list fewer values, or sweep in several stages`
  )
}

const decodeAxis = (
  axis: string,
  items: ReadonlyArray<Node>,
  path: string,
  report: Array<Diagnostic>
): ReadonlyArray<Choice> | undefined => {
  const values: Array<ScalarNode> = []
  for (const [index, item] of items.entries()) {
    const inner = `${path}[${index}]`
    if (item._tag !== "scalar") {
      report.push(diagnose(item.span, inner, "must be a plain value: a number, a text, true or false"))
      return undefined
    }
    if (values.some(({ value }) => value === item.value)) {
      report.push(diagnose(item.span, inner, `${axis} has the value ${String(item.value)} twice`))
      return undefined
    }
    values.push(item)
  }
  const labels = values.map(({ value }) => labelOf(value))
  return values.map((value, index) => {
    const label = labels[index] ?? ""
    const unique = labels.indexOf(label) === labels.lastIndexOf(label)
    return { axis, value, label: unique ? label : `${label}~${shortDigest(String(value.value))}` }
  })
}

/** Short, and safe in a folder's name and between the brackets of a stage's. */
const labelOf = (value: ScalarNode["value"]): string =>
  String(value)
    .replaceAll(/[^\w.+-]+/gu, "-")
    .slice(0, 40)

const shortDigest = (text: string): string => createHash("sha256").update(text).digest("hex").slice(0, 6)

const combinations = (axes: Axes): ReadonlyArray<ReadonlyArray<Choice>> =>
  axes.reduce<ReadonlyArray<ReadonlyArray<Choice>>>(
    (rows, choices) => rows.flatMap((row) => choices.map((choice) => [...row, choice])),
    [[]]
  )

/** A file system takes names of 255 bytes; what surrounds this one has room in the rest. */
const longestName = 160

const instanceName = (group: string, chosen: ReadonlyArray<Choice>): string => {
  const inside = chosen.map(({ axis, label }) => `${axis}=${label}`).join(",")
  const room = Math.max(40, longestName - group.length)
  return inside.length <= room ? `${group}[${inside}]` : `${group}[${inside.slice(0, room)}~${shortDigest(inside)}]`
}

const reference = /\$\{\s*matrix\.([^}]*?)\s*\}/gu

/** True for text that the first round of interpolation must leave to the matrix. */
export const isMatrixReference = (inner: string): boolean => /^\s*matrix\./u.test(inner)

/** Replaces ${matrix.axis} below `node`; a text that is nothing else takes the value with its type. What has none keeps its identity. */
const substitute = (
  node: Node,
  path: string,
  values: ReadonlyMap<string, ScalarNode>,
  report: Array<Diagnostic>
): Node => {
  switch (node._tag) {
    case "mapping":
      return mapEntries(node, (value, key) => substitute(value, `${path}.${key}`, values, report))
    case "sequence":
      return mapItems(node, (item, index) => substitute(item, `${path}[${index}]`, values, report))
    case "scalar":
      return typeof node.value === "string" && node.value.includes("${")
        ? substituteText(node, node.value, path, values, report)
        : node
  }
}

const substituteText = (
  node: ScalarNode,
  text: string,
  path: string,
  values: ReadonlyMap<string, ScalarNode>,
  report: Array<Diagnostic>
): ScalarNode => {
  let via: ScalarNode["via"]
  let whole: ScalarNode | undefined
  const replaced = text.replaceAll(reference, (written, axis: string) => {
    const value = values.get(axis)
    if (value === undefined) {
      report.push(unknownAxis(node, axis, path, values))
      return written
    }
    via ??= { name: `matrix.${axis}`, span: value.via?.span ?? value.span }
    if (written === text) whole = value
    return String(value.value)
  })
  if (via === undefined) return node
  return { ...node, value: whole === undefined ? replaced : whole.value, via }
}

const unknownAxis = (node: Node, axis: string, path: string, values: ReadonlyMap<string, ScalarNode>): Diagnostic => {
  const axes = Array.from(values.keys())
  const message =
    axes.length === 0
      ? `\${matrix.${axis}} has a meaning only in a stage with "matrix: { ${axis}: [...] }"`
      : `no axis "${axis}" in the stage's matrix; it has ${axes.join(", ")}`
  const meant = didYouMean(axis, axes)
  return diagnose(node.span, path, message, { suggestion: meant === undefined ? undefined : `matrix.${meant}` })
}

/** A stage by name, with its place in a matrix if it has one. */
export interface NamedStage {
  readonly name: string
  readonly matrix: MatrixInstance | undefined
}

/** Why a name stands for no stage. */
export interface NotFound {
  readonly message: string
  readonly suggestion: string | undefined
  /** No stage or group has this name at all. */
  readonly unknown: boolean
}

/** Finds stages by what a file or a command line may call them. */
export class StageNames {
  readonly #exact: ReadonlySet<string>
  readonly #groups = new Map<string, Array<NamedStage & { readonly matrix: MatrixInstance }>>()

  constructor(stages: Iterable<NamedStage>) {
    const exact = new Set<string>()
    for (const { matrix, name } of stages) {
      exact.add(name)
      if (matrix === undefined) continue
      const group = this.#groups.get(matrix.group)
      if (group === undefined) this.#groups.set(matrix.group, [{ name, matrix }])
      else group.push({ name, matrix })
    }
    this.#exact = exact
  }

  get hasGroups(): boolean {
    return this.#groups.size > 0
  }

  /** Names that a slip may have been meant for: stages without a matrix, and groups. */
  get candidates(): ReadonlyArray<string> {
    const instances = new Set(Array.from(this.#groups.values()).flatMap((group) => group.map(({ name }) => name)))
    return [...Array.from(this.#exact).filter((name) => !instances.has(name)), ...this.#groups.keys()]
  }

  /** One stage by its own name, else the instances of a group that have the values named in brackets. The failure says what is wrong. */
  find(name: string): Result.Result<ReadonlyArray<string>, NotFound> {
    if (this.#exact.has(name)) return Result.succeed([name])
    const [, group = name, inside] = /^([^[\]]*)\[(.*)\]$/su.exec(name) ?? []
    const instances = this.#groups.get(group)
    if (instances === undefined) {
      if (this.#exact.has(group)) {
        const message = `stage "${group}" has no matrix, so "${name}" names nothing`
        return Result.fail({ message, suggestion: group, unknown: false })
      }
      const { candidates } = this
      return Result.fail({ message: `no stage "${group}"`, suggestion: didYouMean(group, candidates), unknown: true })
    }
    if (inside === undefined) return Result.succeed(instances.map((instance) => instance.name))
    const wanted = inside.split(/,(?=\s*[A-Za-z][\w-]*=)/u).map((part) => part.trim())
    const found = instances.filter(({ matrix }) => wanted.every((part) => fits(part, matrix)))
    if (found.length > 0) return Result.succeed(found.map((instance) => instance.name))
    const names = instances.map((instance) => instance.name)
    const shown = `${names.slice(0, 4).join(", ")}${names.length > 4 ? `, … (${names.length} in all)` : ""}`
    return Result.fail({
      message: `no instance "${name}" in the matrix of ${group}; there are ${shown}`,
      suggestion: didYouMean(name, names),
      unknown: false
    })
  }
}

/** "lr=1e-3" fits 0.001 as it fits "0.001". */
const fits = (part: string, { values }: MatrixInstance): boolean => {
  const equals = part.indexOf("=")
  const axis = part.slice(0, equals).trim()
  const written = part.slice(equals + 1).trim()
  if (equals < 1 || !Object.hasOwn(values, axis)) return false
  const value = values[axis] ?? null
  return (
    String(value) === written ||
    labelOf(value) === written ||
    (typeof value === "number" && written !== "" && Number(written) === value)
  )
}

/** A stage whose edges may name groups. */
interface FanIn extends NamedStage {
  readonly type: AnyStageType | undefined
  readonly inputs: Readonly<Record<string, ReadonlyArray<WrittenEdge>>>
  readonly after: ReadonlyArray<{ readonly stage: string; readonly span: Span; readonly path: string }>
}

/**
 * Replaces edges and orders that name a group by one for each of its instances. A port that takes one edge takes no group. Names that nothing has are
 * left for `checkEdges` to report; instances that are not there are reported here. Of `broken` groups nothing more is said.
 */
export const fanIn = <S extends FanIn>(
  stages: Map<string, S>,
  broken: ReadonlySet<string>,
  report: Array<Diagnostic>
): void => {
  const names = new StageNames(stages.values())
  if (!names.hasGroups && broken.size === 0) return
  const instancesOf = <E extends { readonly stage: string; readonly span: Span; readonly path: string }>(
    edge: E
  ): ReadonlyArray<E> => {
    if (stages.has(edge.stage)) return [edge]
    if (broken.has(edge.stage.replace(/\[.*/su, ""))) return []
    const found = names.find(edge.stage)
    if (Result.isSuccess(found)) return found.success.map((stage) => ({ ...edge, stage }))
    const { message, suggestion } = found.failure
    report.push(diagnose(edge.span, edge.path, message, { suggestion }))
    return []
  }
  for (const [name, stage] of stages) {
    const inputs: Record<string, ReadonlyArray<WrittenEdge>> = {}
    for (const [port, edges] of Object.entries(stage.inputs)) {
      const expanded = edges.flatMap(instancesOf)
      const [edge] = edges
      const [first] = expanded
      if (expanded.length > 1 && edge !== undefined && first !== undefined && stage.type?.inputs[port]?.many !== true) {
        const message = `${edge.stage} is ${expanded.length} stages, and the port "${port}" takes one edge: name one, as in "${first.stage}.${edge.port}", or fan out as well, with a matrix of the same axis and "${oneAxis(first.stage)}.${edge.port}"`
        report.push(diagnose(edge.span, edge.path, message))
        inputs[port] = [{ ...edge, stage: first.stage }]
      } else inputs[port] = expanded
    }
    stages.set(name, { ...stage, inputs, after: stage.after.flatMap(instancesOf) })
  }
}

/** "base[lr=0.001,seed=1]" → "base[lr=${matrix.lr},seed=${matrix.seed}]". */
const oneAxis = (instance: string): string => instance.replaceAll(/([[,])([\w-]+)=[^,\]]*/gu, "$1$2=${matrix.$2}")
