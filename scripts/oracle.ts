/**
 * Compares the native engine with training runs recorded by an outside implementation.
 *
 *   npm run oracle -- DIR... [--threads N] [--device cuda [--precision bf16] [--recompute full] [--graphs off]]
 *   npm run oracle -- DIR... --ranks 2 [--strategy fsdp]     the trajectory alone, on ranks under mpirun
 *
 * Prints, per folder, the largest relative error of each quantity and where it lies. Exit 1 when one is over its limit, 2 when a folder
 * cannot be read, 0 otherwise.
 */
import { spawnSync } from "node:child_process"
import { mkdirSync, rmSync } from "node:fs"
import { availableParallelism, tmpdir } from "node:os"
import { join } from "node:path"
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { Cause, Console, Effect, Exit, Runtime } from "effect"
import { Argument, CliError, Command, Flag } from "effect/cli"
import { load, type ModelOptions } from "../src/engine/Native.ts"
import { Strategy } from "../src/engine/World.ts"
import { parameterCount } from "../src/model/Architecture.ts"
import { openMpi } from "../src/pipeline/run/RankProcesses.ts"
import { ranksOf } from "../src/pipeline/run/Ranks.ts"
import type { Ranks } from "../src/pipeline/StageType.ts"
import { compareWithOracle, type Deviation, withinLimit } from "./oracle/compare.ts"
import { compareOnRanks } from "./oracle/ranks.ts"
import { readOracleCase } from "./oracle/OracleCase.ts"

const row = (deviation: Deviation): string =>
  [
    withinLimit(deviation) ? "  ok  " : "  OVER",
    deviation.quantity.padEnd(16),
    deviation.error.toExponential(2).padStart(9),
    `(limit ${deviation.limit.toExponential(0)})`,
    deviation.where
  ].join("  ")

/** Where ranks of this machine leave their logs: the launcher's process is parent of all. */
const sharedFolder = ({ rank }: Ranks) =>
  Effect.sync(() => {
    const folder = join(tmpdir(), `tinyllama-oracle-${process.ppid}`)
    mkdirSync(join(folder, "ranks"), { recursive: true })
    if (rank === 0) process.on("exit", () => rmSync(folder, { recursive: true, force: true }))
    return folder
  })

/** This command again, as ranks of one mpirun. */
const underMpirun = (ranks: number): number => {
  const { status } = spawnSync("mpirun", ["-n", String(ranks), process.execPath, ...process.argv.slice(1)], {
    env: { ...process.env, ...openMpi },
    stdio: "inherit"
  })
  return status ?? 1
}

type Outcome = "within" | "over" | "unreadable"

/** One rank speaks for all. */
const say =
  ({ rank }: Ranks) =>
  (text: string) =>
    rank === 0 ? Console.log(text) : Effect.void

interface OnRanks {
  readonly place: Ranks
  readonly strategy: typeof Strategy.Type
}

const checkFolder = Effect.fn("checkFolder")(function* (
  folder: string,
  options: ModelOptions,
  { place, strategy }: OnRanks
) {
  const native = yield* load
  const oracle = yield* readOracleCase(folder)
  const { trajectory, shape } = oracle
  const tied = shape.tie_word_embeddings ? ", tied" : ""
  yield* say(place)(
    `${folder}: ${parameterCount(shape)} parameters (L ${shape.num_hidden_layers}, D ${shape.hidden_size}, ` +
      `H ${shape.num_attention_heads}, G ${shape.num_key_value_heads}, head ${shape.head_dim}${tied}), ${trajectory.steps.length} steps` +
      (place.size > 1 ? `, ${place.size} ranks, ${strategy}` : "")
  )
  const deviations =
    place.size === 1
      ? yield* compareWithOracle(native, oracle, options)
      : yield* compareOnRanks(native, oracle, options, { ranks: place, strategy, work: yield* sharedFolder(place) })
  yield* say(place)(deviations.map(row).join("\n"))
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
    graphs: Flag.Literals("graphs", ["on", "off"]).pipe(Flag.withDefault("on")),
    ranks: Flag.Int("ranks").pipe(
      Flag.withDescription("Compares the trajectory alone, on so many ranks under mpirun"),
      Flag.withDefault(1)
    ),
    strategy: Flag.Literals("strategy", Strategy.literals).pipe(
      Flag.withDescription("How ranks share out the model"),
      Flag.withDefault("zero2")
    )
  },
  Effect.fn(function* ({ folders, ranks, strategy, ...options }) {
    const place = yield* Effect.fromResult(ranksOf(process.env))
    if (ranks > 1 && place.size === 1) {
      process.exitCode = underMpirun(ranks)
      return
    }
    const outcomes = yield* Effect.forEach(folders, (folder) =>
      checkFolder(folder, options, { place, strategy }).pipe(
        Effect.map((outcome): Outcome => outcome),
        Effect.catchTag("OracleUnreadable", (error) =>
          Effect.as(Console.error(`${folder}: cannot be read: ${error.message}`), "unreadable" as const)
        )
      )
    )
    const over = outcomes.filter((outcome) => outcome === "over").length
    const unreadable = outcomes.filter((outcome) => outcome === "unreadable").length
    yield* say(place)(
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
