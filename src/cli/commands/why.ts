/** `tinyllama why STAGE`: why it is fresh, stale or pending, as a difference of two keys. */
import { Console, Effect } from "effect"
import { Argument, Command } from "effect/cli"
import * as LocalRunner from "../../pipeline/run/LocalRunner.ts"
import { describeReason } from "../../pipeline/plan/Plan.ts"
import { type Explanation, why } from "../../pipeline/plan/Why.ts"
import * as Flags from "../Flags.ts"

export const whyCommand = Command.make(
  "why",
  {
    stage: Argument.String("stage").pipe(Argument.withDescription("A stage of the file")),
    file: Flags.pipelineFile,
    ...Flags.overlays,
    runs: Flags.runs,
    paranoid: Flags.paranoid,
    json: Flags.json
  },
  Effect.fn(function* (flags) {
    yield* Effect.gen(function* () {
      const pipeline = yield* Flags.loadPipeline(flags)
      const explanation = yield* why(pipeline, flags.stage)
      if (explanation === undefined) return
      if (flags.json) return yield* Console.log(JSON.stringify({ version: 1, ...explanation }))
      yield* Console.log(lines(explanation, "").join("\n"))
    }).pipe(Effect.provide(LocalRunner.layer(flags)))
  })
).pipe(
  Command.withDescription("Explain why a stage is fresh or stale: the fields that changed, here and above"),
  Command.withExamples([{ command: "tinyllama why base -S base.lr.peak=1e-3" }])
)

const lines = ({ above, last, plan }: Explanation, indent: string): ReadonlyArray<string> => {
  const { key, message, reasons, stage, status } = plan
  const now = key === undefined ? "its key is not known yet" : `key ${key.slice(0, 12)}`
  const before = last === undefined ? "no earlier result" : `last result ${last.key.slice(0, 12)} of ${last.record.run}`
  const same = last !== undefined && last.key === key
  return [
    `${indent}${stage}: ${status} (${same ? `${now}, made by ${last.record.run} at ${last.record.at}` : `${now}; ${before}`})`,
    ...(message === undefined ? [] : [`${indent}  ${message}`]),
    ...reasons.map(
      (reason) => `${indent}  ${describeReason(reason)}${"change" in reason ? `   [${reason.change}]` : ""}`
    ),
    ...above.flatMap((upper) => lines(upper, `${indent}    `))
  ]
}
