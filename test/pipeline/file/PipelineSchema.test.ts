/** The committed schemas are what the code generates, and the pipeline's schema has the keys that the parser knows. */
import { readdirSync, readFileSync } from "node:fs"
import { fileURLToPath } from "node:url"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Layer } from "effect"
import { schemaNames, schemaText } from "../../../src/pipeline/file/FileSchemas.ts"
import {
  acceptingReferences,
  documentOf,
  withDefaults,
  withoutRequired
} from "../../../src/pipeline/file/JsonSchema.ts"
import type { SchemaNode } from "../../../src/pipeline/file/JsonSchema.ts"
import { loadPipeline } from "../../../src/pipeline/file/Pipeline.ts"
import { pipelineSchema, pluginPattern } from "../../../src/pipeline/file/PipelineSchema.ts"
import { StageRegistry } from "../../../src/pipeline/StageRegistry.ts"
import * as registry from "../../../src/stages/registry.ts"
import { Manifest } from "../../../src/artifacts/Artifact.ts"
import { workplace } from "../fixtures/harness.ts"

const services = Layer.merge(NodeServices.layer, registry.layer)
const folder = fileURLToPath(new URL("../../../schemas", import.meta.url))

/** The node at a path of keys, references followed. */
const at = (root: SchemaNode, path: ReadonlyArray<string>): SchemaNode => {
  let node = root
  for (const key of path) {
    const next = node[key]
    assert.isDefined(next, `${path.join(".")} lacks ${key}`)
    node = next as SchemaNode
    while (typeof node["$ref"] === "string" || Array.isArray(node["allOf"])) {
      const inner = (node["allOf"] as ReadonlyArray<SchemaNode> | undefined)?.[0] ?? node
      if (typeof inner["$ref"] !== "string") break
      node = (root["definitions"] as Record<string, SchemaNode>)[inner["$ref"].replace("#/definitions/", "")] ?? {}
    }
    if (Array.isArray(node["anyOf"])) node = firstObject(node["anyOf"] as ReadonlyArray<SchemaNode>)
  }
  return node
}
const firstObject = (members: ReadonlyArray<SchemaNode>): SchemaNode =>
  members.find((member) => "properties" in member) ?? members[0] ?? {}
const keysOf = (node: SchemaNode): ReadonlyArray<string> => Object.keys((node["properties"] ?? {}) as SchemaNode)

/** A pipeline with a key that nothing knows in each block: the parser answers with the keys that it knows. */
const probe = `version: 1
name: t
nothing: 1
price: { per_hour: 1, nothing: 1 }
defaults: { nothing: 1, retry: { nothing: 1 } }
stages:
  a: { uses: tokenize, nothing: 1, in: { documents: x.documents }, resources: { nothing: 1 }, retry: { nothing: 1 } }
profiles: { p: { nothing: 1 } }
`
const blocks: Readonly<Record<string, ReadonlyArray<string>>> = {
  "": [],
  price: ["properties", "price"],
  defaults: ["properties", "defaults"],
  "defaults.retry": ["properties", "defaults", "properties", "retry"],
  "stages.a": ["properties", "stages", "additionalProperties"],
  "stages.a.resources": ["definitions", "resources"],
  "stages.a.retry": ["definitions", "retry"],
  "profiles.p": ["properties", "profiles", "additionalProperties"]
}

