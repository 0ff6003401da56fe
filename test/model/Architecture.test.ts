import { assert, it } from "@effect/vitest"
import { Effect, Schema, SchemaIssue } from "effect"
import {
  Model,
  ModelShape,
  parameterCount,
  presets,
  tensorShapes,
  toModelConfig,
  trainingFlops
} from "../../src/model/Architecture.ts"
import { fromHfConfig, toHfConfig } from "../../src/model/HfConfig.ts"

const decode = Schema.decodeUnknownEffect(Model, { errors: "all", onExcessProperty: "error" })
const issues = (written: unknown) =>
  Effect.map(Effect.flip(decode(written)), (error) =>
    SchemaIssue.makeFormatterStandardSchemaV1()(error.issue).issues.map(
      ({ message, path = [] }) => `${path.map(String).join(".")}: ${message}`
    )
  )
const small = { hidden_size: 64, intermediate_size: 176, num_hidden_layers: 2, num_attention_heads: 4 }

it("counts parameters as published", () => {
  assert.strictEqual(parameterCount(presets["tinyllama-1.1b"]), 1_100_048_384)
  assert.strictEqual(parameterCount(presets["tinyllama-120m"]), 121_129_728)
})

it("the tensors add up to the parameter count, tied and untied", () => {
  for (const shape of Object.values(presets)) {
    for (const tie_word_embeddings of [false, true]) {
      const model = { ...shape, tie_word_embeddings }
      const elements = tensorShapes(model).reduce((sum, t) => sum + t.shape.reduce((a, b) => a * b, 1), 0)
      assert.strictEqual(elements, parameterCount(model))
    }
  }
  assert.strictEqual(tensorShapes(presets["tinyllama-1.1b"]).length, 201)
})

it("training arithmetic per token of TinyLlama 1.1B at 2048 tokens, by formula", () => {
  // TinyLlama's own estimator (its 20LAT included), and the readings of its 24,000 tokens/s at 56 % of an A100.
  const at = (formula: keyof typeof trainingFlops) => trainingFlops[formula](presets["tinyllama-1.1b"], 2048)
  assert.strictEqual(at("6N + 20LAT"), 8_445_784_064)
  assert.strictEqual(at("6N + 12LAT"), 7_707_586_560)
  assert.strictEqual(at("6(N - E) + 12LAT"), 7_314_370_560)
  assert.strictEqual(at("6(N - E) + 6LAT"), 6_760_722_432)
  assert.strictEqual(trainingFlops["6N + 20LAT"](presets["tinyllama-120m"], 2048), 1_104_265_728)
})

it.effect("a preset's name and its shape written out decode alike, and encode to something that decodes again", () =>
  Effect.gen(function* () {
    for (const [name, shape] of Object.entries(presets)) {
      const named = yield* decode(name)
      assert.deepStrictEqual(named, shape)
      assert.deepStrictEqual(yield* decode({ ...shape }), shape)
      assert.deepStrictEqual(yield* decode(yield* Schema.encodeEffect(Model)(named)), shape)
    }
  })
)

it.effect("fills in what a shape leaves out", () =>
  Effect.gen(function* () {
    assert.deepStrictEqual(yield* decode(small), {
      ...small,
      num_key_value_heads: 4,
      head_dim: 16,
      vocab_size: 32_000,
      max_position_embeddings: 2048,
      rms_norm_eps: 1e-5,
      rope_theta: 10_000,
      tie_word_embeddings: false
    })
    assert.strictEqual((yield* decode({ ...small, head_dim: 32 })).head_dim, 32)
  })
)

it.effect("names the field and the reason of a shape that cannot be", () =>
  Effect.gen(function* () {
    assert.deepStrictEqual(yield* issues({ ...small, num_key_value_heads: 3 }), [
      "num_key_value_heads: 3 does not divide num_attention_heads, 4"
    ])
    assert.deepStrictEqual(yield* issues({ ...small, num_attention_heads: 5 }), [
      "num_attention_heads: 5 does not divide hidden_size, 64; give head_dim"
    ])
    assert.deepStrictEqual(yield* issues({ ...small, head_dim: 15 }), [
      "head_dim: the head size, 15, must be even: rotary embeddings turn pairs"
    ])
    assert.deepStrictEqual(yield* issues({ ...small, num_attention_heads: 64 }), [
      "num_attention_heads: the head size, 1, must be even: rotary embeddings turn pairs"
    ])
    assert.deepStrictEqual(yield* issues({ ...small, hidden_size: 0, rope_theta: -1 }), [
      "hidden_size: must be a whole number from 1 to 1048576",
      "rope_theta: must be above 0"
    ])
    assert.include((yield* issues("tinyllama-2b")).join(), "tinyllama-1.1b")
    assert.include((yield* issues({ ...small, hidden: 64 })).join(), "hidden")
  })
)

