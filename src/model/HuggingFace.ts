/**
 * A model folder as Hugging Face's libraries write and read it: config.json and generation_config.json, weights in one safetensors file or in
 * shards with an index, and the tokenizer's files. A Checkpoint artifact is such a folder too, without the tokenizer.
 */
import { Effect, FileSystem, Path, Schema } from "effect"
import type { NativeModel } from "../engine/Native.ts"
import { type ModelShape, parameterCount, tensorShapes } from "./Architecture.ts"
import type { ChatFormat } from "./ChatTemplate.ts"
import { ArchitectureError, fromHfConfig, type Precision, toHfConfig } from "./HfConfig.ts"
import {
  DTYPE_BYTES,
  readSafetensors,
  type SafetensorsError,
  type SafetensorsTensor,
  type TensorSource,
  writeSafetensors
} from "./Safetensors.ts"
import { writeTokenizerFiles } from "./TokenizerFiles.ts"
import type { Vocabulary } from "./Vocabulary.ts"

/** Hugging Face's own limit for one weights file; above it, shards. */
export const MAX_SHARD_BYTES = 5_000_000_000
/** A config.json has about 1 KB, an index about 100 bytes per tensor: more is no model description (CWE-770). */
export const MAX_JSON_BYTES = 16 << 20

const WEIGHTS = "model.safetensors"
const INDEX = "model.safetensors.index.json"

export const dtypeOf = { fp32: "F32", fp16: "F16", bf16: "BF16" } as const
const elementsOf = (shape: ReadonlyArray<number>): number => shape.reduce((product, size) => product * size, 1)

export class HfModelError extends Schema.TaggedError<HfModelError>()("HfModelError", {
  path: Schema.String,
  reason: Schema.String
}) {
  override get message() {
    return `${this.path}: ${this.reason}`
  }
}

const writeJson = Effect.fnUntraced(function* (path: string, value: Schema.Json) {
  const fs = yield* FileSystem.FileSystem
  yield* fs.writeFileString(path, `${JSON.stringify(value, null, 2)}\n`)
})

const readJson = Effect.fnUntraced(function* (path: string) {
  const fs = yield* FileSystem.FileSystem
  const failed = (reason: string) => new HfModelError({ path, reason })
  const { size } = yield* fs.stat(path).pipe(Effect.mapError((error) => failed(error.message)))
  if (Number(size) > MAX_JSON_BYTES) return yield* failed(`${size} bytes of JSON exceed the limit of ${MAX_JSON_BYTES}`)
  const text = yield* fs.readFileString(path).pipe(Effect.mapError((error) => failed(error.message)))
  return yield* Effect.try({
    try: (): unknown => JSON.parse(text),
    catch: (error) => failed(`not JSON: ${String(error)}`)
  })
})

/** A weight to store: `values` is evaluated when its turn comes and gives fp32 values, rounded to the folder's precision on the way out. */
export type WeightSource<E = never, R = never> = Omit<TensorSource<E, R>, "dtype">

/** The engine's weights as they are now, for writing. */
export const weightsOf = (model: Pick<NativeModel, "parameters" | "read">): ReadonlyArray<WeightSource> =>
  model.parameters.map(({ name, offset, shape }) => ({
    name,
    shape,
    values: Effect.sync(() => model.read("weights", offset, elementsOf(shape)))
  }))

/** Cuts the weights, in their order, into files of at most `limit` bytes; a tensor beyond the limit gets a file of its own. */
const shardsOf = <T extends { readonly shape: ReadonlyArray<number> }>(
  weights: ReadonlyArray<T>,
  bytesPerElement: number,
  limit: number
): ReadonlyArray<ReadonlyArray<T>> => {
  const shards: Array<Array<T>> = []
  let room = 0
  for (const weight of weights) {
    const bytes = elementsOf(weight.shape) * bytesPerElement
    if (shards.length === 0 || bytes > room) {
      shards.push([])
      room = limit
    }
    shards.at(-1)!.push(weight)
    room -= bytes
  }
  return shards
}

/**
 * Writes config.json and the weights into `folder`, in `precision`; the bytes depend on the arguments alone. Returns the sha256 of every weights
 * file by its name.
 */
