/** One text for one value: what digests are taken of. Keys in code-unit order, no spaces, numbers as ECMAScript prints them (RFC 8785's choices). */
import { createHash } from "node:crypto"
import type { Schema } from "effect"

export const canonicalJson = (value: Schema.Json): string => {
  if (Array.isArray(value)) return `[${value.map(canonicalJson).join(",")}]`
  if (typeof value !== "object" || value === null) return JSON.stringify(value)
  const entries = Object.entries(value).sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0))
  return `{${entries.map(([key, inner]) => `${JSON.stringify(key)}:${canonicalJson(inner)}`).join(",")}}`
}

/** sha256 of the canonical text, in hexadecimal. */
export const digestOf = (value: Schema.Json): string => createHash("sha256").update(canonicalJson(value)).digest("hex")
