/** A store that people or disks have damaged: it is told where and what, and the next run puts it right. */
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Layer } from "effect"
import { TestClock } from "effect/testing"
import { ArtifactStore } from "../../../src/artifacts/ArtifactStore.ts"
import { machineId, processMark } from "../../../src/artifacts/ProcessIdentity.ts"
import { outcomes, workplace, type Workplace } from "../fixtures/harness.ts"
import { runHere } from "../fixtures/in-process.ts"
import { faultsOf, journalOf, leftovers, storeContent } from "../fixtures/soundness.ts"

const pipeline = `version: 1
name: t
stages:
  a: { uses: write, with: { text: hello } }
  b: { uses: join, in: { documents: a.documents } }
`
const done = { a: "done", b: "cached" }

/** A complete run; where the first stage's artifact and key record lie. */
const complete = Effect.gen(function* () {
  const place = yield* workplace
  place.write(pipeline)
  const summary = yield* runHere(place)
  const { digest = "", folder = "" } = summary.stages[0]?.outputs["documents"] ?? {}
  const content = storeContent(place.runs)
  return { place, summary, digest, folder, content, manifest: `${folder}.json` }
})

const verify = (place: Workplace, digest: string) =>
  Effect.flatMap(ArtifactStore, (store) => store.verify(digest)).pipe(
    Effect.provide(ArtifactStore.layer(join(place.runs, "store")).pipe(Layer.provide(NodeServices.layer)))
  )

describe("a damaged store", () => {
  it.live("a manifest edited by hand is noticed, told and written again", () =>
    Effect.gen(function* () {
      const { content, digest, manifest, place } = yield* complete
      writeFileSync(manifest, readFileSync(manifest, "utf8").replace('"length": 5', '"length": 6'))
      assert.deepStrictEqual(yield* verify(place, digest), ["the manifest was altered"])
      const again = yield* runHere(place)
      assert.deepStrictEqual(outcomes(again), done)
      assert.match(
        again.warnings.join("\n"),
        /a: the stored result is damaged: .*its manifest was altered; it is made again/u
      )
      assert.deepStrictEqual(storeContent(place.runs), content)
      assert.deepStrictEqual(yield* verify(place, digest), [])
    }).pipe(Effect.scoped)
  )

  it.live("a history that cannot be read is told with its place, and nothing runs anew for it", () =>
    Effect.gen(function* () {
      const { place } = yield* complete
      const history = join(place.runs, "store", "history", "t.jsonl")
      const content = readFileSync(history)
      rmSync(history)
      mkdirSync(history)
      const error = yield* Effect.flip(runHere(place))
      assert.match(error.message, /store\/history\/t\.jsonl: BadResource/u)
      assert.match("next" in error ? error.next : "", /folder is there/u)
      rmSync(history, { recursive: true })
      writeFileSync(history, content)
      assert.deepStrictEqual(outcomes(yield* runHere(place)), { a: "cached", b: "cached" })
    }).pipe(Effect.scoped)
  )

  it.live("a manifest or a key record that is no JSON is told, and made again", () =>
    Effect.gen(function* () {
      const { content, manifest, place } = yield* complete
      writeFileSync(manifest, "{ not json")
      assert.match((yield* runHere(place)).warnings.join("\n"), /a: .*its manifest is damaged; it is made again/u)
      const keys = join(place.runs, "store", "keys")
      for (const name of readdirSync(keys)) writeFileSync(join(keys, name), "")
      const again = yield* runHere(place)
      assert.deepStrictEqual(outcomes(again), { a: "done", b: "done" })
      assert.match(again.warnings.join("\n"), /the record .*keys.* is damaged; it is made again/u)
      assert.deepStrictEqual(storeContent(place.runs), content)
    }).pipe(Effect.scoped)
  )

  it.live("a flipped bit is found by verify, and put right when the stage is made again", () =>
    Effect.gen(function* () {
      const { content, digest, folder, place } = yield* complete
      writeFileSync(join(folder, "text.txt"), "hellp")
      assert.deepStrictEqual(yield* verify(place, digest), ["text.txt does not have its sha256"])
      const again = yield* runHere(place, { force: ["a"] })
      assert.strictEqual(again.status, "complete")
      assert.deepStrictEqual(yield* verify(place, digest), [])
      assert.deepStrictEqual(storeContent(place.runs), content)
      assert.deepStrictEqual(leftovers(place.runs), [])
    }).pipe(Effect.scoped)
  )

  it.live("a folder that a crash left without its manifest is taken up if it is whole, and replaced if not", () =>
    Effect.gen(function* () {
      const { content, digest, folder, manifest, place } = yield* complete
      for (const text of ["hello", "half"]) {
        const before = yield* Effect.sync(() => readFileSync(manifest, "utf8"))
        writeFileSync(join(folder, "text.txt"), text)
        writeFileSync(manifest, "")
        assert.strictEqual((yield* runHere(place)).status, "complete")
        assert.deepStrictEqual(JSON.parse(readFileSync(manifest, "utf8")).files, JSON.parse(before).files)
        assert.deepStrictEqual(yield* verify(place, digest), [])
      }
      assert.deepStrictEqual(storeContent(place.runs), content)
    }).pipe(Effect.scoped)
  )

  it.live("a damaged line in the middle of a journal costs that line; the run goes on", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      place.write(`${pipeline}  c: { uses: count, with: { steps: 1, fail: internal }, after: b }\n`)
      const first = yield* runHere(place)
      const journal = join(first.folder, "events.jsonl")
      const lines = readFileSync(journal, "utf8").trimEnd().split("\n")
      lines[3] = '{"_tag":"StageFini\u0000'
      writeFileSync(journal, `${lines.join("\n")}\n`)
      const again = yield* runHere(place)
      assert.strictEqual(again.run, first.run)
      assert.deepStrictEqual(outcomes(again), { a: "cached", b: "cached", c: "failed" })
      assert.isAbove(journalOf(first.folder).length, lines.length)
    }).pipe(Effect.scoped)
  )
})

