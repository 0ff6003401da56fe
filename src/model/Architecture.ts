/**
 * Shapes of Llama-architecture models: presets as data, the form that a pipeline file writes, Hugging Face's config.json, and what follows from a
 * shape alone: parameters and arithmetic per token. A new model size is one more preset.
 */
import { Effect, Schema, SchemaTransformation } from "effect"
import type { ModelConfig } from "../engine/Native.ts"

/** Size bound for every field of a shape: far above any model under 5B parameters, and small enough that products stay exact integers. */
export const MAX_EXTENT = 1 << 20

const Extent = Schema.Int.check(
  Schema.isBetween({ minimum: 1, maximum: MAX_EXTENT }, { message: `must be a whole number from 1 to ${MAX_EXTENT}` })
)
const Positive = Schema.Finite.check(Schema.isGreaterThan(0, { message: "must be above 0" }))
const withDefault = <S extends Schema.Codec<unknown, unknown>>(schema: S, value: S["Encoded"]) =>
  schema.pipe(Schema.withDecodingDefaultKey(Effect.succeed(value)))

const DEFAULTS = {
  vocab_size: 32_000,
  max_position_embeddings: 2048,
  rms_norm_eps: 1e-5,
  rope_theta: 10_000,
  tie_word_embeddings: false
} as const

/** What cannot be true of a shape together, by the field to change. */
const contradictions = (shape: {
  readonly hidden_size: number
  readonly num_attention_heads: number
  readonly num_key_value_heads?: number
  readonly head_dim?: number
}) => {
  const { hidden_size, num_attention_heads: heads, num_key_value_heads: groups = heads } = shape
  const headSize = shape.head_dim ?? hidden_size / heads
  const field = shape.head_dim === undefined ? "num_attention_heads" : "head_dim"
  return [
    ...(heads % groups === 0
      ? []
      : [{ path: ["num_key_value_heads"], issue: `${groups} does not divide num_attention_heads, ${heads}` }]),
    ...(!Number.isInteger(headSize)
      ? [
          {
            path: ["num_attention_heads"],
            issue: `${heads} does not divide hidden_size, ${hidden_size}; give head_dim`
          }
        ]
      : headSize % 2 === 0
        ? []
        : [{ path: [field], issue: `the head size, ${headSize}, must be even: rotary embeddings turn pairs` }])
  ]
}

/** A model's shape in Hugging Face's names: what the engine needs, and the longest context it is meant for. */
export const ModelShape = Schema.Struct({
  vocab_size: Extent,
  hidden_size: Extent,
  intermediate_size: Extent,
  num_hidden_layers: Extent,
  num_attention_heads: Extent,
  num_key_value_heads: Extent,
  head_dim: Extent,
  max_position_embeddings: Extent,
  rms_norm_eps: Positive,
  rope_theta: Positive,
  tie_word_embeddings: Schema.Boolean
}).check(Schema.makeFilter(contradictions))
export type ModelShape = typeof ModelShape.Type

const preset = (shape: Partial<ModelShape> & Omit<ModelShape, keyof typeof DEFAULTS | "head_dim">): ModelShape => ({
  ...DEFAULTS,
  head_dim: shape.hidden_size / shape.num_attention_heads,
  ...shape
})

export const presets = {
  /** TinyLlama 1.1B (arXiv:2401.02385): 22 layers, 32 heads in 4 groups. */
  "tinyllama-1.1b": preset({
    num_hidden_layers: 22,
    hidden_size: 2048,
    num_attention_heads: 32,
    num_key_value_heads: 4,
    intermediate_size: 5632
  }),
  /** TinyLlama's small sibling, with one key and value head for all. */
  "tinyllama-120m": preset({
    num_hidden_layers: 12,
    hidden_size: 768,
    num_attention_heads: 12,
    num_key_value_heads: 1,
    intermediate_size: 2048
  }),
  /** The shape of the 15M-parameter story models. */
  "llama-15m": preset({
    num_hidden_layers: 6,
    hidden_size: 288,
    num_attention_heads: 6,
    num_key_value_heads: 6,
    intermediate_size: 768,
    max_position_embeddings: 256
  }),
  /** What the default pipeline trains in minutes on a laptop. */
  "tinyllama-demo": preset({
    num_hidden_layers: 4,
    hidden_size: 128,
    num_attention_heads: 4,
    num_key_value_heads: 2,
    intermediate_size: 352,
    max_position_embeddings: 256
  })
} as const satisfies Readonly<Record<string, ModelShape>>
export type PresetName = keyof typeof presets

const presetNames = Object.keys(presets) as ReadonlyArray<PresetName>

const InlineShape = Schema.Struct({
  hidden_size: Extent,
  intermediate_size: Extent,
  num_hidden_layers: Extent,
  num_attention_heads: Extent,
  num_key_value_heads: Schema.optionalKey(Extent),
  head_dim: Schema.optionalKey(Extent),
  vocab_size: withDefault(Extent, DEFAULTS.vocab_size),
  max_position_embeddings: withDefault(Extent, DEFAULTS.max_position_embeddings),
  rms_norm_eps: withDefault(Positive, DEFAULTS.rms_norm_eps),
  rope_theta: withDefault(Positive, DEFAULTS.rope_theta),
  tie_word_embeddings: withDefault(Schema.Boolean, DEFAULTS.tie_word_embeddings)
}).check(Schema.makeFilter(contradictions))

