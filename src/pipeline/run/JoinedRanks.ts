/**
 * A run whose ranks somebody else started: `mpirun -n 16 tinyllama run …`, pods of Kubernetes, srun. Every rank is a `tinyllama run` of the same
 * file. Rank 0 is the runner as ever, and its worker is rank 0 of each attempt of a stage with so many ranks; the others do as it says in a file
 * that all of them see, and start their worker on the same job. Stages with one rank run beside rank 0 alone.
 *
 *   <runs>/launches/<id>.json     what rank 0 wants; its time of change is its heartbeat
 */
import { type ChildProcess, spawn } from "node:child_process"
import { closeSync, openSync } from "node:fs"
import { hostname } from "node:os"
import { Clock, Deferred, Effect, FileSystem, Option, Path, Schedule, Schema } from "effect"
import { replaceFile } from "../../artifacts/DurableFile.ts"
import type { Ranks } from "../StageType.ts"
import { lastWord, rankFile } from "./EventsFile.ts"
import { logsOf } from "./RankProcesses.ts"
import { listenForRanks } from "./RunnerLink.ts"
import { workerFlags } from "./WorkerProcess.ts"

const Announcement = Schema.Struct({
  version: Schema.Literal(1),
  /** Of this launch: an earlier one may have left its file. */
  nonce: Schema.String,
  state: Schema.Literals(["waiting", "attempt", "stop", "over"]),
  /** Counts attempts, of whatever stage. */
  attempt: Schema.Int,
  /** Absolute paths that every rank sees. */
  folder: Schema.NullOr(Schema.String),
  jobFile: Schema.NullOr(Schema.String),
  events: Schema.NullOr(Schema.String),
  /** Of rank 0, once it is over. */
  exitCode: Schema.Int
})
export type Announcement = typeof Announcement.Type

const decode = Schema.decodeUnknownOption(Schema.fromJsonString(Announcement))

const heartbeatMillis = 2000
/** A rank 0 that gave no sign for this long is gone. */
const silenceMillis = 60_000
/** A rank that finds a launch that is over has come late to it, or early to the next: it waits so long for the next. */
const lateMillis = 60_000

/** The file of this launch: the same for all of its ranks, and for no other launch of the time. */
export const launchFile = Effect.fnUntraced(function* (
  runs: string,
  { launcher, master, size }: Ranks,
  environment: NodeJS.ProcessEnv
) {
  const path = yield* Path.Path
  const id =
    environment["TINYLLAMA_LAUNCH"] ??
    environment["PMIX_NAMESPACE"] ??
    environment["SLURM_JOB_ID"] ??
    (master === undefined ? `${launcher}-${size}` : `${master.address}-${master.port}`)
  return path.join(path.resolve(runs), "launches", `${id.replaceAll(/[^\w.-]+/gu, "_")}.json`)
})

/** Rank 0's side: what it has the others do. */
export interface Announcer {
  readonly announce: (
    what: Partial<Pick<Announcement, "state" | "folder" | "jobFile" | "events" | "exitCode">>
  ) => Effect.Effect<void>
}

/** Announces until the scope closes, and then that it is over. */
export const announcer = Effect.fn("announcer")(function* (file: string) {
  const services = yield* Effect.context<FileSystem.FileSystem | Path.Path>()
  const fs = yield* FileSystem.FileSystem
  let last: Announcement = {
    version: 1,
    nonce: `${hostname()}-${process.pid}-${yield* Clock.currentTimeMillis}`,
    state: "waiting",
    attempt: 0,
    folder: null,
    jobFile: null,
    events: null,
    exitCode: 1
  }
  const announce: Announcer["announce"] = (what) =>
    Effect.suspend(() => {
      last = { ...last, ...what, attempt: last.attempt + (what.state === "attempt" ? 1 : 0) }
      return Effect.ignore(replaceFile(file, JSON.stringify(last)))
    }).pipe(Effect.provideContext(services))
  yield* Effect.acquireRelease(announce({}), () => announce({ state: "over" }))
  const beat = Effect.flatMap(Clock.currentTimeMillis, (now) =>
    Effect.ignore(fs.utimes(file, new Date(now), new Date(now)))
  )
  yield* Effect.forkScoped(Effect.repeat(Effect.delay(beat, heartbeatMillis), Schedule.forever))
  const made: Announcer = { announce }
  return made
})

