/** Shares the machine among stages that run at the same time: cores, memory, GPUs, each a semaphore. */
import { existsSync, readdirSync } from "node:fs"
import { statfs } from "node:fs/promises"
import { availableParallelism, totalmem } from "node:os"
import { dirname } from "node:path"
import { Effect, Semaphore } from "effect"
import type { ResolvedStage, Resources } from "../file/ResolvedPipeline.ts"
import { StageError } from "../StageType.ts"

export interface Machine {
  readonly cpus: number
  /** Bytes. */
  readonly memory: number
  readonly gpus: number
  /** Bytes free where artifacts are stored, now. */
  readonly freeDisk: Effect.Effect<number>
}

/** This machine, with the disk that `folder` lies on. */
export const thisMachine = (folder: string, cpus?: number): Machine => ({
  cpus: cpus ?? availableParallelism(),
  memory: totalmem(),
  gpus: visibleGpus(),
  freeDisk: freeDiskAt(folder)
})

/** Cards that the driver shows, less those that CUDA_VISIBLE_DEVICES hides. Asking the driver itself would take a second. */
const visibleGpus = (): number => {
  const cards = existsSync("/dev") ? readdirSync("/dev").filter((name) => /^nvidia\d+$/u.test(name)).length : 0
  const visible = process.env["CUDA_VISIBLE_DEVICES"]
  if (visible === undefined) return cards
  return Math.min(cards, visible.split(",").filter((name) => name !== "" && name !== "-1").length)
}

/** Of the nearest folder above that is there. Unknown where the file system does not tell: then nothing is refused. */
const freeDiskAt = (folder: string): Effect.Effect<number> =>
  Effect.tryPromise(() => statfs(folder)).pipe(
    Effect.map(({ bavail, bsize }) => bavail * bsize),
    Effect.catch(() =>
      dirname(folder) === folder ? Effect.succeed(Number.POSITIVE_INFINITY) : freeDiskAt(dirname(folder))
    )
  )

export interface Grant {
  readonly cpus: number
}

export interface Capacity {
  /** Waits for what the stage asks and holds it while `use` runs. More cores than there are means all; more memory, disk or GPUs fails. */
  readonly withResources: <A, E, R>(
    asked: Resources,
    use: (grant: Grant) => Effect.Effect<A, E, R>
  ) => Effect.Effect<A, E | StageError, R>
}

const mebibyte = 2 ** 20

export const makeCapacity = Effect.fn("makeCapacity")(function* (machine: Machine) {
  const memory = Math.floor(machine.memory / mebibyte)
  const cpuPermits = yield* Semaphore.make(machine.cpus)
  const memoryPermits = yield* Semaphore.make(memory)
  const gpuPermits = yield* Semaphore.make(machine.gpus)
  const capacity: Capacity = {
    withResources: (asked, use) => {
      const cpus = asked.cpus === "all" ? machine.cpus : Math.min(asked.cpus, machine.cpus)
      const mebibytes = Math.ceil((asked.memory ?? 0) / mebibyte)
      if (mebibytes > memory) {
        return impossible(`asks for ${mebibytes} MiB of memory; this machine has ${memory} MiB`, "resources.memory")
      }
      if (asked.gpus > machine.gpus) {
        return impossible(`asks for ${asked.gpus} GPUs; ${machine.gpus} can be used here`, "resources.gpus")
      }
      const enoughDisk = asked.disk === undefined ? Effect.void : needsDisk(asked.disk, machine.freeDisk)
      // Always taken in this order, so that two stages never wait for each other.
      return Effect.andThen(enoughDisk, use({ cpus })).pipe(
        gpuPermits.withPermits(asked.gpus),
        memoryPermits.withPermits(mebibytes),
        cpuPermits.withPermits(cpus)
      )
    }
  }
  return capacity
})

/** Runs what an instance of a matrix does when its turn comes: never more than `max_parallel` of its group at a time. */
export interface GroupLimits {
  readonly within: <A, E, R>(stage: ResolvedStage, use: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>
}

export const makeGroupLimits = (stages: ReadonlyArray<ResolvedStage>): GroupLimits => {
  const limits = new Map<string, Semaphore.Semaphore>()
  for (const { matrix, maxParallel } of stages) {
    if (matrix === undefined || maxParallel === undefined || limits.has(matrix.group)) continue
    limits.set(matrix.group, Semaphore.makeUnsafe(maxParallel))
  }
  return {
    within: (stage, use) => limits.get(stage.matrix?.group ?? "")?.withPermits(1)(use) ?? use
  }
}

const needsDisk = Effect.fnUntraced(function* (asked: number, freeDisk: Effect.Effect<number>) {
  const free = yield* freeDisk
  if (free >= asked) return
  return yield* new StageError({
    failure: "disk-full",
    message: `asks for ${gibibytes(asked)} of disk; ${gibibytes(free)} are free where runs are stored`,
    next: "free some space, lower resources.disk in the file, or store runs elsewhere with --runs"
  })
})

const gibibytes = (bytes: number): string => `${(bytes / 2 ** 30).toFixed(1)} GiB`

const impossible = (message: string, field: string) =>
  Effect.fail(
    new StageError({
      failure: "invalid-input",
      message,
      next: `lower ${field} in the file, or run on a larger machine`
    })
  )
