/**
 * Ends a run that another process runs. Politely: the runner gets SIGTERM, its stages save within their grace and it leaves its lock; only when
 * it does not in time it is killed. At once: it is killed, and its workers with it. Either way nothing complete is lost, and what stages saved
 * before is where the next run goes on.
 */
import { Clock, Duration, Effect, FileSystem, Option, Path, Runtime, Schedule, Schema } from "effect"
import { ArtifactStore } from "../../artifacts/ArtifactStore.ts"
import { parseDuration } from "../file/Quantity.ts"
import type { RunEvent } from "./RunEvent.ts"
import { type Claim, isLocal, liveClaims, lockHolder } from "./RunLock.ts"
import { type RunInfo, Runs, storageError } from "./Runs.ts"

/** The runner is on another machine, or in another container, where no signal of ours reaches it. Exit code 5. */
export class RunsElsewhere extends Schema.TaggedError<RunsElsewhere>()("RunsElsewhere", {
  run: Schema.String,
  pid: Schema.Int,
  host: Schema.String
}) {
  override readonly [Runtime.errorExitCode] = 5
  override get message(): string {
    return `run ${this.run} is run by process ${this.pid} on ${this.host}, which cannot be reached from here`
  }
  get next(): string {
    return `on ${this.host}: tinyllama stop ${this.run}`
  }
}

/** SIGKILL was sent, and the process is still there. Exit code 1. */
export class StopFailed extends Schema.TaggedError<StopFailed>()("StopFailed", {
  run: Schema.String,
  pid: Schema.Int,
  next: Schema.String
}) {
  override get message(): string {
    return `process ${this.pid} of run ${this.run} does not end`
  }
}

export interface StopOptions {
  /** Kill without asking. */
  readonly now: boolean
  /** Longest wait before the runner is killed; by default what its slowest stage is given, and some time to end by itself. */
  readonly grace?: Duration.Duration
}

export interface Stopped {
  readonly pid: number
  readonly seconds: number
  readonly killed: boolean
  readonly kept: ReadonlyArray<KeptStage>
}

/** Stages whose result is complete, and stages that go on from where they saved. */
export interface KeptStage {
  readonly stage: string
  readonly state: "complete" | "saved"
  /** The last that was heard of an unfinished stage. */
  readonly done?: { readonly done: number; readonly total: number; readonly unit: string }
}

/** undefined when nobody runs it. Waits until the run's lock is gone. */
export const stopRun = Effect.fn("stopRun")(function* (run: RunInfo, options: StopOptions) {
  const runs = yield* Runs
  const lock = runs.lockPath(run)
  const holder = yield* held(lock)
  if (holder === undefined) return undefined
  if (!isLocal(holder)) return yield* new RunsElsewhere({ run: run.id, pid: holder.pid, host: holder.host })
  const began = yield* Clock.currentTimeMillis
  const grace = options.grace ?? (yield* longestGrace(run))
  let killed = options.now
  yield* signal(holder.pid, options.now ? "SIGKILL" : "SIGTERM")
  if (!(yield* leaves(lock, holder, options.now ? patience : grace))) {
    killed = true
    yield* signal(holder.pid, "SIGKILL")
    if (!(yield* leaves(lock, holder, patience))) {
      const next = `see what holds it (ps ${holder.pid}): a process in a device call ends when that returns`
      return yield* new StopFailed({ run: run.id, pid: holder.pid, next })
    }
  }
  if (killed) yield* endWorkers(lock)
  const seconds = ((yield* Clock.currentTimeMillis) - began) / 1000
  const stopped: Stopped = { pid: holder.pid, seconds, killed, kept: yield* keptStages(run) }
  return stopped
})

/** For a process that was killed to be gone. */
const patience = Duration.seconds(10)
/** For a runner to publish, journal and end, once its stages have saved. */
const endingTime = Duration.seconds(15)
const fallbackGrace = Duration.seconds(60)

const held = (lock: string) => lockHolder(lock).pipe(Effect.mapError(storageError(lock)))

