/** Where an attempt would go on, by what lies in its work folder; while somebody else may be writing there. */
import { mkdirSync, renameSync, rmSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import type { ArtifactHandle } from "../../src/artifacts/Artifact.ts"
import { encodeList } from "../../src/data/Documents.ts"
import { RangeJournal } from "../../src/data/RangeJournal.ts"
import type { AnyStageType } from "../../src/pipeline/StageType.ts"
import { convertStage } from "../../src/stages/Convert.ts"
import { downloadStage } from "../../src/stages/Download.ts"
import { evalStage } from "../../src/stages/Eval.ts"
import { pretrainStage } from "../../src/stages/Pretrain.ts"
import { quantizeStage } from "../../src/stages/Quantize.ts"
import { sftStage } from "../../src/stages/Sft.ts"
import { tokenizeStage } from "../../src/stages/Tokenize.ts"
import { randomWeights, smallShape } from "../model/random-model.ts"
import { artifactOf, decodeParameters, filesOf, runStage, temporaryFolder } from "./stage-fixture.ts"
import { conversationDocuments, tinyDataset, tinyShape } from "./training-fixture.ts"
import { checkpointOf } from "./training-state.ts"

const resumePoint = Effect.fnUntraced(function* (
  stage: AnyStageType,
  work: string,
  params: Readonly<Record<string, unknown>> = {}
) {
  if (stage.resumePoint === undefined) return yield* Effect.die(new Error(`${stage.name} tells no resume point`))
  return yield* stage.resumePoint(work, yield* decodeParameters(stage, params))
}, Effect.provide(NodeServices.layer))

const question = (index: number) =>
  JSON.stringify({ query: `What is ${index}?`, choices: ["a number", "a word"], gold: index % 2 })

const questionsOf = Effect.fnUntraced(function* (count: number) {
  const folder = yield* temporaryFolder
  const text = Array.from({ length: count }, (_, index) => `${question(index)}\n`).join("")
  writeFileSync(join(folder, "quiz.jsonl"), text)
  const file = { path: "quiz.jsonl", format: "jsonl" as const, source: "quiz.jsonl", bytes: text.length, sha256: "" }
  writeFileSync(join(folder, "documents.jsonl"), encodeList([file]))
  return artifactOf("Documents", folder, { files: 1, bytes: text.length }, "quiz.documents")
})

describe("resume points", () => {
  it.live("pretrain: the newest whole checkpoint, damaged ones passed over", () =>
    Effect.gen(function* () {
      const data = yield* tinyDataset({ train: 16, validation: 4 })
      const params = { model: tinyShape, max_tokens: 640, batch_tokens: 64, micro_batch: 4, save_every: 3 }
      const work = yield* temporaryFolder
      assert.isUndefined(yield* resumePoint(pretrainStage, work, params))
      yield* Effect.flip(runStage(pretrainStage, { inputs: { data }, params, work, stopAfterPolls: 9 }))
      const before = filesOf(work)
      const at = yield* resumePoint(pretrainStage, work, params)
      assert.deepInclude(at, { total: 10, unit: "steps" })
      const step = at?.done ?? 0
      assert.isAbove(step, 3)
      const folder = (at: number) => join(work, "checkpoints", `step-${String(at).padStart(8, "0")}`)
      writeFileSync(join(folder(step), "weights.safetensors"), "short")
      const below = (yield* resumePoint(pretrainStage, work, params))?.done ?? 0
      assert.isTrue(below >= 3 && below < step)
      for (let at = below; at > 0; at--) rmSync(join(folder(at), "COMPLETE.json"), { force: true })
      assert.isUndefined(yield* resumePoint(pretrainStage, work, params))
      writeFileSync(join(work, "extent.json"), "{")
      assert.isUndefined(yield* resumePoint(pretrainStage, work, params))
      assert.isAbove(before.length, 4)
    }).pipe(Effect.scoped)
  )

  it.live("sft: steps; convert and quantize: files; nothing is written by asking", () =>
    Effect.gen(function* () {
      const checkpoint = yield* checkpointOf(smallShape, randomWeights(smallShape))
      const talk = yield* conversationDocuments([JSON.stringify({ text: "### Human: Hi.### Assistant: Hello." })])
      const work = yield* temporaryFolder
      const params = { epochs: 4, batch_rows: 1 }
      const inputs = { base: checkpoint, conversations: talk }
      yield* Effect.flip(runStage(sftStage, { inputs, work, params, stopAfterPolls: 2 }))
      const left = filesOf(work)
      assert.deepStrictEqual(yield* resumePoint(sftStage, work, params), { done: 2, total: 4, unit: "steps" })
      assert.deepStrictEqual(filesOf(work), left)

      const converted = yield* temporaryFolder
      const gguf = { gguf: ["F16", "Q8_0"] }
      const { outputs } = yield* runStage(convertStage, { inputs: { checkpoint }, params: gguf, work: converted })
      assert.deepStrictEqual(yield* resumePoint(convertStage, converted, gguf), { done: 2, total: 3, unit: "files" })
      const quantized = yield* temporaryFolder
      const types = { types: ["Q8_0", "Q4_0"] }
      assert.isUndefined(yield* resumePoint(quantizeStage, quantized, types))
      yield* runStage(quantizeStage, {
        inputs: { model: outputs.model },
        params: { types: ["Q8_0"] },
        work: quantized
      })
      assert.deepStrictEqual(yield* resumePoint(quantizeStage, quantized, types), { done: 1, total: 2, unit: "files" })

      // Scores: the questions of this model, some batches of them.
      const questions = yield* questionsOf(6)
      const scored = yield* temporaryFolder
      const asked: { readonly models: ReadonlyArray<ArtifactHandle>; readonly questions: ArtifactHandle } = {
        models: [outputs.model],
        questions
      }
      const batches = { batch_tokens: 40 }
      yield* Effect.flip(runStage(evalStage, { inputs: asked, params: batches, work: scored, stopAfterPolls: 2 }))
      const at = yield* resumePoint(evalStage, scored, batches)
      assert.deepInclude(at, { total: 12, unit: "requests" })
      assert.isTrue((at?.done ?? 0) > 0 && (at?.done ?? 0) < 12, JSON.stringify(at))
    }).pipe(Effect.scoped)
  )

  it.live("tokenize: bytes behind the last finished shard", () =>
    Effect.gen(function* () {
      const folder = yield* temporaryFolder
      const files = Array.from({ length: 4 }, (_, index) => {
        const text = `Document ${index}. `.repeat(10)
        writeFileSync(join(folder, `${index}.txt`), text)
        return { path: `${index}.txt`, format: "text" as const, source: `${index}.txt`, bytes: text.length, sha256: "" }
      })
      writeFileSync(join(folder, "documents.jsonl"), encodeList(files))
      const documents = artifactOf("Documents", folder, { files: 4 }, "text.documents")
      const work = yield* temporaryFolder
      const params = { shard_bytes: 100 }
      yield* Effect.flip(
        runStage(tokenizeStage, { inputs: { documents: [documents] }, params, work, stopAfterPolls: 2 })
      )
      assert.deepStrictEqual(yield* resumePoint(tokenizeStage, work, params), { done: 240, total: 480, unit: "bytes" })
    }).pipe(Effect.scoped)
  )

  it.live("download: bytes that arrived", () =>
    Effect.gen(function* () {
      const web = yield* temporaryFolder
      const sources = { sources: [{ url: "http://127.0.0.1:9/x.txt" }] }
      assert.isUndefined(yield* resumePoint(downloadStage, web, sources))
      mkdirSync(join(web, "downloads"))
      const part = join(web, "downloads", `${"0".repeat(32)}.part`)
      writeFileSync(part, "..1234")
      const identity = { key: "x", size: 10, validator: null, sha256: null, gitBlob: null, md5: null }
      const journal = RangeJournal.create(part, identity)
      journal.add({ offset: 2, length: 4, crc: 0, response: 0 })
      journal.close()
      assert.isUndefined(yield* resumePoint(downloadStage, web, sources), "of an unknown total")
      writeFileSync(join(web, "extent.json"), JSON.stringify({ total: 10, unit: "bytes" }))
      assert.deepStrictEqual(yield* resumePoint(downloadStage, web, sources), { done: 4, total: 10, unit: "bytes" })
    }).pipe(Effect.scoped)
  )

  it.live("a folder that another process empties and fills meanwhile is no failure", () =>
    Effect.gen(function* () {
      const data = yield* tinyDataset({ train: 16, validation: 0 })
      const params = { model: tinyShape, max_tokens: 640, batch_tokens: 64, micro_batch: 4, save_every: 1, keep: 9 }
      const work = yield* temporaryFolder
      yield* Effect.flip(runStage(pretrainStage, { inputs: { data }, params, work, stopAfterPolls: 8 }))
      const [root, aside] = [join(work, "checkpoints"), join(work, "aside")]
      const meddle = Effect.gen(function* () {
        for (let round = 0; round < 40; round++) {
          renameSync(root, aside)
          yield* Effect.yieldNow
          renameSync(aside, root)
          yield* Effect.yieldNow
        }
      })
      const ask = Effect.forEach(Array.from({ length: 20 }), () => resumePoint(pretrainStage, work, params))
      const [points] = yield* Effect.all([ask, meddle], { concurrency: 2 })
      for (const at of points) assert.isTrue(at === undefined || at.done <= 8)
      assert.isDefined(yield* resumePoint(pretrainStage, work, params))
    }).pipe(Effect.scoped)
  )
})
