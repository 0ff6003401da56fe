/** Real ranks on this machine: started by mpirun or as processes, stopped, killed, and never left behind. */
import { type ChildProcess, spawn } from "node:child_process"
import { once } from "node:events"
import { existsSync, readdirSync, readFileSync } from "node:fs"
import { join } from "node:path"
import { setTimeout as delay } from "node:timers/promises"
import { fileURLToPath } from "node:url"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import { Deferred, Duration, Effect, Exit, Fiber, Layer } from "effect"
import { type Attempt, Executor, type WorkerEvent } from "../../../src/pipeline/run/Executor.ts"
import * as LocalExecutor from "../../../src/pipeline/run/LocalExecutor.ts"
import { findProgram } from "../../../src/pipeline/run/RankProcesses.ts"
import { outcomes, runFile, type Workplace, workplace } from "../fixtures/harness.ts"
import { testRegistry } from "../fixtures/stages.ts"

const head = "version: 1\nname: t\nstages:\n"
const worker = fileURLToPath(new URL("../fixtures/worker.ts", import.meta.url))
const runner = fileURLToPath(new URL("../fixtures/run.ts", import.meta.url))
const mpi = findProgram("mpirun") !== undefined
/** Said in the names of what is left out. */
const withMpi = mpi ? it.live : it.live.skip
const named = (name: string): string => (mpi ? name : `${name} (skipped: no mpirun here; apt install openmpi-bin)`)

const executor = LocalExecutor.layer({ worker }).pipe(Layer.provideMerge(Layer.merge(NodeServices.layer, testRegistry)))

/** An attempt by `ranks` processes that have a GPU each, as far as the launcher is told. */
const attemptOf = (
  place: Workplace,
  params: Readonly<Record<string, number | string>>,
  options: Partial<Attempt> = {}
) => {
  const attempt: Attempt = {
    folder: place.folder,
    job: {
      stage: "a",
      type: "together",
      params: { step_ms: 0, accident: null, ...params },
      inputs: {},
      outputs: { state: join(place.folder, "output") },
      work: join(place.folder, "work"),
      previous: null,
      baseDirectory: place.folder,
      threads: 1
    },
    runsIn: "worker",
    key: "k",
    run: "r",
    number: 1,
    executor: { kind: "local" },
    resources: { cpus: 1, gpus: 3, ranks: 3 },
    secrets: { granted: new Map(), withheld: [], scrub: (text) => text },
    timeout: undefined,
    grace: Duration.seconds(20),
    stop: Effect.never,
    onStart: () => Effect.void,
    onEvent: () => Effect.void,
    ...options
  }
  return attempt
}
const execute = (attempt: Attempt) =>
  Effect.flatMap(Executor, (one) => one.execute(attempt)).pipe(Effect.provide(executor))

/** The lowest step that one of the ranks has reached in a run. */
const reached = async (folder: string, ranks: number, step: number): Promise<void> => {
  const at = (rank: number) => {
    const file = join(folder, `rank-${rank}.txt`)
    return existsSync(file) ? Number(readFileSync(file, "utf8")) : 0
  }
  while (Array.from({ length: ranks }, (_, rank) => at(rank)).some((one) => one < step)) await delay(5)
}
const workFolder = async (place: Workplace): Promise<string> => {
  const work = join(place.runs, "store", "work")
  for (;;) {
    const [key] = existsSync(work) ? readdirSync(work) : []
    if (key !== undefined) return join(work, key)
    await delay(5)
  }
}
/** A zombie is not: its parent has only not asked for it yet. */
const isThere = (pid: number): boolean =>
  existsSync(`/proc/${pid}/stat`) && !/\) Z /u.test(readFileSync(`/proc/${pid}/stat`, "utf8"))

