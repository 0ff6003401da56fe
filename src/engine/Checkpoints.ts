/**
 * Checkpoints of a training run: folders `step-00000120/` that hold everything a bitwise resume needs. `COMPLETE.json` is written last and
 * names every other file with its digest; a folder without it, or whose files differ from it, is not a checkpoint. Nothing is deleted before
 * its successor is complete, so at any instant the newest complete folder is one to go on from.
 */
import { createHash } from "node:crypto"
import { Effect, FileSystem, Path, Schema, Stream } from "effect"
import { ArtifactFile } from "../artifacts/Artifact.ts"
import { readSafetensors, writeSafetensors } from "../model/Safetensors.ts"
import { StageError } from "../pipeline/StageType.ts"
import type { NativeModel, StateKind } from "./Native.ts"
import { storageFailure } from "./StorageFailure.ts"

const Count = Schema.Int.check(Schema.isGreaterThanOrEqualTo(0))
const Measured = Schema.Struct({ step: Count, loss: Schema.Finite })

/** `state.json`: where the run stands. Deterministic: neither times nor the reason of the save are in it. */
export const TrainingProgress = Schema.Struct({
  version: Schema.Literal(1),
  /** Optimizer steps done. */
  step: Count,
  /** Input tokens seen, padding not counted. */
  tokens: Count,
  /** Global index of the next training sample; the order of samples is a function of it and of the seed. */
  next_sample: Count,
  seed: Count,
  /** Mean loss of the last step's scored targets. */
  training_loss: Schema.NullOr(Schema.Finite),
  first_validation_loss: Schema.NullOr(Schema.Finite),
  /** The latest validation; it belongs to this checkpoint if its step is this checkpoint's. */
  validation: Schema.NullOr(Measured),
  /** The lowest validation loss of any step after the first; that step's checkpoint is kept. */
  best: Schema.NullOr(Measured),
  /** Length of metrics.jsonl at this point: what comes after belongs to steps that a resumed run makes again. */
  metrics_bytes: Count
})
export type TrainingProgress = typeof TrainingProgress.Type

/** `COMPLETE.json`: the other files of the folder, with their digests. */
export const Completion = Schema.Struct({ step: Count, files: Schema.Array(ArtifactFile) })
export type Completion = typeof Completion.Type

export const WEIGHTS = "weights.safetensors"
export const OPTIMIZER = "optimizer.safetensors"
export const STATE = "state.json"
export const COMPLETE = "COMPLETE.json"

/** A checkpoint folder that cannot be used, and why. */
export class DamagedCheckpoint extends Schema.TaggedError<DamagedCheckpoint>()("DamagedCheckpoint", {
  path: Schema.String,
  reason: Schema.String
}) {
  override get message() {
    return `${this.path}: ${this.reason}`
  }
}

export type ModelState = Pick<NativeModel, "parameters" | "stateType" | "read" | "write">

/** What the state lies in files as: with the same bits as in memory. */
const dtypeOf = ({ stateType }: ModelState) => (stateType === "bf16" ? ("BF16" as const) : ("F32" as const))

export const folderName = (step: number): string => `step-${String(step).padStart(8, "0")}`
const FOLDER = /^step-(\d{8,})$/u
const REPLACED = /^\.replaced-(step-\d{8,})$/u

const encodeProgress = Schema.encodeSync(Schema.fromJsonString(TrainingProgress))
const decodeProgress = Schema.decodeUnknownEffect(Schema.fromJsonString(TrainingProgress))
const decodeCompletion = Schema.decodeUnknownEffect(Schema.fromJsonString(Completion))

/** Equal texts mean equal checkpoints. */
export const progressText = (state: TrainingProgress): string => `${encodeProgress(state)}\n`

/** The text of COMPLETE.json. */
export const completionText = ({ files, step }: Completion): string => `${JSON.stringify({ step, files }, null, 2)}\n`

const digestOf = Effect.fnUntraced(function* (path: string) {
  const fs = yield* FileSystem.FileSystem
  const hash = createHash("sha256")
  let bytes = 0
  yield* Stream.runForEach(fs.stream(path, { chunkSize: 1 << 20 }), (chunk) =>
    Effect.sync(() => {
      hash.update(chunk)
      bytes += chunk.length
    })
  )
  return { bytes, sha256: hash.digest("hex") }
})

