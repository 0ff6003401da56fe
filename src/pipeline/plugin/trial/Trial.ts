/**
 * Puts one stage through what a run may put it through: again elsewhere, a kill in the middle, a polite stop. The laws: equal parameters and inputs
 * give equal bytes; unfinished work is gone on with, to the same bytes; a stage that is asked to stop does so in time. Attempts run in real worker
 * processes (TrialWorker.ts).
 */
import { local } from "../../file/ExecutorBlock.ts"
import { availableParallelism } from "node:os"
import { extname } from "node:path"
import { fileURLToPath } from "node:url"
import { Clock, Deferred, Duration, Effect, FileSystem, Option, Path, Result, Schema } from "effect"
import type { ArtifactHandle } from "../../../artifacts/Artifact.ts"
import { Executor } from "../../run/Executor.ts"
import * as LocalExecutor from "../../run/LocalExecutor.ts"
import type { AttemptSecrets } from "../../file/Secrets.ts"
import type { AnyStageType, EncodedParams, Preempted, StageError } from "../../StageType.ts"
import { difference, filesBelow, type Made } from "./TrialFiles.ts"
import { countFile, orderFile, terminationLine, TrialCount, type TrialOrder } from "./TrialWorker.ts"

export interface Subject {
  /** Its name in messages. */
  readonly stage: string
  readonly type: AnyStageType
  readonly params: EncodedParams
  readonly inputs: Readonly<Record<string, ReadonlyArray<ArtifactHandle>>>
  /** Where plugins and relative paths start. */
  readonly baseDirectory: string
  readonly secrets: AttemptSecrets
  /** How long a stop may take. */
  readonly grace: Duration.Duration
  /** Limit of each attempt. */
  readonly timeout: Duration.Duration
}

export interface Law {
  readonly law: "runs" | "equal bytes" | "resumes after a kill" | "stops in time"
  /** unproven: the stage gave no chance to see, say because it reports no progress. */
  readonly state: "kept" | "broken" | "unproven"
  readonly detail: string
}

export interface Verdict {
  readonly laws: ReadonlyArray<Law>
  /** What the first attempt made. */
  readonly made: ReadonlyArray<Made>
}

/** src/trial-worker.ts in a checkout, dist/trial-worker.js in a package. */
const trialWorker = fileURLToPath(new URL(`../../../trial-worker${extname(import.meta.filename)}`, import.meta.url))

/** `folder` must be empty; everything is written below it. */
export const trial = Effect.fn("trial")(function* (
  subject: Subject,
  folder: string,
  onLaw: (law: Law) => Effect.Effect<void>
) {
  const laws: Array<Law> = []
  const judge = Effect.fnUntraced(function* (law: Law) {
    laws.push(law)
    yield* onLaw(law)
  })
  const first = yield* attempt(subject, folder, { name: "first", order: { signal: null, at: 0 }, threads: 1 })
  if (Result.isFailure(first.result)) {
    yield* judge({ law: "runs", state: "broken", detail: sayFailure(first.result.failure) })
    return { laws, made: [] } satisfies Verdict
  }
  const made = first.result.success
  const empty = made.find(({ files }) => files.size === 0)
  yield* judge(
    empty === undefined
      ? { law: "runs", state: "kept", detail: `${seconds(first.millis)}, ${first.count.readings} progress readings` }
      : { law: "runs", state: "broken", detail: `the output ${empty.port} is empty: a stage fills every output` }
  )
  yield* judge(yield* againLaw(subject, folder, made))
  yield* judge(yield* interruptLaw(subject, folder, made, first.count.readings, "SIGKILL"))
  yield* judge(yield* interruptLaw(subject, folder, made, first.count.readings, "SIGTERM"))
  return { laws, made } satisfies Verdict
})

interface AttemptPlan {
  /** Of its folder; attempts of one name share their work folder. */
  readonly name: string
  readonly resumed?: boolean
  readonly order: TrialOrder
  readonly threads: number
}

interface Attempted {
  readonly result: Result.Result<ReadonlyArray<Made>, StageError | Preempted>
  readonly count: TrialCount
  readonly millis: number
  /** From SIGTERM to the end of the process. */
  readonly stopMillis: number | undefined
}

const decodeCount = Schema.decodeUnknownEffect(Schema.fromJsonString(TrialCount))

