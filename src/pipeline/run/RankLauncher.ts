/**
 * Runs the ranks of an attempt on this machine and answers for all of them as for one worker: rank 0's events are the attempt's; a stop reaches
 * every rank; when one dies or fails, the others are ended, and what is told is who was first and of what. Nothing survives the runner: a rank
 * ends when its link to it does (RunnerLink.ts).
 *
 * mpirun puts each rank into a process group of its own and turns a SIGTERM into a SIGKILL a second later, so signals go to the ranks themselves,
 * whoever started them.
 */
import type { ChildProcess } from "node:child_process"
import { type Cause, Clock, Deferred, Duration, Effect, Option, Path, Queue, Schedule, Stream } from "effect"
import { eventsFile, followEvents, lastWord, rankFile } from "./EventsFile.ts"
import type { Attempt, WorkerEvent } from "./Executor.ts"
import {
  cannotStart,
  exitByMpirun,
  findProgram,
  freePort,
  type Launcher,
  launcherOf,
  logsOf,
  mpirunMissing,
  startMpirun,
  startProcesses
} from "./RankProcesses.ts"
import { listenForRanks } from "./RunnerLink.ts"
import { childrenOf, watchForStopped } from "./StoppedRanks.ts"
import { StageError } from "../StageType.ts"
import { type RunningWorker, workerFlags } from "./WorkerProcess.ts"
import { type Exit, lost, watchdogLine } from "./WorkerLost.ts"

/** How long ranks may take to end by themselves once one of them is gone. */
const patience = Duration.seconds(5)

type Ending =
  /** The exit is known of processes of ours; of those that mpirun started it must be asked. */
  | { readonly _tag: "Rank"; readonly rank: number; readonly exit?: Exit }
  | { readonly _tag: "Mpirun"; readonly exit: Exit }

/** The ranks of one attempt. */
class Ranks {
  readonly endings = Effect.runSync(Queue.unbounded<Ending>())
  /** Rank → its process, once it is known, until it has ended. */
  readonly living = new Map<number, number>()
  mpirun: ChildProcess | undefined
  /** Processes that were stopped from outside until they were ended, and for how many seconds. */
  readonly stopped = new Map<number, number>()
  /** Milliseconds. */
  startedAt = 0
  told: "nothing" | "stop" | "killed" = "nothing"

  readonly attempt: Attempt
  readonly size: number
  readonly launcher: Launcher

  constructor(attempt: Attempt) {
    this.attempt = attempt
    this.size = attempt.resources.ranks
    this.launcher = launcherOf(attempt.resources)
  }

  begun(rank: number, pid: number): void {
    this.living.set(rank, pid)
    if (this.told !== "nothing") this.signal(this.told === "stop" ? "SIGTERM" : "SIGKILL")
  }

  /** Those that have not said who they are included. */
  get processes(): ReadonlyArray<number> {
    const mpirun = this.mpirun?.exitCode === null ? this.mpirun.pid : undefined
    return Array.from(
      new Set([...this.living.values(), ...(mpirun === undefined ? [] : [mpirun, ...childrenOf(mpirun)])])
    )
  }

  signal(name: "SIGTERM" | "SIGKILL"): void {
    for (const pid of this.living.values()) signalQuietly(pid, name)
    if (name === "SIGKILL" && this.mpirun?.pid !== undefined && this.mpirun.exitCode === null)
      signalQuietly(this.mpirun.pid, name)
  }

  /** SIGTERM, and SIGKILL where that did not help. */
  end(gone: Effect.Effect<unknown>, grace: Duration.Duration): Effect.Effect<void> {
    return Effect.gen({ self: this }, function* () {
      this.told = "stop"
      this.signal("SIGTERM")
      if (Option.isSome(yield* Effect.timeoutOption(gone, grace))) return
      this.told = "killed"
      this.signal("SIGKILL")
      yield* gone
    })
  }
}

const signalQuietly = (pid: number, name: "SIGTERM" | "SIGKILL"): void => {
  try {
    process.kill(pid, name)
  } catch {
    // It ended in between.
  }
}

