/** What is legal in a pipeline file but probably not meant: one function a rule. Pure; each finding has its place, its cause and the next step. */
import { Result, type Schema } from "effect"
import type { ArtifactType } from "../artifacts/Artifact.ts"
import { canonicalJson } from "../artifacts/CanonicalJson.ts"
import type { Diagnostic } from "./Diagnostics.ts"
import { stageFields, suggest } from "./Overlay.ts"
import { StageNames } from "./Matrix.ts"
import { canonical } from "./Parameters.ts"
import type { ResolvedPipeline, ResolvedStage } from "./ResolvedPipeline.ts"
import { diagnose, type MappingNode, type Node, nodeAt, type Span, toJson } from "./YamlSource.ts"

export interface Finding extends Diagnostic {
  readonly rule: string
  /** A note says what could be left out; only warnings count for --strict. */
  readonly level: "warning" | "note"
  readonly next: string
}

/** The file as it is written, and what it decodes to without profiles. */
export interface LintSubject {
  readonly root: MappingNode
  readonly pipeline: ResolvedPipeline
}
type Rule = (subject: LintSubject) => ReadonlyArray<Finding>

const finding = (
  rule: string,
  span: Span,
  path: string,
  message: string,
  next: string,
  options: { readonly level?: Finding["level"]; readonly suggestion?: string } = {}
): Finding => ({
  ...diagnose(span, path, message, { suggestion: options.suggestion }),
  rule,
  level: options.level ?? "warning",
  next
})

const mapping = (root: Node, ...path: ReadonlyArray<string>): MappingNode["entries"] => {
  const { depth, node } = nodeAt(root, path)
  return depth === path.length && node._tag === "mapping" ? node.entries : new Map()
}

/** The name that the file gives to the stage: instances of a matrix share one. */
const writtenName = (stage: ResolvedStage): string => stage.matrix?.group ?? stage.name

/** One stage for each block of the file: of a matrix, the first instance. */
const writtenStages = (pipeline: ResolvedPipeline): ReadonlyArray<readonly [string, ResolvedStage]> => {
  const written = new Map<string, ResolvedStage>()
  for (const stage of pipeline.stages) if (!written.has(writtenName(stage))) written.set(writtenName(stage), stage)
  return Array.from(written)
}

/** "" for what is no scalar. */
const plainText = (node: Node): string => (node._tag === "scalar" ? String(node.value) : "")

/** Every text in the tree, keys aside. */
const textsIn = (node: Node): ReadonlyArray<string> => {
  switch (node._tag) {
    case "scalar":
      return typeof node.value === "string" ? [node.value] : []
    case "sequence":
      return node.items.flatMap(textsIn)
    case "mapping":
      return Array.from(node.entries.values()).flatMap(({ value }) => textsIn(value))
  }
}

const unusedVariable: Rule = ({ root }) => {
  const used = new Set(
    textsIn(root).flatMap((text) => Array.from(text.matchAll(/\$\{\s*vars\.([\w-]+)\s*\}/gu), (match) => match[1]))
  )
  return Array.from(mapping(root, "vars")).flatMap(([name, { key }]) =>
    used.has(name)
      ? []
      : [
          finding(
            "unused-variable",
            key,
            `vars.${name}`,
            "no value refers to this variable",
            `remove it, or write \${vars.${name}} where it is meant`
          )
        ]
  )
}

const profileUnknown: Rule = ({ root }) =>
  Array.from(mapping(root, "profiles")).flatMap(([profile, { value }]) => {
    const stages = mapping(root, "stages")
    const vars = mapping(root, "vars")
    const ofStages = Array.from(mapping(value, "stages")).flatMap(([name, overlay]) =>
      stages.has(name) || mapping(overlay.value).has("uses")
        ? []
        : [
            finding(
              "profile-unknown-stage",
              overlay.key,
              `profiles.${profile}.stages.${name}`,
              `the file has no stage "${name}" to change`,
              "correct the name, or give the stage a type with uses",
              suggest(name, stages.keys())
            )
          ]
    )
    const ofVariables = Array.from(mapping(value, "vars")).flatMap(([name, overlay]) =>
      vars.has(name)
        ? []
        : [
            finding(
              "profile-unknown-variable",
              overlay.key,
              `profiles.${profile}.vars.${name}`,
              `the file has no variable "${name}" to change`,
              "correct the name, or declare the variable in vars",
              suggest(name, vars.keys())
            )
          ]
    )
    return [...ofStages, ...ofVariables]
  })

