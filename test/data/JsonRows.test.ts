/** The native row scanner against JSON.parse: what it accepts, what it finds, what it refuses. */
import { assert, describe, it } from "@effect/vitest"
import { Effect, Schema } from "effect"
import { load } from "../../src/engine/Native.ts"

const kinds = ["missing", "null", "false", "true", "number", "string", "object", "array"] as const
const statuses = ["ok", "not_json", "too_deep", "not_an_object"] as const

/** Status and the values of `text` and `meta.set`, each as [kind, text]. */
const scan = Effect.fnUntraced(function* (line: Buffer) {
  const { JsonRows } = yield* load
  const rows = new JsonRows([["text"], ["meta", "set"]])
  const records = new Int32Array(15 * 4)
  const arena = Buffer.alloc(line.length + 1)
  const count = rows.scan(line, 0, true, arena, records)
  const value = (at: number) => {
    const kind = kinds[records[at] ?? 0]
    const offset = records[at + 1] ?? 0
    return kind === "string" || kind === "number"
      ? [kind, arena.toString("utf8", offset, offset + (records[at + 2] ?? 0))]
      : [kind, ""]
  }
  return { count, status: statuses[records[0] ?? 0], text: value(7), set: value(11) }
})

const described = (value: unknown): ReadonlyArray<string> =>
  value === undefined
    ? ["missing", ""]
    : value === null
      ? ["null", ""]
      : typeof value === "boolean"
        ? [String(value), ""]
        : Array.isArray(value)
          ? ["array", ""]
          : typeof value === "object"
            ? ["object", ""]
            : typeof value === "string"
              ? ["string", value.toWellFormed()]
              : ["number", JSON.stringify(value)]

const fieldOf = (value: unknown, name: string): unknown =>
  typeof value === "object" && value !== null && !Array.isArray(value) && Object.hasOwn(value, name)
    ? (value as Readonly<Record<string, unknown>>)[name]
    : undefined

const Value = Schema.Union([
  Schema.String,
  Schema.Boolean,
  Schema.Null,
  Schema.Int,
  Schema.Struct({ set: Schema.Unknown }),
  Schema.Array(Schema.String)
])
const Shape = Schema.Struct({ before: Value, text: Value, meta: Schema.Struct({ a: Value, set: Value }), after: Value })

const sameAsParse = Effect.fnUntraced(function* (line: string) {
  if (line === "") return // no row at all
  const found = yield* scan(Buffer.from(line))
  const parsed = yield* Effect.result(Effect.try({ try: (): unknown => JSON.parse(line), catch: String }))
  if (parsed._tag === "Failure") return assert.strictEqual(found.status, "not_json", line)
  const value = parsed.success
  const isObject = typeof value === "object" && value !== null && !Array.isArray(value)
  assert.strictEqual(found.status, isObject ? "ok" : "not_an_object", line)
  if (!isObject) return
  const same = (mine: ReadonlyArray<string | undefined>, theirs: ReadonlyArray<string>) =>
    mine[0] === "number" && theirs[0] === "number"
      ? assert.strictEqual(Number(mine[1]), Number(theirs[1]), line)
      : assert.deepStrictEqual([...mine], [...theirs], line)
  same(found.text, described(fieldOf(value, "text")))
  same(found.set, described(fieldOf(fieldOf(value, "meta"), "set")))
})

describe("JsonRows", () => {
  it.live.prop("finds what JSON.parse finds", [Shape], ([row]) => sameAsParse(JSON.stringify(row)), {
    arbitrary: { runs: 300 }
  })

  it.live.prop(
    "refuses what JSON.parse refuses, wherever a row is cut or changed",
    [Shape, Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 1 << 20 })), Schema.Int],
    ([row, place, change]) => {
      const line = JSON.stringify(row)
      const at = place % line.length
      const pieces = ['"', "\\", "{", "}", "[", "]", ",", ":", "0", ".", "e", "-", " ", "\\u", "t", "\t"]
      const piece = pieces[Math.abs(change) % pieces.length] ?? ""
      return Effect.all([
        sameAsParse(line.slice(0, at)),
        sameAsParse(line.slice(0, at) + piece + line.slice(at)),
        sameAsParse(line.slice(0, at) + piece + line.slice(at + 1))
      ])
    },
    { arbitrary: { runs: 500 } }
  )

  it.live("rows that are odd, and JSON all the same", () =>
    Effect.forEach(
      [
        '{"text":"a","text":"b"}',
        '{"meta":{"set":1},"meta":{"set":2,"set":"three"}}',
        '{"meta":{"set":1},"meta":5}',
        '{"t\\u0065xt":"\\ud83d\\ude00 \\ud83d \\u0000"}',
        ' { "text" : "\\/\\b" , "meta" : { } } ',
        '{"":{"text":1},"text":-0.0e-0}',
        "[]",
        '"text"',
        "-1"
      ],
      sameAsParse
    )
  )
})
