/** Rank 0's worker of an attempt whose other ranks somebody else started (JoinedRanks.ts): in its events and its end it speaks for all of them. */
import { type ChildProcess, spawn } from "node:child_process"
import { closeSync, openSync, rmSync } from "node:fs"
import { type Cause, Deferred, Duration, Effect, Option, Path, Queue, Redacted, Schedule, Stream } from "effect"
import { eventsFile, followEvents, rankFile } from "./EventsFile.ts"
import type { Attempt, WorkerEvent } from "./Executor.ts"
import type { Announcer } from "./JoinedRanks.ts"
import { cannotStart } from "./RankProcesses.ts"
import { firstFailure } from "./RankWords.ts"
import { listenForRanks } from "./RunnerLink.ts"
import { StageError, type Ranks } from "../StageType.ts"
import { type RunningWorker, workerFlags } from "./WorkerProcess.ts"
import type { Exit } from "./WorkerLost.ts"

/** This process's ranks, and how to have the others do something. */
export interface Joined {
  readonly ranks: Ranks
  readonly announcer: Announcer
}

/** How long rank 0 may take to end by itself once another rank has failed. */
const patience = Duration.seconds(5)

/** Whoever started the ranks decides how many there are, within what the stage allows. */
const fits = ({ job, resources: { elastic, ranks } }: Attempt, started: number): boolean =>
  elastic === undefined ? started === ranks : started >= elastic.min && started <= (job.wantedRanks ?? ranks)

export const startJoined = ({ announcer, ranks }: Joined) =>
  Effect.fnUntraced(function* (worker: string, jobFile: string, attempt: Attempt) {
    if (!fits(attempt, ranks.size)) {
      return yield* new StageError({
        failure: "invalid-input",
        message: `the stage asks for ${attempt.resources.ranks} ranks, and ${ranks.size} were started (by ${ranks.launcher})`,
        next: "start as many as resources.ranks says, or change it"
      })
    }
    const path = yield* Path.Path
    const { folder } = attempt
    const file = path.join(folder, eventsFile)
    for (let rank = 0; rank < ranks.size; rank++) rmSync(rankFile(file, rank), { force: true })
    const link = yield* listenForRanks({ begun: () => {}, ended: () => {} }).pipe(Effect.mapError(cannotStart))
    const events = yield* Queue.unbounded<WorkerEvent, Cause.Done>()
    const exit = yield* Deferred.make<Exit>()
    const ended = yield* Deferred.make<Exit>()
    const command = [...workerFlags, worker, jobFile, `--events=${file}`, `--runner=${link.path}`]
    const child = yield* Effect.acquireRelease(
      Effect.try({ try: () => spawnRank(attempt, command, ended), catch: cannotStart }),
      (started) => Effect.sync(() => signal(started, "SIGKILL"))
    )
    if (child.pid !== undefined) yield* attempt.onStart([child.pid])
    yield* announcer.announce({ state: "attempt", folder, jobFile, events: file })
    yield* Effect.forkScoped(
      Stream.runForEach(followEvents(file, { ended: Deferred.isDone(ended) }), (event) =>
        Effect.sync(() => Queue.offerUnsafe(events, event))
      ).pipe(
        Effect.andThen(Deferred.await(ended)),
        Effect.tap(() => announcer.announce({ state: "waiting" })),
        Effect.flatMap((how) =>
          Effect.sync(() => {
            if (failed.word !== undefined) Queue.offerUnsafe(events, failed.word)
            Queue.endUnsafe(events)
            Deferred.doneUnsafe(exit, Effect.succeed(how))
          })
        )
      )
    )
    const failed: { word: WorkerEvent | undefined } = { word: undefined }
    const end = Effect.fnUntraced(function* (grace: Duration.Duration) {
      yield* announcer.announce({ state: "stop" })
      signal(child, "SIGTERM")
      if (Option.isSome(yield* Effect.timeoutOption(Deferred.await(ended), grace))) return
      signal(child, "SIGKILL")
      yield* Deferred.await(exit)
    })
    // A rank that failed by itself leaves rank 0 waiting for it in the middle of something.
    const watching = Effect.repeat(
      Effect.sync(() => firstFailure(folder)?.word),
      { until: (word) => word !== undefined, schedule: Schedule.spaced("1 second") }
    )
    yield* Effect.forkScoped(
      Effect.flatMap(watching, (word) => {
        failed.word = word
        return end(patience)
      })
    )
    const running: RunningWorker = { events, exit, stop: end }
    return running
  })

/** With the launcher's environment, which other workers are kept from. */
const spawnRank = (
  { folder, secrets }: Attempt,
  command: ReadonlyArray<string>,
  ended: Deferred.Deferred<Exit>
): ChildProcess => {
  const environment = { ...process.env }
  for (const name of secrets.withheld) delete environment[name]
  for (const [name, value] of secrets.granted) environment[name] = Redacted.value(value)
  const [out, err] = ["stdout.log", "stderr.log"].map((name) => openSync(`${folder}/${name}`, "a"))
  try {
    const child = spawn(process.execPath, command, {
      env: environment,
      stdio: ["ignore", out ?? "ignore", err ?? "ignore"]
    })
    child.on("error", () => Deferred.doneUnsafe(ended, Effect.succeed({ code: null, signal: null })))
    child.on("exit", (code, by) => Deferred.doneUnsafe(ended, Effect.succeed({ code, signal: by })))
    return child
  } finally {
    for (const fd of [out, err]) if (fd !== undefined) closeSync(fd)
  }
}

const signal = (child: ChildProcess, name: "SIGTERM" | "SIGKILL"): void => {
  if (child.exitCode === null && child.signalCode === null) child.kill(name)
}
