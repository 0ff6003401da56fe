import { readFileSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, it } from "@effect/vitest"
import { Effect } from "effect"
import type { ArtifactHandle } from "../../src/artifacts/Artifact.ts"
import { encodeList } from "../../src/data/Documents.ts"
import { type DatasetMetadata, openSplitWriter } from "../../src/data/PackedDataset.ts"
import * as Native from "../../src/engine/Native.ts"
import { loadTokenizer } from "../../src/engine/Tokenizer.ts"
import { toModelConfig } from "../../src/model/Architecture.ts"
import { writeHfModel } from "../../src/model/HuggingFace.ts"
import { evalStage } from "../../src/stages/Eval.ts"
import { randomWeights, smallShape } from "../model/random-model.ts"
import { artifactOf, filesOf, runStage, temporaryFolder } from "./stage-fixture.ts"

const shape = {
  ...smallShape,
  hidden_size: 16,
  intermediate_size: 24,
  num_attention_heads: 2,
  num_key_value_heads: 1,
  head_dim: 8
}
const seqLen = 12
const text =
  "A stage is a named node of the pipeline. Ports are typed, naïve edges are refused: café tokens, one by one. "

const modelOf = Effect.fnUntraced(function* (origin: string, seed: number) {
  const folder = yield* temporaryFolder
  const { vocabulary } = yield* loadTokenizer("llama-2")
  const weights = [...randomWeights(shape, seed)].map(([name, values]) => ({
    name,
    shape: name.includes("norm") ? [values.length] : [values.length / columnsOf(name), columnsOf(name)],
    values: Effect.succeed(values)
  }))
  const facts = yield* writeHfModel(folder, { shape, precision: "fp32", weights, vocabulary, chat: null })
  return artifactOf("HfModel", folder, facts, origin)
}, Effect.provide(NodeServices.layer))

const columnsOf = (name: string): number => (name.includes("down_proj") ? shape.intermediate_size : shape.hidden_size)

/** A validation split cut from `text`, one document with BOS, and its blocks. */
const datasetOf = Effect.fnUntraced(function* (blocks: number) {
  const folder = yield* temporaryFolder
  const tokenizer = yield* loadTokenizer("llama-2")
  const ids = tokenizer.encode(new TextEncoder().encode(text.repeat(blocks)), { addBos: true })
  const metadata: DatasetMetadata = {
    tokenizer: "llama-2",
    tokenizer_digest: tokenizer.digest,
    vocabulary_size: tokenizer.vocabularySize,
    bos: "document",
    eos: "none",
    seq_len: seqLen,
    train_blocks: 0,
    validation_blocks: blocks,
    mixture: [],
    accounting: []
  }
  const empty = yield* openSplitWriter(folder, "train", metadata)
  const train = (yield* Effect.promise(() => empty.close())).sha256
  const writer = yield* openSplitWriter(folder, "validation", metadata)
  const cut = Array.from({ length: blocks }, (_, block) =>
    ids.subarray(block * (seqLen + 1), (block + 1) * (seqLen + 1))
  )
  for (const block of cut) writer.next().set(block)
  const files = { train, validation: (yield* Effect.promise(() => writer.close())).sha256 }
  return {
    handle: artifactOf("PackedDataset", folder, { ...metadata, files }, "packed.dataset"),
    blocks: cut,
    tokenizer
  }
})

const question = (query: string, gold: number) =>
  JSON.stringify({ query: `Question: ${query}\nAnswer:`, choices: ["pack", "a worker process", "two", "naïve"], gold })

const questionsOf = Effect.fnUntraced(function* (files: Readonly<Record<string, ReadonlyArray<string>>>) {
  const folder = yield* temporaryFolder
  const list = Object.entries(files).map(([path, lines]) => {
    const content = lines.map((line) => `${line}\n`).join("")
    writeFileSync(join(folder, path), content)
    return { path, format: "jsonl" as const, source: `examples/${path}`, bytes: content.length, sha256: "0".repeat(64) }
  })
  writeFileSync(join(folder, "documents.jsonl"), encodeList(list))
  return artifactOf("Documents", folder, { files: list.length }, "questions.documents")
})