describe("ranks with a GPU each", () => {
  it.live("are processes of their own; rank 0 speaks for all, each writes its own log", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      const events: Array<WorkerEvent> = []
      const pids: Array<ReadonlyArray<number>> = []
      const facts = yield* execute(
        attemptOf(
          place,
          { steps: 4 },
          {
            onEvent: (event) => Effect.sync(() => void events.push(event)),
            onStart: (all) => Effect.sync(() => void pids.push(all))
          }
        )
      )
      assert.deepStrictEqual(facts, { state: { steps: 4, ranks: 3 } })
      assert.deepStrictEqual(events.filter((event) => event._tag === "Completed").length, 1, "one rank's word")
      assert.include(readFileSync(join(place.folder, "stdout.log"), "utf8"), "rank 0 of 3 by environment")
      assert.include(readFileSync(join(place.folder, "rank-2.stdout.log"), "utf8"), "rank 2 of 3 by environment")
      assert.strictEqual(new Set(pids.at(-1)).size, 3)
    }).pipe(Effect.scoped)
  )

  it.live("fail as worker-lost when one dies: which, of what, with its last words; none is left", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      let pids: ReadonlyArray<number> = []
      const onStart = (all: ReadonlyArray<number>) => Effect.sync(() => void (pids = all))
      const error = yield* Effect.flip(
        execute(attemptOf(place, { steps: 1000, step_ms: 5, accident: "2 dies at 3" }, { onStart }))
      )
      assert.strictEqual(error._tag, "StageError")
      if (error._tag !== "StageError") return
      assert.strictEqual(error.failure, "worker-lost")
      assert.match(error.message, /^rank 2 of 3 ended by SIGKILL .*these are my last words$/su)
      assert.deepStrictEqual(pids.filter(isThere), [])
    }).pipe(Effect.scoped)
  )

  it.live("fail as the first of them fails", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      const error = yield* Effect.flip(execute(attemptOf(place, { steps: 1000, step_ms: 5, accident: "1 fails at 2" })))
      assert.deepInclude(error, { failure: "network", message: "rank 1 of 3: told to", next: "tell me not" })
    }).pipe(Effect.scoped)
  )

  it.live("fail with the word of the watchdog that ended one of them", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      const error = yield* Effect.flip(execute(attemptOf(place, { steps: 1000, step_ms: 5, accident: "1 waits at 3" })))
      assert.deepInclude(error, {
        failure: "worker-lost",
        message: "rank 1 of 3 gave up waiting for the others: rank 2 does not move and stands in all-gather 7 since 4 s"
      })
    }).pipe(Effect.scoped)
  )

  it.live("are rid of one that something has stopped, and fail as worker-lost", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      let pids: ReadonlyArray<number> = []
      const onStart = (all: ReadonlyArray<number>) => Effect.sync(() => void (pids = all))
      const error = yield* Effect.flip(
        execute(
          attemptOf(
            place,
            { steps: 1000, step_ms: 5, accident: "0 stops at 3" },
            { onStart, patience: Duration.seconds(1) }
          )
        )
      )
      assert.include(error, { failure: "worker-lost" })
      assert.match(
        error.message,
        /^rank 0 of 3 \(process \d+\) was stopped from outside \(SIGSTOP\), did not go on for [34] s/u
      )
      assert.deepStrictEqual(pids.filter(isThere), [])
    }).pipe(Effect.scoped)
  )

  it.live("are all told to stop, save and end preempted", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      const stop = yield* Deferred.make<void>()
      const running = yield* Effect.forkChild(
        execute(attemptOf(place, { steps: 100_000, step_ms: 5 }, { stop: Deferred.await(stop) }))
      )
      yield* Effect.promise(() => reached(join(place.folder, "work"), 3, 3))
      yield* Deferred.succeed(stop, undefined)
      const ended = yield* Fiber.await(running)
      assert.match(Exit.isFailure(ended) ? String(ended.cause) : "", /Preempted.*saved at step/su)
    }).pipe(Effect.scoped)
  )
})

