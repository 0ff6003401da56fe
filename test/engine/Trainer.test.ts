import { readFileSync, writeFileSync } from "node:fs"
import { basename, dirname, join } from "node:path"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import { Effect, FileSystem, type Scope } from "effect"
import { restoreNewest } from "../../src/engine/Checkpoints.ts"
import { learningRateAt } from "../../src/engine/Schedule.ts"
import { train, type TrainingData, type TrainingPlan } from "../../src/engine/Trainer.ts"
import { type Progress, StageError } from "../../src/pipeline/StageType.ts"
import { filesOf } from "../stages/stage-fixture.ts"
import { tinyData, tinyModel, tinyPlan } from "./tiny-model.ts"

const folder = Effect.flatMap(FileSystem.FileSystem, (fs) => fs.makeTempDirectoryScoped({ prefix: "trainer-" }))

interface Options {
  readonly plan?: Partial<TrainingPlan>
  readonly data?: TrainingData
  readonly stopAfterPolls?: number
}

/** One attempt in `work`, with a model of its own; what it said comes back with what it did. */
const attempt = Effect.fnUntraced(function* (work: string, options: Options = {}) {
  const plan = { ...tinyPlan, ...options.plan }
  const model = yield* tinyModel(99)
  const lines: Array<string> = []
  const warnings: Array<string> = []
  const readings: Array<Progress> = []
  let polls = 0
  const outcome = yield* Effect.result(
    train(
      model,
      plan,
      options.data ?? tinyData,
      Effect.sync(() => model.initialize(plan.seed)),
      {
        work,
        progress: (reading) => readings.push(reading),
        log: (line) => lines.push(line),
        warn: (line) => warnings.push(line),
        stopRequested: () => polls++ >= (options.stopAfterPolls ?? Infinity)
      }
    )
  )
  return { outcome, lines, warnings, readings, polls }
}, Effect.scoped)

const succeeded = Effect.fnUntraced(function* (work: string, options: Options = {}) {
  const { outcome, ...said } = yield* attempt(work, options)
  return { ...(yield* Effect.fromResult(outcome)), ...said }
})

/** What a finished run leaves: the digests of the checkpoints that stay, and the metrics. */
const left = (outcome: { readonly checkpoints: ReadonlyArray<string>; readonly metricsPath: string }) => ({
  checkpoints: outcome.checkpoints.map((path) => [basename(path), filesOf(path)]),
  metrics: readFileSync(outcome.metricsPath, "utf8")
})

const live = (name: string, test: () => Effect.Effect<void, unknown, NodeServices.NodeServices | Scope.Scope>) =>
  it.live(name, () => Effect.scoped(test()).pipe(Effect.provide(NodeServices.layer)))

