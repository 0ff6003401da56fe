/** What a model's shape says of its files and of the engine's memory, in bytes. Pure arithmetic; file sizes are within a few KB of the real ones. */
import { embeddingParameters, type ModelShape, parameterCount, tensorShapes } from "./Architecture.ts"
import { type GgufType, tensorType } from "./Gguf.ts"
import { tensorBytes } from "./GgufFormat.ts"
import type { Precision } from "./HfConfig.ts"
import { dtypeOf } from "./HuggingFace.ts"
import { DTYPE_BYTES } from "./Safetensors.ts"

const FLOAT = 4

/** Of weights and moments between the steps of training. */
export type StateType = "fp32" | "bf16"

/** tokenizer.json and tokenizer.model, by piece of the vocabulary: 2.35 MB for Llama 2's 32,000. */
const TOKENIZER_BYTES_PER_PIECE = 74
/** Pieces, scores and types in a GGUF file's metadata: 0.73 MB for Llama 2's 32,000. */
const GGUF_BYTES_PER_PIECE = 23
/** config.json, headers, alignment, by tensor. */
const BYTES_PER_TENSOR = 200
/** Node.js, the program and the engine before any model: a worker of a small run peaks at 200 MB beside its buffers. */
export const PROCESS_BYTES = 220e6

const elementsOf = (sizes: ReadonlyArray<number>): number => sizes.reduce((product, size) => product * size, 1)
const headersOf = (shape: ModelShape): number => BYTES_PER_TENSOR * tensorShapes(shape).length + 2000

/** config.json and weights. */
export const weightsBytes = (shape: ModelShape, precision: Precision): number =>
  parameterCount(shape) * DTYPE_BYTES[dtypeOf[precision]] + headersOf(shape)

/** A Hugging Face folder: weights and the tokenizer's files. */
export const hfModelBytes = (shape: ModelShape, precision: Precision): number =>
  weightsBytes(shape, precision) + TOKENIZER_BYTES_PER_PIECE * shape.vocab_size

export const ggufBytes = (shape: ModelShape, type: GgufType): number =>
  tensorShapes(shape).reduce(
    (sum, tensor) => sum + tensorBytes(tensorType(tensor, type, shape.tie_word_embeddings), elementsOf(tensor.shape)),
    GGUF_BYTES_PER_PIECE * shape.vocab_size + headersOf(shape)
  )

/** Headers of a checkpoint's two files are filled up to a multiple of this. */
const CHECKPOINT_ALIGNMENT = 4096

/** A training checkpoint: weights and two moments. */
export const checkpointBytes = (shape: ModelShape, state: StateType = "fp32"): number =>
  3 * DTYPE_BYTES[dtypeOf[state]] * parameterCount(shape) + 3 * headersOf(shape) + 2 * CHECKPOINT_ALIGNMENT

/** A layer's activations for `rows` tokens: native/model/activations.cpp, place_layer. */
const layerFloats = (shape: ModelShape, rows: number): number => {
  const { head_dim, hidden_size: width, intermediate_size: inner, num_attention_heads: heads } = shape
  const qkv = (heads + 2 * shape.num_key_value_heads) * head_dim
  return rows * (4 * width + qkv + heads * head_dim + 3 * inner + heads + 2)
}

/** The engine's arena for `rows` tokens in one pass: native/model/activations.cpp, place. Scoring shares one layer's set. */
export const activationBytes = (shape: ModelShape, rows: number, pass: "train" | "score"): number => {
  const { head_dim, hidden_size: width, intermediate_size: inner, num_attention_heads: heads } = shape
  const qkv = (heads + 2 * shape.num_key_value_heads) * head_dim
  const shared = rows * (3 * width + 5)
  const backward = pass === "train" ? rows * (width + heads * head_dim + Math.max(qkv, inner)) : 0
  const layers = pass === "train" ? shape.num_hidden_layers : 1
  return FLOAT * (layers * layerFloats(shape, rows) + shared + backward)
}

/** The largest tensor passes through JavaScript when weights are read or written, as values and as bytes. */
const transferBytes = (shape: ModelShape): number =>
  2 * FLOAT * Math.max(...tensorShapes(shape).map((tensor) => elementsOf(tensor.shape)))

/** The CPU reads fp32 weights: of a bf16 state it holds a widened copy. */
const trainingBytesPerParameter = (state: StateType): number =>
  3 * DTYPE_BYTES[dtypeOf[state]] + (state === "fp32" ? 0 : FLOAT) + FLOAT

/** Ranks that train together on one machine; the strategies are native/distributed/sharding.h's. */
export interface SharedTraining {
  readonly ranks: number
  readonly strategy: "none" | "zero2" | "fsdp" | "hsdp"
  readonly shard_size?: number
  readonly share_gradients?: boolean
}

/** Of all ranks together: the state once for each copy, on every rank a copy to compute with, and gradients. */
const sharedBytes = (shape: ModelShape, state: StateType, shared: SharedTraining): number => {
  const { ranks, shard_size: shardSize = ranks, share_gradients: shareGradients = false, strategy } = shared
  const parameters = parameterCount(shape)
  if (ranks === 1 || strategy === "none") return ranks * trainingBytesPerParameter(state) * parameters
  const copies = strategy === "hsdp" ? ranks / Math.min(ranks, shardSize) : 1
  // What is gathered or reduced lies whole for two layers and the larger of embedding and head: native/distributed/store_plan.h.
  const layer = (parameters - 2 * embeddingParameters(shape)) / shape.num_hidden_layers
  const slots = Math.min(parameters, 2 * layer + embeddingParameters(shape))
  const compute = strategy === "zero2" ? parameters : slots
  const gradients = shareGradients ? slots + (parameters * copies) / ranks : parameters
  return 3 * DTYPE_BYTES[dtypeOf[state]] * parameters * copies + ranks * FLOAT * (compute + gradients)
}

/** Weights, gradients, two moments and the activations of one micro-batch of `rows` tokens, in a process of its own; or in several. */
export const trainingMemory = (
  shape: ModelShape,
  rows: number,
  state: StateType = "fp32",
  shared: SharedTraining = { ranks: 1, strategy: "none" }
): number =>
  sharedBytes(shape, state, shared) +
  shared.ranks * (activationBytes(shape, rows, "train") + transferBytes(shape) + PROCESS_BYTES)

/** Weights and the activations of a batch of `rows` tokens. */
export const scoringMemory = (shape: ModelShape, rows: number): number =>
  FLOAT * parameterCount(shape) + activationBytes(shape, rows, "score") + transferBytes(shape) + PROCESS_BYTES

/** Rewriting a model tensor by tensor: no more than the largest one at a time, as fp32 and in other forms. */
export const rewritingMemory = (shape: ModelShape): number => 2 * transferBytes(shape) + PROCESS_BYTES
