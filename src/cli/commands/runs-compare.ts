/** `tinyllama runs compare A B …`: what differs between runs, and whether it may. */
import { Console, Effect, type Schema } from "effect"
import { Argument, Command, Flag } from "effect/cli"
import { canonicalJson } from "../../artifacts/CanonicalJson.ts"
import { apart, checkAssertion, type Finding, parseAssertion } from "../../pipeline/runs/Assertion.ts"
import { type Comparison, compareRuns, type Row } from "../../pipeline/runs/Compare.ts"
import * as LocalRunner from "../../pipeline/run/LocalRunner.ts"
import { Runs } from "../../pipeline/runs/Runs.ts"
import { Ended } from "../Ending.ts"
import * as Flags from "../Flags.ts"
import * as Format from "../Format.ts"

export const compare = Command.make(
  "compare",
  {
    runs: Argument.String("run").pipe(
      Argument.atLeast(2),
      Argument.withDescription("Two runs or more; the others are held to the first")
    ),
    assert: Flag.String("assert").pipe(
      Flag.atLeast(0),
      Flag.withMetavar("assertion"),
      Flag.withDescription(
        'What must hold, say "val_loss within 0.5%", "val_loss <=" (not above the first run\'s) or "step == 400"; may be repeated; exit code 7 where it does not'
      )
    ),
    all: Flag.Boolean("all").pipe(Flag.withDefault(false), Flag.withDescription("Show what is equal too")),
    folder: Flags.runs,
    json: Flags.json
  },
  Effect.fn(function* (flags) {
    yield* Effect.gen(function* () {
      const runs = yield* Runs
      const assertions = yield* Effect.forEach(flags.assert, (text) => Effect.fromResult(parseAssertion(text)))
      const comparison = yield* compareRuns(yield* Effect.forEach(flags.runs, runs.find))
      const checked = yield* Effect.forEach(assertions, (one) => Effect.fromResult(checkAssertion(comparison, one)))
      const findings = checked.flat()
      yield* Console.log(flags.json ? asJson(comparison, findings, flags.all) : asText(comparison, findings, flags.all))
      if (findings.some((finding) => !finding.holds)) return yield* new Ended({ code: 7 })
    }).pipe(Effect.provide(LocalRunner.layer({ runs: flags.folder })))
  })
).pipe(
  Command.withDescription("Show in what runs differ: parameters, and the facts of what they made"),
  Command.withExamples([{ command: "tinyllama runs compare best latest --assert 'val_loss within 0.5%'" }])
)

const shown = <A extends Row>(rows: ReadonlyArray<A>, all: boolean): ReadonlyArray<A> =>
  all ? rows : rows.filter((row) => row.differs)

const asJson = (comparison: Comparison, findings: ReadonlyArray<Finding>, all: boolean): string => {
  // JSON has no undefined: a value that a run lacks is null, as `absent` tells from one that is null.
  const rows = (found: ReadonlyArray<Row>) =>
    shown(found, all).map(({ differs, name, values }) => ({
      name,
      differs,
      values: values.map((value) => value ?? null),
      absent: values.map((value) => value === undefined)
    }))
  return JSON.stringify({
    version: 1,
    runs: comparison.runs,
    parameters: rows(comparison.parameters),
    metrics: rows(comparison.metrics),
    assertions: findings
  })
}

const asText = (comparison: Comparison, findings: ReadonlyArray<Finding>, all: boolean): string =>
  [
    ...section("parameter", comparison, shown(comparison.parameters, all)),
    ...section("metric", comparison, shown(comparison.metrics, all)),
    ...findings.map(
      ({ assertion, detail, holds, metric, run }) =>
        `${holds ? "holds" : "FAILS"}  ${assertion}   ${metric} of ${run}: ${detail}`
    )
  ].join("\n")

const section = (title: string, { runs }: Comparison, rows: ReadonlyArray<Row>): ReadonlyArray<string> => {
  if (rows.length === 0) return [`No ${title} differs.`, ""]
  const cells = ({ name, values }: Row) => [name, ...values.map(cell), apart(values[0], values.at(-1)).trim()]
  return [Format.table([title, ...runs, ""], rows.map(cells)), ""]
}

const widest = 40

/** Six digits tell results apart; long lists and texts are cut. --json has them whole. */
const cell = (value: Schema.Json | undefined): string => {
  if (typeof value === "number" && !Number.isInteger(value)) return String(Number(value.toPrecision(6)))
  const text = value === undefined ? "" : typeof value === "string" ? value : canonicalJson(value)
  return text.length > widest ? `${text.slice(0, widest - 1)}…` : text
}
