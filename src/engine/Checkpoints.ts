/**
 * Checkpoints of a training run: folders `step-00000120/` that hold everything a bitwise resume needs. `COMPLETE.json` is written last and
 * names every other file with its digests; a folder without it, or whose files differ from it, is not a checkpoint. Nothing is deleted before
 * its successor is complete, so at any instant the newest complete folder is one to go on from. Any number of ranks restores what any other saved.
 */
import { createHash } from "node:crypto"
import { availableParallelism } from "node:os"
import { Effect, FileSystem, Path, Stream } from "effect"
import { StageError } from "../pipeline/StageType.ts"
import { COMPLETE, type Completion, DamagedCheckpoint, fileError, readCompletion, STATE } from "./CheckpointManifest.ts"
import { alone, type TrainingRanks, everyRank } from "./TrainingRanks.ts"
import { locateState } from "./CheckpointShards.ts"
import { load, type NativeModel, type NativeUnavailable } from "./Native.ts"
import { nativeFailure } from "./TrainingModel.ts"
import { readProgress, type TrainingProgress } from "./TrainingProgress.ts"

export const folderName = (step: number): string => `step-${String(step).padStart(8, "0")}`
const FOLDER = /^step-(\d{8,})$/u
const REPLACED = /^\.replaced-(step-\d{8,})$/u

/** Writes a small file and makes it durable. Returns its bytes. */
export const writeSynced = Effect.fnUntraced(function* (path: string, text: string) {
  const fs = yield* FileSystem.FileSystem
  const bytes = new TextEncoder().encode(text)
  const file = yield* fs.open(path, { flag: "w" })
  yield* file.writeAll(bytes)
  yield* file.sync
  return bytes
}, Effect.scoped)

/** Makes renames inside `folder` durable. */
export const syncFolder = Effect.fnUntraced(function* (folder: string) {
  const fs = yield* FileSystem.FileSystem
  yield* Effect.flatMap(fs.open(folder, { flag: "r" }), (handle) => handle.sync)
}, Effect.scoped)

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

