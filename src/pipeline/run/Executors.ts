/**
 * The executor that runs use: a worker on this machine or a Slurm job, as the stage asks. A job that is at work on a key already is followed whatever
 * the stage asks now: nobody starts a second one beside it.
 */
import { Effect, type FileSystem, Layer, type Path } from "effect"
import { ArtifactStore } from "../../artifacts/ArtifactStore.ts"
import { type SlurmOptions, slurmDefaults } from "../file/ExecutorBlock.ts"
import type { StageRegistry } from "../StageRegistry.ts"
import { findJob } from "./ClusterJob.ts"
import { type Attempt, Executor } from "./Executor.ts"
import type { Joined } from "./JoinedWorker.ts"
import * as LocalExecutor from "./LocalExecutor.ts"

export const layer = (options?: { readonly worker?: string; readonly joined?: Joined }) =>
  Layer.effect(
    Executor,
    Effect.gen(function* () {
      const services = yield* Effect.context<FileSystem.FileSystem | Path.Path | StageRegistry | ArtifactStore>()
      const worker = options?.worker ?? LocalExecutor.defaultWorker
      const here = LocalExecutor.make(worker, options?.joined)
      return Executor.of({
        execute: (attempt) =>
          Effect.gen(function* () {
            const slurm = yield* slurmOptions(attempt)
            return slurm === undefined ? yield* here(attempt) : yield* onSlurm(attempt, slurm, worker)
          }).pipe(Effect.provideContext(services))
      })
    })
  )

/** Light stages run in the runner, where secrets allow it; a job would be all waiting. */
const slurmOptions = Effect.fnUntraced(function* (attempt: Attempt) {
  const { executor } = attempt
  if (executor.kind === "slurm" && !LocalExecutor.runsHere(attempt)) return executor
  const { root } = yield* ArtifactStore
  return (yield* findJob(root, attempt.key)) === undefined ? undefined : slurmDefaults
})

/** Loaded when the first stage needs it; one queue for all attempts of this process, so that they ask together. */
const loadSlurm = Effect.runSync(
  Effect.cached(
    Effect.promise(async () => {
      const [{ execute }, { makeQueue, SlurmQueue }] = await Promise.all([
        import("./slurm/SlurmExecutor.ts"),
        import("./slurm/SlurmQueue.ts")
      ])
      return { execute, SlurmQueue, queue: makeQueue() }
    })
  )
)

const onSlurm = Effect.fnUntraced(function* (attempt: Attempt, options: SlurmOptions, worker: string) {
  const { execute, queue, SlurmQueue } = yield* loadSlurm
  return yield* Effect.provideService(execute(attempt, options, worker), SlurmQueue, queue)
})
