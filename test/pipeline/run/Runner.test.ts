/** Order, parallelism, caching, selection, failure: what surrounds attempts. Stages run in this process; Worker.test.ts has the real ones. */
import {
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  truncateSync,
  writeFileSync
} from "node:fs"
import { join } from "node:path"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { exitCodeOf, type RunSummary } from "../../../src/pipeline/run/Runner.ts"
import { acquireLock } from "../../../src/pipeline/runs/RunLock.ts"
import { readJournal } from "../../../src/pipeline/runs/Journal.ts"
import { outcomes, workplace } from "../fixtures/harness.ts"
import { newRecord, runHere } from "../fixtures/in-process.ts"

const head = "version: 1\nname: t\nstages:\n"
const diamond = `${head}
  left: { uses: write, with: { text: left } }
  right: { uses: write, with: { text: right } }
  both: { uses: join, in: { documents: [left.documents, right.documents] } }
  alone: { uses: write, with: { text: alone } }
`
const allDone = { left: "done", right: "done", both: "done", alone: "done" }
const allCached = { left: "cached", right: "cached", both: "cached", alone: "cached" }

const textOf = (summary: RunSummary, stage: string, port: string) => {
  const folder = summary.stages.find((one) => one.stage === stage)?.outputs[port]?.folder ?? ""
  return readFileSync(join(folder, "text.txt"), "utf8")
}