const wholeDigest = Effect.fnUntraced(function* (path: string) {
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

const piecesOf = Effect.fnUntraced(function* (path: string) {
  const native = yield* load
  const found = yield* Effect.tryPromise({
    try: () => native.hashPieces(path, availableParallelism()),
    catch: fileError
  })
  return { ...found, pieceBytes: native.pieceBytes }
})

/** Checks one file of a checkpoint folder; says the first bytes that are not what COMPLETE.json says. */
const verifyFile = Effect.fnUntraced(function* (folder: string, file: Completion["files"][number]) {
  const path = yield* Path.Path
  const damaged = (reason: string) => new DamagedCheckpoint({ path: folder, reason: `${file.path} ${reason}` })
  const full = path.join(folder, file.path)
  const unreadable = (error: Error) => damaged(`cannot be read: ${error.message}`)
  const sizes = (found: number) => damaged(`has ${found} bytes, ${COMPLETE} says ${file.bytes}`)
  const differs = (what: string, found: string | undefined, said: string | undefined) =>
    damaged(`${what} sha256 ${found ?? "of nothing"}, ${COMPLETE} says ${said ?? "nothing"}`)
  if ("sha256" in file) {
    const found = yield* Effect.mapError(wholeDigest(full), unreadable)
    if (found.bytes !== file.bytes) return yield* sizes(found.bytes)
    if (found.sha256 !== file.sha256) return yield* differs("has", found.sha256, file.sha256)
    return
  }
  const found = yield* piecesOf(full).pipe(
    Effect.catchTag("CheckpointFileError", (error) => Effect.fail(unreadable(error)))
  )
  if (found.bytes !== file.bytes) return yield* sizes(found.bytes)
  const piece = Math.max(found.pieces.length, file.pieces.length)
  for (let index = 0; index < piece; index++) {
    const from = index * found.pieceBytes
    if (found.pieces[index] !== file.pieces[index])
      return yield* differs(
        `from byte ${from} to ${Math.min(from + found.pieceBytes, file.bytes)} has`,
        found.pieces[index],
        file.pieces[index]
      )
  }
})

/** Checks every file of a checkpoint folder against COMPLETE.json and returns its state. */
export const verifyCheckpoint: (
  folder: string
) => Effect.Effect<TrainingProgress, DamagedCheckpoint | NativeUnavailable, FileSystem.FileSystem | Path.Path> =
  Effect.fn("Checkpoints.verify")(function* (folder) {
    const { files } = yield* readCompletion(folder)
    for (const file of files) yield* verifyFile(folder, file)
    return yield* readProgress(folder)
  })

const requireSizes = Effect.fnUntraced(function* (folder: string, { files }: Completion) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const damaged = (reason: string) => new DamagedCheckpoint({ path: folder, reason })
  for (const file of files) {
    const { size } = yield* Effect.mapError(fs.stat(path.join(folder, file.path)), (error) =>
      damaged(`${file.path} cannot be read: ${error.message}`)
    )
    if (Number(size) !== file.bytes)
      return yield* damaged(`${file.path} has ${size} bytes, ${COMPLETE} says ${file.bytes}`)
  }
})

/**
 * The newest state below `root` whose folder looks whole: all files are there with their sizes, their digests are not looked at. It reads only, and
 * another process may be at work there.
 */
export const newestState = Effect.fn("Checkpoints.newestState")(function* (root: string) {
  const path = yield* Path.Path
  const steps: ReadonlyArray<number> = yield* Effect.orElseSucceed(stepsBelow(root), () => [])
  for (const step of steps.toReversed()) {
    const folder = path.join(root, folderName(step))
    const state = yield* Effect.gen(function* () {
      yield* requireSizes(folder, yield* readCompletion(folder))
      return yield* readProgress(folder)
    }).pipe(Effect.orElseSucceed(() => undefined))
    if (state !== undefined) return state
  }
  return undefined
})

/** Bytes that are as they were written are another model's; others say nothing. */
const foreignOrDamaged = Effect.fnUntraced(function* (folder: string, reason: string) {
  yield* verifyCheckpoint(folder).pipe(Effect.catchTag("NativeUnavailable", Effect.die))
  return yield* new StageError({
    failure: "invalid-input",
    message: `the checkpoint ${folder} is of another model: ${reason}`,
    next: "move that folder away: it was not written by this stage with these parameters; then run again"
  })
})

/** Fills the model from a checkpoint, checking all that it reads. */
const restoreFrom = Effect.fnUntraced(function* (folder: string, step: number, model: RestorableModel) {
  const completion = yield* readCompletion(folder)
  yield* requireSizes(folder, completion)
  // Of the others every byte is checked as it is read; those of before have one digest for all.
  for (const file of completion.files) if ("sha256" in file || file.path === STATE) yield* verifyFile(folder, file)
  const state = yield* readProgress(folder)
  if (state.step !== step)
    return yield* new DamagedCheckpoint({ path: folder, reason: `${STATE} is of step ${state.step}` })
  const { files, ranges } = yield* locateState(folder, completion, model).pipe(
    Effect.catchTag("ForeignCheckpoint", ({ reason }) => foreignOrDamaged(folder, reason))
  )
  yield* Effect.tryPromise({
    try: () => model.restore(files, ranges, availableParallelism()),
    catch: (cause) => {
      const failure = nativeFailure(`reading ${folder}`, "use a machine with more memory")(cause)
      // What the device fails with says nothing of the files.
      return failure.failure === "internal"
        ? new DamagedCheckpoint({ path: folder, reason: cause instanceof Error ? cause.message : String(cause) })
        : failure
    }
  })
  return state
})

/** As before the first step: a checkpoint that turned out damaged may have left some of its own. */
const forgetMoments = (model: RestorableModel) =>
  Effect.sync(() => {
    for (const { offset, shape } of model.parameters) {
      const zeros = new Float32Array(shape.reduce((product, size) => product * size, 1))
      for (const kind of ["firstMoment", "secondMoment"] as const) model.write(kind, offset, zeros)
    }
  })

export type RestorableModel = Pick<NativeModel, "parameters" | "stateType" | "restore" | "write">

/** Fails unless all ranks see the same checkpoints. */
const requireCommonView = Effect.fnUntraced(function* (
  root: string,
  steps: ReadonlyArray<number>,
  ranks: TrainingRanks
) {
  const views = yield* everyRank(ranks, [steps.length, steps.at(-1) ?? 0])
  const other = views.findIndex((view) => view.join() !== views[0]?.join())
  if (other >= 0)
    return yield* new StageError({
      failure: "invalid-input",
      message: `rank ${other} sees other checkpoints in ${root} than rank 0 does`,
      next: "put the runs folder where all ranks see the same files"
    })
})

/**
 * Finds the newest checkpoint below `root` that verifies on all ranks, puts it into `model`, and returns its state and folder; undefined when there is none.
 * Each unusable folder on the way is reported through `warn`.
 */
export const restoreNewest = Effect.fn("Checkpoints.restoreNewest")(function* (
  root: string,
  model: RestorableModel,
  warn: (line: string) => void,
  ranks: TrainingRanks = alone
) {
  const path = yield* Path.Path
  if (ranks.rank === 0) yield* Effect.mapError(settleInterruptedSaves(root), (error) => unreadable(root, error))
  // Not before rank 0 has settled.
  yield* everyRank(ranks, [0])
  const steps = yield* Effect.mapError(stepsBelow(root), (error) => unreadable(root, error))
  yield* requireCommonView(root, steps, ranks)
  const passOver = (step: number, reason: string) =>
    warn(`the checkpoint of step ${step} is damaged and is passed over (${reason})`)
  for (const step of steps.toReversed()) {
    const folder = path.join(root, folderName(step))
    const restored = yield* Effect.result(restoreFrom(folder, step, model))
    if (restored._tag === "Failure" && restored.failure._tag === "StageError") return yield* restored.failure
    const whole = (yield* everyRank(ranks, [restored._tag === "Success" ? 1 : 0])).map((said) => said[0] === 1)
    if (restored._tag === "Failure") passOver(step, restored.failure.message)
    else if (whole.every(Boolean)) return { state: restored.success, folder }
    else passOver(step, `${folder}: rank ${whole.indexOf(false)} could not read its part; its log says why`)
  }
  if (steps.length === 0) return undefined
  yield* forgetMoments(model)
  warn(`no checkpoint in ${root} can be used: training starts again at step 1`)
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