export const writeWeights = Effect.fn("HuggingFace.writeWeights")(function* <E = never, R = never>(
  folder: string,
  model: {
    readonly shape: ModelShape
    readonly precision: Precision
    readonly weights: ReadonlyArray<WeightSource<E, R>>
    readonly maxShardBytes?: number
  }
) {
  const path = yield* Path.Path
  const { precision, shape, weights } = model
  const dtype = dtypeOf[precision]
  yield* writeJson(path.join(folder, "config.json"), toHfConfig(shape, precision))
  const shards = shardsOf(weights, DTYPE_BYTES[dtype], model.maxShardBytes ?? MAX_SHARD_BYTES)
  const nameOf = (index: number) =>
    shards.length === 1
      ? WEIGHTS
      : `model-${String(index + 1).padStart(5, "0")}-of-${String(shards.length).padStart(5, "0")}.safetensors`
  const digests = new Map<string, string>()
  for (const [index, shard] of shards.entries()) {
    const sources = shard.map((weight) => ({ ...weight, dtype }))
    const written = yield* writeSafetensors(path.join(folder, nameOf(index)), sources, { format: "pt" })
    digests.set(nameOf(index), written.sha256)
  }
  if (shards.length > 1) {
    const total = weights.reduce((sum, weight) => sum + elementsOf(weight.shape), 0)
    const places = shards.flatMap((shard, index) => shard.map(({ name }): [string, string] => [name, nameOf(index)]))
    yield* writeJson(path.join(folder, INDEX), {
      metadata: { total_parameters: total, total_size: total * DTYPE_BYTES[dtype] },
      weight_map: Object.fromEntries(places.sort(([a], [b]) => (a < b ? -1 : 1)))
    })
  }
  return digests
})

/**
 * Writes a folder that transformers loads: weights as `writeWeights`, generation_config.json, and the tokenizer's files with the chat template of
 * `chat`. Returns the HfModel artifact's facts.
 */
export const writeHfModel = Effect.fn("HuggingFace.writeHfModel")(function* <E = never, R = never>(
  folder: string,
  model: {
    readonly shape: ModelShape
    readonly precision: Precision
    readonly weights: ReadonlyArray<WeightSource<E, R>>
    readonly vocabulary: Vocabulary
    readonly chat: ChatFormat | null
    readonly maxShardBytes?: number
  }
) {
  const path = yield* Path.Path
  const { chat, precision, shape, vocabulary } = model
  const contextLength = shape.max_position_embeddings
  if (vocabulary.pieces.length !== shape.vocab_size) {
    return yield* new HfModelError({
      path: folder,
      reason: `the model has ${shape.vocab_size} token ids, the tokenizer ${vocabulary.name} has ${vocabulary.pieces.length}`
    })
  }
  yield* writeWeights(folder, model)
  yield* writeJson(path.join(folder, "generation_config.json"), {
    _from_model_config: true,
    bos_token_id: vocabulary.bos,
    eos_token_id: vocabulary.eos,
    transformers_version: "4.31.0"
  })
  yield* writeTokenizerFiles(folder, vocabulary, { chat, contextLength })
  return {
    parameters: parameterCount(shape),
    dtype: precision,
    context_length: contextLength,
    chat,
    tokenizer: vocabulary.name,
    tokenizer_digest: vocabulary.digest
  }
})

/** The shape in `folder`'s config.json. */
export const readShape = Effect.fn("HuggingFace.readShape")(function* (folder: string) {
  const path = (yield* Path.Path).join(folder, "config.json")
  return yield* fromHfConfig(path, yield* readJson(path))
})

export interface HfModel {
  readonly folder: string
  readonly shape: ModelShape
  /** The weights in the engine's flat order, checked to be all of the shape's and no others. */
  readonly tensors: ReadonlyMap<string, SafetensorsTensor>
}

const Index = Schema.Struct({ weight_map: Schema.Record(Schema.String, Schema.String) })
const decodeIndex = Schema.decodeUnknownEffect(Index)