const signal = (pid: number, name: "SIGTERM" | "SIGKILL") =>
  Effect.sync(() => {
    try {
      process.kill(pid, name)
    } catch {
      // It ended in between, or is not ours to end; whether the lock goes tells which.
    }
  })

/** Whether this holder has left the lock within the time; a successor's lock is not its own. */
const leaves = (lock: string, holder: Claim, within: Duration.Duration) =>
  held(lock).pipe(
    Effect.map((now) => now?.token !== holder.token),
    Effect.repeat({ until: (gone) => gone, schedule: everyMoment }),
    Effect.timeoutOption(within),
    Effect.map(Option.isSome)
  )

const everyMoment = Schedule.spaced("50 millis")

const Graces = Schema.Struct({
  stages: Schema.Record(Schema.String, Schema.Struct({ grace: Schema.Struct({ value: Schema.String }) }))
})
const decodeGraces = Schema.decodeEffect(Schema.fromJsonString(Graces))

/** As the run's file has it for its slowest stage, and some time to end. */
export const longestGrace = Effect.fnUntraced(function* (run: RunInfo) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const resolved = yield* fs
    .readFileString(path.join(run.folder, "pipeline.resolved.json"))
    .pipe(Effect.flatMap(decodeGraces), Effect.option)
  const graces = Option.isNone(resolved)
    ? []
    : Object.values(resolved.value.stages).flatMap(({ grace }) => {
        const parsed = parseGrace(grace.value)
        return parsed === undefined ? [] : [parsed]
      })
  const longest = graces.reduce((a, b) => Duration.max(a, b), graces.length === 0 ? fallbackGrace : Duration.zero)
  return Duration.sum(longest, endingTime)
})

/** As Duration.format prints it: "1m 30s". */
const parseGrace = (text: string): Duration.Duration | undefined => {
  const parts = text.split(" ").map(parseDuration)
  return parts.reduce<Duration.Duration | undefined>(
    (sum, part) => (sum === undefined || part === undefined ? undefined : Duration.sum(sum, part)),
    Duration.zero
  )
}

/** Workers end with their runner; one that hangs in native code is ended here, as whoever takes over would do. */
const endWorkers = Effect.fnUntraced(function* (lock: string) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const locks = path.dirname((yield* ArtifactStore).lockPath("key"))
  const names = yield* Effect.orElseSucceed(fs.readDirectory(locks), () => [])
  const places = new Set(names.filter((name) => name.endsWith(".lock")).map((name) => name.split(".")[0] ?? ""))
  yield* liveClaims(lock).pipe(Effect.mapError(storageError(lock)))
  for (const place of places) yield* liveClaims(path.join(locks, place)).pipe(Effect.mapError(storageError(locks)))
})

const keptStages = Effect.fnUntraced(function* (run: RunInfo) {
  const store = yield* ArtifactStore
  const stages = new Map<string, KeptStage & { readonly key?: string }>()
  for (const event of yield* (yield* Runs).readEvents(run)) {
    const next = keptAfter(event, stages)
    if (next !== undefined) stages.set(next.stage, next)
  }
  const kept = yield* Effect.forEach(stages.values(), ({ key, ...stage }) =>
    stage.state === "complete" || key === undefined
      ? Effect.succeed([stage])
      : Effect.map(store.hasWork(key), (saved) => (saved ? [stage] : []))
  )
  return kept.flat()
})

type Known = KeptStage & { readonly key?: string }

const keptAfter = (event: RunEvent, stages: ReadonlyMap<string, Known>): Known | undefined => {
  if (event._tag === "StageCached") return { stage: event.stage, state: "complete" }
  if (event._tag === "StageFinished" && event.outcome === "done") return { stage: event.stage, state: "complete" }
  if (event._tag === "AttemptStarted") return { stage: event.stage, state: "saved", key: event.key }
  const known = event._tag === "Progress" ? stages.get(event.stage) : undefined
  if (event._tag !== "Progress" || known === undefined) return undefined
  return { ...known, done: { done: event.done, total: event.total, unit: event.unit } }
}
