import { createHash } from "node:crypto"
import { existsSync, readFileSync, statSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import { Effect, FileSystem } from "effect"
import type { ArtifactHandle } from "../../src/artifacts/Artifact.ts"
import { readCompletion } from "../../src/engine/CheckpointManifest.ts"
import { verifyCheckpoint } from "../../src/engine/Checkpoints.ts"
import { fromHfConfig } from "../../src/model/HfConfig.ts"
import { parameterCount } from "../../src/model/Architecture.ts"
import { checkpointBytes } from "../../src/model/ModelSizes.ts"
import { pretrainStage } from "../../src/stages/Pretrain.ts"
import { filesOf, type RunOptions, runStage, temporaryFolder } from "./stage-fixture.ts"
import { tinyDataset, tinyShape } from "./training-fixture.ts"

/** Ten steps of four sequences, in micro-batches of three and one; two and a half epochs. */
const params = {
  model: tinyShape,
  max_tokens: 10 * 4 * 16 + 5,
  micro_batch: 3,
  batch_tokens: 4 * 16,
  lr: { peak: 1e-2, min: 1e-3, warmup_steps: 2 },
  validate_every: 4,
  save_every: 3,
  log_every: 2
}

const pretrain = (data: ArtifactHandle, options: Omit<RunOptions, "inputs"> = {}) =>
  runStage(pretrainStage, { ...options, inputs: { data }, params: { ...params, ...options.params } })

const stageError = Effect.fnUntraced(function* <A, E extends { readonly _tag: string }, R>(
  run: Effect.Effect<A, E, R>
) {
  const error = yield* Effect.flip(run)
  if (error._tag !== "StageError") return yield* Effect.die(error)
  return error as E & { readonly failure: string; readonly message: string; readonly next: string }
})

describe("pretrain", () => {
  it.live("leaves the contract's files and facts, and learns", () =>
    Effect.gen(function* () {
      const data = yield* tinyDataset({ train: 16, validation: 4 })
      const { logs, outputs, warnings } = yield* pretrain(data)
      const { facts, folder } = outputs.state
      const names = ["COMPLETE.json", "optimizer.safetensors", "state.json", "weights.safetensors"]
      assert.deepStrictEqual(
        filesOf(folder).map(({ path }) => path),
        [
          ...["step-00000009", "step-00000010"].flatMap((step) => names.map((name) => `checkpoints/${step}/${name}`)),
          "config.json",
          "metrics.jsonl"
        ]
      )
      const shape = yield* fromHfConfig("config.json", JSON.parse(readFileSync(join(folder, "config.json"), "utf8")))
      assert.deepInclude(shape, { ...tinyShape, head_dim: 8 })
      assert.deepInclude(facts, {
        steps: 10,
        tokens: 640,
        parameters: parameterCount(shape),
        tokenizer: "llama-2",
        tokenizer_digest: "0".repeat(64)
      })
      assert.isBelow(Number(facts["validation_loss"]), 0.9 * Number(facts["first_validation_loss"]))
      const checkpoint = join(folder, "checkpoints/step-00000010")
      const completion = yield* readCompletion(checkpoint)
      const small = (path: string) =>
        createHash("sha256")
          .update(readFileSync(join(checkpoint, path)))
          .digest("hex")
      assert.deepInclude(completion, { version: 2, step: 10, world_size: 1 })
      assert.deepStrictEqual(
        completion.files.map((file) => [file.path, file.bytes, "pieces" in file ? file.pieces : []]),
        ["optimizer.safetensors", "state.json", "weights.safetensors"].map((name) => [
          name,
          statSync(join(checkpoint, name)).size,
          [small(name)]
        ])
      )
      assert.strictEqual((yield* verifyCheckpoint(checkpoint)).step, 10)
      assert.isTrue(logs.some((line) => line.includes("10 steps of 4 × 16 tokens")))
      assert.deepStrictEqual(warnings, [
        "the budget is 2.5 times the data: every block is trained on that often, in a new order each time"
      ])
    }).pipe(Effect.scoped, Effect.provide(NodeServices.layer))
  )

  it.live("interrupted and resumed it leaves the same bytes as undisturbed, on another number of threads too", () =>
    Effect.gen(function* () {
      const data = yield* tinyDataset({ train: 16, validation: 4 })
      const undisturbed = filesOf((yield* pretrain(data, { threads: 2 })).outputs.state.folder)
      for (const stopAfterPolls of [1, 8, 17]) {
        const work = yield* temporaryFolder
        const stopped = yield* Effect.flip(pretrain(data, { work, stopAfterPolls, threads: 1 }))
        assert.strictEqual(stopped._tag, "Preempted")
        const { outputs } = yield* pretrain(data, { work, threads: 1, params: { save_every_seconds: 0, log_every: 1 } })
        assert.deepStrictEqual(filesOf(outputs.state.folder), undisturbed, `stopped after ${stopAfterPolls} polls`)
      }
    }).pipe(Effect.scoped)
  )

  it.live("with bf16 weights and moments: half the files, as forecast, and the same bytes after an interruption", () =>
    Effect.gen(function* () {
      const data = yield* tinyDataset({ train: 16, validation: 4 })
      const options = { params: { precision: "bf16-sr" } }
      const undisturbed = (yield* pretrain(data, { ...options, threads: 2 })).outputs.state
      const work = yield* temporaryFolder
      const stopped = yield* Effect.flip(pretrain(data, { ...options, work, stopAfterPolls: 14, threads: 1 }))
      assert.strictEqual(stopped._tag, "Preempted")
      const { outputs } = yield* pretrain(data, { ...options, work, threads: 1 })
      assert.deepStrictEqual(filesOf(outputs.state.folder), filesOf(undisturbed.folder))
      const checkpoint = join(undisturbed.folder, "checkpoints/step-00000010")
      const bytes = ["weights.safetensors", "optimizer.safetensors"].reduce(
        (sum, name) => sum + statSync(join(checkpoint, name)).size,
        0
      )
      const shape = yield* fromHfConfig(
        "config.json",
        JSON.parse(readFileSync(join(undisturbed.folder, "config.json"), "utf8"))
      )
      assert.isTrue(bytes > 6 * parameterCount(shape) && bytes <= checkpointBytes(shape, "bf16"), `${bytes} bytes`)
    }).pipe(Effect.scoped)
  )

  it.live("a damaged newest checkpoint: it goes on from the one before, aloud, to the same bytes", () =>
    Effect.gen(function* () {
      const data = yield* tinyDataset({ train: 16, validation: 4 })
      const undisturbed = filesOf((yield* pretrain(data)).outputs.state.folder)
      const work = yield* temporaryFolder
      yield* Effect.flip(pretrain(data, { work, stopAfterPolls: 20 }))
      const newest = filesOf(join(work, "checkpoints")).findLast(({ path }) => path.endsWith("optimizer.safetensors"))!
      writeFileSync(join(work, "checkpoints", newest.path), "damage")
      const { outputs, warnings } = yield* pretrain(data, { work })
      assert.isTrue(warnings.some((line) => line.includes("damaged and is passed over")))
      assert.deepStrictEqual(filesOf(outputs.state.folder), undisturbed)
    }).pipe(Effect.scoped)
  )

  it.live(
    "a loss that is not a number fails as diverged, with the step, the last good checkpoint and a next step",
    () =>
      Effect.gen(function* () {
        const data = yield* tinyDataset({ train: 16, validation: 0 })
        const lr = { peak: 1e30, min: 0, warmup_steps: 0, schedule: "constant" }
        const error = yield* stageError(pretrain(data, { params: { lr, clip: 0, save_every: 1, bad_steps: 0 } }))
        assert.strictEqual(error.failure, "diverged")
        assert.match(error.message, /diverged at step 2 of 10.*step-00000001/u)
        assert.include(error.next, "lower lr.peak")
      }).pipe(Effect.scoped)
  )

  // Linux's /dev/full refuses every write as a full disk does.
  it.live.skipIf(!existsSync("/dev/full"))(
    `a full disk fails as such and keeps the checkpoint before${existsSync("/dev/full") ? "" : " (no /dev/full here)"}`,
    () =>
      Effect.gen(function* () {
        const data = yield* tinyDataset({ train: 16, validation: 0 })
        const work = yield* temporaryFolder
        const undisturbed = yield* pretrain(data)
        yield* Effect.flip(pretrain(data, { work, stopAfterPolls: 10 }))
        // The first save after the resume is that of step 6.
        const full: typeof pretrainStage = {
          ...pretrainStage,
          run: (context) =>
            Effect.updateService(pretrainStage.run(context), FileSystem.FileSystem, (fs) => ({
              ...fs,
              open: (path, options) => fs.open(path.includes(".draft-step-00000006/") ? "/dev/full" : path, options)
            }))
        }
        const error = yield* stageError(runStage(full, { work, params, inputs: { data } }))
        assert.strictEqual(error.failure, "disk-full")
        assert.match(error.message, /checkpoint of step 6 .*the checkpoint of step 5 is intact/u)
        assert.include(error.next, "goes on from step 5")
        const { outputs } = yield* pretrain(data, { work })
        assert.deepStrictEqual(filesOf(outputs.state.folder), filesOf(undisturbed.outputs.state.folder))
      }).pipe(Effect.scoped)
  )

  it.live("what does not fit together is refused, with the place and the next step", () =>
    Effect.gen(function* () {
      const data = yield* tinyDataset({ train: 4, validation: 0 })
      const refused = (handle: ArtifactHandle, changed: Readonly<Record<string, unknown>> = {}) =>
        stageError(pretrain(handle, { params: changed }))
      const vocabulary = yield* refused(data, { model: { ...tinyShape, vocab_size: 97 } })
      assert.include(vocabulary.message, "packed.dataset holds tokens of a vocabulary of 96, the model's is 97")
      assert.include(vocabulary.next, "model.vocab_size to 96")
      const context = yield* refused(yield* tinyDataset({ train: 4, validation: 0, seqLen: 40 }), { batch_tokens: 400 })
      assert.include(context.message, "sequences of 40 tokens, the model's context is 32")
      const empty = yield* refused(yield* tinyDataset({ train: 0, validation: 0 }))
      assert.include(empty.message, "has no training block")
      const batch = yield* refused(data, { batch_tokens: 15 })
      assert.include(batch.message, "batch_tokens is 15")
      const budget = yield* refused(data, { max_tokens: 63 })
      assert.include(budget.message, "less than the 64 tokens of one step")
      for (const error of [vocabulary, context, empty, batch, budget])
        assert.strictEqual(error.failure, "invalid-input")
    }).pipe(Effect.scoped)
  )

  it.live("a corrupt dataset fails as corrupt", () =>
    Effect.gen(function* () {
      const data = yield* tinyDataset({ train: 4, validation: 0 })
      const file = join(data.folder, "train.arrow")
      const bytes = readFileSync(file)
      bytes[bytes.length >> 1]! ^= 255
      writeFileSync(file, bytes)
      const error = yield* stageError(pretrain(data))
      assert.strictEqual(error.failure, "corrupt")
      assert.include(error.message, "train.arrow")
    }).pipe(Effect.scoped)
  )

  it.live("fewer blocks than one micro-batch: the data goes round, with a warning", () =>
    Effect.gen(function* () {
      const { outputs, warnings } = yield* pretrain(yield* tinyDataset({ train: 2, validation: 0 }))
      assert.strictEqual(outputs.state.facts["steps"], 10)
      assert.isNull(outputs.state.facts["validation_loss"])
      assert.include(warnings[0], "20.0 times the data")
      assert.include(warnings[1], "no validation block")
    }).pipe(Effect.scoped)
  )
})