describe("ranks under mpirun", () => {
  withMpi(named("make the stage's result, with their part of its cores"), () =>
    Effect.gen(function* () {
      const place = yield* workplace
      place.write(`${head}  a: { uses: together, with: { steps: 3 }, resources: { ranks: 3, cpus: 2 } }\n`)
      const summary = yield* runFile(place)
      assert.deepStrictEqual(summary.stages[0]?.failure, undefined)
      assert.deepStrictEqual(summary.stages[0]?.outputs["state"]?.facts, { steps: 3, ranks: 3 })
      const attempt = join(summary.folder, "stages", "01-a", "attempts", "1")
      assert.include(readFileSync(join(attempt, "rank-1.stdout.log"), "utf8"), "rank 1 of 3 by mpirun, on 1 threads")
    }).pipe(Effect.scoped)
  )

  withMpi(named("that lose one are tried again, and go on"), () =>
    Effect.gen(function* () {
      const place = yield* workplace
      place.write(
        `${head}  a: { uses: together, with: { steps: 6, step_ms: 5, accident: 1 dies at 3 }, resources: { ranks: 3 }, retry: { base: 10ms } }\n`
      )
      const summary = yield* runFile(place)
      assert.deepStrictEqual(outcomes(summary), { a: "done" })
      assert.strictEqual(summary.stages[0]?.attempts, 2)
      const journal = readFileSync(join(summary.folder, "events.jsonl"), "utf8")
      assert.match(journal, /"failure":"worker-lost","message":"rank 1 of 3 ended by SIGKILL.*my last words/u)
    }).pipe(Effect.scoped)
  )

  withMpi(named("that are lost twice are one less, where the stage is elastic"), () =>
    Effect.gen(function* () {
      const place = yield* workplace
      place.write(
        `${head}  a: { uses: together, with: { steps: 6, step_ms: 5, accident: 2 dies at 3 of 3 }, resources: { elastic: [2, 3] }, retry: { base: 10ms } }\n`
      )
      const summary = yield* runFile(place)
      assert.deepStrictEqual(outcomes(summary), { a: "done" })
      assert.strictEqual(summary.stages[0]?.attempts, 3)
      assert.deepStrictEqual(summary.stages[0]?.outputs["state"]?.facts, { steps: 6, ranks: 2 })
      const journal = readFileSync(join(summary.folder, "events.jsonl"), "utf8")
      assert.match(journal, /goes on with 2 ranks instead of 3: ranks were lost twice, and elastic allows 2 to 3/u)
      const job = JSON.parse(readFileSync(join(summary.folder, "stages/01-a/attempts/3/job.json"), "utf8"))
      assert.strictEqual(job.wantedRanks, 3)
    }).pipe(Effect.scoped)
  )

  withMpi(named("end when their runner is killed, and the next one goes on"), () =>
    Effect.gen(function* () {
      const place = yield* workplace
      place.write(`${head}  a: { uses: together, with: { steps: 60, step_ms: 20 }, resources: { ranks: 2 } }\n`)
      const start = (): ChildProcess => spawn(process.execPath, [runner, place.folder], { stdio: "ignore" })
      const killed = start()
      const work = yield* Effect.promise(() => workFolder(place))
      yield* Effect.promise(() => reached(work, 2, 4))
      const locks = join(place.runs, "store", "locks")
      const claim = JSON.parse(readFileSync(join(locks, readdirSync(locks)[0] ?? ""), "utf8"))
      const pids: ReadonlyArray<number> = [claim.worker.pid, ...claim.ranks.map(({ pid }: { pid: number }) => pid)]
      assert.strictEqual(pids.filter(isThere).length, 2)
      killed.kill("SIGKILL")
      yield* Effect.promise(() => once(killed, "exit"))
      const second = start()
      const [code] = yield* Effect.promise(() => once(second, "exit"))
      assert.strictEqual(code, 0)
      assert.deepStrictEqual(pids.filter(isThere), [])
    }).pipe(Effect.scoped)
  )

  withMpi(named("that gets SIGTERM lets all of them save, and exits 75"), () =>
    Effect.gen(function* () {
      const place = yield* workplace
      place.write(`${head}  a: { uses: together, with: { steps: 60000, step_ms: 5 }, resources: { ranks: 2 } }\n`)
      const child = spawn(process.execPath, [runner, place.folder], { stdio: "ignore" })
      const work = yield* Effect.promise(() => workFolder(place))
      yield* Effect.promise(() => reached(work, 2, 3))
      child.kill("SIGTERM")
      const [code] = yield* Effect.promise(() => once(child, "exit"))
      assert.strictEqual(code, 75)
      assert.match(readFileSync(join(place.runs, "latest", "events.jsonl"), "utf8"), /saved at step/u)
    }).pipe(Effect.scoped)
  )
})
