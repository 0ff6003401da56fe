/** Training whose weights and moments are bf16, rounded stochastically: deterministic, resumable bit for bit, and no worse than fp32 where it can be told. */
import { readFileSync } from "node:fs"
import { basename, join } from "node:path"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import { Effect, FileSystem, type Scope } from "effect"
import { saveCheckpoint } from "../../src/engine/CheckpointSave.ts"
import * as Checkpoints from "../../src/engine/Checkpoints.ts"
import { chooseCompute } from "../../src/engine/Compute.ts"
import * as Native from "../../src/engine/Native.ts"
import { train, type TrainingPlan } from "../../src/engine/Trainer.ts"
import { parameterCount, presets, toModelConfig } from "../../src/model/Architecture.ts"
import { readSafetensors } from "../../src/model/Safetensors.ts"
import { filesOf } from "../stages/stage-fixture.ts"
import { tinyData, tinyModel, tinyPlan } from "./tiny-model.ts"

const folder = Effect.flatMap(FileSystem.FileSystem, (fs) => fs.makeTempDirectoryScoped({ prefix: "stochastic-" }))

const live = (name: string, test: () => Effect.Effect<void, unknown, NodeServices.NodeServices | Scope.Scope>) =>
  it.live(name, () => Effect.scoped(test()).pipe(Effect.provide(NodeServices.layer)))

/** 50 steps of four samples. */
const plan: TrainingPlan = {
  ...tinyPlan,
  totalSamples: 200,
  schedule: { ...tinyPlan.schedule, totalSteps: 50 },
  validateEvery: 10,
  saveEvery: 20
}

interface Options {
  readonly model?: Partial<Native.ModelOptions>
  readonly seed?: number
  readonly stopAfterPolls?: number
}

const attempt = Effect.fnUntraced(function* (work: string, options: Options = {}) {
  const model = yield* tinyModel(99, { state: "bf16", ...options.model })
  let polls = 0
  return yield* Effect.result(
    train(
      model,
      { ...plan, seed: options.seed ?? plan.seed },
      tinyData,
      Effect.sync(() => model.initialize(plan.seed)),
      {
        work,
        progress: () => undefined,
        log: () => undefined,
        warn: (line) => assert.fail(line),
        stopRequested: () => polls++ >= (options.stopAfterPolls ?? Infinity)
      }
    )
  )
}, Effect.scoped)

const succeeded = Effect.fnUntraced(function* (work: string, options: Options = {}) {
  return yield* Effect.fromResult(yield* attempt(work, options))
})

const left = (outcome: { readonly checkpoints: ReadonlyArray<string>; readonly metricsPath: string }) => ({
  checkpoints: outcome.checkpoints.map((path) => [basename(path), filesOf(path)]),
  metrics: readFileSync(outcome.metricsPath, "utf8")
})

const KINDS = ["weights", "firstMoment", "secondMoment"] as const
const contents = (model: Native.NativeModel) => KINDS.map((kind) => model.read(kind, 0, model.parameterCount))

/** The lower half of every float is empty. */
const isBfloat16 = (values: Float32Array) =>
  new Uint32Array(values.buffer, values.byteOffset, values.length).every((word) => (word & 0xffff) === 0)