const twelve = Array.from({ length: 12 }, (_, index) => question(`What is number ${index}?`, index % 4))

/** Loss by log-softmax over all logits in double precision. */
const lossOf = Effect.fnUntraced(function* (seed: number, blocks: ReadonlyArray<Int32Array>) {
  const native = yield* Native.load
  const model = new native.Model(toModelConfig(shape), { threads: 1 })
  const weights = randomWeights(shape, seed)
  for (const { name, offset } of model.parameters)
    model.write("weights", offset, weights.get(name) ?? new Float32Array())
  let sum = 0
  for (const block of blocks) {
    const logits = yield* Effect.promise(() => model.logits({ tokens: block.slice(0, -1), batch: 1, length: seqLen }))
    for (let at = 0; at < seqLen; at++) {
      const row = logits.subarray(at * shape.vocab_size, (at + 1) * shape.vocab_size)
      const top = row.reduce((most, value) => Math.max(most, value), -Infinity)
      const total = row.reduce((acc, logit) => acc + Math.exp(logit - top), 0)
      sum -= (row[block[at + 1] ?? 0] ?? Number.NaN) - top - Math.log(total)
    }
  }
  model.dispose()
  return sum
})

const reportOf = (handle: ArtifactHandle, name: string) => readFileSync(join(handle.folder, name), "utf8")

it.live("measures every model on every task, as brute force does", () =>
  Effect.gen(function* () {
    const { blocks, handle: data, tokenizer } = yield* datasetOf(5)
    const models = [yield* modelOf("hf.model", 1), yield* modelOf("chat.model", 2)]
    const questions = yield* questionsOf({ "questions.jsonl": twelve })
    const { logs, outputs, progress } = yield* runStage(evalStage, { inputs: { models, data, questions } })

    const facts = outputs.report.facts["models"] as ReadonlyArray<
      Record<string, number & Record<string, Record<string, number>>>
    >
    // Decoding strips a space in front of the whole text only: after "foo" every byte of the targets shows. (No character is cut by a block's end here.)
    const foo = 7953
    const bytes = blocks.reduce((sum, block, index) => {
      const targets = [...block.subarray(1)]
      return sum + (index === 0 ? tokenizer.decode(targets).length : tokenizer.decode([foo, ...targets]).length - 3)
    }, 0)
    for (const [index, seed] of [1, 2].entries()) {
      const loss = yield* lossOf(seed, blocks)
      assert.closeTo(
        facts[index]?.["perplexity"] ?? 0,
        Math.exp(loss / (5 * seqLen)),
        1e-3 * Math.exp(loss / (5 * seqLen))
      )
      assert.closeTo(facts[index]?.["bits_per_byte"] ?? 0, loss / (bytes * Math.LN2), 1e-4)
      const scores = facts[index]?.["tasks"]?.["questions"]
      assert.strictEqual(scores?.["n"], 12)
      assert.isTrue(
        [scores?.["acc"], scores?.["acc_norm"]].every((value) => value !== undefined && value >= 0 && value <= 1)
      )
    }
    const report = JSON.parse(reportOf(outputs.report, "report.json"))
    assert.deepInclude(report, { format: "tinyllama-evaluation", version: 1, profile: "current" })
    assert.lengthOf(report.models, 2)
    assert.match(
      reportOf(outputs.report, "report.md"),
      /\| task \| metric \| better \| hf\.model \| chat\.model \| change \|/u
    )
    assert.deepInclude(progress.at(-1), { done: 2 * (5 + 48), total: 2 * (5 + 48), unit: "requests" })
    assert.isTrue(logs.some((line) => line.startsWith("chat.model, questions: acc")))
  })
)

