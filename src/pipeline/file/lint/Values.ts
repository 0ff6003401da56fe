/** Rules about parameters: what the default says already, and seeds that are unlike. */
import { Result, type Schema } from "effect"
import { canonicalJson } from "../../../artifacts/CanonicalJson.ts"
import { canonical } from "../Parameters.ts"
import type { Node, Span } from "../YamlSource.ts"
import { type Finding, finding, mapping, type Rule, textsIn, writtenStages } from "./Finding.ts"

export const defaultParameter: Rule = ({ pipeline, root }) =>
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

export const seedsDiffer: Rule = ({ pipeline, root }) => {
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