/** Writes a small file and makes it durable. */
export const writeSynced = Effect.fnUntraced(function* (path: string, text: string) {
  const fs = yield* FileSystem.FileSystem
  const bytes = new TextEncoder().encode(text)
  const file = yield* fs.open(path, { flag: "w" })
  yield* file.writeAll(bytes)
  yield* file.sync
  return { bytes: bytes.length, sha256: createHash("sha256").update(bytes).digest("hex") }
}, Effect.scoped)

/** Makes renames inside `folder` durable. */
export const syncFolder = Effect.fnUntraced(function* (folder: string) {
  const fs = yield* FileSystem.FileSystem
  yield* Effect.flatMap(fs.open(folder, { flag: "r" }), (handle) => handle.sync)
}, Effect.scoped)

const tensorsOf = (model: ModelState, kinds: ReadonlyArray<readonly [StateKind, string]>) =>
  kinds.flatMap(([kind, prefix]) =>
    model.parameters.map(({ name, offset, shape }) => ({
      name: prefix + name,
      dtype: dtypeOf(model),
      shape,
      values: Effect.sync(() =>
        model.read(
          kind,
          offset,
          shape.reduce((product, size) => product * size, 1)
        )
      )
    }))
  )

const WEIGHT_KINDS: ReadonlyArray<readonly [StateKind, string]> = [["weights", ""]]
const MOMENT_KINDS: ReadonlyArray<readonly [StateKind, string]> = [
  ["firstMoment", "first_moment."],
  ["secondMoment", "second_moment."]
]

/** Steps of the checkpoint folders below `root`, complete or not, in rising order; none when the folder is missing. */
export const stepsBelow = Effect.fn("Checkpoints.stepsBelow")(function* (root: string) {
  const fs = yield* FileSystem.FileSystem
  if (!(yield* fs.exists(root))) return []
  return (yield* fs.readDirectory(root))
    .flatMap((name) => {
      const match = FOLDER.exec(name)
      return match === null ? [] : [Number(match[1])]
    })
    .sort((a, b) => a - b)
})

/**
 * Writes the checkpoint of `state.step` below `root` and returns its folder. Files first, then COMPLETE.json, each synced, then one rename: after a
 * crash at any instruction the folder is whole or absent, and a former folder of the same step is there until the new one is.
 */
export const saveCheckpoint = Effect.fn("Checkpoints.save")(
  function* (root: string, model: ModelState, state: TrainingProgress) {
    const fs = yield* FileSystem.FileSystem
    const path = yield* Path.Path
    const target = path.join(root, folderName(state.step))
    const draft = path.join(root, `.draft-${folderName(state.step)}`)
    const replaced = path.join(root, `.replaced-${folderName(state.step)}`)
    yield* fs.makeDirectory(root, { recursive: true })
    yield* fs.remove(draft, { recursive: true, force: true })
    yield* fs.makeDirectory(draft)
    yield* Effect.gen(function* () {
      const files = [
        { path: WEIGHTS, ...(yield* writeSafetensors(path.join(draft, WEIGHTS), tensorsOf(model, WEIGHT_KINDS))) },
        { path: OPTIMIZER, ...(yield* writeSafetensors(path.join(draft, OPTIMIZER), tensorsOf(model, MOMENT_KINDS))) },
        { path: STATE, ...(yield* writeSynced(path.join(draft, STATE), progressText(state))) }
      ]
      yield* writeSynced(path.join(draft, COMPLETE), completionText({ step: state.step, files }))
      yield* syncFolder(draft)
      const before = yield* fs.exists(target)
      if (before) yield* fs.rename(target, replaced)
      yield* fs.rename(draft, target)
      yield* syncFolder(root)
      if (before) yield* fs.remove(replaced, { recursive: true, force: true })
    }).pipe(Effect.tapError(() => Effect.ignore(fs.remove(draft, { recursive: true, force: true }))))
    return target
  },
  (effect, root, _model, state) =>
    effect.pipe(Effect.catch((error) => Effect.flatMap(describeSaveFailure(root, state.step, error), Effect.fail)))
)

