import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, layer } from "@effect/vitest"
import { Effect, FileSystem, Schema } from "effect"
import { type ModelShape, tensorShapes } from "../../src/model/Architecture.ts"
import { loadWeights, readHfModel, type WeightSource, writeWeights } from "../../src/model/HuggingFace.ts"
import { fromBfloat16, toBfloat16 } from "../../src/model/HalfPrecision.ts"

const shape: ModelShape = {
  vocab_size: 40,
  hidden_size: 16,
  intermediate_size: 24,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  head_dim: 8,
  max_position_embeddings: 32,
  rms_norm_eps: 1e-5,
  rope_theta: 10_000,
  tie_word_embeddings: false
}

const valuesOf = (name: string, length: number) =>
  Float32Array.from({ length }, (_, i) => Math.sin(i + name.length * 7) * 0.3)

const weights = (model: ModelShape): ReadonlyArray<WeightSource> =>
  tensorShapes(model).map((tensor) => ({
    ...tensor,
    values: Effect.sync(() =>
      valuesOf(
        tensor.name,
        tensor.shape.reduce((a, b) => a * b, 1)
      )
    )
  }))

const Json = Schema.fromJsonString(Schema.Record(Schema.String, Schema.Unknown))

layer(NodeServices.layer)("HuggingFace", (it) => {
  it.effect("a written folder reads back, whole and in shards, in every precision", () =>
    Effect.gen(function* () {
      const fs = yield* FileSystem.FileSystem
      for (const tie_word_embeddings of [false, true]) {
        for (const precision of ["fp32", "fp16", "bf16"] as const) {
          for (const maxShardBytes of [1e9, 5000]) {
            const folder = yield* fs.makeTempDirectoryScoped()
            const model = { ...shape, tie_word_embeddings }
            yield* writeWeights(folder, { shape: model, precision, weights: weights(model), maxShardBytes })
            const read = yield* readHfModel(folder)
            assert.deepStrictEqual(read.shape, model)
            assert.deepStrictEqual(
              [...read.tensors.keys()],
              tensorShapes(model).map((t) => t.name)
            )
            for (const [name, tensor] of read.tensors) {
              const expected = valuesOf(name, tensor.elements)
              const values = yield* tensor.toFloat32()
              if (precision === "fp32") assert.deepStrictEqual(values, expected)
              if (precision === "bf16") assert.deepStrictEqual(values, fromBfloat16(toBfloat16(expected)))
            }
          }
        }
      }
    })
  )

  it.effect("shards and index are laid out as transformers does", () =>
    Effect.gen(function* () {
      const fs = yield* FileSystem.FileSystem
      const folder = yield* fs.makeTempDirectoryScoped()
      const digests = yield* writeWeights(folder, {
        shape,
        precision: "bf16",
        weights: weights(shape),
        maxShardBytes: 6000
      })
      const names = [...digests.keys()]
      assert.match(names[0]!, /^model-00001-of-0000\d\.safetensors$/)
      assert.sameMembers(yield* fs.readDirectory(folder), ["config.json", "model.safetensors.index.json", ...names])
      const index = yield* Schema.decodeEffect(Json)(yield* fs.readFileString(`${folder}/model.safetensors.index.json`))
      const elements = tensorShapes(shape).reduce((sum, t) => sum + t.shape.reduce((a, b) => a * b, 1), 0)
      assert.deepStrictEqual(index["metadata"], { total_parameters: elements, total_size: elements * 2 })
      const map = index["weight_map"] as Record<string, string>
      assert.strictEqual(map["model.embed_tokens.weight"], names[0])
      assert.strictEqual(map["lm_head.weight"], names.at(-1))
      assert.strictEqual(Object.keys(map).length, tensorShapes(shape).length)
    })
  )

  it.effect("fills an engine's model by parameter name", () =>
    Effect.gen(function* () {
      const fs = yield* FileSystem.FileSystem
      const folder = yield* fs.makeTempDirectoryScoped()
      yield* writeWeights(folder, { shape, precision: "fp32", weights: weights(shape) })
      let offset = 0
      const parameters = tensorShapes(shape).map((tensor) => {
        const parameter = { ...tensor, offset }
        offset += tensor.shape.reduce((a, b) => a * b, 1)
        return parameter
      })
      const buffer = new Float32Array(offset)
      yield* loadWeights(
        { parameters, write: (_kind, at, values) => buffer.set(values, at) },
        yield* readHfModel(folder)
      )
      for (const parameter of parameters) {
        const length = parameter.shape.reduce((a, b) => a * b, 1)
        assert.deepStrictEqual(
          buffer.slice(parameter.offset, parameter.offset + length),
          valuesOf(parameter.name, length)
        )
      }
    })
  )

  it.effect("says what is wrong with a folder", () =>
    Effect.gen(function* () {
      const fs = yield* FileSystem.FileSystem
      const made = (change: (given: ReadonlyArray<WeightSource>) => ReadonlyArray<WeightSource>) =>
        Effect.gen(function* () {
          const folder = yield* fs.makeTempDirectoryScoped()
          yield* writeWeights(folder, { shape, precision: "fp32", weights: change(weights(shape)) })
          return folder
        })
      const reason = (folder: string) => Effect.map(Effect.flip(readHfModel(folder)), (error) => error.message)
      const extra = { name: "model.layers.2.x", shape: [1], values: Effect.succeed(Float32Array.of(1)) }
      assert.include(yield* reason(yield* made((w) => w.slice(1))), "model.embed_tokens.weight is missing")
      assert.include(yield* reason(yield* made((w) => [...w, extra])), "model.layers.2.x belongs to no part")
      const reshaped = yield* made((w) => w.map((t) => (t.name === "lm_head.weight" ? { ...t, shape: [16, 40] } : t)))
      assert.include(yield* reason(reshaped), "lm_head.weight is [16, 40], config.json asks for [40, 16]")

      const broken = yield* made((w) => w)
      yield* fs.remove(`${broken}/model.safetensors`)
      assert.include(yield* reason(broken), "neither model.safetensors nor model.safetensors.index.json")
      const index = { weight_map: { "lm_head.weight": "../elsewhere.safetensors" } }
      yield* fs.writeFileString(`${broken}/model.safetensors.index.json`, JSON.stringify(index))
      assert.include(yield* reason(broken), `"../elsewhere.safetensors" is not the name of a file beside it`)
      yield* fs.writeFileString(`${broken}/config.json`, "{")
      assert.include(yield* reason(broken), "config.json: not JSON")
      assert.include(yield* reason(`${broken}/none`), "none/config.json")
    })
  )

  it.effect("buffers of old checkpoints are left out", () =>
    Effect.gen(function* () {
      const fs = yield* FileSystem.FileSystem
      const folder = yield* fs.makeTempDirectoryScoped()
      const buffer = {
        name: "model.layers.0.self_attn.rotary_emb.inv_freq",
        shape: [4],
        values: Effect.succeed(new Float32Array(4))
      }
      yield* writeWeights(folder, { shape, precision: "fp32", weights: [...weights(shape), buffer] })
      assert.isFalse((yield* readHfModel(folder)).tensors.has(buffer.name))
    })
  )
})
