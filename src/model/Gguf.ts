/**
 * A Llama model as a GGUF file for llama.cpp: its tensor names, its order of the query and key rows, its metadata and tokenizer.
 */
import { Effect } from "effect"
import { type BlockType, quantize } from "../engine/Quantizer.ts"
import { type ModelShape, parameterCount, tensorShapes } from "./Architecture.ts"
import { type ChatFormat, chatTemplate } from "./ChatTemplate.ts"
import { dequantize } from "./GgmlBlocks.ts"
import { GgufError, TENSOR_TYPES } from "./GgufFormat.ts"
import { type MetadataValue, writeGguf } from "./GgufWriter.ts"
import type { Vocabulary } from "./Vocabulary.ts"

/** The types of a whole file. F32 and F16 keep the weights; the Q types are ggml's blocks of 32 with one f16 scale. */
export type GgufType = "F32" | BlockType
export const ggufTypes: ReadonlyArray<GgufType> = ["F32", "F16", "Q8_0", "Q4_0"]

/** llama.cpp's LLAMA_FTYPE numbers, `general.file_type`. */
const fileTypes: Readonly<Record<GgufType, number>> = { F32: 0, F16: 1, Q4_0: 2, Q8_0: 7 }

const layerNames: Readonly<Record<string, string>> = {
  input_layernorm: "attn_norm",
  "self_attn.q_proj": "attn_q",
  "self_attn.k_proj": "attn_k",
  "self_attn.v_proj": "attn_v",
  "self_attn.o_proj": "attn_output",
  post_attention_layernorm: "ffn_norm",
  "mlp.gate_proj": "ffn_gate",
  "mlp.up_proj": "ffn_up",
  "mlp.down_proj": "ffn_down"
}
const outerNames: Readonly<Record<string, string>> = {
  "model.embed_tokens": "token_embd",
  "model.norm": "output_norm",
  lm_head: "output"
}

/** llama.cpp's name of a tensor that Hugging Face calls `name`. */
export const ggufName = (name: string): string => {
  const stem = name.replace(/\.weight$/u, "")
  const layer = /^model\.layers\.(\d+)\.(.+)$/u.exec(stem)
  return `${layer === null ? outerNames[stem] : `blk.${layer[1]}.${layerNames[layer[2]!]}`}.weight`
}

/**
 * Rotary embeddings turn pairs of a head's rows. Hugging Face pairs row j with row j + size/2, llama.cpp's Llama pairs neighbours, so row 2j + p of
 * a head there is row p·size/2 + j here (p = 0, 1). For query and key projections; `rows` holds whole heads of `headSize` rows.
 */
export const pairNeighbours = (rows: Float32Array, columns: number, headSize: number): Float32Array => {
  const out = new Float32Array(rows.length)
  const half = headSize / 2
  for (let row = 0; row < rows.length / columns; row++) {
    const place = row % headSize
    const source = row - place + (place % 2) * half + (place >> 1)
    out.set(rows.subarray(source * columns, (source + 1) * columns), row * columns)
  }
  return out
}

/**
 * The type a tensor gets in a file of `type`. Norms stay F32, as everywhere in llama.cpp. The output projection shapes every logit: in a Q4_0 file
 * it is kept at Q8_0, where llama.cpp's own tool takes Q6_K; when it is the embedding too (tied), so is that. Rows that are no whole number of
 * blocks fall back to F16.
 */
export const tensorType = (
  tensor: { readonly name: string; readonly shape: ReadonlyArray<number> },
  type: GgufType,
  tied: boolean
): GgufType => {
  if (tensor.shape.length === 1) return "F32"
  const isOutput = tensor.name === (tied ? "model.embed_tokens.weight" : "lm_head.weight")
  const wanted = type === "Q4_0" && isOutput ? "Q8_0" : type
  return tensor.shape.at(-1)! % TENSOR_TYPES[wanted].elements === 0 ? wanted : "F16"
}

