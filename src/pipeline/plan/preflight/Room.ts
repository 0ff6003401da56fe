/** Whether the machine has what stages ask for and what they are forecast to take. */
import { Effect } from "effect"
import type { Examined, Finding, PreflightContext } from "../Preflight.ts"
import { findProgram, launcherOf, mpirunMissing } from "../../run/RankProcesses.ts"
import { formatBytes } from "../../file/Quantity.ts"

/** What the file itself asks for. */
export const resources = ({ machine, stages }: PreflightContext): Effect.Effect<ReadonlyArray<Finding>> =>
  Effect.succeed(
    stages
      .filter(({ willRun }) => willRun)
      .filter(onThisMachine)
      .flatMap(({ stage }): ReadonlyArray<Finding> => {
        const { cpus, gpus, memory = 0 } = stage.resources
        const findings: Array<Finding> = []
        if (gpus > machine.gpus)
          findings.push({
            subject: "GPUs",
            state: "missing",
            stage: stage.name,
            detail: `asks for ${gpus}; ${machine.gpus} can be used here`,
            next: "lower resources.gpus, or run on a machine that has them"
          })
        if (memory > machine.memory)
          findings.push({
            subject: "memory",
            state: "missing",
            stage: stage.name,
            detail: `asks for ${formatBytes(memory)}; this machine has ${formatBytes(machine.memory)}`,
            next: "lower resources.memory, or run on a larger machine"
          })
        if (cpus !== "all" && cpus > machine.cpus)
          findings.push({
            subject: "cores",
            state: "warning",
            stage: stage.name,
            detail: `asks for ${cpus}; it gets ${machine.cpus}`,
            next: "nothing, if slower is fine: the result is the same"
          })
        return findings
      })
  )

const running = (stages: ReadonlyArray<Examined>) => stages.filter(({ willRun }) => willRun)

/** What a cluster has is for its own queue to say (Slurm.ts). */
const onThisMachine = ({ stage }: Examined): boolean => stage.executor.kind === "local"

/** Ranks without a GPU each speak MPI, on this machine by mpirun. */
export const ranks = ({ stages }: PreflightContext): Effect.Effect<ReadonlyArray<Finding>> =>
  Effect.sync(() =>
    running(stages)
      .filter(onThisMachine)
      .flatMap(({ stage }): ReadonlyArray<Finding> => {
        if (stage.resources.ranks === 1) return []
        const about = { subject: "ranks", stage: stage.name }
        const count = `${stage.resources.ranks} of them`
        if (launcherOf(stage.resources) === "processes")
          return [{ ...about, state: "ok", detail: `${count}, a GPU each` }]
        const mpirun = findProgram("mpirun")
        if (mpirun !== undefined) return [{ ...about, state: "ok", detail: `${count}, by ${mpirun}` }]
        const { message, next } = mpirunMissing
        return [{ ...about, state: "missing", detail: `${count}: ${message}`, next }]
      })
  )

/** The most that one stage is forecast to need; stages share the machine by resources.memory, so they are not added up. */
export const memory = ({ machine, stages }: PreflightContext): Effect.Effect<ReadonlyArray<Finding>> =>
  Effect.succeed(
    running(stages)
      .filter(onThisMachine)
      .flatMap(({ forecast, stage }): ReadonlyArray<Finding> => {
        const needed = forecast?.memory
        if (needed === undefined) return []
        const about = { subject: "memory", stage: stage.name }
        const has = `up to ${formatBytes(needed)}; ${formatBytes(machine.freeMemory)} can be had of ${formatBytes(machine.memory)}`
        if (needed > machine.memory)
          return [
            {
              ...about,
              state: "missing",
              detail: `needs ${has}`,
              next: "ask for less at once, or run on a larger machine"
            }
          ]
        if (needed > machine.freeMemory)
          return [
            {
              ...about,
              state: "warning",
              detail: `needs ${has}`,
              next: "end other programs first, or ask for less at once"
            }
          ]
        return [{ ...about, state: "ok", detail: `needs ${has}` }]
      })
  )

/** Everything that is kept lies side by side until the run is done, so stages add up. What a stage asks for counts where nothing larger is forecast. */
export const disk = ({ machine, stages }: PreflightContext): Effect.Effect<ReadonlyArray<Finding>> =>
  Effect.sync(() => {
    const all = running(stages)
    const sizes = all.map(({ forecast, stage }) =>
      forecast?.bytes === undefined && stage.resources.disk === undefined
        ? undefined
        : Math.max(forecast?.bytes ?? 0, stage.resources.disk ?? 0)
    )
    const known = sizes.filter((size) => size !== undefined)
    if (all.length === 0 || machine.freeDisk === Number.POSITIVE_INFINITY) return []
    const needed = known.reduce((sum, size) => sum + size, 0)
    const unknown = all.length - known.length
    const open = unknown === 0 ? "" : ` (${unknown} of ${all.length} stages cannot tell yet)`
    const free = `${formatBytes(machine.freeDisk)} free at ${machine.runs}`
    if (known.length === 0)
      return [
        { subject: "disk", state: "ok", detail: `${free}; no stage can tell yet what it takes` } satisfies Finding
      ]
    const detail = `needs up to ${formatBytes(needed)}${open}; ${free}`
    const next = "free some space, or choose a folder on another disk with --runs"
    if (needed > machine.freeDisk) return [{ subject: "disk", state: "missing", detail, next } satisfies Finding]
    if (needed > 0.9 * machine.freeDisk) return [{ subject: "disk", state: "warning", detail, next } satisfies Finding]
    return [{ subject: "disk", state: "ok", detail } satisfies Finding]
  })
