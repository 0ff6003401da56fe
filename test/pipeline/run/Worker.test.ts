/** Real worker processes: what they report, how they die, how they are stopped, and that nothing survives its runner. */
import { type ChildProcess, spawn, spawnSync } from "node:child_process"
import { once } from "node:events"
import { existsSync, readdirSync, readFileSync } from "node:fs"
import { join } from "node:path"
import { setTimeout as delay } from "node:timers/promises"
import { fileURLToPath } from "node:url"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import { Deferred, Effect, Fiber } from "effect"
import { readJournal } from "../../../src/pipeline/runs/Journal.ts"
import type { RunEvent } from "../../../src/pipeline/runs/RunEvent.ts"
import { exitCodeOf, type RunSummary } from "../../../src/pipeline/run/Runner.ts"
import { outcomes, runFile, type Workplace, workplace } from "../fixtures/harness.ts"

const head = "version: 1\nname: t\nstages:\n"
const worker = fileURLToPath(new URL("../fixtures/worker.ts", import.meta.url))
const runner = fileURLToPath(new URL("../fixtures/run.ts", import.meta.url))

const eventsOf = (folder: string) => readJournal(join(folder, "events.jsonl")).pipe(Effect.provide(NodeServices.layer))
const ofTag = <T extends RunEvent["_tag"]>(events: ReadonlyArray<RunEvent>, tag: T) =>
  events.filter((event): event is RunEvent & { readonly _tag: T } => event._tag === tag)
const failureOf = (summary: RunSummary) => summary.stages[0]?.failure
const attemptFolder = (summary: RunSummary, stage: string, attempt: number) =>
  join(summary.folder, "stages", stage, "attempts", String(attempt))

/** The newest run folder, once it is there. */
const latest = async (place: Workplace): Promise<string> => {
  while (!existsSync(join(place.runs, "latest"))) await delay(10)
  return join(place.runs, "latest")
}
/** Waits until the counting stage has come this far. */
const reached = async (place: Workplace, step: number): Promise<void> => {
  const work = join(place.runs, "store", "work")
  for (;;) {
    const [key] = existsSync(work) ? readdirSync(work) : []
    const file = key === undefined ? "" : join(work, key, "count.txt")
    if (existsSync(file) && Number(readFileSync(file, "utf8")) >= step) return
    await delay(5)
  }
}
const startRunner = (place: Workplace): ChildProcess =>
  spawn(process.execPath, [runner, place.folder], { stdio: ["ignore", "pipe", "inherit"] })

describe("a worker", () => {
  it.live("reports progress, log and facts, and leaves its attempt's files", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      place.write(
        `${head}  a: { uses: write, with: { text: hello } }\n  b: { uses: join, in: { documents: [a.documents], extra: a.documents } }\n`
      )
      const summary = yield* runFile(place)
      assert.deepStrictEqual(outcomes(summary), { a: "done", b: "done" })
      assert.deepStrictEqual(summary.stages[0]?.outputs["documents"]?.facts, { length: 5 })
      assert.strictEqual(summary.stages[0]?.outputs["documents"]?.origin, "a.documents")
      const events = yield* eventsOf(summary.folder)
      assert.deepStrictEqual(ofTag(events, "Progress").map(({ done, metrics, unit }) => ({ done, metrics, unit }))[0], {
        done: 1,
        metrics: { length: 5 },
        unit: "texts"
      })
      assert.deepStrictEqual(
        ofTag(events, "Log").map((event) => event.line),
        ["writing hello"]
      )
      const attempt = attemptFolder(summary, "01-a", 1)
      assert.deepStrictEqual(readdirSync(attempt).sort(), ["exit.json", "job.json", "stderr.log", "stdout.log"])
      assert.include(readFileSync(join(attempt, "exit.json"), "utf8"), '"code": 0')
      // The attempt can be repeated by hand; the events then go to stdout.
      const again = spawnSync(process.execPath, [worker, join(attempt, "job.json")], { encoding: "utf8" })
      assert.include(again.stdout, '"_tag":"Log"')
    }).pipe(Effect.scoped)
  )

  it.live("that dies is tried again and resumes; its signal and last words are told", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      place.write(`${head}  a: { uses: count, with: { steps: 5, die_at: 3 }, retry: { base: 10ms } }\n`)
      const summary = yield* runFile(place)
      assert.deepStrictEqual(outcomes(summary), { a: "done" })
      assert.strictEqual(summary.stages[0]?.attempts, 2)
      const events = yield* eventsOf(summary.folder)
      const [failed] = ofTag(events, "AttemptFailed")
      assert.strictEqual(failed?.failure, "worker-lost")
      assert.match(failed?.message ?? "", /ended by SIGKILL .*running out of memory.*these are my last words/su)
      assert.isNumber(failed?.retryInSeconds)
      assert.deepStrictEqual(
        ofTag(events, "AttemptStarted").map((event) => event.resumes),
        [false, true]
      )
    }).pipe(Effect.scoped)
  )

  it.live("with a bug fails as internal, with its stack in stderr.log", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      place.write(`${head}  a: { uses: defect }\n`)
      const summary = yield* runFile(place)
      assert.strictEqual(failureOf(summary)?.failure, "internal")
      assert.match(failureOf(summary)?.message ?? "", /a bug in the stage/u)
      assert.match(
        readFileSync(join(attemptFolder(summary, "01-a", 1), "stderr.log"), "utf8"),
        /a bug in the stage\n\s+at /u
      )
    }).pipe(Effect.scoped)
  )

  it.live("that fails leaves no output behind and is not tried again for classes that are not named", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      place.write(`${head}  a: { uses: count, with: { steps: 1, fail: disk-full } }\n`)
      const summary = yield* runFile(place)
      assert.deepStrictEqual(failureOf(summary), {
        failure: "disk-full",
        message: "told to fail as disk-full",
        next: "tell me not to"
      })
      assert.strictEqual(summary.stages[0]?.attempts, 1)
      assert.deepStrictEqual(readdirSync(join(place.runs, "store", "making")), [])
    }).pipe(Effect.scoped)
  )

  it.live("that takes too long is stopped, saves, and fails as timeout", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      place.write(`${head}  a: { uses: count, with: { steps: 100000, step_ms: 5 }, timeout: 2s }\n`)
      const summary = yield* runFile(place)
      assert.strictEqual(failureOf(summary)?.failure, "timeout")
      assert.match(failureOf(summary)?.message ?? "", /longer than its timeout of 2s/u)
    }).pipe(Effect.scoped)
  )

  it.live("is asked to stop, saves, and the run ends preempted; the next one goes on", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      place.write(
        `${head}  a: { uses: count, with: { steps: 60, step_ms: 20 } }\n  b: { uses: write, with: { text: x }, after: a }\n`
      )
      const stop = yield* Deferred.make<void>()
      const running = yield* Effect.forkChild(runFile(place, { stop: Deferred.await(stop) }))
      yield* Effect.promise(() => reached(place, 5))
      yield* Deferred.succeed(stop, undefined)
      const first = yield* Fiber.join(running)
      assert.deepStrictEqual(outcomes(first), { a: "preempted", b: "skipped" })
      assert.strictEqual(first.status, "preempted")
      assert.strictEqual(exitCodeOf(first), 75)
      const second = yield* runFile(place)
      assert.strictEqual(second.run, first.run)
      assert.deepStrictEqual(outcomes(second), { a: "done", b: "done" })
      const events = yield* eventsOf(second.folder)
      assert.deepStrictEqual(
        ofTag(events, "AttemptStarted").map(({ attempt, resumes, stage }) => ({ attempt, resumes, stage })),
        [
          { attempt: 1, resumes: false, stage: "a" },
          { attempt: 2, resumes: true, stage: "a" },
          { attempt: 1, resumes: false, stage: "b" }
        ]
      )
    }).pipe(Effect.scoped)
  )

  it.live("that does not listen is ended when its grace is over", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      place.write(`${head}  a: { uses: count, with: { steps: 100000, step_ms: 5, deaf: true }, grace: 200ms }\n`)
      const stop = yield* Deferred.make<void>()
      const running = yield* Effect.forkChild(runFile(place, { stop: Deferred.await(stop) }))
      yield* Effect.promise(() => reached(place, 3))
      yield* Deferred.succeed(stop, undefined)
      const summary = yield* Fiber.join(running)
      assert.deepStrictEqual(outcomes(summary), { a: "preempted" })
      const exit = JSON.parse(readFileSync(join(attemptFolder(summary, "01-a", 1), "exit.json"), "utf8"))
      assert.deepStrictEqual([exit.signal, exit.ended], ["SIGKILL", "stop"])
    }).pipe(Effect.scoped)
  )
})

