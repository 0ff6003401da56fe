/**
 * The hand-written type of the native surface, and its loading. It mirrors native/binding one to one; nothing else imports the addon.
 */
import { createRequire } from "node:module"
import { Effect, Schema } from "effect"

/** Shape of a Llama-architecture model, in Hugging Face's names. */
export interface ModelConfig {
  readonly vocab_size: number
  readonly hidden_size: number
  readonly intermediate_size: number
  readonly num_hidden_layers: number
  readonly num_attention_heads: number
  readonly num_key_value_heads: number
  readonly head_dim: number
  readonly rms_norm_eps: number
  readonly rope_theta: number
  readonly tie_word_embeddings: boolean
}

/** One tensor of the flat parameter buffer, by its Hugging Face name. `offset` and the product of `shape` count elements. */
export interface ParameterInfo {
  readonly name: string
  readonly shape: ReadonlyArray<number>
  readonly offset: number
}

/**
 * `tokens` and `targets` are (batch, length), row by row; a target below 0 is not scored. `firstKeys`, as many, are the first position of its row that
 * each token attends to, 0 to its own; without them it attends to all before it.
 */
export interface Batch {
  readonly tokens: Int32Array
  readonly targets: Int32Array
  readonly firstKeys?: Int32Array
  readonly batch: number
  readonly length: number
}

export interface AdamWStep {
  /** 1-based optimizer step, for bias correction. */
  readonly step: number
  readonly learningRate: number
  readonly beta1: number
  readonly beta2: number
  readonly epsilon: number
  readonly weightDecay: number
  /** "all": every tensor, TinyLlama's choice; "matrices": not the norm gains. */
  readonly decay: "all" | "matrices"
  /** Largest global gradient norm; 0 turns clipping off. */
  readonly clip: number
  /** Of the random bits that round a state of bf16; 0 where it is left out. */
  readonly seed?: number
}

/** Which of the processes that train together this one is, and how they speak. */
export interface NativeWorld {
  readonly rank: number
  readonly size: number
  /** single: a world of 1; mpi: ranks on CPUs; host-staged: MPI for ranks that share a GPU; fake: rank r of W alone, for measuring. */
  readonly communicator: "single" | "nccl" | "mpi" | "host-staged" | "fake"
  /** Of nccl: where rank 0 awaits the others. */
  readonly masterAddress?: string
  readonly masterPort?: number
  /** Of nccl: of this start of this run, the same on all ranks. */
  readonly nonce?: string
  /** What must be alike on all ranks; where it is not, opening the model fails on all and names it. */
  readonly agreement?: ReadonlyArray<readonly [name: string, value: string]>
  /** Of the log of collectives and the watchdog, for all ranks the same; without: neither. */
  readonly logFolder?: string
  /** How long a collective may last before the watchdog ends the process, with code 70. */
  readonly collectiveSeconds?: number
}

/** One round of a step's micro-batches, of which every rank makes one: the first `contributors` ranks' count. */
export interface MicroBatchRound {
  /** Of the step: the ranks then sum their gradients. */
  readonly last: boolean
  readonly contributors: number
}

export type StateKind = "weights" | "gradients" | "firstMoment" | "secondMoment"

/** The parts of the state that checkpoints hold. */
export type SavedKind = Exclude<StateKind, "gradients">

/** A file of a checkpoint as it was written: its bytes, and the sha256 of each 16 MiB of it. */
export interface WrittenFile {
  readonly path: string
  readonly bytes: number
  readonly pieces: ReadonlyArray<string>
}

/** What this rank held of the state at one moment. */
export interface StateSnapshot {
  /** live: no copy was made, for want of memory. The model must not change before it is written or released. */
  readonly place: "device" | "host" | "live"
  readonly bytes: number
  /**
   * Writes safetensors files with all that the snapshot has of these kinds, on `threads` threads of its own; once. The memory is let go as soon as the
   * last byte is on its way; the promise settles when the files are durable. A refusal of the file system says its code and the path.
   */
  write(
    files: ReadonlyArray<{ readonly path: string; readonly kinds: ReadonlyArray<SavedKind> }>,
    threads: number
  ): Promise<ReadonlyArray<WrittenFile>>
  /** Lets the memory go; a write that is under way soon fails. */
  release(): void
}

/** A safetensors file to restore from; without pieces it is not checked. */
export interface StoredFile {
  readonly path: string
  readonly bytes: number
  /** In front of the data. */
  readonly headerBytes: number
  readonly pieces: ReadonlyArray<string>
}

/** `count` elements of the flat order from `offset` on, which begin at byte `fileOffset` of the file with that index. */
export interface StoredRange {
  readonly file: number
  readonly fileOffset: number
  readonly kind: SavedKind
  readonly offset: number
  readonly count: number
  readonly dtype: "F32" | "BF16"
}

