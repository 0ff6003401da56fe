/** Run folders: named, kept, removed, found; and their journals, read at once and along with a writer. */
import { appendFileSync, existsSync, mkdirSync, readlinkSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Fiber, Ref, Schedule, Stream } from "effect"
import { followJournal, readContents, type JournalLine } from "../../../src/pipeline/runs/JournalReader.ts"
import * as Logs from "../../../src/pipeline/runs/Logs.ts"
import { acquireLock } from "../../../src/pipeline/runs/RunLock.ts"
import { Runs } from "../../../src/pipeline/runs/Runs.ts"
import { services, workplace, type Workplace } from "../fixtures/harness.ts"
import { runHere } from "../fixtures/in-process.ts"

const writeRun = (place: Workplace, id: string, status = "complete") => {
  mkdirSync(join(place.runs, id), { recursive: true })
  const record = { version: 1, id, pipeline: "t", file: place.file, profiles: [], overrides: [], status }
  writeFileSync(
    join(place.runs, id, "run.json"),
    JSON.stringify({ ...record, createdAt: `${id.slice(0, 10)}T00:00:00Z` })
  )
}
const threeRuns = Effect.gen(function* () {
  const place = yield* workplace
  for (const id of ["2026-01-01-1000-calm-owl", "2026-01-02-1000-warm-fox", "2026-01-03-1000-calm-fox"])
    writeRun(place, id)
  return place
})
const withRuns = <A, E>(place: Workplace, use: (runs: Runs["Service"]) => Effect.Effect<A, E>) =>
  Effect.provide(Effect.flatMap(Runs, use), services(place.runs))

describe("runs", () => {
  it.live("are found by id, its beginning, its words, a tag, and as the latest", () =>
    Effect.gen(function* () {
      const place = yield* threeRuns
      yield* withRuns(place, (runs) =>
        Effect.gen(function* () {
          const find = (query: string) => Effect.map(runs.find(query), (run) => run.id)
          assert.strictEqual(yield* find("latest"), "2026-01-03-1000-calm-fox")
          assert.strictEqual(yield* find("2026-01-02"), "2026-01-02-1000-warm-fox")
          assert.strictEqual(yield* find("owl"), "2026-01-01-1000-calm-owl")
          yield* runs.tag(yield* runs.find("owl"), "best")
          assert.strictEqual(yield* find("best"), "2026-01-01-1000-calm-owl")
          assert.deepStrictEqual((yield* runs.find("best")).tags, ["best"])
          assert.include((yield* Effect.flip(runs.find("fox"))).message, "fits 2 runs")
          assert.include((yield* Effect.flip(runs.find("bear"))).message, 'no run "bear"')
        })
      )
    }).pipe(Effect.scoped)
  )

  it.live("have names that are unique, plain and can be taken away", () =>
    Effect.gen(function* () {
      const place = yield* threeRuns
      yield* withRuns(place, (runs) =>
        Effect.gen(function* () {
          const [fox, owl] = [yield* runs.find("calm-fox"), yield* runs.find("owl")]
          yield* runs.tag(owl, "best")
          yield* runs.tag(owl, "best")
          const taken = yield* Effect.flip(runs.tag(fox, "best"))
          assert.include(taken.message, '"best" is the tag of run 2026-01-01-1000-calm-owl already')
          for (const name of ["latest", "new", "2026-x", "a/b", "../x", ""]) {
            assert.strictEqual((yield* Effect.flip(runs.tag(fox, name)))._tag, "MarkRefused", name)
          }
          const missing = yield* Effect.flip(runs.untag(owl, "bset"))
          assert.include(missing._tag === "MarkRefused" ? missing.next : "", "its tags are best")
          yield* runs.untag(owl, "best")
          yield* runs.tag(fox, "best")
          assert.strictEqual((yield* runs.find("best")).id, fox.id)
        })
      )
    }).pipe(Effect.scoped)
  )

  it.live("are removed whole, with their tags; not when pinned, not while they run", () =>
    Effect.gen(function* () {
      const place = yield* threeRuns
      yield* withRuns(place, (runs) =>
        Effect.gen(function* () {
          const fox = yield* runs.find("calm-fox")
          yield* runs.tag(fox, "best")
          yield* runs.pin(fox)
          const pinned = yield* Effect.flip(Effect.flatMap(runs.find("best"), (run) => runs.remove([run])))
          assert.include(pinned.message, "is pinned. Next: tinyllama runs pin 2026-01-03-1000-calm-fox --remove")
          yield* runs.unpin(fox)
          const held = yield* Effect.scoped(
            Effect.andThen(
              Effect.provide(acquireLock(runs.lockPath(fox), "run"), NodeServices.layer),
              Effect.flip(Effect.flatMap(runs.find("best"), (run) => runs.remove([run])))
            )
          )
          assert.strictEqual(held._tag, "LockHeld")
          yield* Effect.flatMap(runs.find("best"), (run) => runs.remove([run]))
          assert.isFalse(existsSync(fox.folder))
          assert.isFalse(existsSync(join(place.runs, `.removed-${fox.id}`)))
          assert.strictEqual((yield* Effect.flip(runs.find("best")))._tag, "RunNotFound")
          assert.strictEqual((yield* runs.find("latest")).id, "2026-01-02-1000-warm-fox")
        })
      )
    }).pipe(Effect.scoped)
  )

  it.live("`latest` never points to a run that was removed", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      place.write("version: 1\nname: t\nstages:\n  a: { uses: write, with: { text: a } }\n")
      writeRun(place, "2026-01-01-1000-calm-owl")
      const made = yield* runHere(place)
      assert.strictEqual(readlinkSync(join(place.runs, "latest")), made.run)
      yield* withRuns(place, (runs) => Effect.flatMap(runs.find("latest"), (run) => runs.remove([run])))
      assert.strictEqual(readlinkSync(join(place.runs, "latest")), "2026-01-01-1000-calm-owl")
    }).pipe(Effect.scoped)
  )
})

