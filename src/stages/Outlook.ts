/** How forecasts are said in a plan: numbers of facts with their unit, those that rest on ratios with a ~ before them. */
import type { Facts } from "../artifacts/Artifact.ts"
import { formatBytes, formatCount } from "../pipeline/file/Quantity.ts"
import { numberIn } from "./KnownFacts.ts"

const isEstimated = (facts: Facts, name: string): boolean =>
  Array.isArray(facts["estimated"]) && facts["estimated"].includes(name)

/** "~659B tokens", "330 files"; undefined where the fact is not known. */
export const counted = (facts: Facts, name: string, unit = name): string | undefined => {
  const value = numberIn(facts, name)
  return value === undefined
    ? undefined
    : `${isEstimated(facts, name) ? "~" : ""}${formatCount(value)} ${value === 1 && unit.endsWith("s") ? unit.slice(0, -1) : unit}`
}

/** "~893 GB". */
export const sized = (facts: Facts, name: string): string | undefined => {
  const value = numberIn(facts, name)
  return value === undefined ? undefined : `${isEstimated(facts, name) ? "~" : ""}${formatBytes(value)}`
}

/** As a field of a forecast: the parts that are known, or no outlook where none is. */
export const outlook = (...parts: ReadonlyArray<string | undefined>): { readonly outlook?: string } => {
  const known = parts.filter((part) => part !== undefined && part !== "")
  return known.length === 0 ? {} : { outlook: known.join(", ") }
}