/** Where a model computes. All but `threads` may be left out: the CPU, in fp32, keeping everything for the backward pass. */
export interface ModelOptions {
  /** Of the CPU. */
  readonly threads: number
  readonly device?: "cpu" | "cuda"
  /** Which GPU, from 0. */
  readonly gpu?: number
  /** Of products and activations; bf16 on GPUs alone. Gradients are fp32 in either. */
  readonly precision?: "fp32" | "bf16"
  /** Of weights and moments between the steps; a step rounds bf16 stochastically. */
  readonly state?: "fp32" | "bf16"
  /** What is computed again in the backward pass instead of kept; the results are the same. */
  readonly recompute?: "none" | "pointwise" | "gate_up" | "full"
  /** Whether a GPU's repeated work is recorded once and launched as a whole. */
  readonly graphs?: "on" | "off"
  /** A world of 1 where it is left out. */
  readonly world?: NativeWorld
  /** How parameters are shared out among ranks: native/distributed/sharding.h. */
  readonly strategy?: "none" | "zero2" | "fsdp" | "hsdp"
  /** Of hsdp: how many ranks share one copy. */
  readonly shardSize?: number
  /** Sum gradients over ranks after every micro-batch, so that each rank keeps its share alone. */
  readonly shareGradients?: boolean
  /** fixed-order: micro-batch by micro-batch in their global order, with the same bits on any number of ranks. */
  readonly gradientSum?: "fast" | "fixed-order"
}

/** The GPUs that can be used; where there are none, `obstacle` says why and what to do. */
export interface GpuSurvey {
  readonly gpus: ReadonlyArray<{
    readonly name: string
    /** Bytes. */
    readonly memory: number
    readonly computeCapability: string
  }>
  readonly obstacle: string
}

/** One operation of a training step, alone: native/model/kernel_timing.h. */
export interface KernelTiming {
  readonly name: string
  readonly seconds: number
  readonly bytes: number
  readonly operations: number
  /** In a micro-batch, or in a step for the optimizer's. */
  readonly calls: number
  readonly perStep: boolean
}

/**
 * Computes on a native thread of its own: calls run one after the other in the order they were made, and JavaScript may make many (1,024 may wait)
 * before the first is answered. What returns no promise waits, with the JavaScript thread, until all calls before it are over.
 */
export interface NativeModel {
  readonly parameters: ReadonlyArray<ParameterInfo>
  readonly parameterCount: number
  /** The CPU's instruction set, or the GPU with its precision and libraries. */
  readonly deviceName: string
  /**
   * Bytes: in use on a GPU, of all processes together, or allocated by this model on the CPU; and what of them the driver and the communicator had taken
   * before there was a model.
   */
  readonly memory: { readonly inUse: number; readonly context: number; readonly communicator: number }
  /** Takes multiprocessors and bandwidth of the GPU away, as communication beside a step would: native/device/contention.h. */
  contend(multiprocessors: number, gigabytesPerSecond: number, mostSeconds: number): void
  /** The gigabytes a second that it moved. */
  endContention(): number
  /** Of weights and moments; `read` widens bf16 exactly, `write` rounds to the nearest. */
  readonly stateType: "fp32" | "bf16"
  /** Fills the weights from a counter-based generator: element i depends on (seed, i) alone. TinyLlama's initialization. */
  initialize(seed: number): void
  /** Copies `length` elements from `offset` on; the optimizer's buffers come to life with the first step or write. */
  read(kind: StateKind, offset: number, length: number): Float32Array
  write(kind: StateKind, offset: number, values: Float32Array): void
  /** What this rank holds of the weights and the moments, when the calls before are done. */
  snapshot(): Promise<StateSnapshot>
  /**
   * Fills what this rank holds from files of any number of ranks, and checks their digests on the way. A damaged file is named with the bytes, and leaves
   * the state half filled.
   */
  restore(files: ReadonlyArray<StoredFile>, ranges: ReadonlyArray<StoredRange>, threads: number): Promise<void>
  /** Forward and backward; adds the gradient of lossScale × (sum of the scored targets' losses). Off the JavaScript thread. */
  accumulate(
    batch: Batch,
    lossScale: number,
    round?: MicroBatchRound
  ): Promise<{ readonly lossSum: number; readonly scored: number }>
  /** Clips by the global norm, applies AdamW, zeroes the gradients. A gradient norm that is not finite applies nothing. */
  step(options: AdamWStep): Promise<{ readonly gradientNorm: number }>
  /** Every rank's values, in the order of ranks; all ranks call it, with equally many. */
  exchange(values: Float64Array): Promise<Float64Array>
  /** The flat elements that this rank holds of weights and moments; `read` and `write` reach these alone. */
  readonly shares: ReadonlyArray<{ readonly offset: number; readonly count: number }>
  /** Zeroes the gradients instead of a step. Calls of `accumulate` that have not begun are dropped, and reject. */
  discard(): Promise<void>
  score(batch: Batch): Promise<{ readonly logProbabilities: Float32Array; readonly greedy: Uint8Array }>
  /** All logits, (batch × length, vocab_size): for oracles and small checks, not for evaluation. */
  logits(batch: Omit<Batch, "targets">): Promise<Float32Array>
  /** Lets the call that runs end, rejects those that wait, and frees the memory. */
  dispose(): void
}