it("the engine's configuration has every field but the context length", () => {
  const { max_position_embeddings: _, ...config } = presets["tinyllama-120m"]
  assert.deepStrictEqual(toModelConfig(presets["tinyllama-120m"]), config)
})

const Small = Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 64 }))
const { head_dim: _head, num_attention_heads: _heads, ...free } = ModelShape.fields
it.effect.prop(
  "config.json keeps the shape",
  [Schema.Struct({ ...free, num_key_value_heads: Small }), Small, Small],
  ([shape, group, half]) =>
    Effect.gen(function* () {
      const model = { ...shape, num_attention_heads: shape.num_key_value_heads * group, head_dim: 2 * half }
      const text = JSON.stringify(toHfConfig(model, "bf16"))
      assert.deepStrictEqual(yield* fromHfConfig("config.json", JSON.parse(text)), model)
    })
)

it.effect("reads configurations of old and new transformers", () =>
  Effect.gen(function* () {
    // As TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T has it: no head_dim, no rope_parameters.
    const old = {
      architectures: ["LlamaForCausalLM"],
      bos_token_id: 1,
      eos_token_id: 2,
      hidden_act: "silu",
      hidden_size: 2048,
      initializer_range: 0.02,
      intermediate_size: 5632,
      max_position_embeddings: 2048,
      model_type: "llama",
      num_attention_heads: 32,
      num_hidden_layers: 22,
      num_key_value_heads: 4,
      pretraining_tp: 1,
      rms_norm_eps: 1e-5,
      rope_scaling: null,
      tie_word_embeddings: false,
      torch_dtype: "float32",
      transformers_version: "4.31.0.dev0",
      use_cache: true,
      vocab_size: 32_000
    }
    assert.deepStrictEqual(yield* fromHfConfig("config.json", old), presets["tinyllama-1.1b"])
    const fresh = { ...old, head_dim: 128, rope_parameters: { rope_theta: 500_000, rope_type: "default" } }
    assert.deepStrictEqual(yield* fromHfConfig("config.json", fresh), {
      ...presets["tinyllama-1.1b"],
      head_dim: 128,
      rope_theta: 500_000
    })
    const { num_key_value_heads: _, ...ungrouped } = old
    assert.strictEqual((yield* fromHfConfig("config.json", ungrouped)).num_key_value_heads, 32)
  })
)

it.effect("refuses what the engine does not compute", () =>
  Effect.gen(function* () {
    const config = toHfConfig(presets["llama-15m"])
    const cases: ReadonlyArray<readonly [Readonly<Record<string, unknown>>, RegExp]> = [
      [{ model_type: "mistral" }, /model_type is "mistral"/],
      [{ rope_scaling: { type: "linear", factor: 4 } }, /rotary scaling of type "linear"/],
      [{ rope_scaling: { rope_type: "llama3", factor: 8 } }, /rotary scaling of type "llama3"/],
      [{ rope_parameters: { rope_type: "yarn", rope_theta: 1e4 } }, /rotary scaling of type "yarn"/],
      [{ attention_bias: true }, /attention_bias/],
      [{ mlp_bias: true }, /mlp_bias/],
      [{ hidden_act: "gelu" }, /hidden_act "gelu"/],
      [{ quantization_config: { bits: 4 } }, /quantization_config/],
      [{ num_key_value_heads: 4 }, /4 does not divide num_attention_heads, 6/],
      [{ hidden_size: 1e12 }, /hidden_size/],
      [{ num_hidden_layers: "6" }, /num_hidden_layers/]
    ]
    for (const [change, reason] of cases) {
      const error = yield* Effect.flip(fromHfConfig("m/config.json", { ...config, ...change }))
      assert.match(error.message, reason)
      assert.include(error.message, "m/config.json")
    }
    for (const json of [null, 3, [], "{}"]) yield* Effect.flip(fromHfConfig("config.json", json))
  })
)
