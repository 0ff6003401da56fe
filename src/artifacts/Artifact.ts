/**
 * The typed values that flow between stages. An artifact is an immutable folder with a manifest; its digest names its content.
 */
import { Schema } from "effect"

/** The types that the program knows, and "x-…" for what only plugin stages make and take. */
export const ArtifactType = Schema.Union([
  Schema.Literals([
    "Documents",
    "TokenShards",
    "PackedDataset",
    "TrainingState",
    "Checkpoint",
    "HfModel",
    "EvalReport",
    "GgufModel"
  ]),
  Schema.TemplateLiteral(["x-", Schema.String])
])
export type ArtifactType = typeof ArtifactType.Type

export const ArtifactFile = Schema.Struct({
  /** Relative to the artifact's folder, with forward slashes. */
  path: Schema.String,
  bytes: Schema.Int,
  sha256: Schema.String
})

/** Facts that a stage states about its output: counts, policies, scores. Part of the digest, so nothing of time or place goes in. */
export const Facts = Schema.Record(Schema.String, Schema.Json)
export type Facts = typeof Facts.Type

/** A counted fact as people read it: 471218 → "471,218"; "?" where it is missing. For the headlines of stages. */
export const countIn = (facts: Facts, name: string): string => {
  const value = facts[name]
  return typeof value === "number" ? value.toLocaleString("en") : "?"
}

export const Manifest = Schema.Struct({
  type: ArtifactType,
  /** sha256 of (type, files, facts) in canonical JSON. */
  digest: Schema.String,
  files: Schema.Array(ArtifactFile),
  facts: Facts,
  madeBy: Schema.Struct({
    stageType: Schema.String,
    stageVersion: Schema.Int,
    stageKey: Schema.String,
    run: Schema.String,
    stage: Schema.String,
    attempt: Schema.Int
  })
})
export type Manifest = typeof Manifest.Type

/** An artifact as a stage sees it: where its files lie, and what is said of it. */
export const ArtifactHandle = Schema.Struct({
  type: ArtifactType,
  digest: Schema.String,
  folder: Schema.String,
  facts: Facts,
  /** "stage.port" that produced it, for messages. */
  origin: Schema.String
})
export type ArtifactHandle = typeof ArtifactHandle.Type