describe("a run", () => {
  it.live("runs in order, and a second one takes everything from the store", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      place.write(diamond)
      const record = newRecord()
      const first = yield* runHere(place, {}, record)
      assert.deepStrictEqual(outcomes(first), allDone)
      assert.strictEqual(exitCodeOf(first), 0)
      assert.strictEqual(textOf(first, "both", "tokens"), "left+right")
      assert.isBelow(record.started.indexOf("left"), record.started.indexOf("both"))
      assert.isBelow(record.started.indexOf("right"), record.started.indexOf("both"))

      const second = yield* runHere(place)
      assert.deepStrictEqual(outcomes(second), allCached)
      assert.notStrictEqual(second.run, first.run)

      // Another pipeline's run takes the same results too: the store belongs to all.
      place.write(diamond.replace("name: t", "name: other"))
      assert.deepStrictEqual(outcomes(yield* runHere(place)), allCached)
    }).pipe(Effect.scoped)
  )

  it.live("leaves a folder that tells all", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      place.write(diamond)
      const { folder, run } = yield* runHere(place)
      assert.match(run, /^\d{4}-\d{2}-\d{2}-\d{4}-[a-z]+-[a-z]+$/u)
      assert.strictEqual(readlinkSync(join(place.runs, "latest")), run)
      assert.strictEqual(readFileSync(join(folder, "pipeline.yaml"), "utf8"), diamond)
      assert.include(readFileSync(join(folder, "pipeline.resolved.json"), "utf8"), '"from": "default"')
      const record = JSON.parse(readFileSync(join(folder, "run.json"), "utf8"))
      assert.strictEqual(record.status, "complete")
      assert.deepStrictEqual(readdirSync(join(folder, "stages")), ["01-left", "02-right", "03-both", "04-alone"])
      const out = join(folder, "stages", "03-both", "out", "tokens")
      assert.isTrue(lstatSync(out).isSymbolicLink() && !readlinkSync(out).startsWith("/"))
      assert.strictEqual(readFileSync(join(out, "text.txt"), "utf8"), "left+right")
      const parts = join(place.runs, "store", "parts")
      const left = readdirSync(parts)
        .map((name) => JSON.parse(readFileSync(join(parts, name), "utf8")))
        .find(({ params }) => params.text === "left")
      assert.isDefined(left)
      assert.notProperty(left.params, "log_every")
      assert.isFalse(existsSync(join(place.runs, "store", "work")), "no stage of these wants a work folder")
      assert.deepStrictEqual(readdirSync(join(place.runs, "store", "making")), [])
      assert.deepStrictEqual(readdirSync(join(place.runs, "store", "locks")), [])
      const events = yield* readJournal(join(folder, "events.jsonl")).pipe(Effect.provide(NodeServices.layer))
      assert.strictEqual(events[0]?._tag, "RunStarted")
      assert.strictEqual(events.at(-1)?._tag, "RunFinished")
      assert.strictEqual(events.filter((event) => event._tag === "ArtifactPublished").length, 4)
    }).pipe(Effect.scoped)
  )

  it.live("runs independent branches at the same time, within the cores there are", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      const stage = (name: string, wait: number, more = "") =>
        `  ${name}: { uses: write, with: { text: ${name}, wait: ${wait} }${more} }\n`
      const all = ", resources: { cpus: all }"
      const many = ", resources: { cpus: 99 }"
      place.write(
        `${head}${stage("a", 500)}${stage("b", 500)}${stage("c", 500)}${stage("d", 5, all)}${stage("e", 5, many)}`
      )
      const record = newRecord()
      assert.strictEqual((yield* runHere(place, { cpus: 3 }, record)).status, "complete")
      assert.strictEqual(record.peak, 3, "three single-core stages share three cores; those that take all run alone")
      assert.deepStrictEqual(
        record.threads.toSorted((a, b) => a - b),
        [1, 1, 1, 3, 3]
      )
      const one = newRecord()
      yield* runHere(place, { cpus: 1, force: ["all"] }, one)
      assert.strictEqual(one.peak, 1)
    }).pipe(Effect.scoped)
  )

  it.live("asks for more than the machine has", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      place.write(`${head}  a: { uses: write, with: { text: a }, resources: { gpus: 8 } }\n`)
      const summary = yield* runHere(place)
      assert.match(summary.stages[0]?.failure?.message ?? "", /asks for 8 GPUs; 0 can be used here/u)
      place.write(`${head}  a: { uses: write, with: { text: a }, resources: { disk: 9000TiB } }\n`)
      const disk = (yield* runHere(place)).stages[0]?.failure
      assert.strictEqual(disk?.failure, "disk-full")
      assert.match(disk?.message ?? "", /asks for 9216000\.0 GiB of disk; [\d.]+ GiB are free where runs are stored/u)
    }).pipe(Effect.scoped)
  )

  it.live("a failure skips what depends on it; with keepGoing siblings go on; the next run continues", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      const text = `${head}
  bad: { uses: write, with: { text: x, watch: missing.txt } }
  below: { uses: join, in: { documents: bad.documents } }
  later: { uses: write, with: { text: y }, after: below }
  sibling: { uses: write, with: { text: z, wait: 50 } }
`
      place.write(text)
      const halted = yield* runHere(place)
      assert.deepStrictEqual(outcomes(halted), {
        bad: "failed",
        below: "skipped",
        later: "skipped",
        sibling: "skipped"
      })
      const first = yield* runHere(place, { keepGoing: true })
      assert.deepStrictEqual(outcomes(first), { bad: "failed", below: "skipped", later: "skipped", sibling: "done" })
      assert.strictEqual(first.status, "failed")
      assert.strictEqual(exitCodeOf(first), 1)
      assert.match(first.stages[0]?.failure?.message ?? "", /missing\.txt: no such file/u)
      writeFileSync(join(place.folder, "missing.txt"), "here")
      const second = yield* runHere(place)
      assert.strictEqual(second.run, first.run, "the same file goes on in the same run")
      assert.deepStrictEqual(outcomes(second), { bad: "done", below: "done", later: "done", sibling: "cached" })
      const third = yield* runHere(place)
      assert.notStrictEqual(third.run, second.run)
      writeFileSync(join(place.folder, "missing.txt"), "changed")
      assert.deepStrictEqual(outcomes(yield* runHere(place)), {
        bad: "done",
        below: "cached",
        later: "cached",
        sibling: "cached"
      })
    }).pipe(Effect.scoped)
  )

  it.live("same output, nothing below runs: early cutoff", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      place.write(diamond)
      yield* runHere(place)
      place.write(diamond.replace("text: left", "text: left, steps: 11"))
      assert.deepStrictEqual(outcomes(yield* runHere(place)), { ...allCached, left: "done" })
    }).pipe(Effect.scoped)
  )

  it.live("damaged artifacts are announced and made again", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      place.write(diamond)
      const first = yield* runHere(place)
      const folder = first.stages.find((stage) => stage.stage === "left")?.outputs["documents"]?.folder ?? ""
      truncateSync(join(folder, "text.txt"), 1)
      const second = yield* runHere(place)
      assert.deepStrictEqual(outcomes(second), { ...allCached, left: "done" })
      assert.match(
        second.warnings.join("\n"),
        /left: the stored result is damaged: .*text\.txt has 1 bytes, not 4; it is made again/u
      )
      assert.strictEqual(textOf(second, "left", "documents"), "left")
    }).pipe(Effect.scoped)
  )

  it.live("one runner per run: the second is told who holds it", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      place.write(`${head}  a: { uses: write, with: { text: x, watch: missing.txt } }\n`)
      const first = yield* runHere(place)
      yield* Effect.scoped(
        Effect.gen(function* () {
          yield* acquireLock(join(first.folder, "run"), "x").pipe(Effect.provide(NodeServices.layer))
          const error = yield* Effect.flip(runHere(place))
          assert.strictEqual(error._tag, "LockHeld")
          assert.match(error.message, new RegExp(`run ${first.run} is being written by process ${process.pid}`, "u"))
          // A new run need not wait.
          assert.notStrictEqual((yield* runHere(place, { run: "new" })).run, first.run)
        }).pipe(Effect.provide(NodeServices.layer))
      )
    }).pipe(Effect.scoped)
  )

  it.live("two runs that want the same: one makes it, the other waits and uses it", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      place.write(`${head}  a: { uses: write, with: { text: x, wait: 700 } }\n`)
      const [one, two] = [newRecord(), newRecord()]
      const both = yield* Effect.all([runHere(place, { run: "new" }, one), runHere(place, { run: "new" }, two)], {
        concurrency: 2
      })
      assert.strictEqual(one.started.length + two.started.length, 1)
      assert.deepStrictEqual(new Set(both.map((summary) => outcomes(summary)["a"])), new Set(["cached", "done"]))
    }).pipe(Effect.scoped)
  )
})

