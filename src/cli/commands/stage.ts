/** `tinyllama stage ls`, `stage describe TYPE`, `stage new NAME`, `stage test STAGE`: the stage types with their ports and parameters, read from their definitions. */
import { Console, Effect, Schema } from "effect"
import { Argument, Command } from "effect/cli"
import { didYouMean } from "../../pipeline/file/Diagnostics.ts"
import { StageRegistry } from "../../pipeline/StageRegistry.ts"
import type { AnyStageType, Parameter } from "../../pipeline/StageType.ts"
import { Ended } from "../Ending.ts"
import * as Flags from "../Flags.ts"
import * as Format from "../Format.ts"
import { newCommand } from "./stage-new.ts"
import { testCommand } from "./stage-test.ts"

const list = Command.make(
  "ls",
  { json: Flags.json },
  Effect.fn(function* (flags) {
    const registry = yield* StageRegistry
    const types = (yield* Effect.forEach(registry.names, (name) => registry.load(name, process.cwd()))).filter(
      (type) => type !== undefined
    )
    if (flags.json) return yield* Console.log(JSON.stringify({ version: 1, stages: types.map(asJson) }))
    yield* Console.log(
      Format.table(
        ["stage type", "in", "out", "does"],
        types.map((type) => [type.name, ports(type.inputs), ports(type.outputs), type.describe])
      )
    )
  })
).pipe(Command.withDescription("List the stage types"))

const describe = Command.make(
  "describe",
  { type: Argument.String("type").pipe(Argument.withDescription("A stage type, say pretrain")), json: Flags.json },
  Effect.fn(function* (flags) {
    const registry = yield* StageRegistry
    const type = yield* registry.load(flags.type, process.cwd())
    if (type === undefined) {
      const hint = didYouMean(flags.type, registry.names)
      yield* Console.error(
        `no stage type "${flags.type}"${hint === undefined ? "" : `; did you mean "${hint}"?`}\nNext: tinyllama stage ls`
      )
      return yield* new Ended({ code: 2 })
    }
    if (flags.json) return yield* Console.log(JSON.stringify({ version: 1, ...asJson(type) }))
    yield* Console.log(`${type.name} (version ${type.version}): ${type.describe}\n`)
    const portRows = [
      ...Object.entries(type.inputs).map(([name, port]) => [
        `in   ${name}`,
        `${port.type}${port.many ? ", a list" : ""}${port.optional ? ", optional" : ""}`,
        port.describe
      ]),
      ...Object.entries(type.outputs).map(([name, port]) => [`out  ${name}`, port.type, port.describe])
    ]
    yield* Console.log(`${Format.table(["port", "type", "is"], portRows)}\n`)
    yield* Console.log(
      Format.table(["parameter", "type", "default", "a change is", "is"], Object.entries(type.params).map(parameterRow))
    )
  })
).pipe(Command.withDescription("Show a stage type's ports and parameters"))

export const stageCommand = Command.make("stage").pipe(
  Command.withDescription("The stage types: list, describe, write and test them"),
  Command.withSubcommands([list, describe, newCommand, testCommand])
)

const ports = (named: AnyStageType["inputs"] | AnyStageType["outputs"]): string =>
  Object.entries(named)
    .map(([name, port]) => `${name}: ${port.type}`)
    .join(", ")

const parameterRow = ([name, parameter]: readonly [string, Parameter]): ReadonlyArray<string> => [
  name,
  typeName(parameter),
  parameter.default === undefined ? "required" : JSON.stringify(parameter.default),
  typeof parameter.change === "function" ? "depends on the values" : parameter.change,
  parameter.describe
]

/** A short name for what the file may say: "integer", "one of a | b", "object". */
const typeName = (parameter: Parameter): string => {
  const { schema } = Schema.toJsonSchemaDocument(parameter.schema)
  const one = (node: unknown): string => {
    if (typeof node !== "object" || node === null) return "any"
    if ("enum" in node && Array.isArray(node.enum)) return node.enum.map((value) => JSON.stringify(value)).join(" | ")
    if ("anyOf" in node && Array.isArray(node.anyOf)) return node.anyOf.map(one).join(" or ")
    if ("type" in node && node.type === "array") return `list of ${"items" in node ? one(node.items) : "any"}`
    if ("type" in node && typeof node.type === "string") return node.type
    return "any"
  }
  const name = one(schema)
  return name.length > 48 ? `${name.slice(0, 45)}…` : name
}

const asJson = (type: AnyStageType) => ({
  name: type.name,
  stageVersion: type.version,
  describe: type.describe,
  inputs: type.inputs,
  outputs: type.outputs,
  params: Object.fromEntries(
    Object.entries(type.params).map(([name, parameter]) => [
      name,
      {
        describe: parameter.describe,
        change: typeof parameter.change === "function" ? "function" : parameter.change,
        ...(parameter.default === undefined ? { required: true } : { default: parameter.default }),
        schema: Schema.toJsonSchemaDocument(parameter.schema).schema
      }
    ])
  )
})
