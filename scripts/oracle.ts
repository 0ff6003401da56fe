/**
 * Compares the native engine with training runs recorded by an outside implementation.
 *
 *   npm run oracle -- DIR... [--threads N] [--device cuda [--precision bf16] [--recompute full] [--graphs off]]
 *
 * Prints, per folder, the largest relative error of each quantity and where it lies. Exit 1 when one is over its limit, 2 when a folder
 * cannot be read, 0 otherwise.
 */
import { availableParallelism } from "node:os"
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { Cause, Console, Effect, Exit, Runtime } from "effect"
import { Argument, CliError, Command, Flag } from "effect/cli"
import { load, type ModelOptions } from "../src/engine/Native.ts"
import { parameterCount } from "../src/model/Architecture.ts"
import { compareWithOracle, type Deviation, withinLimit } from "./oracle/compare.ts"
import { readOracleCase } from "./oracle/OracleCase.ts"

const row = (deviation: Deviation): string =>
  [
    withinLimit(deviation) ? "  ok  " : "  OVER",
    deviation.quantity.padEnd(16),
    deviation.error.toExponential(2).padStart(9),
    `(limit ${deviation.limit.toExponential(0)})`,
    deviation.where
  ].join("  ")

type Outcome = "within" | "over" | "unreadable"

const checkFolder = Effect.fn("checkFolder")(function* (folder: string, options: ModelOptions) {
  const native = yield* load
  const oracle = yield* readOracleCase(folder)
  const { trajectory, shape } = oracle
  const tied = shape.tie_word_embeddings ? ", tied" : ""
  yield* Console.log(
    `${folder}: ${parameterCount(shape)} parameters (L ${shape.num_hidden_layers}, D ${shape.hidden_size}, ` +
      `H ${shape.num_attention_heads}, G ${shape.num_key_value_heads}, head ${shape.head_dim}${tied}), ${trajectory.steps.length} steps`
  )
  const deviations = yield* compareWithOracle(native, oracle, options)
  yield* Console.log(deviations.map(row).join("\n"))
  return deviations.every(withinLimit) ? "within" : "over"
})

const main = Command.make(
  "oracle",
  {
    folders: Argument.String("DIR").pipe(
      Argument.withDescription("Folder of a recorded run, as test/oracle/train/make_golden.py writes it"),
      Argument.variadic({ min: 1 })
    ),
    threads: Flag.Int("threads").pipe(
      Flag.withDescription("Threads of the engine; all by default"),
      Flag.withDefault(availableParallelism())
    ),
    device: Flag.Literals("device", ["cpu", "cuda"]).pipe(Flag.withDefault("cpu")),
    precision: Flag.Literals("precision", ["fp32", "bf16"]).pipe(
      Flag.withDescription("bf16 has limits of its own"),
      Flag.withDefault("fp32")
    ),
    recompute: Flag.Literals("recompute", ["none", "pointwise", "gate_up", "full"]).pipe(Flag.withDefault("none")),
    graphs: Flag.Literals("graphs", ["on", "off"]).pipe(Flag.withDefault("on"))
  },
  Effect.fn(function* ({ folders, ...options }) {
    const outcomes = yield* Effect.forEach(folders, (folder) =>
      checkFolder(folder, options).pipe(
        Effect.map((outcome): Outcome => outcome),
        Effect.catchTag("OracleUnreadable", (error) =>
          Effect.as(Console.error(`${folder}: cannot be read: ${error.message}`), "unreadable" as const)
        )
      )
    )
    const over = outcomes.filter((outcome) => outcome === "over").length
    const unreadable = outcomes.filter((outcome) => outcome === "unreadable").length
    yield* Console.log(
      `${outcomes.length - over - unreadable} of ${outcomes.length} folders within the limits` +
        (over > 0 ? `, ${over} over` : "") +
        (unreadable > 0 ? `, ${unreadable} unreadable` : "")
    )
    process.exitCode = unreadable > 0 ? 2 : over > 0 ? 1 : 0
  })
).pipe(Command.withDescription("Compare the native engine with recorded training runs"))

const teardown: Runtime.Teardown = (exit, onExit) =>
  Runtime.defaultTeardown(exit, (code) =>
    onExit(
      Exit.isSuccess(exit) ? Number(process.exitCode ?? 0) : CliError.isCliError(Cause.squash(exit.cause)) ? 2 : code
    )
  )

main.pipe(Command.run({ version: "0.1.0" }), Effect.provide(NodeServices.layer), NodeRuntime.runMain({ teardown }))