const everyMoment = Schedule.spaced("5 millis")
const log = (line: string) =>
  `${JSON.stringify({ _tag: "Log", at: "2026-01-01T00:00:00.000Z", stage: "a", attempt: 1, line })}\n`
const said = (lines: ReadonlyArray<JournalLine>) =>
  lines.flatMap((line) =>
    line._tag === "Damaged" ? [`damaged ${line.line}`] : line.event._tag === "Log" ? [line.event.line] : []
  )

describe("reading journals", () => {
  it.live("names damaged lines by their number and uses the rest; a torn last line is no damage", () =>
    Effect.gen(function* () {
      const { folder } = yield* workplace
      const file = join(folder, "events.jsonl")
      writeFileSync(
        file,
        `${log("one")}{"_tag":"Log","at\n\n${log("two")}{"_tag":"Nonsense"}\n${log("three")}{"_tag":"Lo`
      )
      const { damaged, events } = yield* readContents(file)
      assert.deepStrictEqual(
        events.map((event) => (event._tag === "Log" ? event.line : "")),
        ["one", "two", "three"]
      )
      assert.deepStrictEqual(
        damaged.map(({ line }) => line),
        [2, 5]
      )
      assert.deepStrictEqual(yield* readContents(join(folder, "none.jsonl")), { events: [], damaged: [] })
    }).pipe(Effect.scoped, Effect.provide(NodeServices.layer))
  )

  it.live("follows a journal that is not there yet, through lines that come in pieces, to the end", () =>
    Effect.gen(function* () {
      const { folder } = yield* workplace
      const file = join(folder, "events.jsonl")
      const over = yield* Ref.make(false)
      const seen: Array<string> = []
      const reader = yield* followJournal(file, { ended: Ref.get(over), pollMillis: 5 }).pipe(
        Stream.runForEach((lines) => Effect.sync(() => seen.push(...said(lines)))),
        Effect.forkChild
      )
      const shows = (expected: ReadonlyArray<string>) =>
        Effect.sync(() => seen.length >= expected.length).pipe(
          Effect.repeat({ until: (there) => there, schedule: everyMoment }),
          Effect.timeout("5 seconds"),
          Effect.andThen(Effect.sync(() => assert.deepStrictEqual(seen, expected)))
        )
      yield* Effect.sleep(20)
      writeFileSync(file, log("one") + log("zwö").slice(0, 70))
      yield* shows(["one"])
      appendFileSync(file, log("zwö").slice(70))
      yield* shows(["one", "zwö"])
      appendFileSync(file, `broken\n${log("three")}`)
      yield* shows(["one", "zwö", "damaged 3", "three"])
      // What is written before the end is still read.
      appendFileSync(file, log("last") + '{"_tag":"torn')
      yield* Ref.set(over, true)
      yield* Fiber.join(reader)
      assert.deepStrictEqual(seen, ["one", "zwö", "damaged 3", "three", "last"])
    }).pipe(Effect.scoped, Effect.provide(NodeServices.layer))
  )

  it.live("takes a run, a run's stage, or a stage of the latest run; a mistyped stage gets a suggestion", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      writeRun(place, "2026-01-01-1000-calm-owl")
      const started = {
        _tag: "RunStarted",
        at: "x",
        run: "r",
        pipeline: "t",
        file: "f",
        host: "h",
        pid: 1,
        continued: false
      }
      const lines = [{ ...started, stages: ["a", "base"] }].map((event) => `${JSON.stringify(event)}\n`)
      writeFileSync(join(place.runs, "2026-01-01-1000-calm-owl/events.jsonl"), lines.join("") + log("hello"))
      const topic = (text: string) => Effect.provide(Logs.findTopic(text), services(place.runs))
      assert.isUndefined((yield* topic("owl")).stage)
      assert.strictEqual((yield* topic("owl/a")).stage, "a")
      assert.strictEqual((yield* topic("/base")).stage, "base")
      const unknown = yield* Effect.flip(topic("latest/bsae"))
      assert.include(unknown.message, 'has no stage "bsae"; did you mean "base"?')
    }).pipe(Effect.scoped)
  )
})
