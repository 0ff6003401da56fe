/** Ending a runner in another process: politely, by force, and not at all where it cannot be reached. */
import { spawn } from "node:child_process"
import { once } from "node:events"
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { setTimeout as delay } from "node:timers/promises"
import { fileURLToPath } from "node:url"
import { assert, describe, it } from "@effect/vitest"
import { Duration, Effect } from "effect"
import { Runs } from "../../../src/pipeline/runs/Runs.ts"
import { type StopOptions, stopRun } from "../../../src/pipeline/runs/Stop.ts"
import { outcomes, runFile, services, workplace, type Workplace } from "../fixtures/harness.ts"

const runner = fileURLToPath(new URL("../fixtures/run.ts", import.meta.url))

const counting = (more = "") => `version: 1
name: t
stages:
  first: { uses: write, with: { text: a } }
  count: { uses: count, in: { after: first.documents }, with: { steps: 400, step_ms: 20${more} }, grace: 5s }
`

/** A runner of its own process whose stage has counted a little. */
const running = (place: Workplace) =>
  Effect.promise(async () => {
    const child = spawn(process.execPath, [runner, place.folder], { stdio: "ignore" })
    const ended = once(child, "exit")
    const work = join(place.runs, "store/work")
    const counted = () => {
      const [key] = existsSync(work) ? readdirSync(work) : []
      const file = key === undefined ? "" : join(work, key, "count.txt")
      return existsSync(file) && Number(readFileSync(file, "utf8")) >= 3
    }
    while (!counted() && child.exitCode === null) await delay(10)
    return { pid: child.pid, ended }
  })

const stop = (place: Workplace, options: StopOptions) =>
  Effect.flatMap(Runs, (runs) => Effect.flatMap(runs.find("latest"), (run) => stopRun(run, options))).pipe(
    Effect.provide(services(place.runs))
  )
const statusOf = (place: Workplace) =>
  Effect.provide(
    Effect.flatMap(Runs, (runs) => runs.find("latest")),
    services(place.runs)
  )
const finish = (place: Workplace) => {
  place.write(counting().replace("step_ms: 20", "step_ms: 0"))
  return runFile(place)
}

describe("stop", () => {
  it.live("lets stages save, waits for the end, and says what is kept", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      place.write(counting())
      const { ended, pid } = yield* running(place)
      const stopped = yield* stop(place, { now: false })
      assert.strictEqual(stopped?.pid, pid)
      assert.isFalse(stopped?.killed)
      assert.deepStrictEqual(
        stopped?.kept.map(({ stage, state }) => [stage, state]),
        [
          ["first", "complete"],
          ["count", "saved"]
        ]
      )
      assert.strictEqual((yield* statusOf(place)).status, "preempted")
      assert.deepStrictEqual((yield* Effect.promise(() => ended))[0], 75)
      assert.isUndefined(yield* stop(place, { now: false }), "nobody runs it any more")
      assert.deepStrictEqual(outcomes(yield* finish(place)), { first: "cached", count: "done" })
    }).pipe(Effect.scoped)
  )

  it.live("kills at once with now, its worker too; the next run takes over", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      place.write(counting(", deaf: true"))
      const { ended } = yield* running(place)
      const stopped = yield* stop(place, { now: true })
      assert.isTrue(stopped?.killed)
      assert.strictEqual((yield* Effect.promise(() => ended))[1], "SIGKILL")
      assert.isTrue((yield* statusOf(place)).abandoned)
      const work = join(place.runs, "store/work")
      const count = () => readFileSync(join(work, readdirSync(work)[0] ?? "", "count.txt"), "utf8")
      const before = count()
      yield* Effect.sleep("200 millis")
      assert.strictEqual(count(), before, "a worker is still at work")
      assert.deepStrictEqual(outcomes(yield* finish(place)), { first: "cached", count: "done" })
    }).pipe(Effect.scoped)
  )

  it.live("kills a runner that has not ended within the grace", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      place.write(counting(", deaf: true"))
      const { ended } = yield* running(place)
      const stopped = yield* stop(place, { now: false, grace: Duration.millis(300) })
      assert.isTrue(stopped?.killed)
      assert.isAtLeast(stopped?.seconds ?? 0, 0.3)
      assert.isBelow(stopped?.seconds ?? 9, 4)
      assert.strictEqual((yield* Effect.promise(() => ended))[1], "SIGKILL")
    }).pipe(Effect.scoped)
  )

  it.live("leaves a runner on another machine alone, and says where it is", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      const folder = join(place.runs, "2026-01-01-1000-far-owl")
      mkdirSync(folder, { recursive: true })
      const record = { version: 1, id: "2026-01-01-1000-far-owl", pipeline: "t", file: place.file }
      const more = { profiles: [], overrides: [], createdAt: "2026-01-01T10:00:00Z", status: "running" }
      writeFileSync(join(folder, "run.json"), JSON.stringify({ ...record, ...more }))
      const claim = {
        version: 1,
        token: "t",
        pid: 1,
        start: null,
        host: "far",
        machine: "far",
        since: "2026",
        state: "held"
      }
      writeFileSync(join(folder, "run.t.lock"), JSON.stringify(claim))
      const refused = yield* Effect.flip(stop(place, { now: true }))
      assert.strictEqual(refused._tag, "RunsElsewhere")
      assert.include(refused.message, "by process 1 on far, which cannot be reached from here")
    }).pipe(Effect.scoped)
  )
})
