/** One writer; dead holders are taken over; nobody has to delete a file. */
import { spawn } from "node:child_process"
import { once } from "node:events"
import { existsSync, readdirSync, readFileSync, utimesSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Exit, Fiber, Ref, Schedule, Scope } from "effect"
import { acquireLock, type Claim, lockHolder } from "../../../src/pipeline/runs/RunLock.ts"
import { workplace } from "../fixtures/harness.ts"

const claimFiles = (folder: string) => readdirSync(folder).filter((name) => name.endsWith(".lock"))

/** The claim that a live holder would have written, altered. */
const planted = (folder: string, change: Partial<Claim>) =>
  Effect.gen(function* () {
    yield* Effect.scoped(
      Effect.gen(function* () {
        yield* acquireLock(join(folder, "run"), "run x")
        const [name = ""] = claimFiles(folder)
        const claim = JSON.parse(readFileSync(join(folder, name), "utf8")) as Claim
        writeFileSync(join(folder, "planted"), JSON.stringify({ ...claim, token: "planted", ...change }))
      })
    )
    const file = join(folder, "run.planted.lock")
    writeFileSync(file, readFileSync(join(folder, "planted")))
    return file
  })

describe("RunLock", () => {
  it.live("a second holder is told who the first one is; afterwards the lock is free", () =>
    Effect.gen(function* () {
      const { folder } = yield* workplace
      const prefix = join(folder, "run")
      const first = yield* Scope.make()
      yield* Scope.provide(acquireLock(prefix, "run x"), first)
      const error = yield* Effect.flip(Effect.scoped(acquireLock(prefix, "run x")))
      assert.strictEqual(error._tag, "LockHeld")
      assert.match(
        error.message,
        new RegExp(`^run x is being written by process ${process.pid} on .* since 20.*Next: wait`, "u")
      )
      assert.strictEqual((yield* lockHolder(prefix))?.pid, process.pid)
      assert.strictEqual(claimFiles(folder).length, 1, "the loser left nothing behind")
      yield* Scope.close(first, Exit.void)
      assert.isUndefined(yield* lockHolder(prefix))
      yield* Effect.scoped(acquireLock(prefix, "run x"))
      assert.deepStrictEqual(claimFiles(folder), [])
    }).pipe(Effect.scoped, Effect.provide(NodeServices.layer))
  )

  it.live("a dead process is taken over, and named", () =>
    Effect.gen(function* () {
      const { folder } = yield* workplace
      const child = spawn("sleep", ["100"])
      const pid = child.pid ?? 0
      const start = readFileSync(`/proc/${pid}/stat`, "utf8").split(") ")[1]?.split(" ")[19] ?? ""
      const file = yield* planted(folder, { pid, start })
      const error = yield* Effect.flip(Effect.scoped(acquireLock(join(folder, "run"), "run x")))
      assert.strictEqual(error._tag, "LockHeld")
      child.kill("SIGKILL")
      yield* Effect.promise(() => once(child, "exit"))
      const lock = yield* acquireLock(join(folder, "run"), "run x")
      assert.deepStrictEqual(
        lock.takenOver.map((claim) => claim.pid),
        [pid]
      )
      assert.strictEqual(existsSync(file), false)
    }).pipe(Effect.scoped, Effect.provide(NodeServices.layer))
  )

  it.live("a pid that now belongs to another process does not hold it", () =>
    Effect.gen(function* () {
      const { folder } = yield* workplace
      yield* planted(folder, { start: "1" })
      const lock = yield* acquireLock(join(folder, "run"), "run x")
      assert.strictEqual(lock.takenOver.length, 1)
    }).pipe(Effect.scoped, Effect.provide(NodeServices.layer))
  )

  it.live("another machine holds it as long as its heart beats", () =>
    Effect.gen(function* () {
      const { folder } = yield* workplace
      const file = yield* planted(folder, { machine: "elsewhere", host: "elsewhere", pid: 1 })
      const error = yield* Effect.flip(Effect.scoped(acquireLock(join(folder, "run"), "run x")))
      assert.match(error.message, /process 1 on elsewhere/u)
      const longAgo = new Date(Date.now() - 31_000)
      utimesSync(file, longAgo, longAgo)
      const lock = yield* acquireLock(join(folder, "run"), "run x")
      assert.deepStrictEqual(
        lock.takenOver.map((claim) => claim.host),
        ["elsewhere"]
      )
    }).pipe(Effect.scoped, Effect.provide(NodeServices.layer))
  )

  it.live("a heart that beats elsewhere is alive, however wrong its clock or ours", () =>
    Effect.gen(function* () {
      const { folder } = yield* workplace
      const file = yield* planted(folder, { machine: "elsewhere", host: "elsewhere", pid: 1 })
      for (const hours of [-5, 5]) {
        const beat = (seconds: number) => {
          const time = new Date(Date.now() + hours * 3_600_000 + seconds * 1000)
          utimesSync(file, time, time)
        }
        beat(0)
        const error = yield* Effect.flip(Effect.scoped(acquireLock(join(folder, "run"), "run x"))).pipe(
          Effect.raceFirst(
            Effect.andThen(
              Effect.sleep(1000),
              Effect.andThen(
                Effect.sync(() => beat(1)),
                Effect.never
              )
            )
          )
        )
        assert.strictEqual(error._tag, "LockHeld", `${hours} hours`)
      }
      // Its clock was ahead when it died.
      const lock = yield* acquireLock(join(folder, "run"), "run x")
      assert.strictEqual(lock.takenOver.length, 1)
    }).pipe(Effect.scoped, Effect.provide(NodeServices.layer))
  )

  it.live("a dead holder's worker is ended before the lock is ours", () =>
    Effect.gen(function* () {
      const { folder } = yield* workplace
      const orphan = spawn("sleep", ["100"])
      const pid = orphan.pid ?? 0
      const start = readFileSync(`/proc/${pid}/stat`, "utf8").split(") ")[1]?.split(" ")[19] ?? ""
      yield* planted(folder, { start: "1", worker: { pid, start } })
      yield* acquireLock(join(folder, "run"), "run x")
      yield* Effect.promise(async () => void (orphan.signalCode === null ? await once(orphan, "exit") : undefined))
      assert.strictEqual(orphan.signalCode, "SIGKILL")
    }).pipe(Effect.scoped, Effect.provide(NodeServices.layer))
  )

  it.live("of many contenders at once, one at a time", () =>
    Effect.gen(function* () {
      const { folder } = yield* workplace
      const inside = yield* Ref.make(0)
      const entered = yield* Ref.make(0)
      const contender = Effect.scoped(
        Effect.gen(function* () {
          yield* acquireLock(join(folder, "run"), "run x").pipe(
            Effect.retry({ schedule: Schedule.spaced("20 millis"), while: (error) => error._tag === "LockHeld" })
          )
          assert.strictEqual(yield* Ref.updateAndGet(inside, (n) => n + 1), 1)
          yield* Effect.sleep(5)
          yield* Ref.update(inside, (n) => n - 1)
          yield* Ref.update(entered, (n) => n + 1)
        })
      )
      const fibers = yield* Effect.forEach([1, 2, 3, 4], () => Effect.forkChild(contender))
      yield* Effect.forEach(fibers, Fiber.join)
      assert.strictEqual(yield* Ref.get(entered), 4)
      assert.deepStrictEqual(claimFiles(folder), [])
    }).pipe(Effect.scoped, Effect.provide(NodeServices.layer))
  )
})
