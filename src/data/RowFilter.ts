/** Which rows become documents: conditions on their fields, lengths, a seeded sample. What is dropped is counted by reason. */
import { Schema } from "effect"
import type { FieldValue } from "./RowSource.ts"

const Scalar = Schema.NullOr(Schema.Union([Schema.String, Schema.Finite, Schema.Boolean]))
const Scalars = Schema.NonEmptyArray(Scalar)

const operators = ["equals", "not", "in", "not_in"] as const

const ConditionFields = Schema.Struct({
  field: Schema.NonEmptyString.annotate({ description: "a field or column; a dotted path leads into objects" }),
  equals: Schema.optionalKey(Scalar).annotate({ description: "keep rows whose field has this value" }),
  not: Schema.optionalKey(Scalar).annotate({ description: "drop rows whose field has this value" }),
  in: Schema.optionalKey(Scalars).annotate({ description: "keep rows whose field has one of these values" }),
  not_in: Schema.optionalKey(Scalars).annotate({ description: "drop rows whose field has one of these values" })
})

/** One condition; a row is kept when it meets all of a list. */
export const Condition = ConditionFields.check(
  Schema.makeFilter((condition: typeof ConditionFields.Type) =>
    operators.filter((operator) => operator in condition).length === 1
      ? undefined
      : "a condition has a field, and exactly one of equals, not, in and not_in"
  )
).annotate({ identifier: "Condition" })
export type Condition = typeof Condition.Type

export const Sample = Schema.Struct({
  fraction: Schema.Finite.check(Schema.isGreaterThan(0), Schema.isLessThanOrEqualTo(1)).annotate({
    description: "share of the documents to take"
  }),
  seed: Schema.Int.check(Schema.isGreaterThanOrEqualTo(0))
    .pipe(Schema.optionalKey)
    .annotate({ description: "another seed takes others; default 0" })
})

export interface Filter {
  readonly where: ReadonlyArray<Condition>
  readonly sample: { readonly fraction: number; readonly seed?: number } | null
  readonly minCharacters: number | null
  readonly maxCharacters: number | null
}

/** The fields that conditions ask for, each once; a condition's field is at the index that `meets` is told. */
export const fieldsOf = (where: ReadonlyArray<Condition>): ReadonlyArray<string> =>
  Array.from(new Set(where.map(({ field }) => field)))

/** A path that leads through another field of the list: no row can have both. */
export const clash = (fields: ReadonlyArray<string>): readonly [string, string] | undefined => {
  for (const outer of fields) for (const inner of fields) if (inner.startsWith(`${outer}.`)) return [outer, inner]
  return undefined
}

/** Whether a value, which is not undefined, meets a condition. */
export const meets = (condition: Condition, value: FieldValue): boolean => {
  if (condition.equals !== undefined) return value === condition.equals
  if (condition.not !== undefined) return value !== condition.not
  const among = (list: ReadonlyArray<unknown>): boolean => list.includes(value)
  return condition.in !== undefined ? among(condition.in) : !among(condition.not_in ?? [])
}
