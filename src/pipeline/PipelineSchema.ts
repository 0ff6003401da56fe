/**
 * The JSON Schema of the pipeline file, generated from what the parser itself goes by: stage types with their parameters and ports, failure
 * classes, the forms of quantities and edges. A test holds its keys against those that the parser knows.
 */
import { Duration, Effect, Result, type Schema } from "effect"
import {
  acceptingReferences,
  type Definitions,
  descriptionOf,
  documentOf,
  draft07,
  referenceDefinitions,
  renameReferences,
  type SchemaNode,
  withDefaults,
  withoutRequired
} from "./JsonSchema.ts"
import { canonical } from "./Parameters.ts"
import { bytesPattern, durationPattern } from "./Quantity.ts"
import { defaultGrace, defaultRetry, edgePattern, retryable } from "./StageBlock.ts"
import { StageRegistry } from "./StageRegistry.ts"
import type { AnyStageType, InputPort, Parameter } from "./StageType.ts"

const object = (properties: SchemaNode, rest: SchemaNode = {}): SchemaNode => ({
  type: "object",
  properties,
  additionalProperties: false,
  ...rest
})
const ref = (name: string): SchemaNode => ({ $ref: `#/definitions/${name}` })
/** `description` beside a reference: draft-07 ignores what stands beside $ref. */
const described = (node: SchemaNode, description: string): SchemaNode => ({ description, allOf: [node] })
const oneOrMore = (item: SchemaNode): SchemaNode => ({ anyOf: [item, { type: "array", items: item }] })

const stageName: SchemaNode = { type: "string", pattern: "^[A-Za-z][\\w-]*$" }
const duration: SchemaNode = { type: "string", pattern: durationPattern.source }
const edge: SchemaNode = { type: "string", pattern: edgePattern.source, description: "stage.port" }

const retry = object({
  times: { type: "integer", minimum: 0, default: defaultRetry.times, description: "Tries after the first one." },
  backoff: {
    enum: ["exponential", "constant"],
    default: defaultRetry.backoff,
    description: "How the delay between tries grows."
  },
  base: { ...duration, default: short(defaultRetry.base), description: "The first delay." },
  max: { ...duration, default: short(defaultRetry.max), description: "The longest delay." },
  jitter: {
    type: "boolean",
    default: defaultRetry.jitter,
    description: "Spreads each delay over 0.8 to 1.2 of itself."
  },
  for: {
    type: "array",
    items: { enum: [...retryable] },
    default: [...defaultRetry.for],
    description: "The failure classes that are worth another try."
  }
})

const resources = object({
  cpus: {
    anyOf: [{ type: "integer", minimum: 1 }, { const: "all" }],
    description: "Cores that the stage takes; all: every core of this machine."
  },
  memory: {
    anyOf: [
      { type: "string", pattern: bytesPattern.source },
      { type: "number", minimum: 0 }
    ],
    description: "Memory that the stage takes, say 4GiB."
  },
  disk: {
    anyOf: [
      { type: "string", pattern: bytesPattern.source },
      { type: "number", minimum: 0 }
    ],
    description: "Disk space that the stage's work and outputs may take, say 200GiB."
  },
  gpus: { type: "integer", minimum: 0, default: 0, description: "GPUs that the stage takes." }
})

const timeLimit = (what: string): SchemaNode => ({ ...duration, description: `${what}, say 30s, 10m or 48h.` })

const matrix: SchemaNode = {
  type: "object",
  description:
    "Axis → its values: one stage for each combination, named base[lr=0.001]. ${matrix.axis} stands for the value in the stage's block.",
  minProperties: 1,
  propertyNames: stageName,
  additionalProperties: { type: "array", minItems: 1, items: { type: ["string", "number", "boolean", "null"] } }
}

const secrets: SchemaNode = {
  type: ["array", "null"],
  items: { type: "string", pattern: "^[A-Za-z_]\\w*$" },
  description: "Environment variables that the workers get and nothing writes down: names, never values."
}

const price: SchemaNode = {
  description: "What an hour of the machine costs, for the forecasts of `tinyllama plan`.",
  anyOf: [
    { type: "string", description: "$2.50/h" },
    object(
      {
        per_hour: { type: "number", minimum: 0, description: "In the currency." },
        currency: { type: "string", minLength: 1, default: "$", description: "As it is printed." }
      },
      { required: ["per_hour"] }
    ),
    { type: "null" }
  ]
}

const conditions = (description: string): SchemaNode => ({
  ...oneOrMore({ type: "string", minLength: 1 }),
  description
})

