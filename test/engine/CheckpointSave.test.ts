/** Saving behind the training: what is saved is what was there at the snapshot; two saves under way at most; failures show at the next step. */
import { spawn } from "node:child_process"
import { once } from "node:events"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import { Deferred, Effect, Exit, Fiber, FileSystem, Scope } from "effect"
import { alone } from "../../src/engine/TrainingRanks.ts"
import { type CheckpointSaver, openSaver } from "../../src/engine/CheckpointSave.ts"
import { restoreNewest, stepsBelow } from "../../src/engine/Checkpoints.ts"
import type { StateSnapshot, WrittenFile } from "../../src/engine/Native.ts"
import { StageError } from "../../src/pipeline/StageType.ts"
import { heldBy, progressAt, rankModels } from "./rank-models.ts"
import { batchOf, tinyPlan } from "./tiny-model.ts"

const folder = Effect.flatMap(FileSystem.FileSystem, (fs) => fs.makeTempDirectoryScoped({ prefix: "saving-" }))

const live = (name: string, test: () => Effect.Effect<void, unknown, NodeServices.NodeServices | Scope.Scope>) =>
  it.live(name, () => Effect.scoped(test()).pipe(Effect.provide(NodeServices.layer)))

const nothing = { before: Effect.void, after: Effect.void }

/** A model whose snapshots are written when the test says so. */
const slowModel = (place: StateSnapshot["place"] = "host") => {
  const writes: Array<PromiseWithResolvers<ReadonlyArray<WrittenFile>>> = []
  const released: Array<number> = []
  let taken = 0
  const snapshot = (): Promise<StateSnapshot> => {
    const number = ++taken
    return Promise.resolve({
      place,
      bytes: 0,
      write: (files) => {
        const write = Promise.withResolvers<ReadonlyArray<WrittenFile>>()
        writes.push({
          ...write,
          resolve: () => write.resolve(files.map(({ path }) => ({ path, bytes: 0, pieces: [] })))
        })
        return write.promise
      },
      release: () => {
        released.push(number)
        writes[number - 1]?.reject(new Error("released"))
      }
    })
  }
  return { snapshot, writes, released, taken: () => taken }
}

/** Until `holds`, for it happens on other fibers. */
const eventually = Effect.fnUntraced(function* (holds: () => boolean) {
  for (let round = 0; round < 200; round++) {
    if (holds()) return
    yield* Effect.sleep(10)
  }
  return yield* Effect.die(new Error("it never happened"))
})

const isPending = (fiber: Fiber.Fiber<unknown, unknown>) => fiber.pollUnsafe() === undefined

const beginAll = (saver: CheckpointSaver, steps: ReadonlyArray<number>) =>
  Effect.forEach(steps, (step) => saver.begin(progressAt(step), nothing), { discard: true })

