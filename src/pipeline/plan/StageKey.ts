/**
 * The stage key: digest of what determines a stage's bytes. Stage type and version, every parameter that is not operational (decoded and
 * encoded again, so spelling cannot matter), input digests port by port in the file's order, and what the stage observes outside.
 */
import { Schema } from "effect"
import { digestOf } from "../../artifacts/CanonicalJson.ts"
import type { AnyStageType } from "../StageType.ts"

export const KeyParts = Schema.Struct({
  stageType: Schema.String,
  stageVersion: Schema.Int,
  params: Schema.Record(Schema.String, Schema.Json),
  /** Port → digests of its artifacts. */
  inputs: Schema.Record(Schema.String, Schema.Array(Schema.String)),
  /** What `observe` returned; null where the stage type has none. */
  observed: Schema.Json,
  /** Digest of a plugin's code; absent for the program's own stage types, whose version stands for their code. */
  code: Schema.optionalKey(Schema.String)
})
export type KeyParts = typeof KeyParts.Type

export const keyParts = (
  type: AnyStageType,
  params: Readonly<Record<string, Schema.Json>>,
  inputs: KeyParts["inputs"],
  observed: Schema.Json
): KeyParts => ({
  stageType: type.name,
  stageVersion: type.version,
  params: Object.fromEntries(Object.entries(params).filter(([name]) => type.params[name]?.change !== "operational")),
  inputs,
  observed,
  ...(type.plugin === undefined ? {} : { code: type.plugin.code })
})

/** 64 hexadecimal digits. */
export const stageKey = (parts: KeyParts): string => digestOf(parts)