export interface EncodeOptions {
  readonly addBos: boolean
  readonly addEos: boolean
  /** SentencePiece's dummy prefix: one ▁ in front of a non-empty text. */
  readonly dummyPrefix: boolean
}

/** Document i has ids [offsets[i], offsets[i + 1]). 16 bits where the vocabulary has at most 65,536 pieces. */
export interface EncodedBatch {
  readonly ids: Uint16Array<ArrayBuffer> | Uint32Array<ArrayBuffer>
  readonly offsets: Uint32Array<ArrayBuffer>
}

export interface NativeTokenizer {
  readonly vocabularySize: number
  /** Ids of one document. Bytes in, never JavaScript strings; invalid UTF-8 becomes U+FFFD byte by byte, as SentencePiece does. */
  encode(document: Uint8Array, options: EncodeOptions): Int32Array
  /**
   * Ids of many documents on `threads` threads, off the JavaScript thread: document i is text [offsets[i], offsets[i + 1]). Nothing is copied, so
   * neither array may change before the promise settles. Long documents are cut behind line feeds; the ids are the same on any number of threads.
   */
  encodeBatch(text: Uint8Array, offsets: Uint32Array, options: EncodeOptions, threads: number): Promise<EncodedBatch>
  /** The same for documents that need not lie end to end: document i is text [ranges[2 i], ranges[2 i + 1]). */
  encodeRanges(text: Uint8Array, ranges: Uint32Array, options: EncodeOptions, threads: number): Promise<EncodedBatch>
  /** Bytes of the text, as SentencePiece decodes. Ids outside the vocabulary throw. */
  decode(ids: Int32Array): Uint8Array
  /** Offset of the first byte that is not valid UTF-8, or -1. */
  firstInvalidUtf8(document: Uint8Array): number
}

export interface Vocabulary {
  readonly pieces: ReadonlyArray<string>
  readonly scores: Float32Array
  /** SentencePiece's types: 1 normal, 2 unknown, 3 control, 6 byte. */
  readonly types: Uint8Array
}

export interface JsonRows {
  /**
   * Reads rows of `input` from `start` on into `records`, until either ends; without `last`, a row without newline is not read. Returns how many.
   * A record has 7 Int32s (status, begin, end, next, errorAt, invalidUtf8 or -1, characters of the first field), and 4 of each field (kind,
   * offset and length in `arena`, loneSurrogate). The arena is at least as long as the rest of the input.
   */
  scan(input: Uint8Array, start: number, last: boolean, arena: Uint8Array, records: Int32Array): number
}

export interface LoaderLayout {
  /** Tokens in a block: a row of inputs has one less. */
  readonly blockLength: number
  /** 32 bits a token, else 16. */
  readonly wide: boolean
  /** The file has columns `boundaries` and `length`. */
  readonly boundaries: boolean
  readonly lengths: boolean
  readonly vocabularySize: number
  readonly seed: number
}

/**
 * Maps one split of a packed dataset. A native thread of its own reads, call after call; the arrays of a call are its until the promise settles. Errors
 * name the file, and the block.
 */
export interface Loader {
  readonly blocks: number
  /** The block of a global sample index; waits for the calls before it. */
  sampleAt(index: number): number
  /**
   * Fills whole rows with the samples first, first + stride, …; targets are -1 in a block's padding. The pages of the next `ahead` samples are then on
   * their way. `firstKeys`, with a layout of boundaries, receives where in its row each input's document begins; the padding is one of its own.
   */
  samples(
    first: number,
    stride: number,
    tokens: Int32Array,
    targets: Int32Array,
    ahead: number,
    firstKeys?: Int32Array
  ): Promise<void>
  /** Fills whole rows with blocks from `first` on, as they lie in the file. */
  inOrder(first: number, tokens: Int32Array, targets: Int32Array, firstKeys?: Int32Array): Promise<void>
  /** Lets the call that reads end, rejects those that wait, and closes the file. */
  dispose(): void
}

