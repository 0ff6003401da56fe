/** Attempts in the runner's own process: they read as a worker's do, and cost next to nothing. */
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import { Deferred, Duration, Effect, Exit, Fiber, Layer, Schema } from "effect"
import { type Attempt, Executor, type WorkerEvent } from "../../../src/pipeline/run/Executor.ts"
import * as LocalExecutor from "../../../src/pipeline/run/LocalExecutor.ts"
import { StageRegistry } from "../../../src/pipeline/StageRegistry.ts"
import { defineStage, parameter, Preempted, StageError } from "../../../src/pipeline/StageType.ts"

const how = Schema.Literals(["work", "wait", "deaf", "fail", "defect"])

const light = defineStage({
  name: "light",
  version: 1,
  describe: "Works, waits, fails or dies, as told",
  runsIn: "runner",
  params: { how: parameter(how, { change: "identity", describe: "What to do" }) },
  inputs: {},
  outputs: { documents: { type: "Documents", describe: "Where it ran" } },
  run: Effect.fn("light")(function* (context) {
    const { how } = context.params
    context.log("begins")
    if (how === "deaf") return yield* Effect.never
    if (how === "fail") return yield* new StageError({ failure: "diverged", message: "told to", next: "do not" })
    if (how === "defect") throw new Error("a bug")
    if (how === "wait") {
      while (!context.stopRequested()) yield* Effect.sleep(2)
      return yield* new Preempted({ message: "saved" })
    }
    context.progress({ done: 1, total: 1, unit: "notes" })
    writeFileSync(join(context.output("documents"), "pid.txt"), String(process.pid))
    return { documents: {} }
  })
})

const services = LocalExecutor.layer().pipe(
  Layer.provideMerge(NodeServices.layer),
  Layer.provideMerge(Layer.succeed(StageRegistry, { names: ["light"], load: () => Effect.succeed(light) }))
)

const folder = Effect.acquireRelease(
  Effect.sync(() => {
    const made = mkdtempSync(join(tmpdir(), "tinyllama-test-"))
    mkdirSync(join(made, "output"))
    return made
  }),
  (made) => Effect.sync(() => rmSync(made, { recursive: true, force: true }))
)

const attempt = (at: string, what: typeof how.Type, options: Partial<Attempt> = {}): Attempt => ({
  folder: at,
  job: {
    stage: "light",
    type: "light",
    params: { how: what },
    inputs: {},
    outputs: { documents: join(at, "output") },
    work: at,
    previous: null,
    baseDirectory: at,
    threads: 1
  },
  runsIn: "runner",
  key: "k",
  run: "r",
  number: 1,
  executor: { kind: "local" },
  resources: { cpus: 1, gpus: 0, ranks: 1 },
  secrets: { granted: new Map(), withheld: [], scrub: (text) => text },
  timeout: undefined,
  grace: Duration.seconds(5),
  stop: Effect.never,
  onStart: () => Effect.void,
  onEvent: () => Effect.void,
  ...options
})

const execute = (one: Attempt) => Effect.flatMap(Executor, (executor) => executor.execute(one))

const failureOf = (one: Attempt) => Effect.flip(execute(one))

describe("a stage that runs in the runner's process", () => {
  it.live("gives facts, events in order, and files; it leaves no others", () =>
    Effect.gen(function* () {
      const at = yield* folder
      const heard: Array<WorkerEvent["_tag"]> = []
      const facts = yield* execute(
        attempt(at, "work", { onEvent: (event) => Effect.sync(() => void heard.push(event._tag)) })
      )
      assert.deepStrictEqual(facts, { documents: {} })
      assert.deepStrictEqual(heard, ["Log", "Progress"])
      assert.strictEqual(readFileSync(join(at, "output/pid.txt"), "utf8"), String(process.pid))
      assert.deepStrictEqual(readdirSync(at), ["output"])
    }).pipe(Effect.scoped, Effect.provide(services))
  )

  it.live("fails in its own class; a defect is internal, with its stack in stderr.log", () =>
    Effect.gen(function* () {
      const at = yield* folder
      const failed = yield* failureOf(attempt(at, "fail"))
      assert.deepInclude(failed, { _tag: "StageError", failure: "diverged", message: "told to", next: "do not" })
      assert.isFalse(existsSync(join(at, "stderr.log")))
      const defect = yield* failureOf(attempt(at, "defect"))
      assert.deepInclude(defect, { _tag: "StageError", failure: "internal", message: "a defect: a bug" })
      assert.match(readFileSync(join(at, "stderr.log"), "utf8"), /RunnerStage\.test\.ts/u)
    }).pipe(Effect.scoped, Effect.provide(services))
  )

  it.live("does not run other code than that which its key was made of", () =>
    Effect.gen(function* () {
      const made = attempt(yield* folder, "work")
      const changed = yield* failureOf({ ...made, job: { ...made.job, code: "what the plugin was" } })
      assert.deepInclude(changed, { _tag: "StageError", failure: "invalid-input" })
      assert.match(changed.message, /the code of light changed after this run had read it/u)
    }).pipe(Effect.scoped, Effect.provide(services))
  )

  it.live("has a process of its own beside secrets: only that keeps it from their environment", () =>
    Effect.gen(function* () {
      const at = yield* folder
      const secrets = { granted: new Map(), withheld: ["OTHERS"], scrub: (text: string) => text }
      // The worker's own registry knows no such stage: that it says so shows that it was asked.
      const elsewhere = yield* failureOf(attempt(at, "work", { secrets }))
      assert.strictEqual(elsewhere._tag, "StageError")
      assert.isTrue(existsSync(join(at, "job.json")))
    }).pipe(Effect.scoped, Effect.provide(services))
  )

  it.live("saves when asked to stop, is ended when its grace is over, fails as timeout", () =>
    Effect.gen(function* () {
      const at = yield* folder
      const stop = yield* Deferred.make<void>()
      const waiting = yield* Effect.forkChild(failureOf(attempt(at, "wait", { stop: Deferred.await(stop) })))
      yield* Effect.sleep(20)
      yield* Deferred.succeed(stop, undefined)
      assert.deepInclude(yield* Fiber.join(waiting), { _tag: "Preempted", message: "saved" })

      const deaf = yield* failureOf(attempt(at, "deaf", { stop: Effect.sleep(5), grace: Duration.millis(20) }))
      assert.strictEqual(deaf._tag, "Preempted")
      assert.match(deaf.message, /did not save within 20ms/u)

      const late = yield* failureOf(attempt(at, "wait", { timeout: Duration.millis(20) }))
      assert.deepInclude(late, { _tag: "StageError", failure: "timeout" })
    }).pipe(Effect.scoped, Effect.provide(services))
  )

  it.live("ends with the attempt that is interrupted", () =>
    Effect.gen(function* () {
      const fiber = yield* Effect.forkChild(execute(attempt(yield* folder, "deaf")))
      yield* Effect.sleep(10)
      yield* Fiber.interrupt(fiber)
      assert.isTrue(Exit.hasInterrupts(yield* Fiber.await(fiber)))
    }).pipe(Effect.scoped, Effect.provide(services))
  )
})