const describeSaveFailure = Effect.fnUntraced(function* (root: string, step: number, error: Error) {
  const before = (yield* Effect.orElseSucceed(stepsBelow(root), () => [])).findLast((other) => other !== step)
  const kept = before === undefined ? "no earlier checkpoint exists" : `the checkpoint of step ${before} is intact`
  const resume = before === undefined ? "it starts again at step 1" : `it goes on from step ${before}`
  return storageFailure(`the checkpoint of step ${step} in ${root}`, kept, resume)(error)
})

/** Checks every file of a checkpoint folder against COMPLETE.json and returns its state. */
export const verifyCheckpoint: (
  folder: string
) => Effect.Effect<TrainingProgress, DamagedCheckpoint, FileSystem.FileSystem | Path.Path> = Effect.fn(
  "Checkpoints.verify"
)(function* (folder) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const damaged = (reason: string) => new DamagedCheckpoint({ path: folder, reason })
  const completion = yield* fs.readFileString(path.join(folder, COMPLETE)).pipe(
    Effect.mapError(() => damaged(`no ${COMPLETE}: it was never finished`)),
    Effect.flatMap((text) =>
      Effect.mapError(decodeCompletion(text), (error) => damaged(`${COMPLETE} is not valid: ${error.message}`))
    )
  )
  for (const name of [WEIGHTS, OPTIMIZER, STATE]) {
    const expected = completion.files.find((file) => file.path === name)
    if (expected === undefined) return yield* damaged(`${COMPLETE} does not name ${name}`)
    const found = yield* Effect.mapError(digestOf(path.join(folder, name)), (error) =>
      damaged(`${name} cannot be read: ${error.message}`)
    )
    if (found.bytes !== expected.bytes)
      return yield* damaged(`${name} has ${found.bytes} bytes, ${COMPLETE} says ${expected.bytes}`)
    if (found.sha256 !== expected.sha256)
      return yield* damaged(`${name} has sha256 ${found.sha256}, ${COMPLETE} says ${expected.sha256}`)
  }
  return yield* readProgress(folder)
})

/** The state that a checkpoint folder names, without a look at its other files. */
export const readProgress = Effect.fn("Checkpoints.readProgress")(function* (folder: string) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  return yield* fs.readFileString(path.join(folder, STATE)).pipe(
    Effect.flatMap(decodeProgress),
    Effect.mapError(
      (error) => new DamagedCheckpoint({ path: folder, reason: `${STATE} is not valid: ${error.message}` })
    )
  )
})

/**
 * The newest state below `root` whose folder looks whole: all files are there with their sizes, their digests are not looked at. It reads only, and
 * another process may be at work there.
 */
export const newestState = Effect.fn("Checkpoints.newestState")(function* (root: string) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const steps: ReadonlyArray<number> = yield* Effect.orElseSucceed(stepsBelow(root), () => [])
  for (const step of steps.toReversed()) {
    const folder = path.join(root, folderName(step))
    const state = yield* Effect.gen(function* () {
      const { files } = yield* readCompletion(folder)
      for (const file of files) {
        const { size } = yield* fs.stat(path.join(folder, file.path))
        if (Number(size) !== file.bytes) return undefined
      }
      return yield* readProgress(folder)
    }).pipe(Effect.orElseSucceed(() => undefined))
    if (state !== undefined) return state
  }
  return undefined
})

/** The digests that COMPLETE.json states. */
export const readCompletion = Effect.fn("Checkpoints.readCompletion")(function* (folder: string) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  return yield* fs.readFileString(path.join(folder, COMPLETE)).pipe(
    Effect.flatMap(decodeCompletion),
    Effect.mapError(
      (error) => new DamagedCheckpoint({ path: folder, reason: `${COMPLETE} is not valid: ${error.message}` })
    )
  )
})

