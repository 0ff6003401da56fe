/**
 * A training run recorded by an outside implementation (transformers and torch.optim.AdamW): a folder of config.json, model.safetensors (the
 * weights before the first step), batches.json, reference.safetensors and trajectory.json. test/oracle/train/make_golden.py writes them.
 */
import { Effect, FileSystem, Path, Schema } from "effect"
import type { ModelShape } from "../../src/model/Architecture.ts"
import { tensorShapes } from "../../src/model/Architecture.ts"
import { fromHfConfig } from "../../src/model/HfConfig.ts"
import { readSafetensors, type SafetensorsFile } from "../../src/model/Safetensors.ts"

export class OracleUnreadable extends Schema.TaggedError<OracleUnreadable>()("OracleUnreadable", {
  path: Schema.String,
  reason: Schema.String
}) {
  override get message() {
    return `${this.path}: ${this.reason}`
  }
}

const Rate = Schema.Finite.check(Schema.isGreaterThanOrEqualTo(0))
const Trajectory = Schema.Struct({
  first_loss: Schema.Finite,
  hyper: Schema.Struct({
    betas: Schema.Tuple([Rate, Rate]),
    eps: Rate,
    weight_decay: Rate,
    weight_decay_on: Schema.Literal("all parameters"),
    clip: Rate
  }),
  steps: Schema.Array(
    Schema.Struct({ step: Schema.Int, lr: Rate, loss: Schema.Finite, grad_norm: Schema.Finite })
  ).check(Schema.isMinLength(1))
})

const TokenId = Schema.Int.check(Schema.isGreaterThanOrEqualTo(0))
/** Step, micro-batch, sequence, tokens: T inputs and the T targets after them overlap in one row of T + 1. */
const Batches = Schema.Array(Schema.Array(Schema.Array(Schema.Array(TokenId).check(Schema.isMinLength(2)))))

export interface OracleCase {
  readonly shape: ModelShape
  readonly trajectory: typeof Trajectory.Type
  readonly batches: typeof Batches.Type
  /** By Hugging Face's names, in the engine's order. */
  readonly weights: ReadonlyMap<string, Float32Array>
  readonly gradients: ReadonlyMap<string, Float32Array>
  readonly final: ReadonlyMap<string, Float32Array>
  /** (batch × length, vocabulary) of the first micro-batch. */
  readonly logits: Float32Array
}

const readJson = Effect.fn("readJson")(function* <A>(path: string, schema: Schema.Codec<A, unknown>) {
  const text = yield* (yield* FileSystem.FileSystem)
    .readFileString(path)
    .pipe(Effect.mapError((error) => new OracleUnreadable({ path, reason: error.message })))
  return yield* Schema.decodeEffect(Schema.fromJsonString(schema))(text).pipe(
    Effect.mapError((error) => new OracleUnreadable({ path, reason: error.message }))
  )
})

const readTensor = Effect.fn("readTensor")(function* (
  file: SafetensorsFile,
  name: string,
  shape: ReadonlyArray<number>
) {
  const unreadable = (reason: string) => new OracleUnreadable({ path: file.path, reason })
  const tensor = file.tensors.get(name)
  if (tensor === undefined) return yield* unreadable(`there is no tensor ${name}`)
  if (tensor.shape.join() !== shape.join()) {
    return yield* unreadable(`${name} is [${tensor.shape.join(", ")}], but config.json makes it [${shape.join(", ")}]`)
  }
  return yield* tensor.toFloat32().pipe(Effect.mapError((error) => unreadable(error.message)))
})

/** Every step must hold as many micro-batches, sequences and tokens as the first: the recorded losses are plain means. */
const irregularity = (batches: typeof Batches.Type, steps: number, vocabulary: number): string | undefined => {
  const [count, rows, columns] = [batches[0]?.length ?? 0, batches[0]?.[0]?.length ?? 0, batches[0]?.[0]?.[0]?.length]
  const regular =
    count > 0 &&
    rows > 0 &&
    batches.every(
      (s) => s.length === count && s.every((b) => b.length === rows && b.every((r) => r.length === columns))
    )
  if (!regular) return "the micro-batches differ in shape, or there are none"
  if (batches.length !== steps) return `${batches.length} steps of batches, but trajectory.json has ${steps} steps`
  const foreign = batches.flat(3).find((id) => id >= vocabulary)
  return foreign === undefined ? undefined : `token ${foreign} is outside the vocabulary of ${vocabulary}`
}

export const readOracleCase = Effect.fn("readOracleCase")(function* (folder: string) {
  const path = yield* Path.Path
  const open = (name: string) =>
    readSafetensors(path.join(folder, name)).pipe(
      Effect.mapError((error) => new OracleUnreadable({ path: error.path, reason: error.cause }))
    )
  const configPath = path.join(folder, "config.json")
  const shape = yield* fromHfConfig(configPath, yield* readJson(configPath, Schema.Unknown)).pipe(
    Effect.mapError((error) => new OracleUnreadable({ path: error.path, reason: error.reason }))
  )
  const trajectory = yield* readJson(path.join(folder, "trajectory.json"), Trajectory)
  const batchesPath = path.join(folder, "batches.json")
  const batches = yield* readJson(batchesPath, Batches)
  const reason = irregularity(batches, trajectory.steps.length, shape.vocab_size)
  if (reason !== undefined) return yield* new OracleUnreadable({ path: batchesPath, reason })
  const model = yield* open("model.safetensors")
  const reference = yield* open("reference.safetensors")
  const tensors = tensorShapes(shape)
  const read = (file: SafetensorsFile, prefix: string) =>
    Effect.map(
      Effect.forEach(tensors, ({ name, shape }) =>
        Effect.map(readTensor(file, prefix + name, shape), (values) => [name, values] as const)
      ),
      (entries) => new Map(entries)
    )
  const [rows, columns] = [batches[0]![0]!.length, batches[0]![0]![0]!.length]
  const oracle: OracleCase = {
    shape,
    trajectory,
    batches,
    weights: yield* read(model, ""),
    gradients: yield* read(reference, "grad."),
    final: yield* read(reference, "final."),
    logits: yield* readTensor(reference, "logits", [rows, columns - 1, shape.vocab_size])
  }
  return oracle
})
