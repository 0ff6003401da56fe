import { mkdirSync, utimesSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, it } from "@effect/vitest"
import { Effect, FileSystem } from "effect"
import { lost, watchdogLine } from "../../../src/pipeline/run/WorkerLost.ts"

const folder = Effect.flatMap(FileSystem.FileSystem, (fs) => fs.makeTempDirectoryScoped({ prefix: "lost-" }))
const line =
  "rank 3 (process 4711 on node-2) does not move and stands before all-gather 7 since 45 s; rank 0 waits in it"

it.live("ranks that gave up are lost workers, with the watchdog's line in front", () =>
  Effect.gen(function* () {
    const place = yield* folder
    const error = yield* Effect.flip(lost(place, { code: 70, signal: null }, { who: "rank 0 of 4", watchdog: line }))
    assert.deepStrictEqual(
      [error.failure, error.message],
      ["worker-lost", `rank 0 of 4 gave up waiting for the others: ${line}`]
    )
    const killed = yield* Effect.flip(
      lost(place, { code: null, signal: "SIGBUS" }, { who: "rank 3 of 4", watchdog: line })
    )
    assert.strictEqual(killed.message, `rank 3 of 4 ended by SIGBUS; the others waited: ${line}`)
    const unseen = yield* Effect.flip(lost(place, { code: null, signal: null }, { who: "rank 3 of 4" }))
    assert.strictEqual(unseen.message, "rank 3 of 4 ended unseen")
  }).pipe(Effect.scoped, Effect.provide(NodeServices.layer))
)

it.live("what a watchdog said in an earlier attempt does not count", () =>
  Effect.gen(function* () {
    const work = yield* folder
    assert.isUndefined(yield* watchdogLine(work, 0))
    mkdirSync(join(work, "ranks"))
    const file = join(work, "ranks", "watchdog.txt")
    writeFileSync(file, `${line}\n`)
    utimesSync(file, 1000, 1000)
    assert.strictEqual(yield* watchdogLine(work, 999_000), line)
    assert.isUndefined(yield* watchdogLine(work, 1_001_000))
  }).pipe(Effect.scoped, Effect.provide(NodeServices.layer))
)