describe("saving behind the training", () => {
  live("what is saved is the state at the snapshot, although training goes on", () =>
    Effect.gen(function* () {
      const root = yield* folder
      const [rank] = yield* rankModels(1, 7)
      const { model } = rank!
      const saver = yield* openSaver(root, model, alone)
      const before = heldBy(model)
      yield* saver.begin(progressAt(1), nothing)
      yield* Effect.promise(() => model.accumulate(batchOf([0, 1]), 1))
      yield* Effect.promise(() => model.step({ ...tinyPlan.optimizer, step: 1, learningRate: 1 }))
      assert.notDeepEqual(heldBy(model), before)
      yield* saver.settled
      const [other] = yield* rankModels(1, 8)
      yield* restoreNewest(root, other!.model, (line) => assert.fail(line))
      assert.deepStrictEqual(heldBy(other!.model), before)
    })
  )

  live("two may be under way, a third waits; they are published in their order, with what comes before and after", () =>
    Effect.gen(function* () {
      const root = yield* folder
      const model = slowModel()
      const saver = yield* openSaver(root, model, alone)
      const events: Array<string> = []
      const begin = (step: number) =>
        saver.begin(progressAt(step), {
          before: Effect.sync(() => void events.push(`before ${step}`)),
          after: Effect.map(
            Effect.orDie(stepsBelow(root)),
            (steps) => void events.push(`after ${step}: ${steps.join()}`)
          ).pipe(Effect.provide(NodeServices.layer))
        })
      yield* begin(1)
      yield* begin(2)
      assert.strictEqual(saver.cost().underWay, 2)
      const third = yield* Effect.forkChild(begin(3), { startImmediately: true })
      yield* eventually(() => model.writes.length === 1)
      yield* Effect.sleep(30)
      assert.isTrue(isPending(third))
      // Neither a snapshot of the third nor a file of the second.
      assert.deepStrictEqual([model.taken(), model.writes.length, events], [2, 1, ["before 1"]])
      model.writes[0]!.resolve([])
      yield* Fiber.join(third)
      yield* eventually(() => model.writes.length === 2)
      model.writes[1]!.resolve([])
      yield* eventually(() => model.writes.length === 3)
      model.writes[2]!.resolve([])
      yield* saver.settled
      assert.deepStrictEqual(events, [
        "before 1",
        "after 1: 1",
        "before 2",
        "after 2: 1,2",
        "before 3",
        "after 3: 1,2,3"
      ])
      assert.deepStrictEqual(model.released, [1, 2, 3])
      assert.strictEqual(saver.cost().underWay, 0)
    })
  )

  live(
    "a full disk shows at the next step and at the end, the ones behind it are let go, what was complete stays",
    () =>
      Effect.gen(function* () {
        const fs = yield* FileSystem.FileSystem
        const root = yield* folder
        const model = slowModel()
        const saver = yield* openSaver(root, model, alone)
        yield* saver.begin(progressAt(1), nothing)
        yield* eventually(() => model.writes.length === 1)
        model.writes[0]!.resolve([])
        yield* saver.settled
        yield* beginAll(saver, [2, 3])
        yield* eventually(() => model.writes.length === 2)
        model.writes[1]!.reject(new Error("ENOSPC: No space left on device, write 'optimizer'"))
        const error = yield* Effect.flip(saver.settled)
        assert.instanceOf(error, StageError)
        assert.strictEqual(error.failure, "disk-full")
        assert.match(error.message, /checkpoint of step 2 .*step 1 is intact/u)
        assert.deepStrictEqual(yield* Effect.flip(saver.check), error)
        assert.deepStrictEqual(yield* Effect.flip(saver.begin(progressAt(4), nothing)), error)
        assert.deepStrictEqual([model.taken(), model.released], [3, [1, 2, 3]])
        assert.deepStrictEqual(yield* fs.readDirectory(root), ["step-00000001"])
      })
  )

  live("without memory for a copy training waits until the files are there", () =>
    Effect.gen(function* () {
      const model = slowModel("live")
      const saver = yield* openSaver(yield* folder, model, alone)
      const begun = yield* Effect.forkChild(saver.begin(progressAt(1), nothing), { startImmediately: true })
      yield* eventually(() => model.writes.length === 1)
      yield* Effect.sleep(30)
      assert.isTrue(isPending(begun))
      model.writes[0]!.resolve([])
      yield* Fiber.join(begun)
      assert.isAbove(saver.cost().stall, 0.02)
    })
  )

  live("a scope that closes gives up what is under way: the writer ends first, then the draft goes", () =>
    Effect.gen(function* () {
      const fs = yield* FileSystem.FileSystem
      const root = yield* folder
      const model = slowModel()
      const scope = yield* Scope.make()
      const saver = yield* Effect.provideService(openSaver(root, model, alone), Scope.Scope, scope)
      yield* beginAll(saver, [1, 2])
      yield* eventually(() => model.writes.length === 1)
      assert.deepStrictEqual(yield* fs.readDirectory(root), [".draft-step-00000001"])
      yield* Scope.close(scope, Exit.void)
      assert.include(model.released, 1)
      assert.deepStrictEqual(yield* fs.readDirectory(root), [])
    })
  )

  live("killed while it writes, again and again: what is there is whole, and of one step", () =>
    Effect.gen(function* () {
      const root = yield* folder
      const program = fileURLToPath(new URL("save-forever.ts", import.meta.url))
      let newest = 0
      for (let kill = 0; kill < 5; kill++) {
        const child = spawn(process.execPath, [program, root], { stdio: ["ignore", "pipe", "inherit"] })
        const began = yield* Deferred.make<void>()
        child.stdout.once("data", () => Deferred.doneUnsafe(began, Exit.void))
        yield* Deferred.await(began)
        yield* Effect.sleep(60 + 70 * kill)
        child.kill("SIGKILL")
        yield* Effect.promise(() => once(child, "close"))
        const [rank] = yield* rankModels(1, 99)
        const restored = yield* restoreNewest(root, rank!.model, (line) => assert.fail(line))
        const step = restored?.state.step ?? 0
        assert.isAtLeast(step, newest)
        newest = step
        if (step > 0) {
          const [expected] = yield* rankModels(1, step)
          assert.deepStrictEqual(heldBy(rank!.model), heldBy(expected!.model))
        }
        const fs = yield* FileSystem.FileSystem
        assert.isTrue((yield* fs.readDirectory(root)).every((name) => name.startsWith("step-")))
      }
      assert.isAbove(newest, 0)
      assert.isTrue(yield* (yield* FileSystem.FileSystem).exists(join(root, `step-${String(newest).padStart(8, "0")}`)))
    })
  )
})
