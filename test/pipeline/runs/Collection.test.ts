/** What no run reaches goes, what one reaches stays, and runners and collectors never meet. */
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Fiber, type Layer } from "effect"
import { collect, findGarbage } from "../../../src/pipeline/runs/Collection.ts"
import { Runs } from "../../../src/pipeline/runs/Runs.ts"
import { ownStore, useStore } from "../../../src/pipeline/runs/StoreLock.ts"
import { outcomes, services, workplace, type Workplace } from "../fixtures/harness.ts"
import { runHere } from "../fixtures/in-process.ts"

const pipeline = (text: string) => `version: 1
name: t
stages:
  one: { uses: write, with: { text: ${text} } }
  two: { uses: join, in: { documents: [one.documents] } }
`

const here = <A, E>(place: Workplace, effect: Effect.Effect<A, E, Layer.Success<ReturnType<typeof services>>>) =>
  Effect.provide(effect, services(place.runs))

const names = (place: Workplace, folder: string): ReadonlyArray<string> => {
  const path = join(place.runs, "store", folder)
  return existsSync(path) ? readdirSync(path).sort() : []
}
const folders = ["artifacts", "keys", "parts", "accepted", "history", "work"]
const everything = (place: Workplace) => folders.map((folder) => [folder, names(place, folder)])
const gc = Effect.gen(function* () {
  yield* ownStore
  const garbage = yield* findGarbage
  yield* collect(garbage)
  return garbage
}).pipe(Effect.scoped)

const twoRuns = Effect.gen(function* () {
  const place = yield* workplace
  place.write(pipeline("first"))
  const first = yield* runHere(place)
  const kept = everything(place)
  place.write(pipeline("second"))
  const second = yield* runHere(place)
  return { place, first, second, kept }
})