it.live("goes on after a stop, and writes the same bytes for other batches and threads", () =>
  Effect.gen(function* () {
    const { handle: data } = yield* datasetOf(3)
    const models = [yield* modelOf("hf.model", 1), yield* modelOf("chat.model", 2)]
    const questions = yield* questionsOf({ "questions.jsonl": twelve })
    const inputs = { models, data, questions }
    const params = { batch_tokens: 100 }
    const whole = yield* runStage(evalStage, { inputs, params })
    const work = yield* temporaryFolder
    const stopped = yield* Effect.flip(runStage(evalStage, { inputs, params, work, stopAfterPolls: 6 }))
    assert.strictEqual(stopped._tag, "Preempted")
    const resumed = yield* runStage(evalStage, { inputs, params, work, threads: 1 })
    assert.isTrue(resumed.logs.some((line) => line.includes("were scored by an earlier attempt")))
    for (const name of ["report.json", "report.md"])
      assert.strictEqual(reportOf(resumed.outputs.report, name), reportOf(whole.outputs.report, name))
    assert.deepStrictEqual(resumed.outputs.report.facts, whole.outputs.report.facts)
    const single = yield* runStage(evalStage, { inputs, params: { batch_tokens: 1 } })
    assert.strictEqual(reportOf(single.outputs.report, "report.json"), reportOf(whole.outputs.report, "report.json"))
  })
)

it.live("takes data alone or questions alone, and tasks by name", () =>
  Effect.gen(function* () {
    const { handle: data } = yield* datasetOf(4)
    const models = [yield* modelOf("hf.model", 1)]
    const questions = yield* questionsOf({ "easy.jsonl": twelve.slice(0, 3), "hard.jsonl": twelve.slice(3) })
    const tasksOf = (handle: ArtifactHandle) => Object.keys(JSON.parse(reportOf(handle, "report.json")).models[0].tasks)
    const onlyData = yield* runStage(evalStage, { inputs: { models, data }, params: { max_blocks: 2 } })
    assert.deepStrictEqual(tasksOf(onlyData.outputs.report), ["perplexity"])
    assert.include(reportOf(onlyData.outputs.report, "report.md"), "2 blocks")
    const onlyQuestions = yield* runStage(evalStage, { inputs: { models, questions }, params: { profile: "legacy" } })
    assert.deepStrictEqual(tasksOf(onlyQuestions.outputs.report), ["easy", "hard"])
    const named = yield* runStage(evalStage, { inputs: { models, data, questions }, params: { tasks: ["hard"] } })
    assert.deepStrictEqual(tasksOf(named.outputs.report), ["hard"])
  })
)

it.live("refuses what cannot be measured, with place, cause and next step", () =>
  Effect.gen(function* () {
    const { handle: data } = yield* datasetOf(2)
    const { handle: noValidation } = yield* datasetOf(0)
    const models = [yield* modelOf("hf.model", 1)]
    const questions = yield* questionsOf({ "questions.jsonl": twelve })
    const badLine = yield* questionsOf({ "bad.jsonl": [twelve[0] ?? "", '{"query":"q","choices":["a","b"],"gold":7}'] })
    const empty = yield* questionsOf({ "empty.jsonl": [] })
    const broken = yield* modelOf("broken.model", 3)
    writeFileSync(join(broken.folder, "model.safetensors"), "no weights")
    const cases: ReadonlyArray<readonly [Parameters<typeof runStage>[1], string, ReadonlyArray<string>]> = [
      [{ inputs: { models } }, "invalid-input", ["nothing to measure"]],
      [{ inputs: { models: [], data } }, "invalid-input", ["models"]],
      [{ inputs: { models, data: noValidation } }, "invalid-input", ["packed.dataset", "no blocks"]],
      [
        { inputs: { models, data, questions }, params: { tasks: ["hellaswag"] } },
        "invalid-input",
        ["hellaswag", "perplexity, questions"]
      ],
      [{ inputs: { models, questions: badLine } }, "invalid-input", ["examples/bad.jsonl:2", "gold"]],
      [{ inputs: { models, questions: empty } }, "invalid-input", ["examples/empty.jsonl", "no questions"]],
      [{ inputs: { models: [broken], questions } }, "corrupt", ["broken.model", "--force broken"]]
    ]
    for (const [options, failure, words] of cases) {
      const error = yield* Effect.flip(runStage(evalStage, options))
      assert.strictEqual(error._tag, "StageError")
      if (error._tag !== "StageError") continue
      assert.strictEqual(error.failure, failure, error.message)
      for (const word of words) assert.include(`${error.message}\n${error.next}`, word)
    }
  })
)