describe("selection", () => {
  const chain = `${head}
  a: { uses: write, with: { text: a } }
  b: { uses: join, in: { documents: a.documents } }
  c: { uses: write, with: { text: c }, after: b }
  d: { uses: write, with: { text: d } }
`
  it.live("--force reruns one stage, --from-stage that and all below, --to-stage nothing below, --only one", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      place.write(chain)
      assert.deepStrictEqual(outcomes(yield* runHere(place, { toStage: "b" })), { a: "done", b: "done" })
      assert.deepStrictEqual(outcomes(yield* runHere(place)), { a: "cached", b: "cached", c: "done", d: "done" })
      assert.deepStrictEqual(outcomes(yield* runHere(place, { force: ["a"] })), {
        a: "done",
        b: "cached",
        c: "cached",
        d: "cached"
      })
      assert.deepStrictEqual(outcomes(yield* runHere(place, { fromStage: "b" })), { a: "cached", b: "done", c: "done" })
      assert.deepStrictEqual(outcomes(yield* runHere(place, { fromStage: "a", toStage: "b" })), {
        a: "done",
        b: "done"
      })
      assert.deepStrictEqual(outcomes(yield* runHere(place, { only: ["b"] })), { a: "cached", b: "cached" })
      assert.deepStrictEqual(outcomes(yield* runHere(place, { only: ["b"], force: ["b"] })), { a: "cached", b: "done" })
      assert.deepStrictEqual(outcomes(yield* runHere(place, { force: ["all"], only: ["d"] })), { d: "done" })
    }).pipe(Effect.scoped)
  )

  it.live("--from-stage keeps what is above as it is only with --reuse-stale, and says so", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      place.write(chain)
      yield* runHere(place)
      place.write(chain.replace("text: a", "text: changed"))
      const refused = yield* Effect.flip(runHere(place, { fromStage: "b" }))
      assert.strictEqual(refused._tag, "StaleReuse")
      assert.match(refused.message, /a \(result of \S+\): text: "a" → "changed"/u)
      assert.match(refused._tag === "StaleReuse" ? refused.next : "", /--reuse-stale .*; or .* --from-stage a/u)
      const summary = yield* runHere(place, { fromStage: "b", reuseStale: true })
      assert.deepStrictEqual(outcomes(summary), { a: "cached", b: "done", c: "done" })
      assert.strictEqual(textOf(summary, "b", "tokens"), "a")
      assert.match(
        summary.warnings.join("\n"),
        /a: kept as it is, though the file now says otherwise: text: "a" → "changed"/u
      )
      assert.strictEqual(textOf(yield* runHere(place), "b", "tokens"), "changed")
    }).pipe(Effect.scoped)
  )

  it.live("nothing to reuse above", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      place.write(chain)
      const summary = yield* runHere(place, { only: ["b"] })
      assert.strictEqual(summary.status, "failed")
      const failure = summary.stages.find((stage) => stage.stage === "b")?.failure
      assert.match(failure?.message ?? "", /b needs a, which is not selected and has no complete result/u)
      assert.match(failure?.next ?? "", /tinyllama run .*pipeline.yaml --to-stage a/u)
    }).pipe(Effect.scoped)
  )

  it.live("names that are not there, options that leave nothing", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      place.write(chain.replace("  a:", "  alpha:").replace("a.documents", "alpha.documents"))
      const unknown = yield* Effect.flip(runHere(place, { fromStage: "alpah" }))
      assert.match(unknown.message, /--from-stage alpah: no such stage in .*; did you mean "alpha"\?/u)
      const nothing = yield* Effect.flip(runHere(place, { fromStage: "c", toStage: "alpha" }))
      assert.strictEqual(nothing._tag, "UsageError")
      assert.isFalse(existsSync(place.runs))
    }).pipe(Effect.scoped)
  )

  it.live("an interrupted --from-stage does not redo what it has redone", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      const text = `${head}
  a: { uses: write, with: { text: a } }
  b: { uses: join, in: { documents: a.documents } }
  c: { uses: write, with: { text: c, watch: switch.txt }, after: b }
`
      place.write(text)
      writeFileSync(join(place.folder, "switch.txt"), "1")
      yield* runHere(place)
      rmSync(join(place.folder, "switch.txt"))
      assert.deepStrictEqual(outcomes(yield* runHere(place, { fromStage: "a" })), { a: "done", b: "done", c: "failed" })
      writeFileSync(join(place.folder, "switch.txt"), "2")
      assert.deepStrictEqual(outcomes(yield* runHere(place, { fromStage: "a" })), {
        a: "cached",
        b: "cached",
        c: "done"
      })
      assert.deepStrictEqual(outcomes(yield* runHere(place, { fromStage: "a" })), { a: "done", b: "done", c: "done" })
    }).pipe(Effect.scoped)
  )

  it.live("a folder in place of the runs folder's files is a clear error", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      place.write(chain)
      writeFileSync(place.runs, "a file where a folder should be")
      const error = yield* Effect.flip(runHere(place))
      assert.strictEqual(error._tag, "StorageError")
      rmSync(place.runs)
      mkdirSync(place.runs)
      assert.strictEqual((yield* runHere(place)).status, "complete")
    }).pipe(Effect.scoped)
  )
})
