/**
 * Executes attempts on this machine: in worker processes, but for stage types that run in the runner's own (RunnerStage.ts). A worker has its own process group (Ctrl-C reaches the runner alone), speaks JSON lines
 * on fd 3, writes its stdout and stderr straight into the attempt's folder, and ends when its stdin does, that is when the runner dies. Node's
 * own spawn is used because Effect's hands no files to a child and does not tell which signal ended it.
 */
import { type ChildProcess, spawn } from "node:child_process"
import { appendFileSync, closeSync, openSync } from "node:fs"
import { extname } from "node:path"
import { createInterface } from "node:readline"
import type { Readable } from "node:stream"
import { fileURLToPath } from "node:url"
import {
  type Cause,
  Deferred,
  Duration,
  Effect,
  Fiber,
  FileSystem,
  Layer,
  Option,
  Path,
  Queue,
  Redacted,
  Result,
  Schema,
  Stream
} from "effect"
import * as FetchHttpClient from "effect/http/FetchHttpClient"
import { storageFailure, writeJsonAtomic } from "../../artifacts/DurableFile.ts"
import { type Attempt, Executor, WorkerEvent } from "./Executor.ts"
import { type Scrub, scrubDeep } from "../file/Secrets.ts"
import { executeHere } from "./RunnerStage.ts"
import type { StageRegistry } from "../StageRegistry.ts"
import { FailureClass, Preempted, ShareDone, StageError } from "../StageType.ts"

/**
 * Of Node for workers. They work on buffers outside of its heap, next to short-lived small objects: with a young generation of the default size, which
 * grows to 100 MB, they take 60 MB more and run no faster.
 */
export const workerFlags = ["--max-semi-space-size=4"]

/** src/worker.ts in a checkout, dist/worker.js in a package. */
const defaultWorker = fileURLToPath(new URL(`../../worker${extname(import.meta.filename)}`, import.meta.url))

const decodeEvent = Schema.decodeUnknownResult(Schema.fromJsonString(WorkerEvent))
const isFailureClass = Schema.is(FailureClass)

export const layer = (options?: { readonly worker?: string }) =>
  Layer.effect(
    Executor,
    Effect.gen(function* () {
      const services = yield* Effect.context<FileSystem.FileSystem | Path.Path | StageRegistry>()
      const worker = options?.worker ?? defaultWorker
      return Executor.of({
        execute: (attempt) =>
          (runsHere(attempt)
            ? Effect.scoped(executeHere(attempt)).pipe(Effect.provide(FetchHttpClient.layer))
            : Effect.scoped(execute(worker, attempt))
          ).pipe(Effect.provideContext(services))
      })
    })
  )

/** Light stages, but not beside secrets: only a process of its own keeps a stage from the environment of another. */
const runsHere = ({ runsIn, secrets }: Attempt): boolean =>
  runsIn === "runner" && secrets.granted.size === 0 && secrets.withheld.length === 0

interface Exit {
  readonly code: number | null
  readonly signal: NodeJS.Signals | null
}
/** Why the runner told the worker to stop; undefined when it did not. */
type Ended = "stop" | "timeout" | undefined

const isLast = ({ _tag }: WorkerEvent): boolean =>
  _tag === "Completed" || _tag === "Failed" || _tag === "Preempted" || _tag === "Shared"

