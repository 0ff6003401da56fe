/** `tinyllama lineage ARTIFACT`: the tree of what it was made from. */
import { Console, Effect, type Schema } from "effect"
import { Argument, Command } from "effect/cli"
import { canonicalJson } from "../../artifacts/CanonicalJson.ts"
import { lineage, type LineageNode, type Made } from "../../pipeline/runs/Lineage.ts"
import * as LocalRunner from "../../pipeline/run/LocalRunner.ts"
import * as Flags from "../Flags.ts"
import * as Format from "../Format.ts"

export const lineageCommand = Command.make(
  "lineage",
  {
    artifact: Argument.String("artifact").pipe(
      Argument.withDescription("The beginning of a digest, RUN/stage.port, or stage.port of the latest run")
    ),
    runs: Flags.runs,
    json: Flags.json
  },
  Effect.fn(function* (flags) {
    yield* Effect.gen(function* () {
      const root = yield* lineage(flags.artifact)
      yield* Console.log(
        flags.json ? JSON.stringify({ version: 1, ...root }) : tree(root, "", "", new Set()).join("\n")
      )
    }).pipe(Effect.provide(LocalRunner.layer({ runs: flags.runs })))
  })
).pipe(
  Command.withDescription("Show what an artifact was made from, back to the first downloads"),
  Command.withExamples([{ command: "tinyllama lineage gguf.gguf" }, { command: "tinyllama lineage 3f2a9c" }])
)

/** `first` stands before the node's own line, `rest` before all others. An artifact that went into several is written out once. */
const tree = (node: LineageNode, first: string, rest: string, shown: Set<string>): ReadonlyArray<string> => {
  const role = node.port === undefined ? "" : `${node.port}: `
  const { made } = node
  const digest = node.digest.slice(0, 12)
  if (made === undefined) return [`${first}${role}${digest}  its manifest is no longer in the store`]
  const head = `${first}${role}${made.type} ${digest}  ${made.stage} (${made.stageType})`
  if (shown.has(node.digest)) return [`${head}, see above`]
  shown.add(node.digest)
  const inner = node.from.length > 0 ? "│ " : "  "
  return [
    head,
    ...details(made).map((line) => `${rest}${inner}  ${line}`),
    ...node.from.flatMap((above, index) => {
      const last = index === node.from.length - 1
      return tree(above, `${rest}${last ? "└─ " : "├─ "}`, `${rest}${last ? "   " : "│  "}`, shown)
    })
  ]
}

const details = (made: Made): ReadonlyArray<string> => {
  const when = made.at === undefined ? "" : `, ${made.at}`
  const took = made.seconds === undefined ? "" : `, ${Format.duration(made.seconds)}`
  const files = made.files === 1 ? "1 file" : `${made.files} files`
  return [
    `run ${made.run}${when}${took}, ${Format.bytes(made.bytes)} in ${files}`,
    `key ${made.key.slice(0, 12)}, stage version ${made.stageVersion}`,
    ...(made.parameters === undefined ? ["its parameters are no longer in the store"] : []),
    ...Object.entries(made.parameters ?? {}).map(([name, value]) => `${name}: ${shortValue(value)}`),
    ...(made.observed === null ? [] : [`read from outside: ${shortValue(made.observed)}`]),
    ...made.accepted.map(
      ({ at, because, by, changes, key }) =>
        `accepted for key ${key.slice(0, 12)} by ${by}, ${at}: ${because} (${changes.join("; ")})`
    )
  ]
}

const widest = 100

const shortValue = (value: Schema.Json): string => {
  const text = canonicalJson(value)
  return text.length > widest ? `${text.slice(0, widest - 1)}…` : text
}
