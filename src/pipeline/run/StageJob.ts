/** Runs the stage that a job describes, in this process: what a worker does with its job, and the runner with stages that need no worker. */
import { mkdirSync } from "node:fs"
import { Effect } from "effect"
import type { ArtifactHandle } from "../../artifacts/Artifact.ts"
import type { Job, WorkerEvent } from "./Executor.ts"
import { decodeParams } from "../file/Parameters.ts"
import { alone } from "./Ranks.ts"
import { StageRegistry } from "../StageRegistry.ts"
import { type AnyStageType, type Progress, type Ranks, type StageContext, StageError } from "../StageType.ts"

/** Readings closer together than this are dropped, the last one never. */
const progressIntervalMillis = 100

/** Decodes the job's parameters and runs its stage; `emit` hears progress, log lines and warnings. `ranks`: of those that do this job together. */
export const runJob = Effect.fnUntraced(function* (
  job: Job,
  emit: (event: WorkerEvent) => void,
  stopRequested: () => boolean,
  ranks: Ranks = alone
) {
  const registry = yield* StageRegistry
  const type = yield* registry
    .load(job.type, job.baseDirectory)
    .pipe(Effect.mapError(({ message, next }) => new StageError({ failure: "invalid-input", message, next })))
  if (type === undefined) return yield* Effect.die(new Error(`no stage type "${job.type}" in this worker`))
  if (type.plugin?.code !== job.code)
    return yield* new StageError({
      failure: "invalid-input",
      message: `the code of ${job.type} changed after this run had read it`,
      next: "run again: the stage's key is made of the new code"
    })
  const params = yield* Effect.orDie(decodeParams(type, job.params))
  const context: StageContext<typeof params, Readonly<Record<string, ArtifactHandle>>> = {
    stage: job.stage,
    params,
    inputs: inputsOf(type, job),
    output: (port) => {
      const folder = job.outputs[port]
      if (folder === undefined) throw new Error(`stage type ${type.name} has no output port "${port}"`)
      return folder
    },
    get work() {
      mkdirSync(job.work, { recursive: true })
      return job.work
    },
    previous: yield* previousOf(type, job),
    baseDirectory: job.baseDirectory,
    threads: job.threads,
    share: job.share,
    ranks: job.wantedRanks === undefined ? ranks : { ...ranks, wanted: job.wantedRanks },
    progress: throttled((reading) =>
      emit({
        _tag: "Progress",
        done: reading.done,
        total: reading.total,
        unit: reading.unit,
        metrics: finite(reading.metrics)
      })
    ),
    log: (line) => emit({ _tag: "Log", line }),
    warn: (line) => emit({ _tag: "Warning", line }),
    stopRequested
  }
  return yield* type.run(context)
})

const previousOf = Effect.fnUntraced(function* (type: AnyStageType, job: Job) {
  if (job.previous === null) return undefined
  const { outputs, params, work } = job.previous
  return { params: yield* Effect.orDie(decodeParams(type, params)), outputs, work: work ?? undefined }
})

/** Ports as `run` expects them: a list for `many`, undefined for an absent optional one, else the handle. */
const inputsOf = (type: AnyStageType, job: Job): Readonly<Record<string, ArtifactHandle>> =>
  Object.fromEntries(
    Object.entries(type.inputs).map(([name, port]) => {
      const handles = job.inputs[name] ?? []
      return [name, port.many ? handles : handles[0]]
    })
    // The port's own definition decides the shape, and only the stage type knows it statically.
  ) as Readonly<Record<string, ArtifactHandle>>

const throttled = (show: (reading: Progress) => void) => {
  let last = Number.NEGATIVE_INFINITY
  return (reading: Progress): void => {
    const now = performance.now()
    if (now - last < progressIntervalMillis && reading.done < reading.total) return
    last = now
    show(reading)
  }
}

/** JSON knows no NaN and no infinity; null stands for them. */
const finite = (metrics: Progress["metrics"]): Readonly<Record<string, number | null>> =>
  Object.fromEntries(
    Object.entries(metrics ?? {}).map(([name, value]) => [name, Number.isFinite(value) ? value : null])
  )