/** llama.cpp's metadata for the shape, the file type and the tokenizer. */
export const metadataOf = (model: {
  readonly name: string
  readonly shape: ModelShape
  readonly type: GgufType
  readonly vocabulary: Vocabulary
  readonly chat: ChatFormat | null
}): ReadonlyArray<readonly [string, MetadataValue]> => {
  const { chat, shape, type, vocabulary } = model
  const uint32 = (value: number): MetadataValue => ({ type: "uint32", value })
  const float32 = (value: number): MetadataValue => ({ type: "float32", value })
  const string = (value: string): MetadataValue => ({ type: "string", value })
  const bool = (value: boolean): MetadataValue => ({ type: "bool", value })
  const quantized = TENSOR_TYPES[type].elements > 1
  return [
    ["general.architecture", string("llama")],
    ["general.name", string(model.name)],
    ["general.file_type", uint32(fileTypes[type])],
    ...(quantized ? ([["general.quantization_version", uint32(2)]] as const) : []),
    ["llama.vocab_size", uint32(shape.vocab_size)],
    ["llama.context_length", uint32(shape.max_position_embeddings)],
    ["llama.embedding_length", uint32(shape.hidden_size)],
    ["llama.block_count", uint32(shape.num_hidden_layers)],
    ["llama.feed_forward_length", uint32(shape.intermediate_size)],
    ["llama.attention.head_count", uint32(shape.num_attention_heads)],
    ["llama.attention.head_count_kv", uint32(shape.num_key_value_heads)],
    ["llama.attention.key_length", uint32(shape.head_dim)],
    ["llama.attention.value_length", uint32(shape.head_dim)],
    ["llama.attention.layer_norm_rms_epsilon", float32(shape.rms_norm_eps)],
    ["llama.rope.dimension_count", uint32(shape.head_dim)],
    ["llama.rope.freq_base", float32(shape.rope_theta)],
    ["tokenizer.ggml.model", string("llama")],
    ["tokenizer.ggml.pre", string("default")],
    ["tokenizer.ggml.tokens", { type: "array", of: "string", values: vocabulary.pieces }],
    ["tokenizer.ggml.scores", { type: "array", of: "float32", values: vocabulary.scores }],
    ["tokenizer.ggml.token_type", { type: "array", of: "int32", values: vocabulary.types }],
    ["tokenizer.ggml.bos_token_id", uint32(vocabulary.bos)],
    ["tokenizer.ggml.eos_token_id", uint32(vocabulary.eos)],
    ["tokenizer.ggml.unknown_token_id", uint32(vocabulary.unknown)],
    ["tokenizer.ggml.add_bos_token", bool(true)],
    ["tokenizer.ggml.add_eos_token", bool(false)],
    ["tokenizer.ggml.add_space_prefix", bool(vocabulary.dummyPrefix)],
    ...(chat === null ? [] : ([["tokenizer.chat_template", string(chatTemplate[chat])]] as const))
  ]
}

/** What became of the weights in one file. */
export interface GgufReport {
  readonly bytes: number
  readonly sha256: string
  /** Bits of tensor data per parameter. */
  readonly bitsPerWeight: number
  /** Root of the mean squared difference between the weights and what the file says they are; over all weights. */
  readonly rmsError: number
  /** The same, divided by the root mean square of the weights. */
  readonly relativeRmsError: number
  /** Tensors, by Hugging Face's name, whose rows do not fit the type's blocks and that are F16 therefore. */
  readonly fallbacks: ReadonlyArray<string>
}

/** Writes the model to `path`. `weights` gives a tensor's fp32 values by its Hugging Face name, row by row, when its turn comes. */
export const writeLlamaGguf = Effect.fn("Gguf.writeLlamaGguf")(function* <E, R, E2 = never, R2 = never>(
  path: string,
  model: {
    /** `general.name`, shown by programs that load the file. */
    readonly name: string
    readonly shape: ModelShape
    readonly type: GgufType
    readonly vocabulary: Vocabulary
    readonly chat: ChatFormat | null
    readonly weights: (name: string) => Effect.Effect<Float32Array, E, R>
    /** Called before each tensor; an effect that fails ends the writing. */
    readonly beforeTensor?: (written: number, total: number) => Effect.Effect<void, E2, R2>
  }
) {
  const { shape, type, vocabulary } = model
  if (vocabulary.pieces.length !== shape.vocab_size) {
    return yield* new GgufError({
      path,
      cause: `the model has ${shape.vocab_size} token ids, the tokenizer ${vocabulary.name} has ${vocabulary.pieces.length}`
    })
  }
  const tensors = tensorShapes(shape)
  let squaredError = 0
  let squaredWeight = 0
  const encode = Effect.fnUntraced(function* (values: Float32Array, stored: GgufType, columns: number) {
    if (stored === "F32") return new Uint8Array(values.buffer, values.byteOffset, values.byteLength)
    const bytes = yield* quantize(stored, values, columns)
    const back = dequantize(stored, bytes)
    for (let i = 0; i < values.length; i++) squaredError += (values[i]! - back[i]!) ** 2
    return bytes
  })
  const sources = tensors.map((tensor, index) => {
    const stored = tensorType(tensor, type, shape.tie_word_embeddings)
    const columns = tensor.shape.at(-1)!
    const isRotated = /\.(?:q|k)_proj\.weight$/u.test(tensor.name)
    const bytes = Effect.gen(function* () {
      if (model.beforeTensor !== undefined) yield* model.beforeTensor(index, tensors.length)
      const given = yield* model.weights(tensor.name)
      const values = isRotated ? pairNeighbours(given, columns, shape.head_dim) : given
      for (let i = 0; i < values.length; i++) squaredWeight += values[i]! ** 2
      return yield* encode(values, stored, columns)
    })
    return { name: ggufName(tensor.name), type: stored, shape: tensor.shape, bytes }
  })
  const written = yield* writeGguf(path, metadataOf(model), sources)
  const bits = tensors.reduce((sum, tensor) => {
    const { bytes, elements } = TENSOR_TYPES[tensorType(tensor, type, shape.tie_word_embeddings)]
    return sum + (tensor.shape.reduce((product, size) => product * size, 1) / elements) * bytes * 8
  }, 0)
  const parameters = parameterCount(shape)
  const report: GgufReport = {
    ...written,
    bitsPerWeight: bits / parameters,
    rmsError: Math.sqrt(squaredError / parameters),
    relativeRmsError: squaredWeight === 0 ? 0 : Math.sqrt(squaredError / squaredWeight),
    fallbacks: tensors
      .filter((tensor) => tensor.shape.length > 1 && type !== "F16" && tensorType(tensor, type, false) === "F16")
      .map(({ name }) => name)
  }
  return report
})
