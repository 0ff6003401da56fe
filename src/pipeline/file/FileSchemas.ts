/** The JSON Schemas of the files that the program reads and writes, by name: `schemas/<name>.schema.json`. */
import { Effect, type Schema } from "effect"
import { Manifest } from "../../artifacts/Artifact.ts"
import { KeyRecord } from "../../artifacts/ArtifactStore.ts"
import { documentOf, draft07, type SchemaNode } from "./JsonSchema.ts"
import { pipelineSchema } from "./PipelineSchema.ts"
import { PlanDocument } from "../plan/PlanDocument.ts"
import { RunEvent } from "../runs/RunEvent.ts"
import { RunRecord } from "../runs/Runs.ts"
import type { StageRegistry } from "../StageRegistry.ts"

/** Readers of what the program writes meet keys of later versions: they are not errors. */
const written = (title: string, schema: Schema.Constraint): Effect.Effect<SchemaNode> =>
  Effect.sync(() => {
    const document = documentOf(schema, { closed: false })
    return { $schema: draft07, title, ...document.schema, definitions: document.definitions }
  })

export const fileSchemas = {
  pipeline: pipelineSchema,
  run: written("tinyllama run record: runs/<run>/run.json", RunRecord),
  event: written("tinyllama journal event: a line of runs/<run>/events.jsonl", RunEvent),
  manifest: written("tinyllama artifact manifest: runs/store/artifacts/<digest>.json", Manifest),
  plan: written("tinyllama plan: what plan --json prints and plan --out saves", PlanDocument),
  key: written("tinyllama key record: runs/store/keys/<stage key>.json", KeyRecord)
} satisfies Readonly<Record<string, Effect.Effect<SchemaNode, never, StageRegistry>>>
export type SchemaName = keyof typeof fileSchemas

export const schemaNames = Object.keys(fileSchemas) as ReadonlyArray<SchemaName>

/** The text of `schemas/<name>.schema.json`. */
export const schemaText = (name: SchemaName): Effect.Effect<string, never, StageRegistry> =>
  Effect.map(fileSchemas[name], (schema) => `${JSON.stringify(schema, null, 2)}\n`)