describe("a runner", () => {
  it.live("that is killed takes its worker along; the same command takes over and completes", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      place.write(`${head}  a: { uses: count, with: { steps: 40, step_ms: 25 } }\n`)
      const killed = startRunner(place)
      yield* Effect.promise(() => reached(place, 4))
      const folder = yield* Effect.promise(() => latest(place))
      const claim = readdirSync(join(place.runs, "store", "locks"))[0] ?? ""
      const { worker: child } = JSON.parse(readFileSync(join(place.runs, "store", "locks", claim), "utf8"))
      killed.kill("SIGKILL")
      yield* Effect.promise(() => once(killed, "exit"))
      const second = startRunner(place)
      const [code] = yield* Effect.promise(() => once(second, "exit"))
      assert.strictEqual(code, 0)
      assert.isFalse(existsSync(`/proc/${child.pid}`))
      const events = yield* eventsOf(folder)
      assert.deepStrictEqual(
        ofTag(events, "RunStarted").map((event) => event.continued),
        [false, true]
      )
      const warnings = ofTag(events, "Warning").map((event) => event.line)
      assert.strictEqual(
        warnings.filter((line) => /takes over from process \d+ on .*, which ended without finishing/u.test(line))
          .length,
        2
      )
      assert.deepStrictEqual(
        ofTag(events, "AttemptStarted").map((event) => event.resumes),
        [false, true]
      )
      assert.strictEqual(ofTag(events, "RunFinished")[0]?.status, "complete")
    }).pipe(Effect.scoped)
  )

  it.live("that gets SIGTERM saves and exits 75", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      place.write(`${head}  a: { uses: count, with: { steps: 100000, step_ms: 5 } }\n`)
      const child = startRunner(place)
      yield* Effect.promise(() => reached(place, 3))
      child.kill("SIGTERM")
      const [code] = yield* Effect.promise(() => once(child, "exit"))
      assert.strictEqual(code, 75)
      const record = JSON.parse(readFileSync(join(yield* Effect.promise(() => latest(place)), "run.json"), "utf8"))
      assert.strictEqual(record.status, "preempted")
    }).pipe(Effect.scoped)
  )

  it.live("that gets a second signal ends on the spot", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      place.write(`${head}  a: { uses: count, with: { steps: 100000, step_ms: 5, deaf: true }, grace: 1h }\n`)
      const child = startRunner(place)
      yield* Effect.promise(() => reached(place, 3))
      child.kill("SIGINT")
      yield* Effect.promise(() => delay(100))
      child.kill("SIGINT")
      const [code] = yield* Effect.promise(() => once(child, "exit"))
      assert.strictEqual(code, 130)
    }).pipe(Effect.scoped)
  )
})