describe("train", () => {
  live("learns, validates first, on schedule and last, and keeps the last and the best checkpoints", () =>
    Effect.gen(function* () {
      const outcome = yield* succeeded(yield* folder)
      assert.strictEqual(outcome.totalSteps, 12)
      assert.strictEqual(outcome.state.tokens, 46 * 16)
      assert.strictEqual(outcome.state.next_sample, 46)
      assert.isBelow(outcome.state.validation!.loss, 0.8 * outcome.state.first_validation_loss!)
      // Uniform guessing over 64 tokens costs ln 64 = 4.159 nats.
      assert.closeTo(outcome.state.first_validation_loss!, Math.log(64), 0.6)
      const lines = readFileSync(outcome.metricsPath, "utf8")
        .trimEnd()
        .split("\n")
        .map((line) => JSON.parse(line) as Record<string, number>)
      assert.deepStrictEqual(
        lines.filter((line) => "validation_loss" in line).map((line) => line.step),
        [0, 4, 8, 12]
      )
      const steps = lines.filter((line) => "loss" in line)
      assert.deepStrictEqual(
        steps.map((line) => line.step),
        [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]
      )
      for (const line of steps) {
        assert.strictEqual(line.learning_rate, learningRateAt(tinyPlan.schedule, line.step!))
        assert.strictEqual(line.tokens, Math.min(64 * line.step!, 46 * 16))
      }
      assert.deepStrictEqual(
        outcome.checkpoints.map((path) => basename(path)),
        ["step-00000010", "step-00000012"]
      )
      assert.deepStrictEqual(outcome.warnings, [])
    })
  )

  live("milestones stay besides", () =>
    Effect.gen(function* () {
      const { checkpoints } = yield* succeeded(yield* folder, {
        plan: { saveEvery: 0, keep: 1, milestones: { tokens: 200, perStep: 64 } }
      })
      assert.includeMembers(
        checkpoints.map((path) => basename(path)),
        ["step-00000004", "step-00000007", "step-00000010", "step-00000012"]
      )
    })
  )

  live("every log line carries the numbers, and readings go to the progress", () =>
    Effect.gen(function* () {
      const { lines, readings } = yield* succeeded(yield* folder)
      const steps = lines.filter((line) => /^step \d+\/12: \d+ tokens/u.test(line))
      assert.deepStrictEqual(
        steps.map((line) => /^step (\d+)/u.exec(line)![1]),
        ["3", "6", "9", "12"]
      )
      for (const line of steps)
        assert.match(
          line,
          /loss [\d.]+, lr [\d.e-]+, gradient norm [\d.]+, \d+ tokens\/s, [\d.]+ GFLOP\/s, peak memory \d+ MiB, .+ left$/u
        )
      assert.isTrue(lines.some((line) => line.startsWith("FLOP per token: 6N = ")))
      const last = readings.at(-1)!
      assert.deepInclude(last, { done: 736, total: 736, unit: "tokens" })
      assert.strictEqual(last.metrics!.seconds_left, 0)
    })
  )

  live("stopped anywhere, in a step or a validation, and run again, it leaves the same bits as undisturbed", () =>
    Effect.gen(function* () {
      const undisturbed = yield* succeeded(yield* folder)
      for (let stop = 0; stop < undisturbed.polls; stop += 3) {
        const work = yield* folder
        const first = yield* attempt(work, { stopAfterPolls: stop })
        assert.strictEqual(first.outcome._tag === "Failure" && first.outcome.failure._tag, "Preempted")
        assert.deepStrictEqual(left(yield* succeeded(work)), left(undisturbed), `stopped at poll ${stop}`)
      }
    })
  )

  live("stopped again and again, with saves by time in between, still the same bits", () =>
    Effect.gen(function* () {
      const undisturbed = yield* succeeded(yield* folder)
      const work = yield* folder
      let attempts = 0
      for (;;) {
        const { outcome } = yield* attempt(work, { stopAfterPolls: 5, plan: { saveEverySeconds: 0 } })
        attempts++
        if (outcome._tag === "Failure") continue
        assert.deepStrictEqual(left(outcome.success), left(undisturbed))
        break
      }
      assert.isAbove(attempts, 4)
    })
  )

  live("a step of more micro-batches than are handed over at once is their sum, one after the other", () =>
    Effect.gen(function* () {
      const plan = { ...tinyPlan, totalSamples: 90, samplesPerStep: 90 }
      const { checkpoints } = yield* succeeded(yield* folder, { plan })
      const batches = yield* tinyData.batches(0, 90)
      const [trained, model] = [yield* tinyModel(1), yield* tinyModel(1)]
      yield* restoreNewest(dirname(checkpoints[0]!), trained, (warning) => assert.fail(warning))
      model.initialize(plan.seed)
      yield* Effect.promise(async () => {
        for (const batch of batches) await model.accumulate(batch, 1 / (90 * 16))
        await model.step({ ...plan.optimizer, step: 1, learningRate: learningRateAt(plan.schedule, 1) })
      })
      const weights = (of: typeof model) => of.read("weights", 0, of.parameterCount)
      assert.deepStrictEqual(weights(trained), weights(model))
    })
  )

  live("a finished run, run again, does nothing and returns the same", () =>
    Effect.gen(function* () {
      const work = yield* folder
      const first = yield* succeeded(work)
      const before = left(first)
      const again = yield* succeeded(work)
      assert.deepStrictEqual(left(again), before)
      assert.strictEqual(again.polls, 0)
    })
  )

  live(
    "a damaged newest checkpoint and a torn metrics line: goes on from the one before, aloud, to the same bits",
    () =>
      Effect.gen(function* () {
        const undisturbed = yield* succeeded(yield* folder)
        const work = yield* folder
        yield* attempt(work, { stopAfterPolls: 22 })
        const newest = filesOf(join(work, "checkpoints")).findLast(({ path }) => path.endsWith("weights.safetensors"))!
        writeFileSync(join(work, "checkpoints", newest.path), "damage")
        writeFileSync(join(work, "metrics.jsonl"), '{"step":', { flag: "a" })
        const resumed = yield* succeeded(work)
        assert.lengthOf(resumed.warnings, 1)
        assert.include(resumed.warnings[0], "is damaged and is passed over")
        assert.isTrue(resumed.lines.some((line) => line.startsWith("goes on from the checkpoint of step ")))
        assert.deepStrictEqual(left(resumed), left(undisturbed))
      })
  )

  live("without validation data it saves and finishes, and keeps scheduled checkpoints alone", () =>
    Effect.gen(function* () {
      const outcome = yield* succeeded(yield* folder, {
        data: { ...tinyData, validation: Effect.succeed([]) },
        plan: { keep: 1 }
      })
      assert.isNull(outcome.state.validation)
      assert.isNull(outcome.state.best)
      assert.deepStrictEqual(
        outcome.checkpoints.map((path) => basename(path)),
        ["step-00000012"]
      )
    })
  )

  live("steps whose loss is no number are left out, aloud, up to the count", () =>
    Effect.gen(function* () {
      const work = yield* folder
      const { outcome, warnings } = yield* attempt(work, {
        plan: {
          badSteps: 2,
          schedule: { ...tinyPlan.schedule, kind: "constant", peak: 1e30, warmupSteps: 0 },
          optimizer: { ...tinyPlan.optimizer, clip: 0 },
          validateEvery: 0
        }
      })
      const error = outcome._tag === "Failure" ? outcome.failure : undefined
      assert.match(error?.message ?? "", /training diverged at step 4 of 12: the loss is /u)
      assert.deepStrictEqual(
        warnings.map((line) => line.replace(/the .* is \S+;/u, "…;")),
        ["step 2 is left out: …; 1 of at most 2 in a row", "step 3 is left out: …; 2 of at most 2 in a row"]
      )
    })
  )

  live("divergence names the step, the loss, the last good checkpoint and the way out, and loses nothing", () =>
    Effect.gen(function* () {
      const work = yield* folder
      const { outcome } = yield* attempt(work, {
        plan: {
          schedule: { ...tinyPlan.schedule, kind: "constant", peak: 1e30, warmupSteps: 0 },
          optimizer: { ...tinyPlan.optimizer, clip: 0 },
          saveEvery: 1,
          validateEvery: 0
        }
      })
      assert.isTrue(outcome._tag === "Failure")
      const error = outcome._tag === "Failure" ? outcome.failure : undefined
      assert.instanceOf(error, StageError)
      assert.strictEqual(error?._tag === "StageError" && error.failure, "diverged")
      assert.match(error?.message ?? "", /training diverged at step 2 of 12: the loss is /u)
      assert.include(error?.message, join(work, "checkpoints", "step-00000001"))
      assert.strictEqual(error?._tag === "StageError" && error.next, "lower lr.peak")
    })
  )
})
