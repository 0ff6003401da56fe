/**
 * What lies where in the files of a checkpoint: tensors of the state by their Hugging Face names, whole or in runs "name[begin:end]" of their elements.
 * From any number of ranks' files to the flat order of the model, or to whole tensors.
 */
import { Effect, type FileSystem, Path } from "effect"
import { DTYPE_BYTES, readSafetensors, SafetensorsError, type SafetensorsTensor } from "../model/Safetensors.ts"
import {
  type Completion,
  DamagedCheckpoint,
  ForeignCheckpoint,
  OPTIMIZER,
  shardNames,
  WEIGHTS,
  worldSizeOf
} from "./CheckpointManifest.ts"
import type { NativeModel, SavedKind, StoredFile, StoredRange } from "./Native.ts"

const PREFIXES = { firstMoment: "first_moment.", secondMoment: "second_moment." } as const
const RUN = /^(.+)\[(\d+):(\d+)\]$/u

const elementsOf = (shape: ReadonlyArray<number>): number => shape.reduce((product, size) => product * size, 1)

interface StoredRun {
  readonly kind: SavedKind
  readonly name: string
  /** Elements of the tensor, in C order. */
  readonly begin: number
  readonly end: number
  /** Whether it is the whole tensor, in its shape. */
  readonly whole: boolean
  readonly tensor: SafetensorsTensor
}

/** The name of a stored tensor, taken apart; undefined for a run whose length is not its tensor's. */
const runOf = (tensor: SafetensorsTensor): StoredRun | undefined => {
  const [, stem = tensor.name, first, last] = RUN.exec(tensor.name) ?? []
  const begin = first === undefined ? 0 : Number(first)
  const end = last === undefined ? tensor.elements : Number(last)
  const kind: SavedKind = stem.startsWith(PREFIXES.firstMoment)
    ? "firstMoment"
    : stem.startsWith(PREFIXES.secondMoment)
      ? "secondMoment"
      : "weights"
  const name = kind === "weights" ? stem : stem.slice(PREFIXES[kind].length)
  return end - begin === tensor.elements ? { kind, name, begin, end, whole: first === undefined, tensor } : undefined
}

/** The headers of all ranks' files of one name. */
const readRuns = Effect.fnUntraced(function* (
  folder: string,
  completion: Completion,
  name: typeof WEIGHTS | typeof OPTIMIZER
) {
  const path = yield* Path.Path
  const damaged = (reason: string) => new DamagedCheckpoint({ path: folder, reason })
  return yield* Effect.forEach(shardNames(name, worldSizeOf(completion)), (file) =>
    Effect.gen(function* () {
      const full = path.join(folder, file)
      const { headerBytes, tensors } = yield* Effect.mapError(readSafetensors(full), (error) =>
        damaged(`${file}: ${error.message}`)
      )
      const runs: Array<StoredRun> = []
      for (const tensor of tensors.values()) {
        const run = runOf(tensor)
        if (run === undefined)
          return yield* damaged(`${file}: tensor ${tensor.name} has ${tensor.elements} elements, not those of its name`)
        runs.push(run)
      }
      return { file, path: full, headerBytes, runs }
    })
  )
})

/**
 * Where each part of the state lies in the files of a checkpoint, for a model. Fails when a tensor is not the model's, or not of its shape and type; that nothing is missing shows when it is read.
 */
export const locateState: (
  folder: string,
  completion: Completion,
  model: Pick<NativeModel, "parameters" | "stateType">
) => Effect.Effect<
  { readonly files: ReadonlyArray<StoredFile>; readonly ranges: ReadonlyArray<StoredRange> },
  DamagedCheckpoint | ForeignCheckpoint,
  FileSystem.FileSystem | Path.Path