const complete = (shape: typeof InlineShape.Type): ModelShape => ({
  ...shape,
  num_key_value_heads: shape.num_key_value_heads ?? shape.num_attention_heads,
  head_dim: shape.head_dim ?? shape.hidden_size / shape.num_attention_heads
})

/** A model as a pipeline file writes it: a preset's name, or a shape with the usual fields left out. Decodes to the whole shape. */
export const Model = Schema.Union([Schema.Literals(presetNames), InlineShape]).pipe(
  Schema.decodeTo(
    Schema.toType(ModelShape),
    SchemaTransformation.transform({
      decode: (written: PresetName | typeof InlineShape.Type): ModelShape =>
        typeof written === "string" ? presets[written] : complete(written),
      encode: (shape: ModelShape): PresetName | typeof InlineShape.Type => shape
    })
  )
)

/** What the native engine takes: everything but the context length, which is the caller's. */
export const toModelConfig = (shape: ModelShape): ModelConfig => {
  const { max_position_embeddings: _, ...config } = shape
  return config
}

/** Weights of the input embedding. */
export const embeddingParameters = (shape: ModelShape): number => shape.vocab_size * shape.hidden_size

export const parameterCount = (shape: ModelShape): number => {
  const { hidden_size: width, intermediate_size, num_hidden_layers, head_dim } = shape
  const attention = 2 * width * head_dim * (shape.num_attention_heads + shape.num_key_value_heads)
  const block = attention + 3 * width * intermediate_size + 2 * width
  return embeddingParameters(shape) * (shape.tie_word_embeddings ? 1 : 2) + num_hidden_layers * block + width
}

/**
 * Floating-point operations of training on one token of a sequence of T tokens, by the formulas in use. N: parameters, E: the input embedding,
 * a lookup and no product (0 when tied, where the output projection uses the same matrix), L: layers, A: query heads × head size.
 * The backward pass counts twice the forward pass.
 */
export const trainingFlops = {
  /** PaLM's (arXiv:2204.02311, appendix B): all parameters, attention over the full square. */
  "6N + 12LAT": (shape: ModelShape, length: number) => 6 * parameterCount(shape) + 12 * attentionUnit(shape, length),
  /** The products alone, attention over the full square. Model FLOPs utilization is stated with this one. */
  "6(N - E) + 12LAT": (shape: ModelShape, length: number) =>
    6 * matrixParameters(shape) + 12 * attentionUnit(shape, length),
  /** The products alone, attention over the causal half: what a causal kernel has to do. */
  "6(N - E) + 6LAT": (shape: ModelShape, length: number) =>
    6 * matrixParameters(shape) + 6 * attentionUnit(shape, length),
  /** TinyLlama's own estimator as it was run; it counts attention 5/3 times. */
  "6N + 20LAT": (shape: ModelShape, length: number) => 6 * parameterCount(shape) + 20 * attentionUnit(shape, length)
} as const
export type FlopsFormula = keyof typeof trainingFlops

const matrixParameters = (shape: ModelShape): number =>
  parameterCount(shape) - (shape.tie_word_embeddings ? 0 : embeddingParameters(shape))

const attentionUnit = (shape: ModelShape, length: number): number =>
  shape.num_hidden_layers * shape.num_attention_heads * shape.head_dim * length

/** Every tensor of the model by its Hugging Face name, in the engine's flat order; matrices are [out, in]. */
export const tensorShapes = (
  shape: ModelShape
): ReadonlyArray<{ readonly name: string; readonly shape: ReadonlyArray<number> }> => {
  const { hidden_size: width, intermediate_size: inner, vocab_size: vocabulary } = shape
  const queries = shape.num_attention_heads * shape.head_dim
  const keys = shape.num_key_value_heads * shape.head_dim
  const tensor = (name: string, ...sizes: ReadonlyArray<number>) => ({ name: `${name}.weight`, shape: sizes })
  return [
    tensor("model.embed_tokens", vocabulary, width),
    ...Array.from({ length: shape.num_hidden_layers }, (_, index) => `model.layers.${index}`).flatMap((layer) => [
      tensor(`${layer}.input_layernorm`, width),
      tensor(`${layer}.self_attn.q_proj`, queries, width),
      tensor(`${layer}.self_attn.k_proj`, keys, width),
      tensor(`${layer}.self_attn.v_proj`, keys, width),
      tensor(`${layer}.self_attn.o_proj`, width, queries),
      tensor(`${layer}.post_attention_layernorm`, width),
      tensor(`${layer}.mlp.gate_proj`, inner, width),
      tensor(`${layer}.mlp.up_proj`, inner, width),
      tensor(`${layer}.mlp.down_proj`, width, inner)
    ]),
    tensor("model.norm", width),
    ...(shape.tie_word_embeddings ? [] : [tensor("lm_head", vocabulary, width)])
  ]
}