describe("bf16 weights and moments", () => {
  live("50 steps: the same bits again, on more threads too, other ones with another seed; losses near fp32's", () =>
    Effect.gen(function* () {
      const once = yield* succeeded(yield* folder)
      const again = yield* succeeded(yield* folder, { model: { threads: 3 } })
      assert.deepStrictEqual(left(again), left(once))
      const wide = yield* succeeded(yield* folder, { model: { state: "fp32" } })
      const loss = once.state.validation!.loss
      assert.isBelow(loss, 0.5 * once.state.first_validation_loss!)
      // The first weights are rounded to the nearest: their loss differs by less than a thousandth.
      assert.closeTo(once.state.first_validation_loss!, wide.state.first_validation_loss!, 4e-3)
      assert.closeTo(loss, wide.state.validation!.loss, 0.05)
      // The order of samples does not depend on the seed here: what differs is the rounding.
      const other = yield* succeeded(yield* folder, { seed: 8 })
      assert.notStrictEqual(other.state.validation!.loss, loss)
      assert.closeTo(other.state.validation!.loss, loss, 0.05)
    })
  )

  live("stopped anywhere and run again, it leaves the same bits as undisturbed", () =>
    Effect.gen(function* () {
      const undisturbed = yield* succeeded(yield* folder)
      for (const stop of [3, 40, 77, 101]) {
        const work = yield* folder
        const first = yield* attempt(work, { stopAfterPolls: stop })
        assert.strictEqual(first._tag === "Failure" && first.failure._tag, "Preempted")
        assert.deepStrictEqual(left(yield* succeeded(work)), left(undisturbed), `stopped at poll ${stop}`)
      }
    })
  )

  live("checkpoints hold them as BF16, exactly, and those of another type are not taken", () =>
    Effect.gen(function* () {
      const { checkpoints, state } = yield* succeeded(yield* folder)
      const last = checkpoints.at(-1)!
      for (const name of ["weights.safetensors", "optimizer.safetensors"]) {
        const { tensors } = yield* readSafetensors(join(last, name))
        assert.isTrue([...tensors.values()].every(({ dtype }) => dtype === "BF16"))
      }
      const root = join(last, "..")
      const model = yield* tinyModel(1, { state: "bf16" })
      const restored = yield* Checkpoints.restoreNewest(root, model, (line) => assert.fail(line))
      assert.strictEqual(restored?.state.step, 50)
      const copy = yield* folder
      yield* saveCheckpoint(copy, model, state)
      assert.deepStrictEqual(filesOf(join(copy, "step-00000050")), filesOf(last))

      const wide = yield* tinyModel(1)
      const error = yield* Effect.flip(Checkpoints.restoreNewest(root, wide, (line) => assert.fail(line)))
      assert.include(error.message, "is BF16, the model's is F32")
    })
  )

  live("reads what it holds exactly, and takes other values rounded to the nearest", () =>
    Effect.gen(function* () {
      const wide = yield* tinyModel(5)
      const narrow = yield* tinyModel(5, { state: "bf16" })
      assert.deepStrictEqual([wide.stateType, narrow.stateType], ["fp32", "bf16"])
      const [weights] = contents(narrow)
      assert.isTrue(isBfloat16(weights!))
      assert.isFalse(isBfloat16(contents(wide)[0]!))
      const values = Float32Array.of(1 + 2 ** -9, 1 + 2 ** -8, 1 + 3 * 2 ** -9, -0.1, 3e-40, 0)
      const rounded = Float32Array.of(1, 1, 1 + 2 ** -7, -0.10009765625, 3 * 2 ** -133, 0)
      for (const kind of KINDS) {
        narrow.write(kind, 3, values)
        assert.deepStrictEqual(narrow.read(kind, 3, 6), rounded)
        const read = narrow.read(kind, 0, narrow.parameterCount)
        assert.isTrue(isBfloat16(read))
        narrow.write(kind, 0, read)
        assert.deepStrictEqual(narrow.read(kind, 0, narrow.parameterCount), read)
      }
    })
  )

  live("a GPU holds 10 bytes of each parameter, the CPU 14, and bf16-sr is had on either", () =>
    Effect.gen(function* () {
      const native = yield* Native.load
      const shape = presets["tinyllama-1.1b"]
      const bytes = (options: Omit<Native.ModelOptions, "threads">) => {
        const plan = native.planTrainingMemory(toModelConfig(shape), { threads: 1, ...options }, 1, 2048)
        // Gradients come with a sum of squares, 8 bytes, per block of 4,096 of a group.
        const sums = (8 * plan.gradients) / (4 * 4096)
        return (plan.weights + plan.gradients - sums + plan.moments) / parameterCount(shape)
      }
      assert.closeTo(bytes({ device: "cuda", precision: "bf16" }), 18, 1e-5)
      // And the gains once more, in fp32: 45 of 2,048.
      assert.closeTo(bytes({ device: "cuda", precision: "bf16", state: "bf16" }), 10, 4e-4)
      assert.closeTo(bytes({ state: "bf16" }), 14, 1e-5)
      const wish = { device: "cpu", gpu: 0, precision: "bf16-sr" } as const
      assert.deepInclude(yield* chooseCompute(wish, 2), { device: "cpu", precision: "fp32", state: "bf16" })
      if (native.gpus().gpus.length > 0) return
      assert.deepInclude(yield* chooseCompute({ ...wish, device: "auto" }, 2), { device: "cpu", state: "bf16" })
    })
  )
})
