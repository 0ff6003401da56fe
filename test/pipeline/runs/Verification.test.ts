/** What was altered is found, named and made again; and where results came from. */
import { appendFileSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { lineage, type LineageNode } from "../../../src/pipeline/runs/Lineage.ts"
import type { RunSummary } from "../../../src/pipeline/run/Runner.ts"
import { Runs } from "../../../src/pipeline/runs/Runs.ts"
import { setAside, verify } from "../../../src/pipeline/runs/Verification.ts"
import { outcomes, services, workplace, type Workplace } from "../fixtures/harness.ts"
import { runHere } from "../fixtures/in-process.ts"

const oneRun = Effect.gen(function* () {
  const place = yield* workplace
  place.write(`version: 1
name: t
stages:
  one: { uses: write, with: { text: hello, lr: { peak: 4e-4, schedule: cosine }, steps: 11 } }
  two: { uses: join, in: { documents: [one.documents], extra: one.documents } }
`)
  return { place, run: yield* runHere(place) }
})
const verified = (place: Workplace, run?: RunSummary) =>
  Effect.gen(function* () {
    const found = run === undefined ? undefined : yield* (yield* Runs).find(run.run)
    return yield* verify(found)
  }).pipe(Effect.provide(services(place.runs)))
const faults = (place: Workplace, run?: RunSummary) =>
  Effect.map(verified(place, run), (found) =>
    found.faults.map(
      ({ file, what }) => `${file.slice(place.runs.length + 1).replaceAll(/[0-9a-f]{64}/gu, "#")}: ${what}`
    )
  )
const folderOf = (run: RunSummary, stage: string, port: string) =>
  run.stages.find((one) => one.stage === stage)?.outputs[port]?.folder ?? ""

describe("verification", () => {
  it.live("finds nothing in what is as written", () =>
    Effect.gen(function* () {
      const { place, run } = yield* oneRun
      const found = yield* verified(place)
      assert.deepStrictEqual(found.faults, [])
      assert.deepStrictEqual(found.warnings, [])
      assert.deepStrictEqual([found.artifacts, found.keys, found.runs], [2, 2, 1])
      assert.deepStrictEqual((yield* verified(place, run)).artifacts, 2)
    }).pipe(Effect.scoped)
  )

  it.live("finds a flipped bit, which a size cannot tell; set aside, the next run makes it again", () =>
    Effect.gen(function* () {
      const { place, run } = yield* oneRun
      writeFileSync(join(folderOf(run, "one", "documents"), "text.txt"), "hellp")
      const expected = [`store/artifacts/#: text.txt does not have its sha256 (Documents of one in run ${run.run})`]
      assert.deepStrictEqual(yield* faults(place), expected)
      assert.deepStrictEqual(yield* faults(place, run), expected)
      const { faults: found } = yield* verified(place)
      assert.include(found[0]?.next, "verify --set-aside")
      yield* Effect.provide(setAside(found), services(place.runs))
      assert.deepStrictEqual(outcomes(yield* runHere(place)), { one: "done", two: "cached" })
      assert.deepStrictEqual(yield* faults(place), [])
      assert.strictEqual(readFileSync(join(folderOf(run, "one", "documents"), "text.txt"), "utf8"), "hello")
    }).pipe(Effect.scoped)
  )

  it.live("names missing files, edited manifests, altered parts and damaged records", () =>
    Effect.gen(function* () {
      const { place, run } = yield* oneRun
      const store = join(place.runs, "store")
      const manifest = `${folderOf(run, "two", "tokens")}.json`
      writeFileSync(manifest, readFileSync(manifest, "utf8").replace('"count": 2', '"count": 3'))
      assert.deepStrictEqual(yield* faults(place), ["store/artifacts/#.json: the manifest was altered"])
      writeFileSync(manifest, "{")
      rmSync(join(folderOf(run, "one", "documents"), "text.txt"))
      const [record = ""] = readdirSync(join(store, "keys"))
      writeFileSync(join(store, "keys", record), "{}")
      const [parts = ""] = readdirSync(join(store, "parts"))
      writeFileSync(
        join(store, "parts", parts),
        readFileSync(join(store, "parts", parts), "utf8").replace('"params"', '"param"')
      )
      const found = yield* faults(place)
      for (const expected of [
        /store\/keys\/#\.json: is damaged/u,
        /store\/parts\/#\.json: is damaged/u,
        /store\/artifacts\/#: text\.txt is missing/u,
        /store\/artifacts\/#\.json: the manifest is damaged/u
      ]) {
        assert.isTrue(
          found.some((fault) => expected.test(fault)),
          `${expected} in\n${found.join("\n")}`
        )
      }
    }).pipe(Effect.scoped)
  )

  it.live("warns of damaged journal lines with their place", () =>
    Effect.gen(function* () {
      const { place, run } = yield* oneRun
      const journal = join(run.folder, "events.jsonl")
      const lines = readFileSync(journal, "utf8").split("\n").length - 1
      appendFileSync(journal, "{broken}\n")
      const found = yield* verified(place, run)
      assert.deepStrictEqual(found.faults, [])
      assert.deepStrictEqual(found.warnings, [`${journal}:${lines + 1}: damaged: it is not JSON`])
    }).pipe(Effect.scoped)
  )
})

describe("lineage", () => {
  const of = (place: Workplace, query: string) => Effect.provide(lineage(query), services(place.runs))

  it.live("leads from an artifact to what it was made from, with what is not default", () =>
    Effect.gen(function* () {
      const { place, run } = yield* oneRun
      const root = yield* of(place, "two.tokens")
      const shape = (node: LineageNode): unknown => [node.port, node.made?.stage, node.from.map(shape)]
      const one = (port: string) => [port, "one", []]
      assert.deepStrictEqual(shape(root), [undefined, "two", [one("documents"), one("extra")]])
      const [made] = root.from.map((node) => node.made)
      assert.strictEqual(made?.run, run.run)
      assert.strictEqual(made?.parameters?.["steps"], 11)
      assert.strictEqual(made?.parameters?.["text"], "hello")
      assert.isAbove(made?.bytes ?? 0, 0)
      for (const query of ["two", `${run.run}/two.tokens`, "latest/two", root.digest, root.digest.slice(0, 10)]) {
        assert.strictEqual((yield* of(place, query)).digest, root.digest, query)
      }
    }).pipe(Effect.scoped)
  )

  it.live("says what there is for a name that is unknown, and copes with what was collected", () =>
    Effect.gen(function* () {
      const { place, run } = yield* oneRun
      const unknown = yield* Effect.flip(of(place, "two.token"))
      assert.strictEqual(unknown._tag, "ArtifactUnknown")
      assert.include(unknown._tag === "ArtifactUnknown" ? unknown.next : "", 'did you mean "two.tokens"?')
      assert.strictEqual((yield* Effect.flip(of(place, "nope/two")))._tag, "RunNotFound")

      rmSync(`${folderOf(run, "one", "documents")}.json`)
      const root = yield* of(place, "two")
      assert.isUndefined(root.from[0]?.made)
      rmSync(join(place.runs, "store/parts"), { recursive: true })
      const bare = yield* of(place, "two")
      assert.isUndefined(bare.made?.parameters)
      assert.deepStrictEqual(bare.from, [])
    }).pipe(Effect.scoped)
  )
})
