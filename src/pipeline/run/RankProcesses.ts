/**
 * The processes that an attempt's ranks are on this machine. Ranks that each have a GPU are started here, by the RANK, WORLD_SIZE convention; others
 * by mpirun, whose library they speak to each other with.
 */
import { type ChildProcess, spawn } from "node:child_process"
import { accessSync, closeSync, constants, openSync, readFileSync } from "node:fs"
import { createServer } from "node:net"
import { constants as system } from "node:os"
import { delimiter, join } from "node:path"
import { Effect, Result } from "effect"
import type { Attempt } from "./Executor.ts"
import type { Resources } from "../file/ResolvedPipeline.ts"
import { rankEnvironment } from "./Ranks.ts"
import { StageError } from "../StageType.ts"
import { workerEnvironment } from "./WorkerProcess.ts"
import type { Exit } from "./WorkerLost.ts"

export type Launcher = "processes" | "mpirun"

/** What starts a stage's ranks on this machine. */
export const launcherOf = ({ gpus, ranks }: Pick<Resources, "gpus" | "ranks">): Launcher =>
  gpus >= ranks ? "processes" : "mpirun"

/** The place of a program; undefined where no folder of PATH has it. */
export const findProgram = (name: string, path = process.env["PATH"] ?? ""): string | undefined =>
  path
    .split(delimiter)
    .map((folder) => join(folder, name))
    .find((file) => Result.isSuccess(Result.try(() => accessSync(file, constants.X_OK))))

export const mpirunMissing = {
  message: "several ranks without a GPU each need MPI, and there is no mpirun in PATH",
  next: "install Open MPI (Debian: apt install openmpi-bin), or set resources.ranks to 1"
}

export const cannotStart = (error: unknown): StageError =>
  new StageError({
    failure: "internal",
    message: `cannot start the ranks: ${error instanceof Error ? error.message : String(error)}`,
    next: "check the disk and the limits on processes and open files, then run again"
  })

/** A port that was free just now, for rank 0 to listen on. */
export const freePort = Effect.callback<number, StageError>((resume) => {
  const server = createServer()
  server.on("error", (error) => resume(Effect.fail(cannotStart(error))))
  server.listen(0, "127.0.0.1", () => {
    const address = server.address()
    const port = typeof address === "object" && address !== null ? address.port : 0
    server.close(() => resume(Effect.succeed(port)))
  })
})

export interface Start {
  readonly attempt: Attempt
  readonly size: number
  readonly port: number
  /** Node's arguments. */
  readonly command: ReadonlyArray<string>
}

/** Where a rank's stdout and stderr go, in the attempt's folder: rank 0's are the attempt's. */
export const logsOf = (rank: number): { readonly stdout: string; readonly stderr: string } =>
  rank === 0
    ? { stdout: "stdout.log", stderr: "stderr.log" }
    : { stdout: `rank-${rank}.stdout.log`, stderr: `rank-${rank}.stderr.log` }

/** One process a rank, in their order. `ended` hears of each end. */
export const startProcesses = (
  { attempt, command, port, size }: Start,
  ended: (rank: number, exit: Exit) => void
): ReadonlyArray<ChildProcess> =>
  Array.from({ length: size }, (_, rank) => {
    const child = withLogs(attempt.folder, logsOf(rank), (out, err) =>
      spawn(process.execPath, command, {
        detached: true,
        env: { ...workerEnvironment(attempt.secrets), ...rankEnvironment(rank, size, port) },
        stdio: ["ignore", out, err]
      })
    )
    whenEnded(child, (exit) => ended(rank, exit))
    return child
  })

/** The shell between mpirun and a rank knows which one it is, and so where its output belongs. */
const toLogs =
  'r=${OMPI_COMM_WORLD_RANK:-$PMI_RANK}; if [ "$r" = 0 ]; then p=; else p=rank-$r.; fi; exec "$@" >>"${p}stdout.log" 2>>"${p}stderr.log"'

/** Open MPI (4 and 5) takes these words from the environment too, where they confuse no other mpirun. */
export const openMpi = {
  OMPI_MCA_rmaps_base_oversubscribe: "1",
  OMPI_MCA_hwloc_base_binding_policy: "none",
  OMPI_ALLOW_RUN_AS_ROOT: "1",
  OMPI_ALLOW_RUN_AS_ROOT_CONFIRM: "1",
  PRTE_MCA_rmaps_default_mapping_policy: ":oversubscribe",
  PRTE_MCA_hwloc_default_binding_policy: "none",
  PRTE_ALLOW_RUN_AS_ROOT: "1",
  PRTE_ALLOW_RUN_AS_ROOT_CONFIRM: "1"
}

/** What mpirun itself says, in the attempt's folder. */
export const mpirunLog = "mpirun.log"

export const startMpirun = ({ attempt, command, port, size }: Start, ended: (exit: Exit) => void): ChildProcess => {
  const child = withLogs(attempt.folder, { stdout: mpirunLog, stderr: mpirunLog }, (out, err) =>
    spawn("mpirun", ["-n", String(size), "sh", "-c", toLogs, "sh", process.execPath, ...command], {
      cwd: attempt.folder,
      detached: true,
      env: { ...workerEnvironment(attempt.secrets), ...openMpi, MASTER_ADDR: "127.0.0.1", MASTER_PORT: String(port) },
      stdio: ["ignore", out, err]
    })
  )
  whenEnded(child, ended)
  return child
}

/** How a rank ended, from what mpirun says of it: it alone is told. */
export const exitByMpirun = (folder: string, rank: number): Exit | undefined => {
  const text = Result.getOrElse(
    Result.try(() => readFileSync(join(folder, mpirunLog), "utf8")),
    () => ""
  ).replaceAll(/\s+/gu, " ")
  const [, number] = new RegExp(`process rank ${rank} with PID \\d+ .*? exited on signal (\\d+)`, "u").exec(text) ?? []
  const signal = Object.entries(system.signals).find(([, value]) => value === Number(number))?.[0]
  // The names of node:os are those of NodeJS.Signals.
  if (signal !== undefined) return { code: null, signal: signal as NodeJS.Signals }
  const [, code] = new RegExp(`Process name: \\[\\[\\d+,\\d+\\],${rank}\\] Exit code: (\\d+)`, "u").exec(text) ?? []
  return code === undefined ? undefined : { code: Number(code), signal: null }
}

const withLogs = (
  folder: string,
  logs: { readonly stdout: string; readonly stderr: string },
  start: (out: number, err: number) => ChildProcess
): ChildProcess => {
  const out = openSync(join(folder, logs.stdout), "a")
  const err = openSync(join(folder, logs.stderr), "a")
  try {
    return start(out, err)
  } finally {
    closeSync(out)
    closeSync(err)
  }
}

const whenEnded = (child: ChildProcess, ended: (exit: Exit) => void): void => {
  child.on("error", () => ended({ code: null, signal: null }))
  child.on("exit", (code, signal) => ended({ code, signal }))
}