export interface FollowOptions {
  /** The worker's entry. */
  readonly worker: string
  /** Completes when this rank shall save and stop; the others learn of it from its worker. */
  readonly stop: Effect.Effect<void>
  /** Milliseconds. */
  readonly late?: number
}

/**
 * Any other rank's side: starts a worker for each attempt that rank 0 announces, until it is over. The exit code is rank 0's; 1 where it is gone or
 * this rank's own worker died.
 */
export const follow = Effect.fn("followLaunch")(function* (file: string, ranks: Ranks, options: FollowOptions) {
  const begun = yield* Clock.currentTimeMillis
  const stale = yield* read(file)
  let [beat, heard, done] = [-1, begun, ""]
  for (;;) {
    const found = yield* read(file)
    const now = yield* Clock.currentTimeMillis
    // Whether the heart beats, not when: the clocks of two machines may differ.
    const latest = yield* changed(file)
    if (latest !== beat) [beat, heard] = [latest, now]
    if (found === undefined || (found.nonce === stale?.nonce && stale.state === "over")) {
      if (now - begun > (options.late ?? lateMillis)) return found?.exitCode ?? 1
    } else if (found.state === "over") return found.exitCode
    else if (now - heard > silenceMillis) return 1
    else if (found.state === "attempt" && done !== `${found.nonce} ${found.attempt}`) {
      done = `${found.nonce} ${found.attempt}`
      if (!(yield* Effect.scoped(work(file, found, ranks, options)))) return 1
    }
    yield* Effect.sleep("200 millis")
  }
})

const read = (file: string) =>
  Effect.flatMap(FileSystem.FileSystem, (fs) => fs.readFileString(file)).pipe(
    Effect.map((text) => Option.getOrUndefined(decode(text))),
    Effect.orElseSucceed(() => undefined)
  )

/** The file's time of change; -1 where there is none. */
const changed = (file: string) =>
  Effect.flatMap(FileSystem.FileSystem, (fs) => fs.stat(file)).pipe(
    Effect.map(({ mtime }) => Option.match(mtime, { onNone: () => -1, onSome: (time) => time.getTime() })),
    Effect.orElseSucceed(() => -1)
  )

/** Whether the worker had its say. It is told to stop when rank 0 says so, or we are; it ends with us. */
const work = Effect.fnUntraced(function* (
  file: string,
  { events, folder, jobFile, nonce }: Announcement,
  { rank }: Ranks,
  { stop, worker }: FollowOptions
) {
  if (events === null || folder === null || jobFile === null) return true
  const path = yield* Path.Path
  const link = yield* Effect.orDie(listenForRanks({ begun: () => {}, ended: () => {} }))
  const exited = yield* Deferred.make<void>()
  const child = yield* Effect.acquireRelease(
    Effect.sync(() => {
      const [out, err] = [logsOf(rank).stdout, logsOf(rank).stderr].map((name) =>
        openSync(path.join(folder, name), "a")
      )
      const started = spawn(
        process.execPath,
        [...workerFlags, worker, jobFile, `--events=${events}`, `--runner=${link.path}`],
        { stdio: ["ignore", out ?? "ignore", err ?? "ignore"] }
      )
      for (const fd of [out, err]) if (fd !== undefined) closeSync(fd)
      started.on("exit", () => Deferred.doneUnsafe(exited, Effect.void))
      return started
    }),
    (started) => Effect.sync(() => kill(started, "SIGKILL"))
  )
  const told = Effect.repeat(read(file), {
    until: (now) => now === undefined || now.nonce !== nonce || now.state !== "attempt",
    schedule: Schedule.spaced("200 millis")
  })
  yield* Effect.forkScoped(
    Effect.raceFirst(stop, Effect.asVoid(told)).pipe(Effect.andThen(Effect.sync(() => kill(child, "SIGTERM"))))
  )
  yield* Deferred.await(exited)
  return lastWord(rankFile(events, rank)) !== undefined
})

const kill = (child: ChildProcess, signal: NodeJS.Signals): void => {
  if (child.exitCode === null && child.signalCode === null) child.kill(signal)
}
