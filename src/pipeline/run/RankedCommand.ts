/** Runs a command of this program as several ranks on this machine, which speak to each other, and gives what rank 0 printed. */
import { type ChildProcess, spawn } from "node:child_process"
import { Effect } from "effect"
import { StageError } from "../StageType.ts"
import { findProgram, freePort, type Launcher, mpirunMissing, openMpi } from "./RankProcesses.ts"
import { rankEnvironment, withoutRanks } from "./Ranks.ts"

export interface RankedCommand {
  readonly ranks: number
  /** One rank alone is a process by itself in either way. */
  readonly launcher: Launcher
  /** Arguments of this program. */
  readonly command: ReadonlyArray<string>
}

/** Of the last lines that a failed rank printed. */
const TOLD_CHARACTERS = 2000

/** What rank 0 printed. Fails with what the rank that failed first said. All ranks end when this effect is interrupted. */
export const runRanked = Effect.fn("runRanked")(function* ({ command, launcher, ranks }: RankedCommand) {
  if (ranks > 1 && launcher === "mpirun" && findProgram("mpirun") === undefined)
    return yield* new StageError({ failure: "invalid-input", ...mpirunMissing })
  const port = yield* freePort
  // The program's own file, as this process was started with it.
  const node = [...process.execArgv, process.argv[1] ?? "", ...command]
  const start = (rank: number): ChildProcess => {
    const stdio: ["ignore", "pipe", "pipe"] = ["ignore", "pipe", "pipe"]
    const env = withoutRanks(process.env)
    if (ranks === 1) return spawn(process.execPath, node, { env, stdio })
    return launcher === "mpirun"
      ? spawn("mpirun", ["-n", String(ranks), process.execPath, ...node], {
          env: { ...env, ...openMpi, OMPI_MCA_btl_vader_single_copy_mechanism: "none" },
          stdio
        })
      : spawn(process.execPath, node, { env: { ...env, ...rankEnvironment(rank, ranks, port) }, stdio })
  }
  const processes = launcher === "mpirun" ? 1 : ranks
  const printed = yield* Effect.forEach(
    Array.from({ length: processes }, (_, rank) => rank),
    (rank) => outputOf(() => start(rank), command),
    { concurrency: "unbounded" }
  )
  return printed[0] ?? ""
})

const outputOf = (start: () => ChildProcess, command: ReadonlyArray<string>) =>
  Effect.callback<string, StageError>((resume) => {
    const child = start()
    let out = ""
    let said = ""
    child.stdout?.setEncoding("utf8").on("data", (text: string) => (out += text))
    child.stderr?.setEncoding("utf8").on("data", (text: string) => (said += text))
    const failed = (how: string) =>
      resume(
        Effect.fail(
          new StageError({
            failure: "internal",
            message: `tinyllama ${command.slice(0, 2).join(" ")} ${how}: ${(said.trim() || out.trim()).slice(-TOLD_CHARACTERS)}`,
            next: `see what it says alone: tinyllama ${command.join(" ")}`
          })
        )
      )
    child.on("error", (error) => failed(`could not be started (${error.message})`))
    child.on("close", (code, signal) =>
      code === 0 ? resume(Effect.succeed(out)) : failed(`ended with ${signal ?? `code ${code}`}`)
    )
    return Effect.sync(() => child.kill("SIGTERM"))
  })
