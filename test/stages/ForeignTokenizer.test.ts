/** A tokenizer from another repository: its file is in the key, its vocabulary travels with all that is made of it. */
import { copyFileSync, mkdirSync, readFileSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import type { ArtifactHandle } from "../../src/artifacts/Artifact.ts"
import { encodeList } from "../../src/data/Documents.ts"
import { sentencePieceModel } from "../../src/model/SentencePieceModel.ts"
import { tokenizerFiles } from "../../src/model/TokenizerFiles.ts"
import { digestOf, loadVocabulary, pieceType, type Vocabulary } from "../../src/model/Vocabulary.ts"
import { readVocabularyFile } from "../../src/model/VocabularyFile.ts"
import { checkpointStage } from "../../src/stages/Checkpoint.ts"
import { convertStage } from "../../src/stages/Convert.ts"
import { evalStage } from "../../src/stages/Eval.ts"
import { packStage } from "../../src/stages/Pack.ts"
import { pretrainStage } from "../../src/stages/Pretrain.ts"
import { tokenizeStage } from "../../src/stages/Tokenize.ts"
import { artifactOf, observeStage, runStage, temporaryFolder } from "./stage-fixture.ts"
import { tinyShape } from "./training-fixture.ts"

/** Bytes, letters, and a few pieces of two and three letters. */
const small: Vocabulary = (() => {
  const letters = "▁abcdefghijklmnopqrstuvwxyz".split("")
  const merged = ["th", "he", "the", "▁a", "an", "and"]
  const pieces = [
    "<unk>",
    "<s>",
    "</s>",
    ...Array.from({ length: 256 }, (_, byte) => `<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`),
    ...merged,
    ...letters
  ]
  const types = Uint8Array.from(pieces, (_, id) =>
    id === 0 ? pieceType.unknown : id < 3 ? pieceType.control : id < 259 ? pieceType.byte : pieceType.normal
  )
  const scores = Float32Array.from(pieces, (_, id) => (id < 259 ? 0 : 259 - id))
  const digest = digestOf({ pieces, scores, types })
  const name = `spm-${digest.slice(0, 12)}`
  return { name, pieces, scores, types, digest, dummyPrefix: true, unknown: 0, bos: 1, eos: 2 }
})()

const corpus = Effect.gen(function* () {
  const folder = yield* temporaryFolder
  mkdirSync(join(folder, "files"))
  const rows = Array.from({ length: 60 }, (_, i) =>
    JSON.stringify({ text: `the hand and the band of number ${i * i}` })
  )
  const bytes = Buffer.from(rows.join("\n"))
  writeFileSync(join(folder, "files", "a.jsonl"), bytes)
  const entry = { path: "files/a.jsonl", format: "jsonl", source: "a.jsonl", bytes: bytes.length, sha256: "" } as const
  writeFileSync(join(folder, "documents.jsonl"), encodeList([entry]))
  return artifactOf("Documents", folder, {}, "corpus.documents")
})

const withFile = Effect.gen(function* () {
  const baseDirectory = yield* temporaryFolder
  mkdirSync(join(baseDirectory, "own"))
  writeFileSync(join(baseDirectory, "own", "tokenizer.model"), sentencePieceModel(small))
  return baseDirectory
})

const tokenize = Effect.fnUntraced(function* (tokenizer: string, baseDirectory: string) {
  const documents = [yield* corpus]
  return (yield* runStage(tokenizeStage, { baseDirectory, params: { tokenizer }, inputs: { documents } })).outputs
    .tokens
})

const pack = Effect.fnUntraced(function* (...tokens: ReadonlyArray<ArtifactHandle>) {
  return (yield* runStage(packStage, { params: { seq_len: 15, validation: 0.1 }, inputs: { tokens } })).outputs.dataset
})

describe("a tokenizer from a file", () => {
  it.live("goes from tokens to data, training, checkpoint and model, which eval measures with it", () =>
    Effect.gen(function* () {
      const tokens = yield* tokenize("own/tokenizer.model", yield* withFile)
      const expected = { tokenizer: small.name, tokenizer_digest: small.digest, vocabulary_size: small.pieces.length }
      assert.deepInclude(tokens.facts, expected)
      const data = yield* pack(tokens)
      assert.deepInclude(data.facts, expected)
      const params = {
        model: { ...tinyShape, vocab_size: small.pieces.length },
        max_tokens: 320,
        micro_batch: 4,
        batch_tokens: 64,
        lr: { peak: 1e-2, min: 1e-3, warmup_steps: 1 }
      }
      const { state } = (yield* runStage(pretrainStage, { params, inputs: { data } })).outputs
      const { checkpoint } = (yield* runStage(checkpointStage, { inputs: { state } })).outputs
      const { model } = (yield* runStage(convertStage, { inputs: { checkpoint } })).outputs
      assert.deepInclude(model.facts, { tokenizer: small.name, tokenizer_digest: small.digest })
      const carried = yield* readVocabularyFile(join(model.folder, "tokenizer.model")).pipe(
        Effect.provide(NodeServices.layer)
      )
      assert.strictEqual(carried.digest, small.digest)
      const { report } = (yield* runStage(evalStage, { inputs: { models: [model], data } })).outputs
      assert.include(readFileSync(join(report.folder, "report.json"), "utf8"), "perplexity")

      const other = yield* pack(yield* tokenize("llama-2", yield* temporaryFolder))
      const refused = yield* Effect.flip(runStage(evalStage, { inputs: { models: [model], data: other } }))
      assert.include(refused.message, "pack.dataset")
      assert.include(refused.message, "its tokens come from another tokenizer (llama-2)")
    })
  )

  it.live("does not match data of another one", () =>
    Effect.gen(function* () {
      const [own, llama2] = [
        yield* tokenize("own/tokenizer.model", yield* withFile),
        yield* tokenize("llama-2", yield* temporaryFolder)
      ]
      const error = yield* Effect.flip(pack(own, llama2))
      assert.include(error.message, `tokenize.tokens has tokenizer llama-2, but tokenize.tokens has ${small.name}`)
    })
  )

  it.live("is Llama 2's where it says the same, wherever it lies", () =>
    Effect.gen(function* () {
      const folder = yield* temporaryFolder
      const files = tokenizerFiles(yield* loadVocabulary("llama-2"), { chat: null, contextLength: 2048 })
      for (const { bytes, name } of files) writeFileSync(join(folder, name), bytes)
      const named = yield* tokenize("llama-2", folder)
      for (const name of ["tokenizer.model", "tokenizer.json"])
        assert.strictEqual((yield* tokenize(name, folder)).digest, named.digest, name)
    })
  )

  it.live("is observed by its content; a name is not", () =>
    Effect.gen(function* () {
      const folder = yield* withFile
      const observe = (tokenizer: string) => observeStage(tokenizeStage, { tokenizer }, folder)
      assert.isNull(yield* observe("llama-2"))
      const before = yield* observe("own/tokenizer.model")
      copyFileSync(join(folder, "own", "tokenizer.model"), join(folder, "copy.model"))
      assert.strictEqual(yield* observe("copy.model"), before)
      writeFileSync(join(folder, "copy.model"), sentencePieceModel({ ...small, dummyPrefix: false }))
      assert.notStrictEqual(yield* observe("copy.model"), before)
      const missing = yield* Effect.flip(observe("own/tokeniser.model"))
      assert.include(missing.message, "tokenizer own/tokeniser.model: no such file")
    })
  )

  it.live("is refused by name and reason where it cannot be used", () =>
    Effect.gen(function* () {
      const folder = yield* temporaryFolder
      writeFileSync(join(folder, "tokenizer.model"), "version https://git-lfs.github.com/spec/v1\n")
      const error = yield* Effect.flip(tokenize("tokenizer.model", folder))
      assert.strictEqual(error._tag === "StageError" ? error.failure : "", "invalid-input")
      assert.match(error.message, /tokenizer\.model cannot be used as a tokenizer: .*not a SentencePiece model/u)
    })
  )

  it.live("puts no ▁ in front where the file says so", () =>
    Effect.gen(function* () {
      const folder = yield* temporaryFolder
      writeFileSync(join(folder, "a.model"), sentencePieceModel(small))
      writeFileSync(join(folder, "b.model"), sentencePieceModel({ ...small, dummyPrefix: false }))
      const [a, b] = [yield* tokenize("a.model", folder), yield* tokenize("b.model", folder)]
      assert.notStrictEqual(a.facts["tokenizer_digest"], b.facts["tokenizer_digest"])
      assert.strictEqual(Number(a.facts["tokens"]) - Number(b.facts["tokens"]), Number(a.facts["documents"]))
    })
  )
})
