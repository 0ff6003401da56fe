/**
 * One worker process on this machine. It has its own process group (Ctrl-C reaches the runner alone), speaks JSON lines on fd 3, writes its stdout
 * and stderr straight into the attempt's folder, and ends when its stdin does, that is when the runner dies. Node's own spawn is used because
 * Effect's hands no files to a child and does not tell which signal ended it.
 */
import { type ChildProcess, spawn } from "node:child_process"
import { appendFileSync, closeSync, openSync } from "node:fs"
import { createInterface } from "node:readline"
import type { Readable } from "node:stream"
import { type Cause, Deferred, type Duration, Effect, Option, Path, Queue, Redacted } from "effect"
import { eventOf } from "./EventsFile.ts"
import type { Attempt, WorkerEvent } from "./Executor.ts"
import { withoutRanks } from "./Ranks.ts"
import { type Scrub, scrubDeep, scrubbedOutput } from "../file/Secrets.ts"
import { StageError } from "../StageType.ts"
import type { Exit } from "./WorkerLost.ts"

/**
 * Of Node for workers. They work on buffers outside of its heap, next to short-lived small objects: with a young generation of the default size, which
 * grows to 100 MB, they take 60 MB more and run no faster.
 */
export const workerFlags = ["--max-semi-space-size=4"]

export interface RunningWorker {
  readonly events: Queue.Queue<WorkerEvent, Cause.Done>
  readonly exit: Deferred.Deferred<Exit>
  /** SIGTERM, then SIGKILL to the group once the grace is over. Returns when the worker is gone. */
  readonly stop: (grace: Duration.Duration) => Effect.Effect<void>
}

export const startWorker = Effect.fnUntraced(function* (worker: string, jobFile: string, attempt: Attempt) {
  const path = yield* Path.Path
  const events = yield* Queue.unbounded<WorkerEvent, Cause.Done>()
  const exit = yield* Deferred.make<Exit>()
  const child = yield* Effect.acquireRelease(
    Effect.try({
      try: () =>
        spawnWorker(worker, jobFile, attempt, {
          stdout: path.join(attempt.folder, "stdout.log"),
          stderr: path.join(attempt.folder, "stderr.log")
        }),
      catch: (error) =>
        new StageError({
          failure: "internal",
          message: `cannot start a worker: ${error instanceof Error ? error.message : String(error)}`,
          next: "check the disk and the limits on processes and open files, then run again"
        })
    }),
    // Reached with a live worker only when the attempt's fiber is interrupted.
    (child) => stopChild(child, exit, attempt.grace)
  )
  listen(child, events, exit, attempt.secrets)
  if (child.pid !== undefined) yield* attempt.onStart([child.pid])
  const running: RunningWorker = {
    events,
    exit,
    stop: (grace) => stopChild(child, exit, grace)
  }
  return running
})

/** stdin: held open as long as we live; stdout, stderr: files; fd 3: events. With secrets, what it prints passes through us first. */
const spawnWorker = (
  worker: string,
  jobFile: string,
  { secrets }: Attempt,
  logs: { readonly stdout: string; readonly stderr: string }
): ChildProcess => {
  const out = openSync(logs.stdout, "a")
  const err = openSync(logs.stderr, "a")
  const piped = secrets.granted.size > 0
  try {
    const child = spawn(process.execPath, [...workerFlags, worker, jobFile, "--events=3"], {
      detached: true,
      env: workerEnvironment(secrets),
      stdio: piped ? ["pipe", "pipe", "pipe", "pipe"] : ["pipe", out, err, "pipe"]
    })
    if (piped) {
      if (child.stdout !== null) writeScrubbed(child.stdout, logs.stdout, secrets.scrub)
      if (child.stderr !== null) writeScrubbed(child.stderr, logs.stderr, secrets.scrub)
    }
    return child
  } finally {
    closeSync(out)
    closeSync(err)
  }
}

/** Ours, less what only other stages may know, and less what a launcher told the runner: its workers are no ranks of that. */
export const workerEnvironment = ({ granted, withheld }: Attempt["secrets"]): NodeJS.ProcessEnv => {
  const environment = withoutRanks(process.env)
  for (const name of withheld) delete environment[name]
  for (const [name, value] of granted) environment[name] = Redacted.value(value)
  return environment
}

/** Copies what the worker prints to its log, secrets replaced. Written at once, as a worker's own writes would be. */
const writeScrubbed = (output: Readable, file: string, scrub: Scrub): void => {
  const scrubbed = scrubbedOutput(scrub, (text) => {
    try {
      appendFileSync(file, text)
    } catch {
      // A full disk costs the log, as it would if the worker wrote it; the stage itself says so where it matters.
    }
  })
  output.setEncoding("utf8")
  output.on("data", scrubbed.take)
  output.on("end", scrubbed.end)
}

const listen = (
  child: ChildProcess,
  events: Queue.Queue<WorkerEvent, Cause.Done>,
  exit: Deferred.Deferred<Exit>,
  { granted, scrub }: Attempt["secrets"]
): void => {
  const clean = (event: WorkerEvent): WorkerEvent => (granted.size > 0 ? scrubDeep(event, scrub) : event)
  const lines = createInterface({ input: child.stdio[3] as Readable })
  lines.on("line", (line) => {
    Queue.offerUnsafe(events, clean(eventOf(scrub(line))))
  })
  const finish = (code: number | null, signal: NodeJS.Signals | null) => {
    Queue.endUnsafe(events)
    Deferred.doneUnsafe(exit, Effect.succeed({ code, signal }))
  }
  child.on("error", (error) => {
    Queue.offerUnsafe(events, {
      _tag: "Failed",
      failure: "internal",
      message: `cannot start a worker: ${error.message}`,
      next: "run again"
    })
    finish(null, null)
  })
  // A worker that died leaves its stdin broken; that is no event of its own.
  child.stdin?.on("error", () => {})
  child.on("close", (code, signal) => {
    lines.close()
    finish(code, signal)
  })
}

const stopChild = Effect.fnUntraced(function* (
  child: ChildProcess,
  exit: Deferred.Deferred<Exit>,
  grace: Duration.Duration
) {
  if (yield* Deferred.isDone(exit)) return
  signalGroup(child, "SIGTERM")
  const polite = yield* Effect.timeoutOption(Deferred.await(exit), grace)
  if (Option.isSome(polite)) return
  signalGroup(child, "SIGKILL")
  yield* Deferred.await(exit)
})

const signalGroup = (child: ChildProcess, signal: NodeJS.Signals): void => {
  if (child.pid === undefined) return
  try {
    process.kill(-child.pid, signal)
  } catch {
    // The group is gone already.
  }
}