/** Starts `attempt.resources.ranks` processes of the worker on one job. */
export const startRanks = Effect.fnUntraced(function* (worker: string, jobFile: string, attempt: Attempt) {
  const path = yield* Path.Path
  const ranks = new Ranks(attempt)
  const { launcher } = ranks
  if (launcher === "mpirun" && findProgram("mpirun") === undefined)
    return yield* new StageError({ failure: "invalid-input", ...mpirunMissing })
  const known = yield* Queue.unbounded<ReadonlyArray<number>>()
  const link = yield* listenForRanks({
    begun: (rank, pid) => {
      ranks.begun(rank, pid)
      Queue.offerUnsafe(known, Array.from(ranks.living.values()))
    },
    ended: (rank) => {
      if (launcher === "mpirun") Queue.offerUnsafe(ranks.endings, { _tag: "Rank", rank })
    }
  }).pipe(Effect.mapError(cannotStart))
  const port = yield* freePort
  const file = path.join(attempt.folder, eventsFile)
  const command = [...workerFlags, worker, jobFile, `--events=${file}`, `--runner=${link.path}`]
  ranks.startedAt = yield* Clock.currentTimeMillis
  yield* Effect.try({ try: () => launch(ranks, command, port), catch: cannotStart })
  yield* Effect.forkScoped(Stream.runForEach(Stream.fromQueue(known), attempt.onStart))
  yield* Effect.forkScoped(
    watchForStopped(
      () => ranks.processes,
      attempt.patience,
      (pid, seconds) => {
        ranks.stopped.set(pid, seconds)
        signalQuietly(pid, "SIGKILL")
      }
    )
  )
  return yield* supervise(ranks, file)
})

const launch = (ranks: Ranks, command: ReadonlyArray<string>, port: number): void => {
  const { attempt, endings, launcher, size } = ranks
  const start = { attempt, size, port, command }
  if (launcher === "mpirun") {
    ranks.mpirun = startMpirun(start, (exit) => Queue.offerUnsafe(endings, { _tag: "Mpirun", exit }))
    return
  }
  const processes = startProcesses(start, (rank, exit) => Queue.offerUnsafe(endings, { _tag: "Rank", rank, exit }))
  for (const [rank, { pid }] of processes.entries()) if (pid !== undefined) ranks.begun(rank, pid)
}

/** Rank 0's events as they come; when all have ended, the failure that was first, where there is one. */
const supervise = Effect.fnUntraced(function* (ranks: Ranks, file: string) {
  const events = yield* Queue.unbounded<WorkerEvent, Cause.Done>()
  const exit = yield* Deferred.make<Exit>()
  const allEnded = yield* Deferred.make<Outcome>()
  yield* Effect.forkScoped(
    Stream.runForEach(followEvents(file, { ended: Deferred.isDone(allEnded) }), (event) =>
      Effect.sync(() => Queue.offerUnsafe(events, event))
    ).pipe(
      Effect.andThen(Deferred.await(allEnded)),
      Effect.flatMap((outcome) =>
        Effect.sync(() => {
          if (outcome.failure !== undefined) Queue.offerUnsafe(events, outcome.failure)
          Queue.endUnsafe(events)
          Deferred.doneUnsafe(exit, Effect.succeed(outcome.exit))
        })
      )
    )
  )
  yield* Effect.forkScoped(Deferred.into(untilAllEnded(ranks, file), allEnded))
  // Reached with living ranks only when the attempt's fiber is interrupted.
  yield* Effect.addFinalizer(() =>
    Effect.flatMap(Deferred.isDone(exit), (done) =>
      done ? Effect.void : ranks.end(Deferred.await(allEnded), ranks.attempt.grace)
    )
  )
  const running: RunningWorker = { events, exit, stop: (grace) => ranks.end(Deferred.await(exit), grace) }
  return running
})

interface Outcome {
  readonly exit: Exit
  /** Of the first rank that died or failed; undefined where rank 0's last word stands. */
  readonly failure: WorkerEvent | undefined
}

