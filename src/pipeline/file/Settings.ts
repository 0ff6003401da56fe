/** A pipeline's decoded values without their origins: what can be compared and digested. */
import type { Schema } from "effect"
import { digestOf } from "../../artifacts/CanonicalJson.ts"
import { describeOrigins, type ResolvedPipeline } from "./ResolvedPipeline.ts"

export type Settings = { readonly [key: string]: Schema.Json }

/**
 * Everything that the file decides, variables resolved: the variables themselves, profiles and overrides only lead there and are left out.
 * Stages are under `stages`, by name.
 */
export const settingsOf = (pipeline: ResolvedPipeline): Settings => {
  const all = withoutOrigins(describeOrigins(pipeline))
  if (!isObject(all)) return {}
  const { overrides: _, profiles: __, vars: ___, version: ____, ...settings } = all
  return settings
}

/** Comments, order and spelling do not change it. */
export const settingsDigest = (pipeline: ResolvedPipeline): string => digestOf(settingsOf(pipeline))

/** `describeOrigins` gives { value, from } for each leaf. */
const withoutOrigins = (value: Schema.Json): Schema.Json => {
  if (Array.isArray(value)) return value.map(withoutOrigins)
  if (!isObject(value)) return value
  if (Object.keys(value).length === 2 && "value" in value && "from" in value) return value["value"] ?? null
  return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, withoutOrigins(inner)]))
}

export const isObject = (value: Schema.Json | undefined): value is Settings =>
  typeof value === "object" && value !== null && !Array.isArray(value)
