/** Records of jobs, the fence, and the events file that workers and runners share. */
import { appendFileSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Fiber, Stream } from "effect"
import {
  allJobs,
  type ClusterJob,
  findJob,
  forgetJob,
  isNewer,
  readFence,
  saveJob,
  writeFence
} from "../../../src/pipeline/run/ClusterJob.ts"
import { appendTo, followEvents, lastWord } from "../../../src/pipeline/run/EventsFile.ts"

const folder = Effect.acquireRelease(
  Effect.sync(() => mkdtempSync(join(tmpdir(), "tinyllama-test-"))),
  (made) => Effect.sync(() => rmSync(made, { recursive: true, force: true }))
)
const job: ClusterJob = {
  version: 1,
  key: "k",
  name: "tl-a-k-1-000000",
  cluster: "c",
  id: null,
  tasks: 0,
  run: "r",
  stage: "a",
  attempt: 1,
  folder: "/f",
  counter: 1,
  submittedAt: "2026-01-01T00:00:00.000Z"
}

describe("a job's record", () => {
  it.effect("is kept until it is forgotten", () =>
    Effect.gen(function* () {
      const store = yield* folder
      assert.isUndefined(yield* findJob(store, "k"))
      yield* saveJob(store, job)
      yield* saveJob(store, { ...job, id: "12" })
      yield* saveJob(store, { ...job, key: "other" })
      assert.strictEqual((yield* findJob(store, "k"))?.id, "12")
      assert.strictEqual((yield* allJobs(store)).length, 2)
      yield* forgetJob(store, "k")
      assert.isUndefined(yield* findJob(store, "k"))
    }).pipe(Effect.scoped, Effect.provide(NodeServices.layer))
  )
})

describe("a fence", () => {
  it.effect("lets the newest attempt through, and of one attempt the newest start", () =>
    Effect.gen(function* () {
      const file = join(yield* folder, "k.fence")
      assert.isFalse(isNewer(readFence(file), { counter: 1, restart: 0 }))
      writeFence(file, { counter: 2, restart: 1 })
      assert.isTrue(isNewer(readFence(file), { counter: 1, restart: 9 }))
      assert.isTrue(isNewer(readFence(file), { counter: 2, restart: 0 }))
      assert.isFalse(isNewer(readFence(file), { counter: 2, restart: 1 }))
      assert.isFalse(isNewer(readFence(file), { counter: 3, restart: 0 }))
      writeFileSync(file, "{")
      assert.isUndefined(readFence(file))
    }).pipe(Effect.scoped)
  )
})

describe("an events file", () => {
  it.effect("has the last word of the last start only", () =>
    Effect.gen(function* () {
      const file = join(yield* folder, "events.jsonl")
      assert.isUndefined(lastWord(file))
      const say = appendTo(file)
      say({ _tag: "Started", host: "a", restart: 0 })
      say({ _tag: "Preempted", message: "saved" })
      assert.strictEqual(lastWord(file)?._tag, "Preempted")
      say({ _tag: "Started", host: "b", restart: 1 })
      assert.isUndefined(lastWord(file))
      say({ _tag: "Completed", facts: {} })
      appendFileSync(file, '{"_tag":"Fail')
      assert.strictEqual(lastWord(file)?._tag, "Completed")
    }).pipe(Effect.scoped)
  )

  it.live("is followed line by line from where it was left, before it is there and until the end", () =>
    Effect.gen(function* () {
      const file = join(yield* folder, "events.jsonl")
      let ended = false
      let offset = 0
      const follow = (from: number) =>
        Stream.runCollect(
          followEvents(file, {
            ended: Effect.sync(() => ended),
            offset: from,
            onOffset: (at) => void (offset = at),
            pollMillis: 5
          })
        )
      const following = yield* Effect.forkChild(follow(0))
      yield* Effect.sleep(20)
      writeFileSync(file, '{"_tag":"Log","line":"one"}\n{"_tag":"Log",')
      yield* Effect.sleep(50)
      appendFileSync(file, '"line":"two"}\nnonsense\n')
      yield* Effect.sleep(50)
      ended = true
      const lines = Array.from(yield* Fiber.join(following), (event) =>
        event._tag === "Log" ? event.line : event._tag
      )
      assert.deepStrictEqual(lines, ["one", "two", "the worker said what is no event: nonsense"])
      assert.strictEqual(offset, readFileSync(file).length)
      assert.deepStrictEqual(Array.from(yield* follow(offset)), [])
    }).pipe(Effect.scoped, Effect.provide(NodeServices.layer))
  )

  it.effect("costs nothing but its events where it cannot be written", () =>
    Effect.gen(function* () {
      const at = yield* folder
      mkdirSync(join(at, "events.jsonl"))
      assert.isUndefined(lastWord(join(at, "events.jsonl")))
      const say = appendTo("/dev/full")
      say({ _tag: "Log", line: "lost" })
      say({ _tag: "Log", line: "lost" })
    }).pipe(Effect.scoped)
  )
})