/** What may stand in a stage beside uses, in and with, in the order in which the formatter writes it. */
const surroundings: SchemaNode = {
  resources: described(ref("resources"), "What the stage takes of this machine while it runs."),
  retry: described(ref("retry"), "When a failed attempt is tried again; over `defaults`."),
  timeout: timeLimit("The limit of one attempt"),
  grace: {
    ...timeLimit("How long a stopped attempt may take to save, before it is killed"),
    default: short(defaultGrace)
  },
  after: {
    ...oneOrMore({ type: "string" }),
    description: "Stages that must be done before, though no data comes from them."
  },
  checks: conditions(
    'Conditions on the facts of the outputs, say "tokens >= 1e6": a result that fails one is not published.'
  ),
  stop_if: conditions(
    'Conditions on live metrics that end an attempt, say "loss is nan" or "loss > 10 after 1e8 tokens".'
  ),
  secrets
}

/** "1m", "90s": in the largest unit that gives a whole number. */
function short(value: Duration.Duration): string {
  const seconds = Duration.toSeconds(value)
  const [size, unit] = (
    [
      [3600, "h"],
      [60, "m"],
      [1, "s"]
    ] as const
  ).find(([size]) => seconds % size === 0) ?? [1, "s"]
  return `${seconds / size}${unit}`
}

const changeSentence = (parameter: Parameter): string => {
  switch (parameter.change) {
    case "identity":
      return "A change makes the stage run anew."
    case "continuation":
      return "After a change the stage goes on from its last checkpoint."
    case "additive":
      return "After a change only what is new runs."
    case "operational":
      return "A change makes nothing stale."
    default:
      return "What a change does depends on the values: `tinyllama plan` says it."
  }
}

/** A type's `with` block, and the definitions it refers to under names that no other type uses. */
const parametersOf = (type: AnyStageType): { readonly node: SchemaNode; readonly definitions: Definitions } => {
  const definitions: Record<string, SchemaNode> = {}
  const properties = Object.entries(type.params).map(([name, parameter]) => {
    const document = documentOf(parameter.schema, { closed: true })
    const names = new Map(Object.keys(document.definitions).map((local) => [local, `${type.name}.${local}`]))
    for (const [local, node] of Object.entries(document.definitions))
      definitions[`${type.name}.${local}`] = renameReferences(node, names)
    const byDefault =
      "default" in parameter && !isBlock(parameter.default) ? ` Default: ${JSON.stringify(parameter.default)}.` : ""
    const description = `${parameter.describe}${byDefault}\n\n${changeSentence(parameter)}`
    const own = renameReferences(document.schema, names)
    const node = "$ref" in own ? described(own, description) : { ...own, description }
    if (!("default" in parameter)) return [name, node] as const
    const filled = Result.getOrElse(canonical(parameter.schema, parameter.default), () => parameter.default)
    return [name, { ...withDefaults(node, filled as Schema.Json), default: parameter.default as Schema.Json }] as const
  })
  const required = Object.entries(type.params).flatMap(([name, parameter]) => ("default" in parameter ? [] : [name]))
  return { node: block(Object.fromEntries(properties), required), definitions }
}

/** An object's defaults stand at its keys. */
const isBlock = (value: unknown): boolean => typeof value === "object" && value !== null

/** A block that may be left empty when nothing in it is required. */
const block = (properties: SchemaNode, required: ReadonlyArray<string>): SchemaNode =>
  required.length === 0 ? object(properties, { type: ["object", "null"] }) : object(properties, { required })

const portSchema = (port: InputPort): SchemaNode => ({
  description: `${port.describe}\n\nTakes ${port.type}${port.many ? ", a list" : ""}${port.optional ? "; may be left out" : ""}.`,
  anyOf: [
    { type: "array", items: edge, ...(port.many ? {} : { maxItems: 1 }), ...(port.optional ? {} : { minItems: 1 }) },
    edge
  ]
})

const portsOf = (type: AnyStageType): SchemaNode =>
  block(
    Object.fromEntries(Object.entries(type.inputs).map(([name, port]) => [name, portSchema(port)])),
    Object.entries(type.inputs).flatMap(([name, port]) => (port.optional ? [] : [name]))
  )

const usesSchema = (types: ReadonlyArray<AnyStageType>): SchemaNode => ({
  description: "The stage type: `tinyllama stage describe TYPE` shows its ports and parameters.",
  anyOf: [
    { enum: types.map(({ name }) => name), enumDescriptions: types.map(({ describe }) => describe) },
    { type: "string", pattern: pluginPattern.source, description: "A stage type of your own: a file or a package." }
  ]
})

/** ./my-stage.ts, ../lib/stage.js, /opt/stage.ts, a package in a scope, or one whose name says that it holds stages. */
const pluginPattern = /^(?:\.{1,2}\/|\/|@[\w.-]+\/[\w.-]+|[\w.-]*stage[\w.-]*$|[\w.-]+\/)/u

const anyBlock = (description: string): SchemaNode => ({ type: ["object", "null"], description })

