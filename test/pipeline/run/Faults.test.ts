/**
 * Real runners and workers whose file-system calls fail, whose clocks jump, and that are started twice at once. The points are a sample that the
 * day draws (CRASH_SEED repeats a day's); npm run test:crash covers all of them.
 */
import { existsSync, readdirSync, rmSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { reference, tryPoint } from "../fixtures/crash-point.ts"
import { crashPipeline, crashPlace, launch, type RealFault } from "../fixtures/faults.ts"
import { chance, seedOfTheDay } from "../fixtures/sample.ts"
import { completeResults, faultsOf, journalOf, leftovers, storeContent } from "../fixtures/soundness.ts"

const linux = process.platform === "linux"

const folder = Effect.acquireRelease(
  Effect.sync(() => crashPlace()),
  (path) => Effect.sync(() => rmSync(path, { recursive: true, force: true }))
)
const runsOf = (place: string) => readdirSync(join(place, "runs")).filter((name) => /^\d{4}-/u.test(name))

describe.runIf(linux)("real processes", () => {
  it.live("killed or refused at calls of the day, the same command completes with the same bytes", () =>
    Effect.promise(async () => {
      const expected = await reference("changes")
      assert.isAbove(expected.trace.length, 300)
      const effects: ReadonlyArray<RealFault["effect"]> = ["tear", "tear", "tear", "ENOSPC", "EIO"]
      for (const [index, effect] of effects.entries()) {
        const at = 1 + Math.floor(chance(`${seedOfTheDay} real ${index}`) * expected.trace.length)
        const { faults, point } = await tryPoint(expected, { at, effect, calls: "changes" })
        assert.deepStrictEqual(faults, [], `seed ${seedOfTheDay}: ${effect} at ${at}, ${point}`)
      }
    })
  )

  it.live("on a read-only disk say so at once, name the place and the next step, and exit 1", () =>
    Effect.gen(function* () {
      const place = yield* folder
      const readOnly = { at: 1, effect: "EROFS", calls: "changes", lasting: true } as const
      const { code, output } = yield* Effect.promise(() => launch(place, { fault: readOnly }))
      assert.strictEqual(code, 1)
      assert.match(output, /runs/u)
      assert.match(output, /Next: /u)
      assert.notMatch(output, /defect|\n\s+at /u)
      assert.isFalse(existsSync(join(place, "runs")))
    }).pipe(Effect.scoped)
  )

  it.live("on a disk that fills up keep what is complete, and go on with room again", () =>
    Effect.gen(function* () {
      const place = yield* folder
      const full = { at: 260, effect: "ENOSPC", calls: "changes", lasting: true } as const
      const { code, output } = yield* Effect.promise(() => launch(place, { fault: full }))
      assert.strictEqual(code, 1)
      assert.match(output, /no room left on the disk of .*ENOSPC/u)
      assert.match(output, /free some space, then run again/u)
      const before = completeResults(join(place, "runs"))
      const again = yield* Effect.promise(() => launch(place))
      assert.strictEqual(again.code, 0)
      assert.deepStrictEqual(faultsOf(join(place, "runs"), storeContent(join(place, "runs")), before), [])
    }).pipe(Effect.scoped)
  )
})

describe.runIf(linux)("a clock that jumps", () => {
  it.live("back by hours between a kill and the next command: the same run goes on", () =>
    Effect.gen(function* () {
      const place = yield* folder
      const kill = { at: 300, effect: "kill", calls: "changes" } as const
      yield* Effect.promise(() => launch(place, { fault: kill, clock: { seconds: 3 * 3600 } }))
      const before = completeResults(join(place, "runs"))
      const again = yield* Effect.promise(() => launch(place))
      assert.strictEqual(again.code, 0, again.output)
      assert.strictEqual(runsOf(place).length, 1)
      assert.deepStrictEqual(faultsOf(join(place, "runs"), storeContent(join(place, "runs")), before), [])
    }).pipe(Effect.scoped)
  )

  it.live("in the middle of a run, forward or back: it completes, and locks neither last nor get lost", () =>
    Effect.gen(function* () {
      for (const seconds of [5 * 3600, -5 * 3600]) {
        const place = yield* folder
        const { code, output } = yield* Effect.promise(() => launch(place, { clock: { seconds, from: 150 } }))
        assert.strictEqual(code, 0, output)
        const runs = join(place, "runs")
        assert.deepStrictEqual(faultsOf(runs, storeContent(runs)), [])
      }
    }).pipe(Effect.scoped)
  )
})

describe.runIf(linux)("two runners at once", () => {
  const slow = crashPipeline.replace("steps: 3", "steps: 20, step_ms: 100")

  it.live("on one run: one goes on with it, the other exits 5 and names it", () =>
    Effect.gen(function* () {
      const place = yield* folder
      writeFileSync(join(place, "pipeline.yaml"), slow)
      yield* Effect.promise(() => launch(place, { fault: { at: 150, effect: "kill", calls: "changes" } }))
      const both = yield* Effect.promise(() => Promise.all([launch(place), launch(place)]))
      assert.deepStrictEqual(
        both.map(({ code }) => code ?? -1).toSorted((a, b) => a - b),
        [0, 5],
        both.map(({ output }) => output).join("\n")
      )
      const refused = both.find(({ code }) => code === 5)
      assert.match(refused?.output ?? "", /run .* is being written by process \d+ on .* since .*Next: /su)
      const runs = join(place, "runs")
      assert.deepStrictEqual(faultsOf(runs, storeContent(runs)), [])
    }).pipe(Effect.scoped)
  )

  it.live("on one store: both complete, each result is made once, and one waits for the other", () =>
    Effect.gen(function* () {
      const place = yield* folder
      writeFileSync(join(place, "pipeline.yaml"), slow)
      writeFileSync(join(place, "other.yaml"), slow.replace("name: crash", "name: other"))
      const both = yield* Effect.promise(() => Promise.all([launch(place), launch(place, {}, "other.yaml")]))
      assert.deepStrictEqual(
        both.map(({ code }) => code),
        [0, 0],
        both.map(({ output }) => output).join("\n")
      )
      const events = runsOf(place).flatMap((run) => journalOf(join(place, "runs", run)))
      const made = events.filter((event) => event["_tag"] === "StageFinished" && event["outcome"] === "done")
      assert.deepStrictEqual(new Set(made.map((event) => event["stage"])), new Set(["counted", "many", "same"]))
      assert.strictEqual(made.length, 3)
      assert.strictEqual(
        events.filter((event) => event["_tag"] === "ArtifactPublished" && event["reused"] === false).length,
        2,
        "many and same give one artifact, counted another"
      )
      assert.deepStrictEqual(leftovers(join(place, "runs")), [])
    }).pipe(Effect.scoped)
  )
})
