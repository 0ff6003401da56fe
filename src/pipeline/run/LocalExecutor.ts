/**
 * Executes attempts on this machine: in worker processes (WorkerProcess.ts; RankLauncher.ts where several do one attempt together), but for stage
 * types that run in the runner's own (RunnerStage.ts).
 */
import { extname } from "node:path"
import { fileURLToPath } from "node:url"
import { Deferred, Effect, Fiber, type FileSystem, Layer, Path, Stream } from "effect"
import * as FetchHttpClient from "effect/http/FetchHttpClient"
import { storageFailure, writeJsonAtomic } from "../../artifacts/DurableFile.ts"
import { conclude, type Ended } from "./AttemptEnd.ts"
import { isLast } from "./EventsFile.ts"
import { type Attempt, Executor, type WorkerEvent } from "./Executor.ts"
import { type Joined, startJoined } from "./JoinedWorker.ts"
import { startRanks } from "./RankLauncher.ts"
import { executeHere } from "./RunnerStage.ts"
import type { StageRegistry } from "../StageRegistry.ts"
import { startWorker } from "./WorkerProcess.ts"

/** src/worker.ts in a checkout, dist/worker.js in a package. */
export const defaultWorker = fileURLToPath(new URL(`../../worker${extname(import.meta.filename)}`, import.meta.url))

/** Executes an attempt in worker processes that run `worker`, or in this process. `joined`: its ranks were started already. */
export const make = (worker: string, joined?: Joined) => (attempt: Attempt) =>
  runsHere(attempt)
    ? Effect.scoped(executeHere(attempt)).pipe(Effect.provide(FetchHttpClient.layer))
    : Effect.scoped(execute(worker, attempt, joined))

export const layer = (options?: { readonly worker?: string }) =>
  Layer.effect(
    Executor,
    Effect.gen(function* () {
      const services = yield* Effect.context<FileSystem.FileSystem | Path.Path | StageRegistry>()
      const here = make(options?.worker ?? defaultWorker)
      return Executor.of({ execute: (attempt) => Effect.provideContext(here(attempt), services) })
    })
  )

/** Light stages, but not beside secrets: only a process of its own keeps a stage from the environment of another. */
export const runsHere = ({ runsIn, secrets }: Attempt): boolean =>
  runsIn === "runner" && secrets.granted.size === 0 && secrets.withheld.length === 0

const execute = Effect.fn("LocalExecutor.execute")(function* (
  worker: string,
  attempt: Attempt,
  joined: Joined | undefined
) {
  const path = yield* Path.Path
  const jobFile = path.join(attempt.folder, "job.json")
  yield* writeJsonAtomic(jobFile, attempt.job).pipe(Effect.mapError(storageFailure(jobFile)))
  const several = joined === undefined ? startRanks : startJoined(joined)
  const start = attempt.resources.ranks > 1 ? several : startWorker
  const child = yield* start(worker, jobFile, attempt)

  let last: WorkerEvent | undefined
  const listening = yield* Stream.fromQueue(child.events).pipe(
    Stream.runForEach((event) => {
      if (isLast(event)) last = event
      return attempt.onEvent(event)
    }),
    Effect.andThen(Deferred.await(child.exit)),
    Effect.forkScoped
  )
  const timeLimit =
    attempt.timeout === undefined ? Effect.never : Effect.as(Effect.sleep(attempt.timeout), "timeout" as const)
  const ended: Ended = yield* Effect.raceFirst(
    Effect.as(Fiber.await(listening), undefined),
    Effect.raceFirst(Effect.as(attempt.stop, "stop" as const), timeLimit)
  )
  if (ended !== undefined) yield* child.stop(attempt.grace)
  const exit = yield* Fiber.join(listening)
  const exitFile = path.join(attempt.folder, "exit.json")
  yield* Effect.ignore(writeJsonAtomic(exitFile, { ...exit, ended: ended ?? null, last: last?._tag ?? null }))
  return yield* conclude(attempt, ended, last, exit)
})