export interface Native {
  /** "avx512", "avx2", "neon" or "scalar". */
  instructionSet(): string
  readonly Model: new (config: ModelConfig, options: ModelOptions) => NativeModel
  /** Looks once in a process. */
  gpus(): GpuSurvey
  timeKernels(
    config: ModelConfig,
    options: ModelOptions,
    batch: number,
    length: number,
    rounds: number
  ): Promise<{ readonly device: string; readonly timings: ReadonlyArray<KernelTiming> }>
  /**
   * Bytes that training holds on one rank's device, micro-batches of `batch` sequences of `length` tokens: the arithmetic of the allocations themselves.
   * `overhead` is what a GPU's operations hold for themselves. Throws where the strategy does not fit the number of ranks.
   */
  planTrainingMemory(
    config: ModelConfig,
    options: ModelOptions,
    batch: number,
    length: number
  ): {
    readonly weights: number
    readonly gradients: number
    readonly moments: number
    readonly activations: number
    readonly overhead: number
  }
  /**
   * Writes the state of a model of this shape, which lies in files of any number of ranks, into safetensors files as one rank would. Digests are not looked
   * at.
   */
  gatherState(
    config: ModelConfig,
    files: ReadonlyArray<StoredFile>,
    ranges: ReadonlyArray<StoredRange>,
    dtype: "F32" | "BF16",
    targets: ReadonlyArray<{ readonly path: string; readonly kinds: ReadonlyArray<SavedKind> }>,
    threads: number
  ): Promise<ReadonlyArray<WrittenFile>>
  /** Of a file's pieces for digests; the last one may be shorter. */
  readonly pieceBytes: number
  /** The sha256 of each piece of a file. */
  hashPieces(path: string, threads: number): Promise<{ readonly bytes: number; readonly pieces: ReadonlyArray<string> }>
  readonly Tokenizer: new (vocabulary: Vocabulary) => NativeTokenizer
  /** Rows of jsonl files; each path names a field, through objects. */
  readonly JsonRows: new (paths: ReadonlyArray<ReadonlyArray<string>>) => JsonRows
  readonly Loader: new (path: string, layout: LoaderLayout) => Loader
  /** XXH64 of the bytes, its upper 53 bits as a fraction in [0, 1). */
  textHash(bytes: Uint8Array, seed: number): number
  /** Of each document, tokens [offsets[i], offsets[i + 1]), as textHash of its bytes in memory under the seed 0. */
  documentHashes(tokens: Uint16Array | Uint32Array, offsets: Int32Array): Float64Array
  /** -1 for none. */
  largestId(tokens: Uint16Array | Uint32Array): number
  /**
   * Gives memory that was freed back to the system, where the C library keeps it in many pieces: threads that allocate and free large buffers in turns
   * leave some in each of its arenas.
   */
  releaseFreeMemory(): void
  /** Characters of valid UTF-8. */
  countCharacters(text: Uint8Array): number
  /** The vocabulary of a tokenizer.model. Throws an Error for what is none, and for a model that would be encoded otherwise. */
  readSentencePieceModel(file: Uint8Array): Vocabulary & { readonly addDummyPrefix: boolean }
  /** Blocks of ggml's format for `type`; rows of `columns` elements (a multiple of 32 for Q8_0 and Q4_0). */
  quantize(type: "F16" | "Q8_0" | "Q4_0", values: Float32Array, columns: number): Promise<Uint8Array>
  /** GFLOP/s of a register-only fp32 FMA loop on `threads` threads. */
  measurePeak(threads: number, seconds: number): Promise<number>
  /** GFLOP/s of out(m,n) = op(a)·op(b) as the trainer calls it; median over at least `seconds`. */
  measureMatmul(
    threads: number,
    shape: {
      readonly m: number
      readonly n: number
      readonly k: number
      readonly transposeA: boolean
      readonly transposeB: boolean
    },
    seconds: number
  ): Promise<number>
  /**
   * GFLOP/s of the output projection's three products inside the fused loss, all packing included, the softmax not; medians over at least
   * `seconds`.
   */
  measureLossProducts(
    threads: number,
    shape: { readonly rows: number; readonly width: number; readonly vocabulary: number },
    seconds: number
  ): Promise<{ readonly forward: number; readonly inputGradient: number; readonly weightGradient: number }>
}

export class NativeUnavailable extends Schema.TaggedError<NativeUnavailable>()("NativeUnavailable", {
  path: Schema.String,
  reason: Schema.String
}) {
  override get message() {
    return `the native engine cannot be loaded from ${this.path}: ${this.reason}\nNext: npm run build:native`
  }
}

/** src/ and dist/ are siblings: the path holds for both. */
const addonPath = new URL("../../build/Release/tinyllama_native.node", import.meta.url)

export const load: Effect.Effect<Native, NativeUnavailable> = Effect.try({
  try: () => createRequire(import.meta.url)(addonPath.pathname) as Native,
  catch: (cause) => new NativeUnavailable({ path: addonPath.pathname, reason: String(cause) })
})
