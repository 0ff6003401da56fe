import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, it } from "@effect/vitest"
import { Effect } from "effect"
import { parameterCount } from "../../src/model/Architecture.ts"
import { fromBfloat16, fromFloat16, toBfloat16, toFloat16 } from "../../src/model/HalfPrecision.ts"
import { readGguf } from "../../src/model/GgufReader.ts"
import { readHfModel } from "../../src/model/HuggingFace.ts"
import { convertStage } from "../../src/stages/Convert.ts"
import { randomWeights, sameBits, smallShape } from "../model/random-model.ts"
import { artifactOf, filesOf, runStage } from "./stage-fixture.ts"
import { checkpointOf } from "./training-state.ts"

const weights = randomWeights(smallShape)
const rounded = {
  fp32: (values: Float32Array) => values,
  fp16: (values: Float32Array) => fromFloat16(toFloat16(values)),
  bf16: (values: Float32Array) => fromBfloat16(toBfloat16(values))
}

it.live("writes a Hugging Face folder in each precision, the same bytes each time", () =>
  Effect.gen(function* () {
    const checkpoint = yield* checkpointOf(smallShape, weights)
    for (const dtype of ["fp32", "fp16", "bf16"] as const) {
      const run = runStage(convertStage, { params: { dtype, gguf: [] }, inputs: { checkpoint } })
      const { logs, outputs } = yield* run
      assert.deepInclude(outputs.model.facts, {
        parameters: parameterCount(smallShape),
        dtype,
        context_length: 64,
        chat: null,
        tokenizer_digest: checkpoint.facts["tokenizer_digest"]
      })
      assert.deepStrictEqual(
        filesOf(outputs.model.folder).map(({ path }) => path),
        [
          "config.json",
          "generation_config.json",
          "model.safetensors",
          "tokenizer.json",
          "tokenizer.model",
          "tokenizer_config.json"
        ]
      )
      const { shape, tensors } = yield* readHfModel(outputs.model.folder).pipe(Effect.provide(NodeServices.layer))
      assert.deepStrictEqual(shape, smallShape)
      for (const [name, tensor] of tensors) {
        assert.isTrue(sameBits(yield* tensor.toFloat32(), rounded[dtype](weights.get(name)!)))
      }
      assert.include(logs.join(), "read back and compared")
      if (dtype === "bf16")
        assert.deepStrictEqual(filesOf((yield* run).outputs.model.folder), filesOf(outputs.model.folder))
    }
  })
)

it.live("writes F16 as GGUF unless told otherwise, without a chat template", () =>
  Effect.gen(function* () {
    const checkpoint = yield* checkpointOf(smallShape, weights)
    const { outputs } = yield* runStage(convertStage, { inputs: { checkpoint } })
    assert.deepInclude(outputs.gguf.facts, { chat: null, context_length: 64 })
    const { metadata, tensors } = yield* readGguf(`${outputs.gguf.folder}/model-F16.gguf`).pipe(
      Effect.provide(NodeServices.layer)
    )
    assert.isFalse(metadata.has("tokenizer.chat_template"))
    assert.strictEqual(tensors.get("blk.1.attn_v.weight")?.type, "F16")
    assert.strictEqual(tensors.size, weights.size)
  })
)

it.live("refuses weights that the precision cannot hold", () =>
  Effect.gen(function* () {
    const failure = (name: string, value: number, dtype: string) =>
      Effect.gen(function* () {
        const changed = weights.get(name)!.slice()
        changed[7] = value
        const checkpoint = yield* checkpointOf(smallShape, new Map(weights).set(name, changed))
        return yield* Effect.flip(runStage(convertStage, { params: { dtype }, inputs: { checkpoint } }))
      })
    const large = yield* failure("model.norm.weight", 1e6, "fp16")
    assert.deepInclude(large, { failure: "invalid-input", next: "set dtype to bf16 or fp32" })
    assert.include(large.message, "model.norm.weight holds 1000000, beyond the range of fp16")
    const diverged = yield* failure("model.layers.1.mlp.up_proj.weight", NaN, "fp32")
    assert.include(diverged.message, "model.layers.1.mlp.up_proj.weight holds NaN")
  })
)

it.live("refuses a checkpoint that does not fit its config, or of another tokenizer", () =>
  Effect.gen(function* () {
    const incomplete = new Map(weights).set("model.norm.weight", new Float32Array(64))
    const small = yield* checkpointOf(
      { ...smallShape, vocab_size: 320 },
      randomWeights({ ...smallShape, vocab_size: 320 })
    )
    const vocabulary = yield* Effect.flip(runStage(convertStage, { inputs: { checkpoint: small } }))
    assert.include(vocabulary.message, "320 token ids")
    const checkpoint = yield* checkpointOf(smallShape, incomplete)
    const renamed = (facts: Record<string, string>) =>
      artifactOf("Checkpoint", checkpoint.folder, { ...checkpoint.facts, ...facts }, "final.checkpoint")
    for (const facts of [{ tokenizer: "gpt-2" }, { tokenizer_digest: "0".repeat(64) }]) {
      const error = yield* Effect.flip(runStage(convertStage, { inputs: { checkpoint: renamed(facts) } }))
      assert.deepInclude(error, { _tag: "StageError", failure: "invalid-input" })
      assert.include(error.message, "final.checkpoint")
    }
  })
)

it.live("stops when asked to", () =>
  Effect.gen(function* () {
    const checkpoint = yield* checkpointOf(smallShape, weights)
    const error = yield* Effect.flip(runStage(convertStage, { inputs: { checkpoint }, stopAfterPolls: 5 }))
    assert.strictEqual(error._tag, "Preempted")
  })
)

it.live("on top of an earlier result it links the GGUF files that stay, under another dtype too", () =>
  Effect.gen(function* () {
    const checkpoint = yield* checkpointOf(smallShape, weights)
    const before = { dtype: "fp32", gguf: ["F16"] }
    const old = yield* runStage(convertStage, { params: before, inputs: { checkpoint } })
    const previous = { params: before, outputs: old.outputs, work: undefined }
    for (const params of [{ gguf: ["F16", "Q8_0"] }, { dtype: "bf16", gguf: ["F16"] }]) {
      const onTop = yield* runStage(convertStage, { params, inputs: { checkpoint }, previous })
      const anew = yield* runStage(convertStage, { params, inputs: { checkpoint } })
      assert.strictEqual(onTop.logs.filter((line) => line.includes("from an earlier result")).length, 1)
      for (const port of ["model", "gguf"] as const) {
        assert.deepStrictEqual(filesOf(onTop.outputs[port].folder), filesOf(anew.outputs[port].folder))
        assert.deepStrictEqual(onTop.outputs[port].facts, anew.outputs[port].facts)
      }
    }
  })
)
