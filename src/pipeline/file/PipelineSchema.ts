/**
 * The JSON Schema of the pipeline file, generated from what the parser itself goes by: stage types with their parameters and ports, failure
 * classes, the forms of quantities and edges. A test holds its keys against those that the parser knows.
 */
import { Effect, Result, type Schema } from "effect"
import { slurmParameters } from "./ExecutorBlock.ts"
import {
  described,
  edge,
  matrix,
  object,
  price,
  ref,
  resources,
  retry,
  secrets,
  stageName,
  surroundings,
  timeLimit,
  vars
} from "./FieldSchemas.ts"
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
import { StageRegistry } from "../StageRegistry.ts"
import type { AnyStageType, InputPort, Parameter } from "../StageType.ts"

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
const parametersOf = (
  type: Pick<AnyStageType, "name" | "params">
): { readonly node: SchemaNode; readonly definitions: Definitions } => {
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

/** `kind` may stand in the defaults alone, so nothing is required here. */
const executorSchema = (): SchemaNode => {
  const { node } = parametersOf({ name: "executor", params: slurmParameters })
  return object({
    kind: {
      enum: ["local", "slurm"],
      enumDescriptions: ["Worker processes of this machine.", "A Slurm job for each attempt."],
      description: "local: worker processes of this machine; slurm: a job for each attempt. All other keys are Slurm's."
    },
    ...((node["properties"] ?? {}) as SchemaNode)
  })
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

/**
 * ./my-stage.ts, ../lib/stage.js, /opt/stage.ts, a package in a scope, with a subpath, or with a hyphen or a dot in its name; "#name" of an export
 * after it. A package of one plain word is left out: it could not be told from a slip in a type's name.
 */
export const pluginPattern = /^(?:\.{1,2}\/|\/|@[\w.-]+\/[\w.-]|[A-Za-z0-9][\w]*[-./#][\w.-])/u

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

/** The schema as a document of its own, self-contained and in a fixed order. */
export const pipelineSchema = Effect.gen(function* () {
  const registry = yield* StageRegistry
  const own = yield* Effect.forEach(registry.names, (name) => Effect.orDie(registry.load(name, ".")))
  const types = own.filter((type) => type !== undefined)
  const parameters = types.map((type) => ({ type, ...parametersOf(type) }))
  const overlaid = parameters.map(({ node }) => withoutRequired(node))
  const blocks: Record<string, SchemaNode> = {
    uses: usesSchema(types),
    retry,
    resources,
    executor: executorSchema(),
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
    { retry: ref("retry"), timeout: timeLimit("The limit of one attempt"), executor: ref("executor") },
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
        executor: described(ref("executor"), "Where stages run; short for defaults.executor."),
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