/** Models and tasks whose scores a run took from an earlier report, by its log. */
const takenBy = ({ logs }: { readonly logs: ReadonlyArray<string> }) =>
  logs.flatMap((line) => /^(.*): taken from an earlier result$/u.exec(line)?.[1] ?? [])

it.live("on top of an earlier report it scores new pairs of task and model alone, to the same bytes", () =>
  Effect.gen(function* () {
    const { handle: data } = yield* datasetOf(3)
    const { handle: otherData } = yield* datasetOf(2)
    const [first, second, third] = [
      yield* modelOf("hf.model", 1),
      yield* modelOf("chat.model", 2),
      yield* modelOf("other.model", 3)
    ]
    const questions = yield* questionsOf({ "questions.jsonl": twelve, "more.jsonl": twelve.slice(0, 3) })
    const before = {
      params: { tasks: ["perplexity", "questions"] },
      inputs: { models: [first, second], data, questions }
    }
    const old = yield* runStage(evalStage, before)
    const previous = { params: before.params, outputs: old.outputs, work: undefined }
    const cases: ReadonlyArray<readonly [Parameters<typeof runStage>[1] & object, ReadonlyArray<string>, number]> = [
      // A task more.
      [
        { params: { tasks: "all" }, inputs: before.inputs },
        ["hf.model, perplexity", "hf.model, questions", "chat.model, perplexity", "chat.model, questions"],
        2 * 12
      ],
      // A task less, another order, a model more and one less.
      [
        { params: { tasks: ["questions"] }, inputs: { ...before.inputs, models: [third, second] } },
        ["chat.model, questions"],
        48
      ],
      // Nothing new at all.
      [{ params: { tasks: ["perplexity"] }, inputs: { models: [second], data } }, ["chat.model, perplexity"], 0],
      // Other blocks, another profile, another dataset: what they touch is measured again.
      [
        { params: { ...before.params, max_blocks: 2 }, inputs: before.inputs },
        ["hf.model, questions", "chat.model, questions"],
        2 * 2
      ],
      [
        { params: { ...before.params, profile: "legacy" }, inputs: before.inputs },
        ["hf.model, perplexity", "chat.model, perplexity"],
        2 * 48
      ],
      [
        { params: before.params, inputs: { ...before.inputs, data: otherData } },
        ["hf.model, questions", "chat.model, questions"],
        2 * 2
      ]
    ]
    for (const [options, taken, scored] of cases) {
      const onTop = yield* runStage(evalStage, { ...options, previous })
      const anew = yield* runStage(evalStage, options)
      assert.deepStrictEqual(filesOf(onTop.outputs.report.folder), filesOf(anew.outputs.report.folder))
      assert.deepStrictEqual(onTop.outputs.report.facts, anew.outputs.report.facts)
      assert.deepStrictEqual(takenBy(onTop), taken)
      assert.strictEqual(onTop.progress.at(-1)?.done ?? 0, scored)
      assert.deepStrictEqual(takenBy(anew), [])
    }
    writeFileSync(join(old.outputs.report.folder, "report.json"), "{")
    const spoiled = yield* runStage(evalStage, { ...before, previous })
    assert.deepStrictEqual(takenBy(spoiled), [])
  })
)

it.live("what an unfinished run scored is not scored again when a task comes to it", () =>
  Effect.gen(function* () {
    const models = [yield* modelOf("hf.model", 1)]
    const questions = yield* questionsOf({ "questions.jsonl": twelve, "more.jsonl": twelve.slice(0, 3) })
    const before = { params: { tasks: ["questions"], batch_tokens: 100 }, inputs: { models, questions } }
    const work = yield* temporaryFolder
    yield* Effect.flip(runStage(evalStage, { ...before, work, stopAfterPolls: 4 }))
    const after = { params: { tasks: "all", batch_tokens: 100 }, inputs: before.inputs }
    const onTop = yield* runStage(evalStage, { ...after, previous: { params: before.params, outputs: {}, work } })
    const anew = yield* runStage(evalStage, after)
    assert.isTrue(onTop.logs.some((line) => /questions: \d+ requests were scored by an earlier attempt/u.test(line)))
    assert.deepStrictEqual(filesOf(onTop.outputs.report.folder), filesOf(anew.outputs.report.folder))
  })
)