const restoreTensors = Effect.fnUntraced(function* (
  folder: string,
  name: string,
  model: ModelState,
  kinds: ReadonlyArray<readonly [StateKind, string]>
) {
  const path = yield* Path.Path
  const damaged = (reason: string) => new DamagedCheckpoint({ path: folder, reason: `${name}: ${reason}` })
  const { tensors } = yield* Effect.mapError(readSafetensors(path.join(folder, name)), (error) =>
    damaged(error.message)
  )
  for (const [kind, prefix] of kinds) {
    for (const parameter of model.parameters) {
      const tensor = tensors.get(prefix + parameter.name)
      if (tensor === undefined) return yield* damaged(`no tensor ${prefix}${parameter.name}`)
      if (tensor.dtype !== dtypeOf(model))
        return yield* damaged(`${tensor.name} is ${tensor.dtype}, the model's is ${dtypeOf(model)}`)
      if (tensor.shape.join() !== parameter.shape.join())
        return yield* damaged(
          `${tensor.name} is [${tensor.shape.join(", ")}], the model's is [${parameter.shape.join(", ")}]`
        )
      const values = yield* Effect.mapError(tensor.toFloat32(), (error) => damaged(error.message))
      model.write(kind, parameter.offset, values)
    }
  }
})

/**
 * Finds the newest checkpoint below `root` that verifies, puts it into `model`, and returns its state and folder; undefined when there is none.
 * Each unusable folder on the way is reported through `warn`.
 */
export const restoreNewest = Effect.fn("Checkpoints.restoreNewest")(function* (
  root: string,
  model: ModelState,
  warn: (line: string) => void
) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  yield* Effect.mapError(settleInterruptedSaves(root), (error) => unreadable(root, error))
  const steps = yield* Effect.mapError(stepsBelow(root), (error) => unreadable(root, error))
  for (const step of steps.toReversed()) {
    const folder = path.join(root, folderName(step))
    const restored = yield* Effect.gen(function* () {
      const state = yield* verifyCheckpoint(folder)
      if (state.step !== step)
        return yield* new DamagedCheckpoint({ path: folder, reason: `${STATE} is of step ${state.step}` })
      yield* restoreTensors(folder, WEIGHTS, model, WEIGHT_KINDS)
      yield* restoreTensors(folder, OPTIMIZER, model, MOMENT_KINDS)
      return { state, folder }
    }).pipe(
      Effect.catchTag("DamagedCheckpoint", (damage) =>
        Effect.sync(() => {
          warn(`the checkpoint of step ${step} is damaged and is passed over (${damage.message})`)
          return undefined
        })
      ),
      Effect.provideService(FileSystem.FileSystem, fs)
    )
    if (restored !== undefined) return restored
  }
  if (steps.length > 0) warn(`no checkpoint in ${root} can be used: training starts again at step 1`)
  return undefined
})

const unreadable = (root: string, error: Error) =>
  new StageError({
    failure: "internal",
    message: `cannot read the checkpoints in ${root}: ${error.message}`,
    next: "see that the folder can be read and written, then give the same command again"
  })

/** A save that was cut short leaves a draft (worthless) or a folder moved aside for a successor that may not have come. */
const settleInterruptedSaves = Effect.fnUntraced(function* (root: string) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  if (!(yield* fs.exists(root))) return
  for (const name of yield* fs.readDirectory(root)) {
    const own = REPLACED.exec(name)?.[1]
    if (own !== undefined && !(yield* fs.exists(path.join(root, own))))
      yield* fs.rename(path.join(root, name), path.join(root, own))
    else if (own !== undefined || name.startsWith(".draft-"))
      yield* fs.remove(path.join(root, name), { recursive: true, force: true })
  }
})

/** Removes the checkpoints up to `step` that `kept` does not name. Later folders are damaged ones, which the run will write anew. */
export const pruneCheckpoints = Effect.fn("Checkpoints.prune")(
  function* (root: string, step: number, kept: ReadonlySet<number>) {
    const fs = yield* FileSystem.FileSystem
    const path = yield* Path.Path
    for (const old of yield* stepsBelow(root))
      if (old < step && !kept.has(old))
        yield* fs.remove(path.join(root, folderName(old)), { recursive: true, force: true })
  },
  Effect.mapError(
    (error) =>
      new StageError({ failure: "internal", message: error.message, next: "see that the folder can be written to" })
  )
)
