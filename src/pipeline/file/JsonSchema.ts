/** JSON Schema (draft-07) from Schema, in the form that editors complete and explain best. Pure functions over JSON. */
import { JsonSchema, Schema } from "effect"

/** One schema or subschema. */
export interface SchemaNode {
  readonly [key: string]: Schema.Json
}
export type Definitions = Readonly<Record<string, SchemaNode>>

export interface SchemaDocument {
  readonly schema: SchemaNode
  readonly definitions: Definitions
}

export const draft07 = "http://json-schema.org/draft-07/schema#"

const isNode = (value: Schema.Json | undefined): value is SchemaNode =>
  typeof value === "object" && value !== null && !Array.isArray(value)

/** What a file may hold for this Schema. `closed`: keys that are not named are errors. */
export const documentOf = (schema: Schema.Constraint, options: { readonly closed: boolean }): SchemaDocument => {
  const document = JsonSchema.toDocumentDraft07(
    Schema.toJsonSchemaDocument(schema, { onExcessProperty: options.closed ? "error" : "ignore" })
  )
  const nodeOf = (value: unknown) => simplify(Schema.decodeUnknownSync(Schema.Json)(value))
  return {
    schema: nodeOf(document.schema),
    definitions: Object.fromEntries(Object.entries(document.definitions).map(([name, node]) => [name, nodeOf(node)]))
  }
}

/** Says the same with less: no bounds that every number meets, no tuple where each item is alike, one-word enums as const. */
const simplify = (value: Schema.Json): SchemaNode => {
  const walk = (json: Schema.Json): Schema.Json => {
    if (Array.isArray(json)) return json.map(walk)
    if (!isNode(json)) return json
    const { additionalItems, items, ...rest } = json
    const alike =
      Array.isArray(items) && items.length === 1 && JSON.stringify(items[0]) === JSON.stringify(additionalItems)
    const whole = {
      ...rest,
      ...(items === undefined ? {} : { items: alike ? (items[0] ?? {}) : items }),
      ...(additionalItems === undefined || alike ? {} : { additionalItems })
    }
    return Object.fromEntries(
      Object.entries(whole).flatMap(([key, inner]) => {
        if (typeof inner === "number" && Math.abs(inner) === Number.MAX_SAFE_INTEGER) return []
        if (key === "enum" && Array.isArray(inner) && inner.length === 1) return [["const", inner[0] ?? null]]
        return [[key, walk(inner)]]
      })
    )
  }
  const node = walk(value)
  return isNode(node) ? node : {}
}

/** Applies `change` to each direct subschema; what holds values (enum, const, default, examples) stays. */
const mapChildren = (node: SchemaNode, change: (child: SchemaNode) => SchemaNode): SchemaNode =>
  Object.fromEntries(
    Object.entries(node).map(([key, value]) => {
      if (["properties", "patternProperties", "definitions"].includes(key) && isNode(value))
        return [key, mapValues(value, (child) => (isNode(child) ? change(child) : child))]
      if (["anyOf", "oneOf", "allOf"].includes(key) && Array.isArray(value))
        return [key, value.map((child) => (isNode(child) ? change(child) : child))]
      if (["items", "additionalItems", "additionalProperties"].includes(key)) {
        if (Array.isArray(value)) return [key, value.map((child) => (isNode(child) ? change(child) : child))]
        return [key, isNode(value) ? change(value) : value]
      }
      return [key, value]
    })
  )

/** "" where there is none. */
export const descriptionOf = (node: SchemaNode): string =>
  typeof node["description"] === "string" ? node["description"] : ""

const mapValues = (node: SchemaNode, change: (value: Schema.Json) => Schema.Json): SchemaNode =>
  Object.fromEntries(Object.entries(node).map(([key, value]) => [key, change(value)]))

const annotations = ["title", "description", "default"]

/** The texts that stand for values of other types; `definitions` of every schema made by `acceptingReferences`. */
export const referenceDefinitions: Definitions = {
  reference: { type: "string", pattern: "\\$\\{[^}]*\\}", description: "A reference: ${vars.name}" },
  grouped: { type: "string", pattern: "^[-+]?\\d{1,3}(_\\d{3})+$", description: "A number in groups: 400_000" }
}
const reference: SchemaNode = { $ref: "#/definitions/reference" }
const grouped: SchemaNode = { $ref: "#/definitions/grouped" }

const isNumeric = (node: SchemaNode): boolean => node["type"] === "integer" || node["type"] === "number"

/** Takes any text as it is, hence references too. */
const isFreeText = (node: SchemaNode): boolean =>
  node["type"] === "string" && !("pattern" in node) && !("enum" in node) && !("const" in node) && !("format" in node)

/**
 * The same schema where each value may also be a text that holds ${…}, and a number may be grouped by "_": YAML 1.2 takes 400_000 for text, the
 * pipeline file for a number. Titles, descriptions and defaults stay outermost, where editors look for them.
 */
export const acceptingReferences = (node: SchemaNode): SchemaNode => {
  const refers = "$ref" in node || "allOf" in node // definitions accept references themselves
  if (refers || Object.keys(node).every((key) => annotations.includes(key))) return node
  if (Array.isArray(node["anyOf"])) {
    const members = node["anyOf"].filter(isNode)
    const { anyOf: _, ...outer } = node
    return {
      ...outer,
      anyOf: [
        ...members.map((member) => mapChildren(member, acceptingReferences)),
        ...(members.some(isFreeText) ? [] : [reference]),
        ...(members.some(isNumeric) ? [grouped] : [])
      ]
    }
  }
  const changed = mapChildren(node, acceptingReferences)
  if (isFreeText(node)) return changed
  const outer = Object.fromEntries(Object.entries(changed).filter(([key]) => annotations.includes(key)))
  const bare = Object.fromEntries(Object.entries(changed).filter(([key]) => !annotations.includes(key)))
  return { ...outer, anyOf: [bare, reference, ...(isNumeric(node) ? [grouped] : [])] }
}

/** The same schema with no key required at any depth: what may be laid over a value that is there. */
export const withoutRequired = (node: SchemaNode): SchemaNode => {
  const { required: _, ...rest } = node
  return mapChildren(rest, withoutRequired)
}

/** Adds `defaults`, value by value, to the properties of an object schema; in words too, since editors show no default. */
export const withDefaults = (node: SchemaNode, defaults: Schema.Json): SchemaNode => {
  const properties = node["properties"]
  if (!isNode(properties) || !isNode(defaults)) return node
  return {
    ...node,
    properties: Object.fromEntries(
      Object.entries(properties).map(([key, child]) => {
        const value = defaults[key]
        if (value === undefined || !isNode(child)) return [key, child]
        const said = descriptionOf(child)
        const description = `${said === "" ? "" : `${said} `}Default: ${JSON.stringify(value)}.`
        return [key, { ...withDefaults(child, value), description, default: value }]
      })
    )
  }
}

/** References to #/definitions/old become references to #/definitions/new. */
export const renameReferences = (node: SchemaNode, names: ReadonlyMap<string, string>): SchemaNode => {
  const walk = (json: Schema.Json): Schema.Json => {
    if (Array.isArray(json)) return json.map(walk)
    if (!isNode(json)) return json
    return Object.fromEntries(
      Object.entries(json).map(([key, value]) => {
        const renamed =
          key === "$ref" && typeof value === "string" ? names.get(value.replace("#/definitions/", "")) : undefined
        return [key, renamed === undefined ? walk(value) : `#/definitions/${renamed}`]
      })
    )
  }
  const renamed = walk(node)
  return isNode(renamed) ? renamed : node
}