const profileWithoutEffect: Rule = ({ root }) => {
  const same = (overlay: Node, base: Node, path: string): ReadonlyArray<Finding> => {
    if (overlay._tag === "mapping" && base._tag === "mapping")
      return Array.from(overlay.entries).flatMap(([key, { value }]) => {
        const below = base.entries.get(key)
        return below === undefined ? [] : same(value, below.value, `${path}.${key}`)
      })
    if (canonicalJson(toJson(overlay)) !== canonicalJson(toJson(base))) return []
    const message = "the file has this value without the profile"
    return [finding("profile-no-effect", overlay.span, path, message, "remove it, or change it")]
  }
  return Array.from(mapping(root, "profiles")).flatMap(([profile, { value }]) =>
    same(value, root, `profiles.${profile}`)
  )
}

/** What only other stages can use. The rest is what people take away, whether or not a stage takes it too. */
const intermediate: ReadonlyArray<ArtifactType> = ["Documents", "TokenShards", "PackedDataset", "TrainingState"]

const unusedStage: Rule = ({ pipeline, root }) => {
  const groups = new Map(pipeline.stages.map((stage) => [stage.name, writtenName(stage)]))
  const used = new Set(pipeline.stages.flatMap(({ needs }) => needs.map((need) => groups.get(need))))
  return writtenStages(pipeline).flatMap(([name, stage]) => {
    const outputs = Object.entries(stage.type.outputs)
    const key = mapping(root, "stages").get(name)?.key
    if (key === undefined || used.has(name) || outputs.length === 0) return []
    if (!outputs.every(([, { type }]) => intermediate.includes(type))) return []
    const made = outputs.map(([port, { type }]) => `${name}.${port} (${type})`).join(", ")
    const message = `no stage takes ${made}`
    return [finding("unused-stage", key, `stages.${name}`, message, "join it to the stage that should, or remove it")]
  })
}

const defaultParameter: Rule = ({ pipeline, root }) =>
  writtenStages(pipeline).flatMap(([written, stage]) =>
    Array.from(mapping(root, "stages", written, "with")).flatMap(([name, entry]) => {
      const parameter = stage.type.params[name]
      if (parameter === undefined || !("default" in parameter)) return []
      const byDefault = canonical(parameter.schema, parameter.default)
      if (Result.isFailure(byDefault)) return []
      return equalToDefault(entry, stage.params[name], byDefault.success, `stages.${written}.with.${name}`)
    })
  )

/** Key by key inside mappings; what refers to a variable may change with it. */
const equalToDefault = (
  entry: { readonly key: Span; readonly value: Node },
  value: Schema.Json | undefined,
  byDefault: Schema.Json | undefined,
  path: string
): ReadonlyArray<Finding> => {
  const { key, value: node } = entry
  if (node._tag === "mapping" && isObject(value) && isObject(byDefault))
    return Array.from(node.entries).flatMap(([inner, below]) =>
      equalToDefault(below, value[inner], byDefault[inner], `${path}.${inner}`)
    )
  const refers = textsIn(node).some((text) => text.includes("${"))
  if (refers || value === undefined || byDefault === undefined) return []
  if (canonicalJson(value) !== canonicalJson(byDefault)) return []
  const message = `${JSON.stringify(byDefault)} is the default`
  return [finding("default-parameter", key, path, message, "leave it out, unless it shall be seen", { level: "note" })]
}

const isObject = (value: Schema.Json | undefined): value is { readonly [key: string]: Schema.Json } =>
  typeof value === "object" && value !== null && !Array.isArray(value)

/** The first words of an override's path that are no stage. */
const reserved = ["vars", "defaults", "price", "secrets", "stages"]

const shadowedName: Rule = ({ pipeline, root }) => {
  const next = "choose another name, or write the long path: -S stages.…"
  const stages = Array.from(mapping(root, "stages")).flatMap(([name, { key }]) =>
    reserved.includes(name)
      ? [
          finding(
            "shadowed-name",
            key,
            `stages.${name}`,
            `-S ${name}.… means the file's own ${name}, not this stage`,
            next
          )
        ]
      : []
  )
  const parameters = writtenStages(pipeline).flatMap(([written]) =>
    Array.from(mapping(root, "stages", written, "with")).flatMap(([name, { key }]) =>
      (stageFields as ReadonlyArray<string>).includes(name)
        ? [
            finding(
              "shadowed-name",
              key,
              `stages.${written}.with.${name}`,
              `-S ${written}.${name} means the stage's own ${name}, not this parameter`,
              `write the long path: -S ${written}.with.${name}`
            )
          ]
        : []
    )
  )
  const vars = mapping(root, "vars")
  const axes = writtenStages(pipeline).flatMap(([written]) =>
    Array.from(mapping(root, "stages", written, "matrix")).flatMap(([axis, { key }]) =>
      vars.has(axis)
        ? [
            finding(
              "shadowed-name",
              key,
              `stages.${written}.matrix.${axis}`,
              `\${vars.${axis}} and \${matrix.${axis}} are two values of one name`,
              "rename one of them"
            )
          ]
        : []
    )
  )
  return [...stages, ...parameters, ...axes]
}

