/**
 * The inside of a worker process: reads the job, runs the stage, says on fd 3 what happens. It ends at once when its runner is gone, so that
 * nothing writes into a work folder that another runner may have taken over.
 */
import { mkdirSync, readFileSync, writeSync } from "node:fs"
import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import * as NodePath from "@effect/platform-node/NodePath"
import { Cause, Effect, Exit, Layer, Schema } from "effect"
import * as FetchHttpClient from "effect/http/FetchHttpClient"
import { diskFailure } from "../../artifacts/DurableFile.ts"
import { Job, WorkerEvent } from "./Executor.ts"
import { runJob } from "./StageJob.ts"
import type { StageRegistry } from "../StageRegistry.ts"
import { Preempted, ShareDone, StageError } from "../StageType.ts"

const decodeJob = Schema.decodeUnknownEffect(Schema.fromJsonString(Job))
const encodeEvent = Schema.encodeSync(Schema.fromJsonString(WorkerEvent))

/** `node worker.ts job.json` repeats an attempt by hand: its events go to stdout, and stdin does not matter. */
export const workerMain = (registry: Layer.Layer<StageRegistry>): void => {
  const [jobFile = "", events] = process.argv.slice(2)
  const underRunner = events === "--events=3"
  const emit = underRunner ? emitTo(3) : emitTo(1)
  if (underRunner) endWithRunner()
  const stop = { requested: false }
  for (const signal of ["SIGTERM", "SIGINT"] as const) process.on(signal, () => (stop.requested = true))

  const services = Layer.mergeAll(NodeFileSystem.layer, NodePath.layer, FetchHttpClient.layer, registry)
  const attempt = Effect.try(() => readFileSync(jobFile, "utf8")).pipe(
    Effect.flatMap(decodeJob),
    Effect.orDie,
    // By hand: the runner's attempt has moved them into the store.
    Effect.tap(({ outputs }) =>
      Effect.sync(() => {
        for (const folder of Object.values(outputs)) mkdirSync(folder, { recursive: true })
      })
    ),
    Effect.flatMap((job) => runJob(job, emit, () => stop.requested)),
    Effect.provide(services)
  )
  Effect.runFork(attempt).addObserver((exit) => {
    emit(finalEvent(exit))
    process.exit(0)
  })
}

const finalEvent = (
  exit: Exit.Exit<Readonly<Record<string, Readonly<Record<string, Schema.Json>>>>, unknown>
): WorkerEvent => {
  if (Exit.isSuccess(exit)) return { _tag: "Completed", facts: exit.value }
  const error = Cause.squash(exit.cause)
  if (error instanceof StageError) {
    return { _tag: "Failed", failure: error.failure, message: error.message, next: error.next }
  }
  if (error instanceof ShareDone) return { _tag: "Shared", done: error.done, total: error.total, unit: error.unit }
  if (error instanceof Preempted) return { _tag: "Preempted", message: error.message }
  process.stderr.write(`${Cause.pretty(exit.cause)}\n`)
  // A stage need not expect that the disk fails: whatever it was doing, the cause is the disk's and not the stage's.
  const refused = diskFailure(error)
  if (refused !== undefined) {
    return { _tag: "Failed", failure: refused.failure, message: refused.message, next: refused.next }
  }
  return {
    _tag: "Failed",
    failure: "internal",
    message: `a defect: ${error instanceof Error ? error.message : String(error)}`,
    next: "the stack is in the attempt's stderr.log; please report it"
  }
}

/** Whole lines, also when the pipe is full for a moment. An event that nobody can read any more ends the worker. */
const emitTo =
  (fd: number) =>
  (event: WorkerEvent): void => {
    const bytes = Buffer.from(`${encodeEvent(event)}\n`)
    for (let offset = 0; offset < bytes.length;) {
      try {
        offset += writeSync(fd, bytes, offset)
      } catch (error) {
        if (error instanceof Error && "code" in error && error.code === "EAGAIN") continue
        endNow()
      }
    }
  }

const endNow = (): void => {
  process.kill(process.pid, "SIGKILL")
}

/** The runner holds our stdin open and never writes: its end is the runner's. */
const endWithRunner = (): void => {
  process.stdin.on("end", endNow)
  process.stdin.on("error", endNow)
  process.stdin.resume()
  // Watching must not keep a finished worker alive.
  if ("unref" in process.stdin && typeof process.stdin.unref === "function") process.stdin.unref()
}
