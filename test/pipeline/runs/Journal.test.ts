/** The journal: append-only, tolerant of torn lines, never in the way of the work. */
import { appendFileSync, readFileSync, truncateSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Layer, PubSub, Schema } from "effect"
import { TestClock } from "effect/testing"
import { openJournal, readJournal } from "../../../src/pipeline/runs/Journal.ts"
import { RunEvent, RunEvents } from "../../../src/pipeline/runs/RunEvent.ts"
import { fullDisk } from "../fixtures/full-disk.ts"
import { outcomes, workplace } from "../fixtures/harness.ts"
import { newRecord, runHere } from "../fixtures/in-process.ts"

const services = Layer.merge(NodeServices.layer, RunEvents.layer)
const log = (line: string): RunEvent => ({ _tag: "Log", at: "2026-01-01T00:00:00.000Z", stage: "a", attempt: 1, line })
const progress = (done: number): RunEvent => ({
  _tag: "Progress",
  at: "2026-01-01T00:00:00.000Z",
  stage: "a",
  attempt: 1,
  done,
  total: 100,
  unit: "steps",
  metrics: {}
})
const lines = (events: ReadonlyArray<RunEvent>) => events.flatMap((event) => (event._tag === "Log" ? [event.line] : []))

describe("the journal", () => {
  it.effect.prop(
    "every event survives the way to disk and back",
    [Schema.Array(RunEvent)],
    ([events]) =>
      Effect.gen(function* () {
        const { folder } = yield* workplace
        const path = join(folder, "events.jsonl")
        const kept = events.filter((event) => event._tag !== "Progress")
        yield* Effect.scoped(
          Effect.gen(function* () {
            const journal = yield* openJournal(path)
            for (const event of kept) yield* journal.emit(event)
          })
        )
        assert.deepStrictEqual(yield* readJournal(path), JSON.parse(JSON.stringify(kept)))
      }).pipe(Effect.scoped, Effect.provide(services)),
    { arbitrary: { runs: 30 } }
  )

  it.effect("a torn last line is skipped, and what comes later starts on a line of its own", () =>
    Effect.gen(function* () {
      const { folder } = yield* workplace
      const path = join(folder, "events.jsonl")
      yield* Effect.scoped(
        Effect.gen(function* () {
          const journal = yield* openJournal(path)
          yield* journal.emit(log("one"))
          yield* journal.emit(log("two"))
        })
      )
      truncateSync(path, readFileSync(path).length - 10)
      assert.deepStrictEqual(lines(yield* readJournal(path)), ["one"])
      yield* Effect.scoped(Effect.flatMap(openJournal(path), (journal) => journal.emit(log("three"))))
      assert.deepStrictEqual(lines(yield* readJournal(path)), ["one", "three"])
      appendFileSync(path, '{"_tag":"FromTheFuture"}\n')
      assert.deepStrictEqual(lines(yield* readJournal(path)), ["one", "three"])
    }).pipe(Effect.scoped, Effect.provide(services))
  )

  it.effect("keeps one progress reading a second and the last one; displays see all", () =>
    Effect.gen(function* () {
      const { folder } = yield* workplace
      const path = join(folder, "events.jsonl")
      const seen = yield* PubSub.subscribe(yield* RunEvents)
      const journal = yield* openJournal(path)
      for (let done = 1; done <= 100; done++) {
        yield* journal.emit(progress(done))
        yield* TestClock.adjust("100 millis")
      }
      const kept = (yield* readJournal(path)).flatMap((event) => (event._tag === "Progress" ? [event.done] : []))
      assert.deepStrictEqual(kept, [1, 11, 21, 31, 41, 51, 61, 71, 81, 91, 100])
      assert.strictEqual((yield* PubSub.takeAll(seen)).length, 100)
    }).pipe(Effect.scoped, Effect.provide(services))
  )

  it.effect("no journal yet is an empty journal", () =>
    Effect.gen(function* () {
      const { folder } = yield* workplace
      assert.deepStrictEqual(yield* readJournal(join(folder, "events.jsonl")), [])
      writeFileSync(join(folder, "empty.jsonl"), "")
      assert.deepStrictEqual(yield* readJournal(join(folder, "empty.jsonl")), [])
    }).pipe(Effect.scoped, Effect.provide(services))
  )
})

describe("a full disk", () => {
  const text =
    "version: 1\nname: t\nstages:\n  a: { uses: write, with: { text: a } }\n  b: { uses: join, in: { documents: a.documents } }\n"

  it.live("under the journal does not stop the work", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      place.write(text)
      const summary = yield* runHere(
        place,
        {},
        newRecord(),
        fullDisk((operation, path) => operation === "write" && path.endsWith("events.jsonl"))
      )
      assert.deepStrictEqual(outcomes(summary), { a: "done", b: "done" })
    }).pipe(Effect.scoped)
  )

  it.live("under the store fails the stage with its class and path; with room again the run goes on", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      place.write(text)
      yield* runHere(place, { toStage: "a" })
      const full = fullDisk((operation, path) => operation === "write" && path.includes("/store/artifacts/"))
      const summary = yield* runHere(place, {}, newRecord(), full)
      assert.deepStrictEqual(outcomes(summary), { a: "cached", b: "failed" })
      const failure = summary.stages[1]?.failure
      assert.strictEqual(failure?.failure, "disk-full")
      assert.match(failure?.message ?? "", /no room left on the disk of .*store\/artifacts.*ENOSPC/u)
      assert.match(failure?.next ?? "", /free some space, then run again/u)
      assert.deepStrictEqual(outcomes(yield* runHere(place)), { a: "cached", b: "done" })
    }).pipe(Effect.scoped)
  )

  it.live("before anything ran names the folder", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      place.write(text)
      const error = yield* Effect.flip(
        runHere(
          place,
          {},
          newRecord(),
          fullDisk((_, path) => path.includes("run.json"))
        )
      )
      assert.strictEqual(error._tag, "StorageError")
      assert.match(error.message, /no room left on the disk of .*runs/u)
    }).pipe(Effect.scoped)
  )
})