const attempt = Effect.fnUntraced(function* (subject: Subject, folder: string, plan: AttemptPlan) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const executor = yield* Executor
  const { type } = subject
  const home = path.join(folder, plan.resumed === true ? `${plan.name}-resumed` : plan.name)
  const work = path.join(folder, plan.name, "work")
  const outputs = Object.fromEntries(Object.keys(type.outputs).map((port) => [port, path.join(home, "output", port)]))
  for (const made of [work, ...Object.values(outputs)]) yield* Effect.orDie(fs.makeDirectory(made, { recursive: true }))
  yield* Effect.orDie(fs.writeFileString(path.join(home, orderFile), JSON.stringify(plan.order)))
  const terminated = yield* Deferred.make<number>()
  const began = yield* Clock.currentTimeMillis
  const facts = yield* Effect.result(
    executor
      .execute({
        folder: home,
        job: {
          stage: subject.stage,
          type: type.plugin?.uses ?? type.name,
          ...(type.plugin === undefined ? {} : { code: type.plugin.code }),
          params: subject.params,
          inputs: subject.inputs,
          outputs,
          work,
          previous: null,
          baseDirectory: subject.baseDirectory,
          threads: plan.threads
        },
        runsIn: "worker",
        key: subject.stage,
        run: "trial",
        number: 1,
        executor: local,
        resources: { cpus: plan.threads, gpus: 0, ranks: 1 },
        secrets: subject.secrets,
        timeout: subject.timeout,
        grace: subject.grace,
        stop: Effect.asVoid(Deferred.await(terminated)),
        onStart: () => Effect.void,
        onEvent: (event) =>
          event._tag === "Log" && event.line === terminationLine
            ? Effect.flatMap(Clock.currentTimeMillis, (now) => Effect.asVoid(Deferred.succeed(terminated, now)))
            : Effect.void
      })
      .pipe(Effect.catchTag("ShareDone", (done) => Effect.die(done))) // no share was asked for
  )
  const ended = yield* Clock.currentTimeMillis
  const count = yield* fs.readFileString(path.join(home, countFile)).pipe(
    Effect.flatMap(decodeCount),
    Effect.orElseSucceed((): TrialCount => ({ readings: 0, first: null }))
  )
  const signalled = yield* Deferred.poll(terminated)
  const attempted: Attempted = {
    result: Result.map(facts, (byPort) =>
      Object.entries(outputs).map(([port, output]) => ({ port, files: filesBelow(output), facts: byPort[port] ?? {} }))
    ),
    count,
    millis: ended - began,
    stopMillis: Option.isSome(signalled) ? ended - (yield* signalled.value) : undefined
  }
  return attempted
})

/** Another folder, another number of threads: neither may show in the bytes. */
const againLaw = Effect.fnUntraced(function* (subject: Subject, folder: string, made: ReadonlyArray<Made>) {
  const law = "equal bytes"
  const threads = Math.max(2, availableParallelism())
  const again = yield* attempt(subject, folder, { name: "again", order: { signal: null, at: 0 }, threads })
  if (Result.isFailure(again.result))
    return {
      law,
      state: "broken",
      detail: `the second time it fails: ${sayFailure(again.result.failure)}`
    } satisfies Law
  const differs = difference(made, again.result.success)
  return differs === undefined
    ? ({ law, state: "kept", detail: `twice, with 1 and with ${threads} threads` } satisfies Law)
    : ({ law, state: "broken", detail: differs } satisfies Law)
})

/** A signal at the middle reading, then an attempt that goes on with what is in the work folder. */
const interruptLaw = Effect.fnUntraced(function* (
  subject: Subject,
  folder: string,
  made: ReadonlyArray<Made>,
  readings: number,
  signal: "SIGKILL" | "SIGTERM"
) {
  const law = signal === "SIGKILL" ? "resumes after a kill" : "stops in time"
  if (readings === 0)
    return {
      law,
      state: "unproven",
      detail: "it reports no progress, so there is no middle to interrupt"
    } satisfies Law
  const at = Math.ceil(readings / 2)
  const name = signal.toLowerCase()
  const broken = yield* attempt(subject, folder, { name, order: { signal, at }, threads: 1 })
  const when = `${signal} at reading ${at} of ${readings}`
  const late =
    broken.stopMillis !== undefined && broken.stopMillis >= Duration.toMillis(subject.grace)
      ? `${when}: did not stop within ${Duration.format(subject.grace)}; poll stopRequested in every loop`
      : undefined
  if (late !== undefined) return { law, state: "broken", detail: late } satisfies Law
  const stopped = broken.stopMillis === undefined ? "" : `, stopped after ${seconds(broken.stopMillis)}`
  if (Result.isSuccess(broken.result)) {
    const differs = difference(made, broken.result.success)
    return differs === undefined
      ? ({ law, state: "kept", detail: `${when}${stopped}: it had finished by then` } satisfies Law)
      : ({ law, state: "broken", detail: `${when}: ${differs}` } satisfies Law)
  }
  const expected = signal === "SIGKILL" ? "worker-lost" : "Preempted"
  const failure = broken.result.failure
  if ((failure._tag === "Preempted" ? "Preempted" : failure.failure) !== expected)
    return { law, state: "broken", detail: `${when}: ${sayFailure(failure)}` } satisfies Law
  const resumed = yield* attempt(subject, folder, { name, resumed: true, order: { signal: null, at: 0 }, threads: 1 })
  if (Result.isFailure(resumed.result))
    return {
      law,
      state: "broken",
      detail: `${when}${stopped}; then it fails: ${sayFailure(resumed.result.failure)}`
    } satisfies Law
  const differs = difference(made, resumed.result.success)
  if (differs !== undefined) return { law, state: "broken", detail: `${when}${stopped}; then ${differs}` } satisfies Law
  const fewer = resumed.count.readings < readings
  const { first } = resumed.count
  const from = first === null || !fewer ? "began anew" : `went on at ${first.done} of ${first.total} ${first.unit}`
  return { law, state: "kept", detail: `${when}${stopped}; then it ${from}, to the same bytes` } satisfies Law
})

const sayFailure = (failure: StageError | Preempted): string =>
  failure._tag === "Preempted"
    ? `stopped: ${failure.message}`
    : `${failure.failure}: ${failure.message}. Next: ${failure.next}`

const seconds = (millis: number): string => `${(millis / 1000).toFixed(millis < 10_000 ? 2 : 0)} s`

/** Executes attempts in trial workers. */
export const executor = LocalExecutor.layer({ worker: trialWorker })