/** The weights files of `folder`: the single one, or those that the index names. */
const weightFiles = Effect.fnUntraced(function* (folder: string) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const exists = (name: string) => Effect.orElseSucceed(fs.exists(path.join(folder, name)), () => false)
  if (yield* exists(WEIGHTS)) return [WEIGHTS]
  const indexPath = path.join(folder, INDEX)
  if (!(yield* exists(INDEX))) {
    return yield* new HfModelError({ path: folder, reason: `neither ${WEIGHTS} nor ${INDEX} is there` })
  }
  const { weight_map } = yield* decodeIndex(yield* readJson(indexPath)).pipe(
    Effect.catchTag("SchemaError", (error) => Effect.fail(new HfModelError({ path: indexPath, reason: error.message })))
  )
  const names = [...new Set(Object.values(weight_map))].sort()
  // A name with a folder in it would read outside of the model (CWE-22).
  const foreign = names.find((name) => !/^[\w.-]+\.safetensors$/u.test(name))
  if (foreign !== undefined) {
    return yield* new HfModelError({ path: indexPath, reason: `"${foreign}" is not the name of a file beside it` })
  }
  return names
})

/** Buffers that old checkpoints carry and that follow from the shape; and the tied output projection, stored twice by some writers. */
const isRedundant = (name: string, shape: ModelShape): boolean =>
  name.endsWith(".rotary_emb.inv_freq") || (shape.tie_word_embeddings && name === "lm_head.weight")

/** The tensors of `found` that a model of `shape` has, in the engine's flat order; one that is missing, misshapen or foreign is an error. */
export const tensorsOf = Effect.fn("HuggingFace.tensorsOf")(function* (
  path: string,
  found: ReadonlyMap<string, SafetensorsTensor>,
  shape: ModelShape
) {
  const failed = (reason: string) => new HfModelError({ path, reason })
  const ordered = new Map<string, SafetensorsTensor>()
  for (const expected of tensorShapes(shape)) {
    const tensor = found.get(expected.name)
    if (tensor === undefined) return yield* failed(`tensor ${expected.name} is missing`)
    if (tensor.shape.join() !== expected.shape.join()) {
      return yield* failed(
        `tensor ${expected.name} is [${tensor.shape.join(", ")}], config.json asks for [${expected.shape.join(", ")}]`
      )
    }
    ordered.set(expected.name, tensor)
  }
  const foreign = [...found.keys()].find((name) => !ordered.has(name) && !isRedundant(name, shape))
  if (foreign !== undefined) return yield* failed(`tensor ${foreign} belongs to no part of the model in config.json`)
  return ordered
})

/** Reads config.json and the weights' headers below `folder`, and checks them against each other. The weights' data come when asked for. */
export const readHfModel: (
  folder: string
) => Effect.Effect<HfModel, HfModelError | ArchitectureError | SafetensorsError, FileSystem.FileSystem | Path.Path> =
  Effect.fn("HuggingFace.readHfModel")(function* (folder) {
    const path = yield* Path.Path
    const shape = yield* readShape(folder)
    const found = new Map<string, SafetensorsTensor>()
    for (const name of yield* weightFiles(folder)) {
      const { tensors } = yield* readSafetensors(path.join(folder, name))
      for (const tensor of tensors.values()) {
        if (found.has(tensor.name)) {
          return yield* new HfModelError({ path: folder, reason: `tensor ${tensor.name} is in two files` })
        }
        found.set(tensor.name, tensor)
      }
    }
    return { folder, shape, tensors: yield* tensorsOf(folder, found, shape) }
  })

/** Puts a model folder's weights into the engine's model, which must have been made with `toModelConfig(source.shape)`. */
export const loadWeights = Effect.fn("HuggingFace.loadWeights")(function* (
  model: Pick<NativeModel, "parameters" | "write">,
  source: HfModel
) {
  for (const { name, offset } of model.parameters) {
    const tensor = source.tensors.get(name)
    if (tensor === undefined) {
      return yield* new HfModelError({ path: source.folder, reason: `tensor ${name} is missing` })
    }
    model.write("weights", offset, yield* tensor.toFloat32())
  }
})
