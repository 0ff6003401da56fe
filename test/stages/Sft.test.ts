import { existsSync, readFileSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import { Effect, FileSystem } from "effect"
import type { ArtifactHandle, Facts } from "../../src/artifacts/Artifact.ts"
import { loadTokenizer } from "../../src/engine/Tokenizer.ts"
import { openModel } from "../../src/engine/TrainingModel.ts"
import type { ModelShape } from "../../src/model/Architecture.ts"
import { loadWeights, readHfModel, weightsOf, writeWeights } from "../../src/model/HuggingFace.ts"
import { inMicroBatches, paddedBatch, sftStage } from "../../src/stages/Sft.ts"
import { artifactOf, filesOf, type RunOptions, runStage, temporaryFolder } from "./stage-fixture.ts"
import { conversationDocuments } from "./training-fixture.ts"

const shape: ModelShape = {
  vocab_size: 32_000,
  hidden_size: 32,
  intermediate_size: 56,
  num_hidden_layers: 1,
  num_attention_heads: 2,
  num_key_value_heads: 1,
  head_dim: 16,
  max_position_embeddings: 64,
  rms_norm_eps: 1e-5,
  rope_theta: 10_000,
  tie_word_embeddings: false
}

/** Random weights in a Checkpoint's folder. */
const baseCheckpoint = Effect.fnUntraced(function* (changed: Facts) {
  const folder = yield* temporaryFolder
  const model = yield* openModel(shape, { threads: 1 })
  model.initialize(5)
  yield* writeWeights(folder, { shape, precision: "fp32", weights: weightsOf(model) })
  const { digest } = yield* loadTokenizer("llama-2")
  return artifactOf(
    "Checkpoint",
    folder,
    { tokenizer: "llama-2", tokenizer_digest: digest, ...changed },
    "final.checkpoint"
  )
}, Effect.provide(NodeServices.layer))

const lines = ["red", "green", "blue", "black", "white", "grey"].map((color, index) =>
  JSON.stringify({ text: `### Human: Say ${color}.### Assistant: ${color} ${"and ".repeat(index)}${color}` })
)

const params = { epochs: 2, lr: 1e-2, batch_rows: 4, micro_batch: 3, log_every: 2 }

const fineTune = (base: ArtifactHandle, conversations: ArtifactHandle, options: Omit<RunOptions, "inputs"> = {}) =>
  runStage(sftStage, { ...options, inputs: { base, conversations }, params: { ...params, ...options.params } })

const stageError = Effect.fnUntraced(function* <A, E extends { readonly _tag: string }, R>(
  run: Effect.Effect<A, E, R>
) {
  const error = yield* Effect.flip(run)
  if (error._tag !== "StageError") return yield* Effect.die(error)
  return error as E & { readonly failure: string; readonly message: string; readonly next: string }
})

describe("paddedBatch", () => {
  const row = (tokens: ReadonlyArray<number>, from: number) => ({
    tokens: Int32Array.from(tokens),
    scored: Uint8Array.from(tokens, (_, index) => (index >= from ? 1 : 0))
  })

  it("inputs are all tokens but the last, targets all but the first; padding and questions are not scored", () => {
    const batch = paddedBatch([row([1, 10, 11, 2], 2), row([1, 20, 2], 1)], 9)
    assert.deepStrictEqual(batch, {
      tokens: Int32Array.from([1, 10, 11, 1, 20, 9]),
      targets: Int32Array.from([-1, 11, 2, 20, 2, -1]),
      batch: 2,
      length: 3,
      inputTokens: 5
    })
  })

  it("micro-batches hold rows of like length", () => {
    const rows = [5, 2, 4, 3, 6].map((length) =>
      row(
        Array.from({ length }, () => 7),
        1
      )
    )
    assert.deepStrictEqual(
      inMicroBatches(rows, 2, 0).map(({ batch, length }) => [batch, length]),
      [
        [2, 2],
        [2, 4],
        [1, 5]
      ]
    )
  })
})

describe("sft", () => {
  it.live("leaves a Hugging Face folder of a model that learned the answers", () =>
    Effect.gen(function* () {
      const base = yield* baseCheckpoint({})
      const talk = yield* conversationDocuments(lines)
      const { outputs, warnings } = yield* fineTune(base, talk, { params: { epochs: 30 } })
      const { facts, folder } = outputs.model
      assert.deepStrictEqual(
        filesOf(folder).map(({ path }) => path),
        [
          "config.json",
          "generation_config.json",
          "model.safetensors",
          "tokenizer.json",
          "tokenizer.model",
          "tokenizer_config.json"
        ]
      )
      assert.deepInclude(facts, {
        chat: "guanaco",
        dtype: "fp32",
        context_length: 64,
        conversations: 6,
        truncated: 0,
        steps: 45,
        validation_loss: null
      })
      assert.deepStrictEqual(warnings, [])
      assert.isBelow(Number(facts["training_loss"]), 0.5)
      assert.include(readFileSync(join(folder, "tokenizer_config.json"), "utf8"), "chat_template")

      // Asked as the chat asks, greedily, it answers and ends.
      const tokenizer = yield* loadTokenizer("llama-2")
      const source = yield* readHfModel(folder)
      const model = yield* openModel(source.shape, { threads: 1 })
      yield* loadWeights(model, source)
      const ids = [
        ...tokenizer.encode(new TextEncoder().encode("### Human: Say blue.### Assistant:"), { addBos: true })
      ]
      const start = ids.length
      while (ids.at(-1) !== tokenizer.eos && ids.length < 40) {
        const batch = { tokens: Int32Array.from(ids), batch: 1, length: ids.length }
        const last = (yield* Effect.promise(() => model.logits(batch))).subarray(-shape.vocab_size)
        ids.push(last.indexOf(Math.max(...last)))
      }
      assert.strictEqual(new TextDecoder().decode(tokenizer.decode(ids.slice(start, -1))).trim(), "blue and and blue")
      assert.strictEqual(ids.at(-1), tokenizer.eos)
    }).pipe(Effect.scoped, Effect.provide(NodeServices.layer))
  )

  it.live.each([
    { name: "fp32", params: {} },
    { name: "bf16 weights and moments", params: { precision: "bf16-sr" } }
  ])(
    "interrupted and resumed it leaves the same bytes as undisturbed, on another number of threads too: $name",
    ({ params }) =>
      Effect.gen(function* () {
        const base = yield* baseCheckpoint({})
        const talk = yield* conversationDocuments(lines)
        const options = { params: { validation: 0.2, epochs: 3, schedule: "cosine", warmup_steps: 1, ...params } }
        const undisturbed = filesOf((yield* fineTune(base, talk, { ...options, threads: 2 })).outputs.model.folder)
        const work = yield* temporaryFolder
        const stopped = yield* Effect.flip(fineTune(base, talk, { ...options, work, stopAfterPolls: 5, threads: 1 }))
        assert.strictEqual(stopped._tag, "Preempted")
        const { outputs } = yield* fineTune(base, talk, { ...options, work, threads: 1 })
        assert.deepStrictEqual(filesOf(outputs.model.folder), undisturbed)
      }).pipe(Effect.scoped)
  )

  it.live("an unfinished run goes on with more epochs, to the bytes of one that had them from the start", () =>
    Effect.gen(function* () {
      const base = yield* baseCheckpoint({})
      const talk = yield* conversationDocuments(lines)
      const more = { validation: 0.2, epochs: 5 }
      const work = yield* temporaryFolder
      const before = { ...params, validation: 0.2, epochs: 3 }
      yield* Effect.flip(fineTune(base, talk, { params: before, work, stopAfterPolls: 7 }))
      const previous = { params: before, outputs: {}, work }
      const onTop = yield* fineTune(base, talk, { params: more, previous })
      const anew = yield* fineTune(base, talk, { params: more })
      assert.isTrue(onTop.logs.some((line) => /^continues an earlier run, of which the first [1-9]/u.test(line)))
      assert.deepStrictEqual(filesOf(onTop.outputs.model.folder), filesOf(anew.outputs.model.folder))
      assert.deepStrictEqual(onTop.outputs.model.facts, anew.outputs.model.facts)
      // The last step of the shorter run had fewer conversations: it is none of the longer run's.
      const short = { ...params, epochs: 1 }
      const whole = yield* temporaryFolder
      yield* fineTune(base, talk, { params: short, work: whole })
      const longer = { params: { epochs: 3 }, previous: { params: short, outputs: {}, work: whole } }
      assert.deepStrictEqual(
        filesOf((yield* fineTune(base, talk, longer)).outputs.model.folder),
        filesOf((yield* fineTune(base, talk, { params: { epochs: 3 } })).outputs.model.folder)
      )
    }).pipe(Effect.scoped)
  )

  it.live("holds conversations out for validation, the same for the same seed", () =>
    Effect.gen(function* () {
      const base = yield* baseCheckpoint({})
      const talk = yield* conversationDocuments(lines)
      const { logs, outputs } = yield* fineTune(base, talk, { params: { validation: 0.34, epochs: 1 } })
      assert.isTrue(logs.some((line) => line.startsWith("4 conversations") && line.includes("2 held out")))
      assert.isNumber(outputs.model.facts["first_validation_loss"])
      assert.isNumber(outputs.model.facts["validation_loss"])
    }).pipe(Effect.scoped)
  )

  it.live("counts what it cuts and leaves out, aloud", () =>
    Effect.gen(function* () {
      const base = yield* baseCheckpoint({})
      const talk = yield* conversationDocuments([
        ...lines,
        JSON.stringify({ text: `### Human: Short?### Assistant: ${"long ".repeat(80)}` }),
        JSON.stringify({ text: `### Human: ${"long ".repeat(80)}### Assistant: Short.` }),
        JSON.stringify({ text: "### Human: One?### Assistant: Yes.### Human: Two?" })
      ])
      const { outputs, warnings } = yield* fineTune(base, talk, { params: { epochs: 1 } })
      assert.deepStrictEqual(
        warnings.map((line) => /^\d+ of 9 conversations [a-z ]+/u.exec(line)?.[0]),
        [
          "1 of 9 conversations end with a question",
          "2 of 9 conversations are longer than ",
          "1 of 9 conversations have no answer within "
        ]
      )
      assert.strictEqual(outputs.model.facts["truncated"], 2)
    }).pipe(Effect.scoped)
  )

  it.live("bad input is refused with the place and the next step", () =>
    Effect.gen(function* () {
      const base = yield* baseCheckpoint({})
      const good = yield* conversationDocuments(lines)
      const row = yield* stageError(fineTune(base, yield* conversationDocuments([lines[0]!, '{"text":"Hello"}'])))
      assert.include(row.message, 'talk.jsonl:2: the text starts with "Hello"')
      const foreign = yield* stageError(fineTune(yield* baseCheckpoint({ tokenizer_digest: "0" }), good))
      assert.include(foreign.message, "final.checkpoint was made with another vocabulary")
      const unknown = yield* stageError(fineTune(yield* baseCheckpoint({ tokenizer: "other" }), good))
      assert.include(unknown.message, 'tokenizer "other"')
      for (const error of [row, foreign, unknown]) assert.strictEqual(error.failure, "invalid-input")
      writeFileSync(join(base.folder, "model.safetensors"), "damage")
      const damaged = yield* stageError(fineTune(base, good))
      assert.strictEqual(damaged.failure, "corrupt")
      assert.include(damaged.next, "--force final")
    }).pipe(Effect.scoped)
  )

  // Linux's /dev/full refuses every write as a full disk does.
  it.live.skipIf(!existsSync("/dev/full"))(
    `a full disk at the very end loses only the end${existsSync("/dev/full") ? "" : " (no /dev/full here)"}`,
    () =>
      Effect.gen(function* () {
        const base = yield* baseCheckpoint({})
        const conversations = yield* conversationDocuments(lines)
        const work = yield* temporaryFolder
        const full: typeof sftStage = {
          ...sftStage,
          run: (context) =>
            Effect.updateService(sftStage.run(context), FileSystem.FileSystem, (fs) => ({
              ...fs,
              open: (path, options) =>
                fs.open(path.endsWith("model.safetensors") && options?.flag === "w" ? "/dev/full" : path, options)
            }))
        }
        const error = yield* stageError(runStage(full, { work, params, inputs: { base, conversations } }))
        assert.strictEqual(error.failure, "disk-full")
        assert.include(error.message, "the training itself is saved")
        const { logs } = yield* fineTune(base, conversations, { work })
        assert.isFalse(logs.some((line) => /^step \d/u.test(line)))
      }).pipe(Effect.scoped)
  )
})
