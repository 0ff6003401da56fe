/**
 * A checkpoint as one rank would have written it, from those of any number: what is published does not tell how many ranks trained, and other programs
 * read its tensors whole.
 */
import { availableParallelism } from "node:os"
import { Effect, FileSystem, Path } from "effect"
import { type ModelShape, tensorShapes, toModelConfig } from "../model/Architecture.ts"
import {
  checkpointFile,
  COMPLETE,
  completionOf,
  completionText,
  fileError,
  OPTIMIZER,
  readCompletion,
  STATE,
  WEIGHTS,
  worldSizeOf
} from "./CheckpointManifest.ts"
import { locateState } from "./CheckpointShards.ts"
import { syncFolder, verifyCheckpoint, writeSynced } from "./Checkpoints.ts"
import { load, type NativeModel } from "./Native.ts"

/** Where the tensors of a model lie in its flat order. */
const parametersOf = (shape: ModelShape): NativeModel["parameters"] => {
  let next = 0
  return tensorShapes(shape).map((tensor) => {
    const offset = next
    next += tensor.shape.reduce((product, size) => product * size, 1)
    return { ...tensor, offset }
  })
}

const gather = Effect.fn("CheckpointGather.gather")(function* (
  from: string,
  to: string,
  shape: ModelShape,
  stateType: NativeModel["stateType"]
) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const native = yield* load
  yield* verifyCheckpoint(from)
  const completion = yield* readCompletion(from)
  const { files, ranges } = yield* locateState(from, completion, { parameters: parametersOf(shape), stateType })
  const written = yield* Effect.tryPromise({
    try: () =>
      native.gatherState(
        toModelConfig(shape),
        files,
        ranges,
        stateType === "bf16" ? "BF16" : "F32",
        [
          { path: path.join(to, WEIGHTS), kinds: ["weights"] },
          { path: path.join(to, OPTIMIZER), kinds: ["firstMoment", "secondMoment"] }
        ],
        availableParallelism()
      ),
    catch: fileError
  })
  yield* fs.copyFile(path.join(from, STATE), path.join(to, STATE))
  const state = completion.files.filter((file) => file.path === STATE).flatMap((file) => ("pieces" in file ? file : []))
  const named = written.map((file) => checkpointFile(path.basename(file.path), file.bytes, file.pieces))
  yield* writeSynced(path.join(to, COMPLETE), completionText(completionOf(completion.step, 1, [...named, ...state])))
  yield* syncFolder(to)
})

/**
 * Puts a checkpoint of a run into the folder of its result: linked where one rank wrote it, for its files are never written to again; gathered where several
 * did.
 */
export const publishCheckpoint = Effect.fn("CheckpointGather.publish")(function* (
  from: string,
  to: string,
  shape: ModelShape,
  stateType: NativeModel["stateType"]
) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  yield* fs.makeDirectory(to, { recursive: true })
  if (worldSizeOf(yield* readCompletion(from)) > 1) return yield* gather(from, to, shape, stateType)
  for (const name of yield* fs.readDirectory(from)) {
    const [source, target] = [path.join(from, name), path.join(to, name)]
    yield* fs.link(source, target).pipe(Effect.catch(() => fs.copyFile(source, target)))
  }
})