describe("collection", () => {
  it.live("removes nothing that a run folder reaches", () =>
    Effect.gen(function* () {
      const { place } = yield* twoRuns
      const before = everything(place)
      assert.deepStrictEqual(yield* here(place, gc), [])
      assert.deepStrictEqual(everything(place), before)
    }).pipe(Effect.scoped)
  )

  it.live("after a run is removed, all that only it reached goes; the other run is still up to date", () =>
    Effect.gen(function* () {
      const { first, kept, place, second } = yield* twoRuns
      yield* here(
        place,
        Effect.gen(function* () {
          const runs = yield* Runs
          yield* runs.remove([yield* runs.find(second.run)])
        })
      )
      const dry = yield* here(place, findGarbage)
      assert.deepStrictEqual(
        dry.map(({ kind }) => kind),
        ["result", "result", "history", "artifact", "artifact"]
      )
      yield* here(place, gc)
      assert.deepStrictEqual(everything(place), kept)
      assert.deepStrictEqual(yield* here(place, findGarbage), [])
      const history = readFileSync(join(place.runs, "store/history/t.jsonl"), "utf8")
      assert.include(history, first.run)
      assert.notInclude(history, second.run)
      place.write(pipeline("first"))
      assert.deepStrictEqual(outcomes(yield* runHere(place)), { one: "cached", two: "cached" })
    }).pipe(Effect.scoped)
  )

  it.live("a collection that stops after any removal leaves a store without a record that misses its artifacts", () =>
    Effect.gen(function* () {
      const { place, second } = yield* twoRuns
      yield* here(
        place,
        Effect.flatMap(Runs, (runs) => Effect.flatMap(runs.find(second.run), (run) => runs.remove([run])))
      )
      for (;;) {
        const [next] = yield* here(place, findGarbage)
        if (next === undefined) break
        const [path, ...later] = next.paths.filter((one) => existsSync(one))
        yield* here(place, collect([{ ...next, paths: path === undefined ? [] : [path] }]))
        for (const record of names(place, "keys")) {
          const { outputs } = JSON.parse(readFileSync(join(place.runs, "store/keys", record), "utf8")) as {
            readonly outputs: Readonly<Record<string, string>>
          }
          for (const digest of Object.values(outputs)) {
            assert.isTrue(existsSync(join(place.runs, "store/artifacts", `${digest}.json`)))
            assert.isTrue(existsSync(join(place.runs, "store/artifacts", digest)))
          }
        }
        if (later.length === 0 && path === undefined) break
      }
      assert.deepStrictEqual(yield* here(place, findGarbage), [])
    }).pipe(Effect.scoped)
  )

  it.live("what crashes leave goes; work of a run that did not complete stays", () =>
    Effect.gen(function* () {
      const { place } = yield* twoRuns
      const store = join(place.runs, "store")
      const [key = ""] = names(place, "keys").map((name) => name.slice(0, 64))
      const file = (path: string) => {
        mkdirSync(join(path, ".."), { recursive: true })
        writeFileSync(path, "x")
      }
      file(join(store, "artifacts", `${"a".repeat(64)}.damaged-12`, "f"))
      file(join(store, "artifacts", "b".repeat(64), "f"))
      file(join(store, "keys", "k.json.1-abc.tmp"))
      file(join(store, "work", "orphan", "f"))
      file(join(place.runs, ".removed-2026-01-01-x", "run.json"))
      file(join(store, "making", `${key}.documents`, "f"))
      file(join(store, "work", key, "f"))
      const garbage = yield* here(place, gc)
      assert.deepStrictEqual(
        garbage.map(({ kind }) => kind),
        ["leftover", "work", "work", "leftover", "leftover", "leftover", "leftover"]
      )
      assert.deepStrictEqual(yield* here(place, findGarbage), [])

      file(join(store, "work", key, "f"))
      for (const run of readdirSync(place.runs).filter((name) => /^\d{4}-/u.test(name))) {
        const record = join(place.runs, run, "run.json")
        writeFileSync(record, readFileSync(record, "utf8").replace('"complete"', '"preempted"'))
      }
      assert.deepStrictEqual(yield* here(place, gc), [])
    }).pipe(Effect.scoped)
  )

  it.live("refuses to guess where the journal of a run that may go on is damaged", () =>
    Effect.gen(function* () {
      const { place, second } = yield* twoRuns
      const damage = (file: string, from: string, to: string) =>
        writeFileSync(file, readFileSync(file, "utf8").replace(from, to))
      damage(join(second.folder, "events.jsonl"), '"_tag":"StagePlanned"', '"_tag":"StagePlaned"')
      const all = everything(place)
      assert.deepStrictEqual(yield* here(place, gc), [], "what a complete run made is told by its results")
      damage(join(second.folder, "run.json"), '"complete"', '"preempted"')
      const before = everything(place)
      const refused = yield* Effect.flip(here(place, gc))
      assert.strictEqual(refused._tag, "ReachUnknown")
      assert.include(refused.message, "events.jsonl is damaged")
      assert.deepStrictEqual(everything(place), before)
      assert.strictEqual(all.length, before.length)
    }).pipe(Effect.scoped)
  )

  it.live("gives way to a runner, and a runner waits for it", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      yield* here(
        place,
        Effect.scoped(
          Effect.gen(function* () {
            yield* useStore(() => Effect.void)
            const refused = yield* Effect.flip(gc)
            assert.strictEqual(refused._tag, "StoreInUse")
          })
        )
      )
      yield* here(
        place,
        Effect.gen(function* () {
          let waited = 0
          const runner = yield* Effect.scoped(
            Effect.gen(function* () {
              yield* ownStore
              const fiber = yield* Effect.forkDetach(Effect.scoped(useStore(() => Effect.sync(() => void waited++))))
              yield* Effect.sleep("200 millis")
              assert.strictEqual(waited, 1)
              assert.isUndefined(fiber.pollUnsafe())
              return fiber
            })
          )
          yield* Fiber.join(runner)
        })
      )
      assert.deepStrictEqual(names(place, "locks"), [])
    }).pipe(Effect.scoped)
  )
})