const unusedAxis: Rule = ({ pipeline, root }) =>
  writtenStages(pipeline).flatMap(([written]) => {
    const block = nodeAt(root, ["stages", written]).node
    const used = new Set(
      textsIn(block).flatMap((text) => Array.from(text.matchAll(/\$\{\s*matrix\.([\w-]+)\s*\}/gu), (match) => match[1]))
    )
    return Array.from(mapping(block, "matrix")).flatMap(([axis, { key }]) =>
      used.has(axis)
        ? []
        : [
            finding(
              "unused-axis",
              key,
              `stages.${written}.matrix.${axis}`,
              "nothing in the stage refers to this axis, so its instances are the same",
              `write \${matrix.${axis}} where the value belongs, or remove the axis`
            )
          ]
    )
  })

const seedsDiffer: Rule = ({ pipeline, root }) => {
  const seeds = writtenStages(pipeline).flatMap(([stage, { params }]) => {
    const written = mapping(root, "stages", stage, "with").get("seed")?.value
    const swept = written !== undefined && textsIn(written).some((text) => text.includes("${matrix."))
    return typeof params["seed"] === "number" && !swept ? [{ stage, value: params["seed"], written }] : []
  })
  const counts = new Map<number, number>()
  for (const { value } of seeds) counts.set(value, (counts.get(value) ?? 0) + 1)
  const [usual] = Array.from(counts).toSorted(([, a], [, b]) => b - a)[0] ?? []
  const others = seeds.filter(({ value }) => value === usual).map(({ stage }) => stage)
  return seeds.flatMap(({ stage, value, written }) =>
    written === undefined || value === usual
      ? []
      : [
          finding(
            "seeds-differ",
            written.span,
            `stages.${stage}.with.seed`,
            `the seed is ${value} here and ${usual} in ${others.join(", ")}`,
            'declare one in vars and write "${vars.seed}" everywhere, unless the difference is meant'
          )
        ]
  )
}

const redundantAfter: Rule = ({ pipeline, root }) => {
  const byName = new Map(pipeline.stages.map((stage) => [stage.name, stage]))
  const names = new StageNames(pipeline.stages)
  const reaches = (from: string, target: string, seen = new Set<string>()): boolean => {
    if (from === target) return true
    if (seen.has(from)) return false
    seen.add(from)
    return (byName.get(from)?.needs ?? []).some((need) => reaches(need, target, seen))
  }
  return writtenStages(pipeline).flatMap(([written, stage]) =>
    afterItems(root, written).flatMap(({ name, node, path }) => {
      const targets = Result.getOrElse(names.find(name), (): ReadonlyArray<string> => [])
      const via = targets.map((target) =>
        stage.needs.find((need) =>
          targets.includes(need) ? need === target && isSource(stage, need) : reaches(need, target)
        )
      )
      if (targets.length === 0 || via.includes(undefined)) return []
      const [first] = via
      const cause = first === targets[0] ? "an edge" : `${first}, which this stage needs,`
      const message = `${cause} already puts this stage after ${name}`
      return [finding("redundant-after", node.span, path, message, "remove it")]
    })
  )
}

const isSource = (stage: ResolvedStage, name: string): boolean =>
  Object.values(stage.inputs).some((edges) => edges.some((edge) => edge.stage === name))

const afterItems = (root: MappingNode, stage: string) => {
  const node = mapping(root, "stages", stage).get("after")?.value
  const path = `stages.${stage}.after`
  if (node === undefined) return []
  const items = node._tag === "sequence" ? node.items : [node]
  return items.map((node, index) => ({
    node,
    name: plainText(node),
    path: items.length > 1 ? `${path}[${index}]` : path
  }))
}

const repeatedEdge: Rule = ({ pipeline, root }) =>
  writtenStages(pipeline).flatMap(([written]) =>
    Array.from(mapping(root, "stages", written, "in")).flatMap(([port, { value }]) => {
      if (value._tag !== "sequence") return []
      const seen = new Set<string>()
      return value.items.flatMap((item, index) => {
        const edge = plainText(item)
        if (!seen.has(edge)) {
          seen.add(edge)
          return []
        }
        const path = `stages.${written}.in.${port}[${index}]`
        return [finding("repeated-edge", item.span, path, `${edge} is in this list already`, "remove one of them")]
      })
    })
  )

export const rules: ReadonlyArray<Rule> = [
  unusedVariable,
  profileUnknown,
  profileWithoutEffect,
  unusedStage,
  defaultParameter,
  shadowedName,
  unusedAxis,
  seedsDiffer,
  redundantAfter,
  repeatedEdge
]