describe("what dead runners left", () => {
  it.live("is taken away by the next run", () =>
    Effect.gen(function* () {
      const { content, place, summary } = yield* complete
      const [, , machine] = processMark().split("-")
      const mark = `${process.pid}-1-${machine}-abc.tmp`
      const store = join(place.runs, "store")
      writeFileSync(join(store, "artifacts", `x.json.${mark}`), "half")
      mkdirSync(join(store, "artifacts", `x.damaged.${mark}`))
      writeFileSync(join(store, "keys", `x.json.${mark}`), "half")
      mkdirSync(join(place.runs, `.new-run.${mark}`))
      symlinkSync("nowhere", join(place.runs, `.latest.${mark}`))
      const claim = {
        version: 1,
        token: "dead",
        pid: 1,
        start: "0",
        host: "h",
        machine: machineId(),
        since: "",
        state: "held"
      }
      writeFileSync(join(store, "locks", "k.dead.lock"), JSON.stringify(claim))
      writeFileSync(join(summary.folder, "run.dead.lock"), JSON.stringify(claim))
      yield* runHere(place)
      assert.deepStrictEqual(faultsOf(place.runs, content), [])
    }).pipe(Effect.scoped)
  )

  it.live("but what a living or a far process is writing stays", () =>
    Effect.gen(function* () {
      const { place } = yield* complete
      const far = join(place.runs, "store", "keys", "x.json.1-1-00000000-abc.tmp")
      writeFileSync(far, "being written elsewhere")
      yield* runHere(place)
      assert.isTrue(existsSync(far))
    }).pipe(Effect.scoped)
  )
})

describe("a clock set back", () => {
  it.effect("does not make an old result look like what was just forced", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      place.write(`${pipeline}  c: { uses: count, with: { steps: 1, fail: internal }, after: b }\n`)
      yield* TestClock.setTime(Date.parse("2026-01-01T12:00:00Z"))
      const first = yield* runHere(place)
      assert.deepStrictEqual(outcomes(first), { a: "done", b: "done", c: "failed" })
      yield* TestClock.setTime(Date.parse("2026-01-01T09:00:00Z"))
      const forced = yield* runHere(place, { force: ["a"] })
      assert.strictEqual(forced.run, first.run)
      assert.strictEqual(outcomes(forced)["a"], "done")
      assert.strictEqual(outcomes(yield* runHere(place, { force: ["a"] }))["a"], "cached", "it has been done")
    }).pipe(Effect.scoped)
  )
})
