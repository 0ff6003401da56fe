/**
 * Hugging Face's config.json for LlamaForCausalLM: written with the fields of both today's transformers and 4.31, the version of TinyLlama's own
 * checkpoints; read with a clear refusal of what the engine does not compute, rather than a model that is quietly wrong.
 */
import { Effect, Schema } from "effect"
import { ModelShape } from "./Architecture.ts"

/** Weight types of a model folder, by the names that users write; transformers spells them `float32` and so on. */
export const Precision = Schema.Literals(["fp32", "fp16", "bf16"])
export type Precision = typeof Precision.Type

const torchNames = { fp32: "float32", fp16: "float16", bf16: "bfloat16" } as const

export class ArchitectureError extends Schema.TaggedError<ArchitectureError>()("ArchitectureError", {
  path: Schema.String,
  reason: Schema.String
}) {
  override get message() {
    return `${this.path}: ${this.reason}`
  }
}

/** The content of config.json. Ids 1 and 2 are the Llama-2 vocabulary's begin and end of text. */
export const toHfConfig = (
  shape: ModelShape,
  precision: Precision = "fp32"
): Readonly<Record<string, Schema.Json>> => ({
  architectures: ["LlamaForCausalLM"],
  attention_bias: false,
  attention_dropout: 0,
  bos_token_id: 1,
  dtype: torchNames[precision],
  eos_token_id: 2,
  head_dim: shape.head_dim,
  hidden_act: "silu",
  hidden_size: shape.hidden_size,
  initializer_range: 0.02,
  intermediate_size: shape.intermediate_size,
  max_position_embeddings: shape.max_position_embeddings,
  mlp_bias: false,
  model_type: "llama",
  num_attention_heads: shape.num_attention_heads,
  num_hidden_layers: shape.num_hidden_layers,
  num_key_value_heads: shape.num_key_value_heads,
  pretraining_tp: 1,
  rms_norm_eps: shape.rms_norm_eps,
  // transformers 5 reads rope_parameters, earlier versions rope_theta and rope_scaling.
  rope_parameters: { rope_theta: shape.rope_theta, rope_type: "default" },
  rope_scaling: null,
  rope_theta: shape.rope_theta,
  tie_word_embeddings: shape.tie_word_embeddings,
  torch_dtype: torchNames[precision],
  transformers_version: "4.31.0",
  use_cache: true,
  vocab_size: shape.vocab_size
})

const Rope = Schema.Struct({
  rope_theta: Schema.optionalKey(Schema.Finite),
  rope_type: Schema.optionalKey(Schema.String),
  type: Schema.optionalKey(Schema.String)
})
const HfConfig = Schema.Struct({
  model_type: Schema.String,
  hidden_act: Schema.optionalKey(Schema.String),
  attention_bias: Schema.optionalKey(Schema.Boolean),
  mlp_bias: Schema.optionalKey(Schema.Boolean),
  quantization_config: Schema.optionalKey(Schema.Unknown),
  rope_scaling: Schema.optionalKey(Schema.NullOr(Rope)),
  rope_parameters: Schema.optionalKey(Schema.NullOr(Rope)),
  rope_theta: Schema.optionalKey(Schema.Finite),
  tie_word_embeddings: Schema.optionalKey(Schema.Boolean),
  num_key_value_heads: Schema.optionalKey(Schema.NullOr(Schema.Unknown)),
  head_dim: Schema.optionalKey(Schema.NullOr(Schema.Unknown))
})
const decodeConfig = Schema.decodeUnknownEffect(HfConfig)
const decodeShape = Schema.decodeUnknownEffect(ModelShape, { errors: "all" })

const unsupported = (config: typeof HfConfig.Type): string | undefined => {
  const scaling = [config.rope_scaling, config.rope_parameters].find((rope) => {
    const kind = rope?.rope_type ?? rope?.type ?? "default"
    return kind !== "default"
  })
  return config.model_type !== "llama"
    ? `model_type is "${config.model_type}": only "llama" can be read`
    : scaling !== undefined && scaling !== null
      ? `rotary scaling of type "${scaling.rope_type ?? scaling.type}" is not supported`
      : config.attention_bias
        ? "attention_bias: the engine's projections have no bias"
        : config.mlp_bias
          ? "mlp_bias: the engine's projections have no bias"
          : (config.hidden_act ?? "silu") !== "silu"
            ? `hidden_act "${config.hidden_act}" is not supported, only "silu"`
            : config.quantization_config !== undefined && config.quantization_config !== null
              ? "quantization_config: the weights are quantized; give the model they were made from"
              : undefined
}

/** The shape that `json`, the parsed content of the file at `path`, describes. Defaults are those of transformers' LlamaConfig. */
export const fromHfConfig = Effect.fn("fromHfConfig")(function* (path: string, json: unknown) {
  const failed = (reason: string) => new ArchitectureError({ path, reason })
  const config = yield* decodeConfig(json).pipe(Effect.mapError((error) => failed(error.message)))
  const reason = unsupported(config)
  if (reason !== undefined) return yield* failed(reason)
  const fields = json as Readonly<Record<string, unknown>>
  const heads = fields["num_attention_heads"]
  const width = fields["hidden_size"]
  return yield* decodeShape({
    rms_norm_eps: 1e-6,
    max_position_embeddings: 2048,
    ...fields,
    num_key_value_heads: config.num_key_value_heads ?? heads,
    head_dim: config.head_dim ?? (typeof width === "number" && typeof heads === "number" ? width / heads : undefined),
    rope_theta: config.rope_parameters?.rope_theta ?? config.rope_scaling?.rope_theta ?? config.rope_theta ?? 10_000,
    tie_word_embeddings: config.tie_word_embeddings ?? false
  }).pipe(Effect.mapError((error) => failed(error.message)))
})
