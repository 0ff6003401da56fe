/** A saved plan is a promise: it runs just so, or is refused with what changed. */
import { readdirSync, rmSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import type { PlanDocument } from "../../../src/pipeline/plan/PlanDocument.ts"
import { outcomes, workplace } from "../fixtures/harness.ts"
import { documentHere, runHere, savedHere } from "../fixtures/in-process.ts"

const text = `version: 1
name: t
stages:
  a: { uses: write, with: { text: a } }
  b: { uses: join, in: { documents: a.documents } }
`

const promise = (document: PlanDocument) => ({ promise: { file: "plan.json", document } })

describe("a saved plan", () => {
  it.live("survives the file and is kept by a run", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      place.write(text)
      const document = yield* documentHere(place)
      assert.deepStrictEqual(yield* savedHere(place, document), document)
      assert.strictEqual(document.totals.stages, 2)
      assert.deepStrictEqual(outcomes(yield* runHere(place, promise(document))), { a: "done", b: "done" })
    }).pipe(Effect.scoped)
  )

  it.live("is refused once it is older than the file, names each stage, and nothing runs", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      place.write(text)
      yield* runHere(place)
      place.write(text.replace("text: a", "text: b"))
      const document = yield* documentHere(place)
      place.write(text.replace("text: a", "text: c"))
      const runs = readdirSync(place.runs).length
      const error = yield* Effect.flip(runHere(place, promise(document)))
      assert.strictEqual(error._tag, "PlanOutdated")
      assert.match(error.message, /plan\.json: what this plan promised no longer holds:\n {2}a: another key/u)
      assert.strictEqual(readdirSync(place.runs).length, runs)
    }).pipe(Effect.scoped)
  )

  it.live(
    "is refused when a promised result was made or lost meanwhile, and when an operational field was edited",
    () =>
      Effect.gen(function* () {
        const place = yield* workplace
        place.write(text)
        const before = yield* documentHere(place)
        yield* runHere(place)
        const made = yield* Effect.flip(runHere(place, promise(before)))
        assert.match(made.message, /a: stale \(no result yet\) then, fresh now/u)

        const fresh = yield* documentHere(place)
        const artifacts = join(place.runs, "store", "artifacts")
        for (const name of readdirSync(artifacts))
          if (!name.endsWith(".json")) rmSync(join(artifacts, name), { recursive: true })
        const lost = yield* Effect.flip(runHere(place, promise(fresh)))
        assert.match(lost.message, /a: fresh then, stale \(the stored result is damaged: .*\) now/u)

        const damaged = yield* documentHere(place)
        place.write(text.replace("{ text: a }", "{ text: a, log_every: 7 }"))
        const edited = yield* Effect.flip(runHere(place, promise(damaged)))
        assert.match(edited.message, /a setting that changes no result was edited/u)
      }).pipe(Effect.scoped)
  )

  it.live("that is no plan, or of another version, is said so", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      for (const content of ["{", "{}", JSON.stringify({ format: "tinyllama-plan", version: 99 })]) {
        writeFileSync(join(place.folder, "plan.json"), content)
        const error = yield* Effect.flip(savedHere(place, undefined))
        assert.match(error.message, /plan\.json is no saved plan of this version/u)
      }
      rmSync(join(place.folder, "plan.json"))
      assert.match((yield* Effect.flip(savedHere(place, undefined))).message, /plan\.json: .*NotFound/u)
    }).pipe(Effect.scoped)
  )
})
