/** Reading facts that may be missing, estimated or of an older form: forecasts take what they can use and never fail. */
import { Option, Schema } from "effect"
import type { Facts } from "../artifacts/Artifact.ts"
import { ModelShape } from "../model/Architecture.ts"

/** A count or size; undefined for anything but a finite number from 0 on. */
export const numberIn = (facts: Facts | undefined, name: string): number | undefined => {
  const value = facts?.[name]
  return typeof value === "number" && Number.isFinite(value) && value >= 0 ? value : undefined
}

/** The named facts that are there, as they are. */
export const passedOn = (facts: Facts | undefined, names: ReadonlyArray<string>): Facts =>
  Object.fromEntries(
    names.flatMap((name) => {
      const value = facts?.[name]
      return value === undefined ? [] : [[name, value]]
    })
  )

const decodeShape = Schema.decodeUnknownOption(Schema.toType(ModelShape))

/** The model's shape that stages which make models state as the fact `shape`. */
export const shapeIn = (facts: Facts | undefined): ModelShape | undefined =>
  Option.getOrUndefined(decodeShape(facts?.["shape"]))

/** The sum, if all are known. */
export const sumKnown = (values: ReadonlyArray<number | undefined>): number | undefined =>
  values.reduce<number | undefined>(
    (sum, value) => (sum === undefined || value === undefined ? undefined : sum + value),
    0
  )

/** `facts` without what is undefined; `estimated` names those of them that rest on ratios. */
export const factsOf = (
  facts: Readonly<Record<string, Schema.Json | undefined>>,
  estimated: ReadonlyArray<string> = []
): Facts => {
  const known = Object.fromEntries(
    Object.entries(facts).flatMap(([name, value]) => (value === undefined ? [] : [[name, value] as const]))
  )
  const guessed = estimated.filter((name) => name in known)
  return guessed.length === 0 ? known : { ...known, estimated: guessed }
}