/** The first rank that ended other than it should. */
interface Culprit {
  readonly rank: number
  readonly exit: Exit | undefined
  /** Its last word, where it had one. */
  readonly word: WorkerEvent | undefined
  /** Its process, where it said so. */
  readonly process: number | undefined
}

const untilAllEnded = Effect.fnUntraced(function* (ranks: Ranks, file: string) {
  const { endings, launcher, living, size } = ranks
  const ended = new Set<number>()
  let mpirun: Exit | undefined
  let culprit: Culprit | undefined
  const settle = (rank: number, exit: Exit | undefined) => {
    if (ended.has(rank)) return
    ended.add(rank)
    const process = living.get(rank)
    living.delete(rank)
    const word = lastWord(rankFile(file, rank))
    const asked = ranks.told !== "nothing" && word === undefined
    if ((word === undefined || word._tag === "Failed") && !asked) culprit ??= { rank, exit, word, process }
  }
  const over = () => ended.size === size && (launcher === "processes" || mpirun !== undefined)
  while (!over()) {
    const ending = yield* Queue.take(endings)
    if (ending._tag === "Rank") settle(ending.rank, ending.exit)
    else {
      mpirun = ending.exit
      // Those that never said who they are did not begin. Others may outlive an mpirun that was killed.
      for (let rank = 0; rank < size; rank++) if (!living.has(rank)) settle(rank, ending.exit)
      if (living.size > 0) culprit ??= { rank: -1, exit: ending.exit, word: undefined, process: ranks.mpirun?.pid }
    }
    if (culprit !== undefined && ranks.told === "nothing") yield* Effect.forkScoped(endRest(ranks, over))
  }
  return yield* outcomeOf(ranks, file, culprit)
})

/** The others cannot go on without the one that is gone: what they do together would wait for it forever. */
const endRest = (ranks: Ranks, over: () => boolean) =>
  ranks.end(
    Effect.repeat(Effect.sync(over), { until: (gone) => gone, schedule: Schedule.spaced("20 millis") }),
    patience
  )

const outcomeOf = Effect.fnUntraced(function* (ranks: Ranks, file: string, culprit: Culprit | undefined) {
  const word = lastWord(file)
  const fine = word?._tag === "Completed" || word?._tag === "Shared"
  const exit: Exit =
    culprit?.exit ??
    (word === undefined ? { code: null, signal: ranks.told === "killed" ? "SIGKILL" : "SIGTERM" } : clean)
  if (fine || culprit === undefined || (culprit.rank === 0 && culprit.word !== undefined))
    return { exit, failure: undefined } satisfies Outcome
  return { exit, failure: yield* failureOf(ranks, culprit) } satisfies Outcome
})

const clean: Exit = { code: 0, signal: null }

const failureOf = Effect.fnUntraced(function* (
  { attempt, launcher, size, startedAt, stopped }: Ranks,
  { exit, process, rank, word }: Culprit
) {
  const who = rank < 0 ? "mpirun" : `rank ${rank} of ${size}`
  if (word?._tag === "Failed") return { ...word, message: `${who}: ${word.message}` }
  const { folder, job } = attempt
  const [held] = stopped
  if (held !== undefined) {
    const [pid, seconds] = held
    const message = `${pid === process ? who : "a rank"} (process ${pid}) was stopped from outside (SIGSTOP), did not go on for ${seconds} s, and was ended`
    const next =
      "run again: the stage goes on from its last checkpoint; whoever stops ranks must let them go on in time"
    return { _tag: "Failed", failure: "worker-lost", message, next } satisfies WorkerEvent
  }
  const log = rank < 0 ? "mpirun.log" : logsOf(rank).stderr
  const how = (launcher === "mpirun" && rank >= 0 ? exitByMpirun(folder, rank) : undefined) ?? exit
  const watchdog = yield* watchdogLine(job.work, startedAt)
  const { failure, message, next } = yield* Effect.flip(
    lost(folder, how ?? { code: null, signal: null }, { who, log, watchdog })
  )
  const failed: WorkerEvent = { _tag: "Failed", failure, message, next }
  return failed
})