> = Effect.fn("CheckpointShards.locateState")(function* (folder, completion, model) {
  const foreign = (reason: string) => new ForeignCheckpoint({ path: folder, reason })
  const dtype = model.stateType === "bf16" ? "BF16" : "F32"
  const known = new Map(model.parameters.map((parameter) => [parameter.name, parameter]))
  const pieces = new Map(
    "version" in completion ? completion.files.map((file) => [file.path, file.pieces] as const) : []
  )
  const bytes = new Map(completion.files.map((file) => [file.path, file.bytes]))
  const files: Array<StoredFile> = []
  const ranges: Array<StoredRange> = []
  const stored = new Set<string>()
  for (const name of [WEIGHTS, OPTIMIZER] as const) {
    for (const { file, headerBytes, path, runs } of yield* readRuns(folder, completion, name)) {
      for (const { begin, end, kind, name: tensorName, tensor, whole } of runs) {
        const parameter = known.get(tensorName)
        if (parameter === undefined) return yield* foreign(`${file}: tensor ${tensor.name} is none of the model's`)
        const [own, given] = [parameter.shape.join(", "), tensor.shape.join(", ")]
        if (whole ? own !== given : end > elementsOf(parameter.shape))
          return yield* foreign(`${file}: ${tensor.name} is [${given}], the model's is [${own}]`)
        if (tensor.dtype !== dtype)
          return yield* foreign(`${file}: ${tensor.name} is ${tensor.dtype}, the model's is ${dtype}`)
        stored.add(tensorName)
        ranges.push({
          file: files.length,
          fileOffset: tensor.byteOffset,
          kind,
          offset: parameter.offset + begin,
          count: end - begin,
          dtype
        })
      }
      files.push({ path, bytes: bytes.get(file) ?? 0, headerBytes, pieces: pieces.get(file) ?? [] })
    }
  }
  const absent = model.parameters.find(({ name }) => !stored.has(name))
  if (absent !== undefined) return yield* foreign(`it has nothing of ${absent.name}`)
  return { files, ranges }
})

/** A tensor that lies in runs, as if it were in one file. */
const assembled = (
  folder: string,
  name: string,
  shape: ReadonlyArray<number>,
  runs: ReadonlyArray<StoredRun>
): Effect.Effect<SafetensorsTensor, DamagedCheckpoint> => {
  const sorted = runs.toSorted((a, b) => a.begin - b.begin)
  const damaged = (reason: string) => new DamagedCheckpoint({ path: folder, reason: `tensor ${name} ${reason}` })
  const first = sorted[0]?.tensor
  if (first === undefined) return Effect.fail(damaged("is in no file"))
  const elements = elementsOf(shape)
  let at = 0
  for (const { begin, end, tensor } of sorted) {
    if (begin !== at) return Effect.fail(damaged(`has no elements from ${Math.min(at, begin)} on, or has them twice`))
    if (tensor.dtype !== first.dtype) return Effect.fail(damaged(`is ${first.dtype} and ${tensor.dtype}`))
    at = end
  }
  if (at !== elements) return Effect.fail(damaged(`has ${at} elements, not ${elements}`))
  const byteLength = elements * DTYPE_BYTES[first.dtype]
  const bytes = Effect.fnUntraced(function* () {
    const whole = new Uint8Array(byteLength)
    for (const run of sorted) whole.set(yield* run.tensor.bytes(), run.begin * DTYPE_BYTES[first.dtype])
    return whole
  })
  const toFloat32 = Effect.fnUntraced(function* () {
    const whole = new Float32Array(elements)
    for (const run of sorted) whole.set(yield* run.tensor.toFloat32(), run.begin)
    return whole
  })
  const { byteOffset, dtype } = first
  return Effect.succeed({ name, dtype, shape, elements, byteLength, byteOffset, bytes, toFloat32 })
}

/** The weights of a checkpoint as whole tensors of these shapes, whatever number of ranks wrote them. */
export const wholeWeights: (
  folder: string,
  completion: Completion,
  shapes: ReadonlyArray<{ readonly name: string; readonly shape: ReadonlyArray<number> }>
) => Effect.Effect<
  ReadonlyMap<string, SafetensorsTensor>,
  DamagedCheckpoint | SafetensorsError,
  FileSystem.FileSystem | Path.Path
> = Effect.fn("CheckpointShards.wholeWeights")(function* (folder, completion, shapes) {
  const known = new Map(shapes.map(({ name, shape }) => [name, shape]))
  const byName = Map.groupBy(
    (yield* readRuns(folder, completion, WEIGHTS)).flatMap(({ runs }) => runs),
    (run) => run.name
  )
  const tensors = new Map<string, SafetensorsTensor>()
  for (const [name, runs] of byName) {
    const shape = known.get(name)
    const [only] = runs
    tensors.set(
      name,
      shape === undefined || (runs.length === 1 && only?.whole === true)
        ? only!.tensor
        : yield* assembled(folder, name, shape, runs)
    )
  }
  return tensors
})