const execute = Effect.fn("LocalExecutor.execute")(function* (worker: string, attempt: Attempt) {
  const path = yield* Path.Path
  const jobFile = path.join(attempt.folder, "job.json")
  yield* writeJsonAtomic(jobFile, attempt.job).pipe(Effect.mapError(storageFailure(jobFile)))
  const child = yield* startWorker(worker, jobFile, attempt)
  yield* attempt.onStart(child.pid)

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

const conclude = Effect.fnUntraced(function* (
  attempt: Attempt,
  ended: Ended,
  last: WorkerEvent | undefined,
  exit: Exit
) {
  if (last?._tag === "Completed") return last.facts
  if (last?._tag === "Shared") return yield* new ShareDone({ done: last.done, total: last.total, unit: last.unit })
  if (ended === "timeout") {
    return yield* new StageError({
      failure: "timeout",
      message: `took longer than its timeout of ${attempt.timeout === undefined ? "?" : Duration.format(attempt.timeout)}`,
      next: "raise the stage's timeout and run again: it goes on from where it saved"
    })
  }
  if (last?._tag === "Preempted") return yield* new Preempted({ message: last.message })
  if (last?._tag === "Failed") {
    const failure = isFailureClass(last.failure) ? last.failure : "internal"
    return yield* new StageError({ failure, message: last.message, next: last.next })
  }
  if (ended === "stop") {
    const message =
      exit.signal === "SIGKILL"
        ? `did not save within ${Duration.format(attempt.grace)} and was ended; it goes on from its last checkpoint`
        : "stopped before it had begun"
    return yield* new Preempted({ message })
  }
  return yield* lost(attempt, exit)
})

/** The worker ended without a word: by a signal, or a runtime that gave up. */
const lost = Effect.fnUntraced(function* (attempt: Attempt, exit: Exit) {
  const path = yield* Path.Path
  const log = path.join(attempt.folder, "stderr.log")
  const tail = yield* tailOf(log)
  const how = exit.signal === null ? `with exit code ${exit.code}` : `by ${exit.signal}`
  const said = tail === "" ? "" : `; its last words:\n${tail}`
  if (/heap out of memory|bad_alloc|Cannot allocate memory/u.test(tail)) {
    return yield* new StageError({
      failure: "out-of-memory",
      message: `the worker ran out of memory and ended ${how}${said}`,
      next: "ask for less at once (a smaller micro_batch or seq_len), or give the machine more memory"
    })
  }
  const hint =
    exit.signal === "SIGKILL"
      ? " (SIGKILL from outside is most often the system's reaction to running out of memory)"
      : ""
  return yield* new StageError({
    failure: "worker-lost",
    message: `the worker ended ${how}${hint}${said}`,
    next: `run again: the stage goes on from its last checkpoint; the worker's output is in ${attempt.folder}`
  })
})

/** The last lines of a log, at most 20 of them and 4 KiB. */
const tailOf = Effect.fnUntraced(function* (file: string) {
  const fs = yield* FileSystem.FileSystem
  const text = yield* Effect.gen(function* () {
    const size = Number((yield* fs.stat(file)).size)
    return yield* Stream.mkString(Stream.decodeText(fs.stream(file, { offset: Math.max(0, size - 4096) })))
  }).pipe(Effect.orElseSucceed(() => ""))
  return text.trimEnd().split("\n").slice(-20).join("\n")
})

interface RunningWorker {
  readonly pid: number
  readonly events: Queue.Queue<WorkerEvent, Cause.Done>
  readonly exit: Deferred.Deferred<Exit>
  /** SIGTERM, then SIGKILL to the group once the grace is over. Returns when the worker is gone. */
  readonly stop: (grace: Duration.Duration) => Effect.Effect<void>
}

const startWorker = Effect.fnUntraced(function* (worker: string, jobFile: string, attempt: Attempt) {
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
  const running: RunningWorker = {
    pid: child.pid ?? 0,
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

/** Ours, less what only other stages may know. */
const workerEnvironment = ({ granted, withheld }: Attempt["secrets"]): NodeJS.ProcessEnv => {
  const environment = { ...process.env }
  for (const name of withheld) delete environment[name]
  for (const [name, value] of granted) environment[name] = Redacted.value(value)
  return environment
}

/** A value may be torn between two reads: the last line is held back until it ends, or is longer than any secret. */
const longestHeld = 1 << 16

/** Copies what the worker prints to its log, secrets replaced. Written at once, as a worker's own writes would be. */
const writeScrubbed = (output: Readable, file: string, scrub: Scrub): void => {
  let held = ""
  const write = (text: string): void => {
    try {
      appendFileSync(file, text)
    } catch {
      // A full disk costs the log, as it would if the worker wrote it; the stage itself says so where it matters.
    }
  }
  output.setEncoding("utf8")
  output.on("data", (text: string) => {
    const clean = scrub(held + text)
    const lineEnd = clean.lastIndexOf("\n") + 1
    const cut = lineEnd > 0 ? lineEnd : clean.length > 2 * longestHeld ? clean.length - longestHeld : 0
    if (cut > 0) write(clean.slice(0, cut))
    held = clean.slice(cut)
  })
  output.on("end", () => {
    if (held !== "") write(scrub(held))
  })
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
    const event = decodeEvent(line)
    const said: WorkerEvent = Result.isSuccess(event)
      ? event.success
      : { _tag: "Log", line: `the worker said what is no event: ${scrub(line).slice(0, 200)}` }
    Queue.offerUnsafe(events, clean(said))
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
