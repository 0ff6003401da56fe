import { rmSync, statSync, writeFileSync } from "node:fs"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, it } from "@effect/vitest"
import { Effect } from "effect"
import { dequantize, type ReadableType } from "../../src/model/GgmlBlocks.ts"
import { readGguf } from "../../src/model/GgufReader.ts"
import { convertStage } from "../../src/stages/Convert.ts"
import { quantizeStage } from "../../src/stages/Quantize.ts"
import { randomWeights, smallShape } from "../model/random-model.ts"
import { artifactOf, filesOf, runStage, temporaryFolder } from "./stage-fixture.ts"
import { checkpointOf } from "./training-state.ts"

/** A model folder of the convert stage, with `chat` in its facts. */
const modelWith = (chat: string | null, shape = smallShape) =>
  Effect.gen(function* () {
    const checkpoint = yield* checkpointOf(shape, randomWeights(shape))
    const { outputs } = yield* runStage(convertStage, { params: { gguf: [] }, inputs: { checkpoint } })
    const { facts, folder } = outputs.model
    return artifactOf("HfModel", folder, { ...facts, chat }, "chat.model")
  })

it.live("writes Q8_0 and Q4_0 with their size and error, and the model's chat template", () =>
  Effect.gen(function* () {
    const model = yield* modelWith("guanaco")
    const { logs, outputs } = yield* runStage(quantizeStage, { inputs: { model } })
    const { facts, folder } = outputs.gguf
    const files = facts["files"] as unknown as ReadonlyArray<Record<string, number | string>>
    assert.deepInclude(facts, { chat: "guanaco", context_length: 64 })
    assert.deepStrictEqual(
      files.map(({ path, type }) => [type, path]),
      [
        ["Q8_0", "model-Q8_0.gguf"],
        ["Q4_0", "model-Q4_0.gguf"]
      ]
    )
    for (const { bytes, path } of files) assert.strictEqual(statSync(`${folder}/${path}`).size, bytes)
    assert.match(
      logs[0]!,
      /^Q8_0: 5\.\d\d MB, 8\.50 bits per weight, RMS error \d\.\d\de-\d \(0\.\d+ % of the weights' RMS\)$/
    )
    assert.match(logs[1]!, /^Q4_0: \d\.\d\d MB, 6\.\d\d bits per weight/)

    // The stated error, measured anew from the file on a tensor that is not permuted.
    const read = yield* readGguf(`${folder}/model-Q4_0.gguf`).pipe(Effect.provide(NodeServices.layer))
    assert.include(String(read.metadata.get("tokenizer.chat_template")), "### Human: ")
    const tensor = read.tensors.get("blk.0.ffn_down.weight")!
    const values = randomWeights(smallShape).get("model.layers.0.mlp.down_proj.weight")!
    const back = dequantize(tensor.type as ReadableType, yield* tensor.bytes())
    const relative = Math.sqrt(
      values.reduce((sum, value, i) => sum + (value - back[i]!) ** 2, 0) /
        values.reduce((sum, value) => sum + value ** 2, 0)
    )
    assert.isTrue(relative > 0.05 && relative < 0.1, String(relative))
    assert.strictEqual(tensor.type, "Q4_0")
    assert.strictEqual(read.tensors.get("output.weight")?.type, "Q8_0")
  })
)

it.live("a longer list makes only what is new, and a spoiled file again; the result is the same", () =>
  Effect.gen(function* () {
    const model = yield* modelWith(null)
    const work = yield* temporaryFolder
    yield* runStage(quantizeStage, { params: { types: ["Q8_0"] }, inputs: { model }, work })
    const longer = yield* runStage(quantizeStage, { inputs: { model }, work })
    assert.match(longer.logs[0]!, /^Q8_0.*made by an earlier attempt/)
    assert.notMatch(longer.logs[1]!, /earlier/)
    const fresh = yield* runStage(quantizeStage, { inputs: { model } })
    assert.deepStrictEqual(filesOf(longer.outputs.gguf.folder), filesOf(fresh.outputs.gguf.folder))
    assert.strictEqual(longer.outputs.gguf.digest, fresh.outputs.gguf.digest)

    rmSync(`${work}/model-Q8_0.gguf`)
    writeFileSync(`${work}/model-Q8_0.gguf`, "spoiled")
    const again = yield* runStage(quantizeStage, { inputs: { model }, work })
    assert.notMatch(again.logs[0]!, /earlier/)
    assert.strictEqual(again.outputs.gguf.digest, fresh.outputs.gguf.digest)

    // Another model in the same work folder: new files, and those of the first stay as they were.
    const other = yield* modelWith("guanaco")
    const renewed = yield* runStage(quantizeStage, { inputs: { model: other }, work })
    assert.notMatch(renewed.logs[0]!, /earlier/)
    assert.deepStrictEqual(filesOf(again.outputs.gguf.folder), filesOf(fresh.outputs.gguf.folder))
  })
)

it.live("stops when asked to, and goes on from the files that are done", () =>
  Effect.gen(function* () {
    const model = yield* modelWith(null)
    const first = 2 + 9 * smallShape.num_hidden_layers + 1
    const work = yield* temporaryFolder
    const stopped = yield* Effect.flip(runStage(quantizeStage, { inputs: { model }, work, stopAfterPolls: first + 3 }))
    assert.strictEqual(stopped._tag, "Preempted")
    assert.match((yield* runStage(quantizeStage, { inputs: { model }, work })).logs[0]!, /earlier attempt/)
  })
)

it.live("rows that are no whole blocks stay F16, aloud", () =>
  Effect.gen(function* () {
    const model = yield* modelWith(null, { ...smallShape, hidden_size: 48, intermediate_size: 64 })
    const { warnings } = yield* runStage(quantizeStage, { params: { types: ["Q8_0"] }, inputs: { model } })
    assert.match(warnings[0]!, /model-Q8_0\.gguf: \d+ tensors have rows that are no multiple of 32 and stay F16/)
  })
)

it.live("refuses what it cannot read", () =>
  Effect.gen(function* () {
    const model = yield* modelWith("zephyr")
    const chat = yield* Effect.flip(runStage(quantizeStage, { inputs: { model } }))
    assert.deepInclude(chat, { _tag: "StageError", failure: "invalid-input" })
    assert.include(chat.message, `chat.model has the chat format "zephyr"`)
    writeFileSync(`${model.folder}/model.safetensors`, "no")
    const corrupt = yield* Effect.flip(runStage(quantizeStage, { inputs: { model } }))
    assert.deepInclude(corrupt, { failure: "corrupt", next: "make it anew: tinyllama run FILE --force chat" })
    assert.include(corrupt.message, "model.safetensors")
    const none = yield* Effect.exit(runStage(quantizeStage, { params: { types: [] }, inputs: { model } }))
    const twice = yield* Effect.exit(runStage(quantizeStage, { params: { types: ["F16", "F16"] }, inputs: { model } }))
    assert.deepStrictEqual([none._tag, twice._tag], ["Failure", "Failure"])
  })
)

it.live("on top of an earlier result or unfinished work it makes new types alone, to the same bytes", () =>
  Effect.gen(function* () {
    const model = yield* modelWith("guanaco")
    const before = { types: ["Q8_0", "F16"] }
    const work = yield* temporaryFolder
    const old = yield* runStage(quantizeStage, { params: before, inputs: { model }, work })
    const taken = ({ logs }: { readonly logs: ReadonlyArray<string> }) =>
      logs.flatMap((line) => /^(\w+):.*from an earlier result/u.exec(line)?.[1] ?? [])
    const cases: ReadonlyArray<readonly [types: Array<string>, taken: Array<string>]> = [
      [["Q4_0", "Q8_0"], ["Q8_0"]],
      [["F16"], ["F16"]],
      [["F32"], []]
    ]
    for (const [types, expected] of cases) {
      const anew = yield* runStage(quantizeStage, { params: { types }, inputs: { model } })
      for (const previous of [
        { params: before, outputs: old.outputs, work: undefined },
        { params: before, outputs: {}, work }
      ]) {
        const onTop = yield* runStage(quantizeStage, { params: { types }, inputs: { model }, previous })
        assert.deepStrictEqual(taken(onTop), expected)
        assert.strictEqual(onTop.outputs.gguf.digest, anew.outputs.gguf.digest)
      }
    }
    // A file that is not what its digest says is made anew.
    const file = `${old.outputs.gguf.folder}/model-F16.gguf`
    rmSync(file)
    writeFileSync(file, "spoiled")
    const previous = { params: before, outputs: old.outputs, work: undefined }
    const again = yield* runStage(quantizeStage, { params: before, inputs: { model }, previous })
    assert.deepStrictEqual(taken(again), ["Q8_0"])
    assert.strictEqual(again.outputs.gguf.digest, old.outputs.gguf.digest)
  })
)
