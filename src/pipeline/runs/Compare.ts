/** Runs side by side: parameters as their files resolved them, and the facts of what they made. The first run is what the others are held to. */
import { Effect, FileSystem, Option, Path, Schema } from "effect"
import type { ArtifactType } from "../../artifacts/Artifact.ts"
import { ArtifactStore } from "../../artifacts/ArtifactStore.ts"
import { canonicalJson } from "../../artifacts/CanonicalJson.ts"
import { type RunInfo, Runs } from "./Runs.ts"
import { isObject } from "../file/Settings.ts"

export interface Row {
  /** Parameters as -S names them: "base.lr.peak"; facts as "stage.port.fact". */
  readonly name: string
  /** One for each run; undefined where a run has none. */
  readonly values: ReadonlyArray<Schema.Json | undefined>
  readonly differs: boolean
}
export interface Metric extends Row {
  /** Of the artifact that states the fact. */
  readonly type: ArtifactType
}

export interface Comparison {
  /** Ids. */
  readonly runs: ReadonlyArray<string>
  readonly parameters: ReadonlyArray<Row>
  readonly metrics: ReadonlyArray<Metric>
}

export const compareRuns = Effect.fn("compareRuns")(function* (runs: ReadonlyArray<RunInfo>) {
  const parameters = yield* Effect.forEach(runs, parametersOf)
  const facts = yield* Effect.forEach(runs, factsOf)
  const types = new Map(facts.flatMap((one) => Array.from(one, ([name, { type }]) => [name, type] as const)))
  const values = facts.map((one) => new Map(Array.from(one, ([name, { value }]) => [name, value] as const)))
  const comparison: Comparison = {
    runs: runs.map((run) => run.id),
    parameters: rows(parameters),
    metrics: rows(values).flatMap((row) => {
      const type = types.get(row.name)
      return type === undefined ? [] : [{ ...row, type }]
    })
  }
  return comparison
})

/** By name, in the order in which the names first come. */
const rows = (columns: ReadonlyArray<ReadonlyMap<string, Schema.Json>>): ReadonlyArray<Row> => {
  const names = new Set(columns.flatMap((column) => Array.from(column.keys())))
  return Array.from(names, (name) => {
    const values = columns.map((column) => column.get(name))
    const texts = new Set(values.map((value) => (value === undefined ? "" : canonicalJson(value))))
    return { name, values, differs: texts.size > 1 }
  })
}

const Resolved = Schema.fromJsonString(
  Schema.Struct({
    vars: Schema.Record(Schema.String, Schema.Json),
    stages: Schema.Record(Schema.String, Schema.Record(Schema.String, Schema.Json))
  })
)
const decodeResolved = Schema.decodeEffect(Resolved)

/** From pipeline.resolved.json; empty where that cannot be read. */
const parametersOf = Effect.fnUntraced(function* (run: RunInfo) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const resolved = yield* fs
    .readFileString(path.join(run.folder, "pipeline.resolved.json"))
    .pipe(Effect.flatMap(decodeResolved), Effect.option)
  const found = new Map<string, Schema.Json>()
  if (Option.isNone(resolved)) return found
  flatten(withoutOrigins(resolved.value.vars), "vars", found)
  for (const [stage, { with: parameters = {}, ...settings }] of Object.entries(resolved.value.stages)) {
    flatten(withoutOrigins(parameters), stage, found)
    flatten(withoutOrigins(settings), stage, found)
  }
  return found
})

/** { value, from } → value, at every depth. */
const withoutOrigins = (node: Schema.Json): Schema.Json => {
  if (Array.isArray(node)) return node.map(withoutOrigins)
  if (!isObject(node)) return node
  const { from, value, ...rest } = node
  if (typeof from === "string" && value !== undefined && Object.keys(rest).length === 0) return value
  return Object.fromEntries(Object.entries(node).map(([key, inner]) => [key, withoutOrigins(inner)]))
}

interface Fact {
  readonly value: Schema.Json
  readonly type: ArtifactType
}

const factsOf = Effect.fnUntraced(function* (run: RunInfo) {
  const store = yield* ArtifactStore
  const found = new Map<string, Fact>()
  for (const { digest, port, stage } of yield* (yield* Runs).outputs(run)) {
    const artifact = yield* store.get(digest)
    if (artifact === undefined) continue
    const flat = new Map<string, Schema.Json>()
    flatten(artifact.manifest.facts, `${stage}.${port}`, flat)
    for (const [name, value] of flat) found.set(name, { value, type: artifact.manifest.type })
  }
  return found
})

/** Leaves by their path. Lists of objects that say which model or thing they are of are taken apart by that name; other lists are leaves. */
const flatten = (node: Schema.Json, path: string, found: Map<string, Schema.Json>): void => {
  if (isObject(node)) {
    for (const [key, inner] of Object.entries(node)) flatten(inner, `${path}.${key}`, found)
  } else if (Array.isArray(node) && node.length > 0 && node.every((item) => label(item) !== undefined)) {
    for (const item of node) flatten(item, `${path}[${label(item)}]`, found)
  } else found.set(path, node)
}

const label = (item: Schema.Json): string | undefined => {
  if (!isObject(item)) return undefined
  const name = item["model"] ?? item["name"]
  return typeof name === "string" ? name : undefined
}