/** A stage; its type decides what `with` and `in` hold. In an overlay nothing is required, and the type may stand in the base file only. */
const stageSchema = (types: ReadonlyArray<AnyStageType>, overlay: boolean): SchemaNode => {
  const suffix = overlay ? ".overlay" : ""
  const branches = types.map((type) => {
    const required = overlay
      ? []
      : [
          ...(Object.values(type.params).every((parameter) => "default" in parameter) ? [] : ["with"]),
          ...(Object.values(type.inputs).every((port) => port.optional === true) ? [] : ["in"])
        ]
    return {
      if: { properties: { uses: { const: type.name } }, required: ["uses"] },
      // oxlint-disable-next-line unicorn/no-thenable -- JSON Schema's own word
      then: {
        properties: { in: ref(`${type.name}.in${suffix}`), with: ref(`${type.name}.with${suffix}`) },
        ...(required.length === 0 ? {} : { required })
      }
    }
  })
  const withDescription = "The type's parameters."
  return object(
    {
      uses: ref("uses"),
      matrix,
      max_parallel: {
        type: "integer",
        minimum: 1,
        description: "How many instances of the matrix may run at the same time."
      },
      in: anyBlock("Where each input port takes its artifacts from: port → stage.port, or a list of them."),
      with: overlay ? described(ref("any.with"), withDescription) : anyBlock(withDescription),
      ...surroundings
    },
    { ...(overlay ? {} : { required: ["uses"] }), allOf: branches }
  )
}

/** Every parameter of every type, for overlays that leave the type to the base file. */
const anyParameters = (blocks: ReadonlyArray<SchemaNode>): SchemaNode => {
  const named = new Map<string, Array<SchemaNode>>()
  for (const { properties } of blocks)
    for (const [name, node] of Object.entries((properties ?? {}) as SchemaNode)) {
      const known = named.get(name) ?? []
      if (!known.some((other) => JSON.stringify(other) === JSON.stringify(node))) known.push(node as SchemaNode)
      named.set(name, known)
    }
  const properties = Array.from(named, ([name, nodes]) => {
    const [first = {}] = nodes
    const description = Array.from(new Set(nodes.map((node) => descriptionOf(node).split("\n\n")[0])))
    return [name, nodes.length === 1 ? first : { description: description.join("\n\n"), anyOf: nodes }]
  })
  return { type: ["object", "null"], properties: Object.fromEntries(properties) }
}

const stagesSchema = (stage: string): SchemaNode => ({
  type: "object",
  description: "Stage name → what it does.",
  propertyNames: stageName,
  additionalProperties: ref(stage)
})

const vars: SchemaNode = {
  type: "object",
  description: "Values to write once: ${vars.name} stands for them everywhere."
}

/** The schema as a document of its own, self-contained and in a fixed order. */
export const pipelineSchema = Effect.gen(function* () {
  const registry = yield* StageRegistry
  const types = (yield* Effect.forEach(registry.names, registry.load)).filter((type) => type !== undefined)
  const parameters = types.map((type) => ({ type, ...parametersOf(type) }))
  const overlaid = parameters.map(({ node }) => withoutRequired(node))
  const blocks: Record<string, SchemaNode> = {
    uses: usesSchema(types),
    retry,
    resources,
    "any.with": anyParameters(overlaid)
  }
  for (const { definitions, node, type } of parameters) {
    Object.assign(blocks, definitions)
    blocks[`${type.name}.in`] = portsOf(type)
    blocks[`${type.name}.with`] = node
    blocks[`${type.name}.in.overlay`] = withoutRequired(portsOf(type))
    blocks[`${type.name}.with.overlay`] = withoutRequired(node)
  }
  const defaults = object(
    { retry: ref("retry"), timeout: timeLimit("The limit of one attempt") },
    { description: "Settings of every stage that does not give its own." }
  )
  return {
    $schema: draft07,
    ...object(
      {
        version: { const: 1, description: "The version of this format." },
        name: { type: "string", minLength: 1, description: "The pipeline's name." },
        vars,
        defaults: acceptingReferences(defaults),
        secrets: acceptingReferences(secrets),
        price: acceptingReferences(price),
        stages: { ...stagesSchema("stage"), minProperties: 1 },
        profiles: {
          type: "object",
          description: "Sets of changes, applied with -p NAME: mappings merge key by key, all else is replaced.",
          additionalProperties: ref("profile")
        }
      },
      { required: ["version", "name", "stages"] }
    ),
    definitions: {
      stage: acceptingInside(stageSchema(types, false)),
      "stage.overlay": acceptingInside(stageSchema(types, true)),
      profile: object({
        vars,
        defaults: acceptingReferences(defaults),
        secrets: acceptingReferences(secrets),
        price: acceptingReferences(price),
        stages: stagesSchema("stage.overlay")
      }),
      ...Object.fromEntries(Object.entries(blocks).map(([name, node]) => [name, acceptingReferences(node)])),
      ...referenceDefinitions
    }
  } satisfies SchemaNode
})

/** References in the stage's fields; the stage itself is a mapping, so that its faults are told key by key. */
const acceptingInside = (stage: SchemaNode): SchemaNode => ({
  ...stage,
  properties: Object.fromEntries(
    Object.entries((stage["properties"] ?? {}) as SchemaNode).map(([key, node]) => [
      key,
      acceptingReferences(node as SchemaNode)
    ])
  )
})