describe("the schema of the pipeline file", () => {
  it.effect("has in each block the keys that the parser knows", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      const invalid = yield* Effect.flip(loadPipeline({ file: place.write(probe) }))
      const schema = yield* pipelineSchema
      const met = new Set<string>()
      for (const { message, path } of invalid.diagnostics) {
        const known = /^unknown key "nothing"; .* has (.*)$/u.exec(message)?.[1]?.split(", ")
        if (known === undefined) continue
        const block = path.split(".").slice(0, -1).join(".")
        met.add(block)
        assert.property(blocks, block, `the parser knows a block that this test does not: ${block}`)
        assert.sameMembers(
          [...keysOf(at(schema, blocks[block] ?? []))],
          known,
          `PipelineSchema.ts and the parser differ in the keys of "${block}"`
        )
      }
      assert.sameMembers([...met], Object.keys(blocks))
    }).pipe(Effect.scoped, Effect.provide(services))
  )

  it.effect("has every parameter and port of every stage type, and says which are required", () =>
    Effect.gen(function* () {
      const schema = yield* pipelineSchema
      const { load, names } = yield* StageRegistry
      for (const name of names) {
        const type = yield* load(name, ".")
        assert.isDefined(type)
        const block = at(schema, ["definitions", `${name}.with`])
        assert.deepStrictEqual(keysOf(block), Object.keys(type?.params ?? {}))
        const required = Object.entries(type?.params ?? {}).flatMap(([key, parameter]) =>
          "default" in parameter ? [] : [key]
        )
        assert.deepStrictEqual(block["required"] ?? [], required)
        assert.isFalse(block["additionalProperties"])
        assert.deepStrictEqual(keysOf(at(schema, ["definitions", `${name}.in`])), Object.keys(type?.inputs ?? {}))
        assert.notProperty(at(schema, ["definitions", `${name}.with.overlay`]), "required")
      }
    }).pipe(Effect.scoped, Effect.provide(services))
  )
})

describe("uses", () => {
  it("may name a file, a package or one of its exports, none of which looks like a slip in a type's name", () => {
    for (const plugin of [
      "./s.ts",
      "../lib/s.mjs",
      "/opt/s.js",
      "@me/stages",
      "my-stages",
      "my-stages/clean#dedupe",
      "./s.ts#b"
    ])
      assert.match(plugin, pluginPattern)
    for (const slip of ["pretrian", "Tokenize", "", "sft ", "-x"]) assert.notMatch(slip, pluginPattern)
  })
})

describe("schemas/", () => {
  it.effect("holds what the code generates, and nothing else", () =>
    Effect.gen(function* () {
      for (const name of schemaNames) {
        const committed = readFileSync(`${folder}/${name}.schema.json`, "utf8")
        const generated = yield* schemaText(name)
        assert.isTrue(committed === generated, `schemas/${name}.schema.json is out of date. Next: npm run schemas`)
        assert.strictEqual(generated, yield* schemaText(name), "two generations differ")
      }
      assert.sameMembers(
        readdirSync(folder),
        schemaNames.map((name) => `${name}.schema.json`)
      )
    }).pipe(Effect.provide(services))
  )
})

describe("JSON Schema for editors", () => {
  it("leaves out what says nothing", () => {
    const { schema } = documentOf(Manifest, { closed: false })
    assert.deepStrictEqual(at(schema, ["properties", "madeBy", "properties", "attempt"]), { type: "integer" })
  })

  it("lets a reference and a grouped number stand where a number is due, with the description outermost", () => {
    assert.deepStrictEqual(acceptingReferences({ type: "integer", minimum: 1, description: "how many", default: 3 }), {
      description: "how many",
      default: 3,
      anyOf: [{ type: "integer", minimum: 1 }, { $ref: "#/definitions/reference" }, { $ref: "#/definitions/grouped" }]
    })
    assert.deepStrictEqual(acceptingReferences({ type: "string" }), { type: "string" })
    assert.deepStrictEqual(acceptingReferences({ anyOf: [{ type: "string" }, { type: "null" }] }), {
      anyOf: [{ type: "string" }, { type: "null" }]
    })
  })

  it("drops required at every depth, and puts defaults at every depth", () => {
    const lr = { type: "object", properties: { peak: { type: "number" } }, required: ["peak"] }
    assert.deepStrictEqual(withoutRequired({ type: "object", properties: { lr }, required: ["lr"] }), {
      type: "object",
      properties: { lr: { type: "object", properties: { peak: { type: "number" } } } }
    })
    assert.deepStrictEqual(withDefaults(lr, { peak: 0.5 })["properties"], {
      peak: { type: "number", description: "Default: 0.5.", default: 0.5 }
    })
  })
})
