/**
 * The inside of a worker process: reads the job, runs the stage, says what happens. It ends at once when its runner is gone, so that
 * nothing writes into a work folder that another runner may have taken over.
 */
import { mkdirSync, readFileSync, writeSync } from "node:fs"
import { availableParallelism } from "node:os"
import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import * as NodePath from "@effect/platform-node/NodePath"
import { Cause, Effect, Exit, Layer, Redacted, Result, Schema } from "effect"
import * as FetchHttpClient from "effect/http/FetchHttpClient"
import { diskFailure } from "../../artifacts/DurableFile.ts"
import { isNewer, readFence } from "./ClusterJob.ts"
import { appendTo, rankFile } from "./EventsFile.ts"
import { Job, WorkerEvent } from "./Executor.ts"
import { alone, ranksOf } from "./Ranks.ts"
import { connectToRunner } from "./RunnerLink.ts"
import { runJob } from "./StageJob.ts"
import { type Scrub, scrubber, scrubDeep, scrubbedOutput } from "../file/Secrets.ts"
import type { StageRegistry } from "../StageRegistry.ts"
import { Preempted, type Ranks, ShareDone, StageError } from "../StageType.ts"

const decodeJob = Schema.decodeUnknownEffect(Schema.fromJsonString(Job))
const encodeEvent = Schema.encodeSync(Schema.fromJsonString(WorkerEvent))

/**
 * `node worker.ts job.json` repeats an attempt by hand, also under mpirun: rank 0's events go to stdout, and stdin does not matter.
 *   --events=3        events on fd 3; ends with its stdin
 *   --events=FILE     events appended to the file, of other ranks beside it
 *   --runner=SOCKET   ends when the connection does
 */
export const workerMain = (registry: Layer.Layer<StageRegistry>): void => {
  const [jobFile = "", ...options] = process.argv.slice(2)
  const option = (name: string) => options.find((one) => one.startsWith(`--${name}=`))?.slice(name.length + 3)
  const stop = { requested: false }
  // SIGUSR2 too: mpirun passes it on, and of a SIGTERM it makes a SIGKILL.
  for (const signal of ["SIGTERM", "SIGINT", "SIGUSR2"] as const) process.on(signal, () => (stop.requested = true))
  const place = ranksOf(process.env)
  const ranks = Result.getOrElse(place, () => alone)
  const events = option("events")
  const say = emitter(events, ranks)
  const runner = option("runner")
  if (events === "3") endWithRunner()
  if (runner !== undefined) connectToRunner(runner, ranks.rank, endNow)

  const services = Layer.mergeAll(NodeFileSystem.layer, NodePath.layer, FetchHttpClient.layer, registry)
  let emit = say
  const attempt = Effect.try(() => readFileSync(jobFile, "utf8")).pipe(
    Effect.flatMap(decodeJob),
    Effect.orDie,
    Effect.tap((job) =>
      Effect.sync(() => {
        if (events !== undefined && events !== "3") emit = scrubbed(job.secrets ?? [], say)
        if (job.fence !== undefined) standBehind(job.fence)
        // By hand: the runner's attempt has moved them into the store.
        for (const folder of Object.values(job.outputs)) mkdirSync(folder, { recursive: true })
      })
    ),
    Effect.flatMap((job) =>
      Effect.andThen(
        Effect.fromResult(place),
        runJob(
          { ...job, threads: threadsOf(job, ranks) },
          (event) => emit(event),
          () => stop.requested,
          ranks
        )
      )
    ),
    Effect.provide(services)
  )
  Effect.runFork(attempt).addObserver((exit) => {
    const last = finalEvent(exit)
    emit(last)
    // Of several ranks one that failed takes the others along: mpirun and srun see to that where its code is not 0.
    process.exit(last._tag === "Failed" && ranks.size > 1 ? 1 : 0)
  })
}

/** On a machine of a cluster: the cores that it gives to this job, shared among its ranks here. */
const threadsOf = ({ threads }: Job, { localSize }: Ranks): number => {
  if (threads > 0) return threads
  const granted = Number(process.env["SLURM_CPUS_ON_NODE"] ?? availableParallelism())
  return Math.max(1, Math.floor(granted / localSize))
}

/** Whoever was cut off, and comes back when a newer attempt has the work folder, must not write there any more. */
const standBehind = ({ counter, file }: NonNullable<Job["fence"]>): void => {
  const own = { counter, restart: Number(process.env["SLURM_RESTART_COUNT"] ?? 0) }
  const look = () => {
    if (!isNewer(readFence(file), own)) return
    process.stderr.write("a newer attempt has the work folder: this one ends\n")
    endNow()
  }
  look()
  setInterval(look, 1000).unref()
}

/** Rank 0 speaks for all; of the others only warnings and the last word are kept, where there is a place for them. */
const emitter = (events: string | undefined, { rank }: Ranks): ((event: WorkerEvent) => void) => {
  const toFile = events !== undefined && events !== "3"
  if (rank === 0) return toFile ? appendTo(events) : emitTo(events === "3" ? 3 : 1)
  const say = toFile ? appendTo(rankFile(events, rank)) : emitTo(2)
  return (event) => {
    if (event._tag !== "Progress" && event._tag !== "Log") say(event)
  }
}

/** No runner reads along: what the worker says and prints must bear no secret from here on. Native code prints none: it knows no environment. */
const scrubbed = (names: ReadonlyArray<string>, say: (event: WorkerEvent) => void): ((event: WorkerEvent) => void) => {
  if (names.length === 0) return say
  const scrub = scrubber(new Map(names.map((name) => [name, Redacted.make(process.env[name] ?? "")] as const)))
  for (const fd of [1, 2]) scrubPrints(fd === 1 ? process.stdout : process.stderr, scrub, fd)
  return (event) => say(scrubDeep(event, scrub))
}

const scrubPrints = (output: NodeJS.WriteStream, scrub: Scrub, fd: number): void => {
  const lines = scrubbedOutput(scrub, (text) => writeSync(fd, text))
  output.write = (chunk: string | Uint8Array): boolean => {
    lines.take(typeof chunk === "string" ? chunk : Buffer.from(chunk).toString("utf8"))
    return true
  }
  process.on("exit", lines.end)
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
