/**
 * COMPLETE.json, which makes a folder a checkpoint: it is written last and names every other file with its digests. Each rank of a run writes a weights
 * and an optimizer file; what lies in them is told by native/checkpoint/shard_file.h.
 */
import { createHash } from "node:crypto"
import { Effect, FileSystem, Path, Schema } from "effect"
import { ArtifactFile } from "../artifacts/Artifact.ts"

export const WEIGHTS = "weights.safetensors"
export const OPTIMIZER = "optimizer.safetensors"
export const STATE = "state.json"
export const COMPLETE = "COMPLETE.json"

const Count = Schema.Int.check(Schema.isGreaterThanOrEqualTo(0))
const Sha256 = Schema.String.check(Schema.isPattern(/^[0-9a-f]{64}$/u))
/** Beyond any cluster that trains a model of this program. */
const MAX_WORLD_SIZE = 65_536

/** A file and the sha256 of each 16 MiB of it; `digest` is the sha256 of those digests' bytes end to end. */
export const CheckpointFile = Schema.Struct({
  path: Schema.String,
  bytes: Count,
  digest: Sha256,
  pieces: Schema.Array(Sha256)
})
export type CheckpointFile = typeof CheckpointFile.Type

/** What ranks write when their files are durable, for the one that publishes: files-00002.json, which is not in the checkpoint. */
export const RankFiles = Schema.Struct({ step: Count, files: Schema.Array(CheckpointFile) })

const Sharded = Schema.Struct({
  version: Schema.Literal(2),
  step: Count,
  /** Ranks that wrote it. */
  world_size: Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: MAX_WORLD_SIZE })),
  files: Schema.Array(CheckpointFile)
})
/** As it was before: one rank's files, with the sha256 of the whole. */
const Whole = Schema.Struct({ step: Count, files: Schema.Array(ArtifactFile) })
export const Completion = Schema.Union([Sharded, Whole])
export type Completion = typeof Completion.Type

/** A checkpoint folder that cannot be used, and why. */
export class DamagedCheckpoint extends Schema.TaggedError<DamagedCheckpoint>()("DamagedCheckpoint", {
  path: Schema.String,
  reason: Schema.String
}) {
  override get message() {
    return `${this.path}: ${this.reason}`
  }
}

/** A checkpoint whose tensors are not this model's; whether it is whole is not known. */
export class ForeignCheckpoint extends Schema.TaggedError<ForeignCheckpoint>()("ForeignCheckpoint", {
  path: Schema.String,
  reason: Schema.String
}) {
  override get message() {
    return `${this.path}: ${this.reason}`
  }
}

/** A file of a checkpoint that could not be written or read, in the system's own words. */
export class CheckpointFileError extends Schema.TaggedError<CheckpointFileError>()("CheckpointFileError", {
  reason: Schema.String
}) {
  override get message() {
    return this.reason
  }
}

/** From what native code rejects a promise with. */
export const fileError = (cause: unknown): CheckpointFileError =>
  new CheckpointFileError({ reason: cause instanceof Error ? cause.message : String(cause) })

const decodeCompletion = Schema.decodeUnknownEffect(Schema.fromJsonString(Completion))

export const worldSizeOf = (completion: Completion): number => ("version" in completion ? completion.world_size : 1)

/** weights.safetensors of one rank alone, else weights-00002-of-00004.safetensors. */
export const shardName = (name: typeof WEIGHTS | typeof OPTIMIZER, rank: number, worldSize: number): string => {
  const number = (value: number) => String(value).padStart(5, "0")
  return worldSize === 1 ? name : name.replace(".", `-${number(rank)}-of-${number(worldSize)}.`)
}

/** The names of all ranks' files. */
export const shardNames = (name: typeof WEIGHTS | typeof OPTIMIZER, worldSize: number): ReadonlyArray<string> =>
  Array.from({ length: worldSize }, (_, rank) => shardName(name, rank, worldSize))

/** The sha256 of the pieces' digests, end to end. */
const digestOf = (pieces: ReadonlyArray<string>): string => {
  const hash = createHash("sha256")
  for (const piece of pieces) hash.update(piece, "hex")
  return hash.digest("hex")
}

export const checkpointFile = (path: string, bytes: number, pieces: ReadonlyArray<string>): CheckpointFile => ({
  path,
  bytes,
  digest: digestOf(pieces),
  pieces
})

/** A file of one piece. */
export const smallFile = (path: string, bytes: Uint8Array): CheckpointFile =>
  checkpointFile(path, bytes.length, [createHash("sha256").update(bytes).digest("hex")])

const byPath = (a: { readonly path: string }, b: { readonly path: string }): number => (a.path < b.path ? -1 : 1)

/** The text of COMPLETE.json: the files in the order of their names. */
export const completionText = (completion: Completion): string =>
  `${JSON.stringify({ ...completion, files: completion.files.toSorted(byPath) }, null, 2)}\n`

export const completionOf = (step: number, worldSize: number, files: ReadonlyArray<CheckpointFile>): Completion => ({
  version: 2,
  step,
  world_size: worldSize,
  files
})

/** The same with another file in place of the one of its name, which is of one piece. */
export const withFile = (completion: Completion, file: CheckpointFile): Completion => {
  const isOther = (one: { readonly path: string }) => one.path !== file.path
  return "version" in completion
    ? { ...completion, files: [...completion.files.filter(isOther), file] }
    : {
        ...completion,
        files: [
          ...completion.files.filter(isOther),
          { path: file.path, bytes: file.bytes, sha256: file.pieces[0] ?? "" }
        ]
      }
}

/** COMPLETE.json of a folder, checked to name all files that there must be, and no other. */
export const readCompletion: (
  folder: string
) => Effect.Effect<Completion, DamagedCheckpoint, FileSystem.FileSystem | Path.Path> = Effect.fn(
  "CheckpointManifest.readCompletion"
)(function* (folder) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const damaged = (reason: string) => new DamagedCheckpoint({ path: folder, reason })
  const text = yield* Effect.mapError(fs.readFileString(path.join(folder, COMPLETE)), () =>
    damaged(`no ${COMPLETE}: it was never finished`)
  )
  const completion = yield* Effect.mapError(decodeCompletion(text), (error) =>
    damaged(`${COMPLETE} is not valid: ${error.message}`)
  )
  const worldSize = worldSizeOf(completion)
  const needed = new Set([STATE, ...shardNames(WEIGHTS, worldSize), ...shardNames(OPTIMIZER, worldSize)])
  const named = new Set(completion.files.map((file) => file.path))
  const missing = [...needed].find((name) => !named.has(name))
  if (missing !== undefined) return yield* damaged(`${COMPLETE} does not name ${missing}`)
  // A name with a folder in it would read outside of the checkpoint (CWE-22).
  const foreign = completion.files.find((file) => !needed.delete(file.path))
  if (foreign !== undefined) return yield* damaged(`${COMPLETE} names ${foreign.path}, which is none of its files`)
  if ("version" in completion)
    for (const file of completion.files)
      if (digestOf(file.pieces) !== file.digest)
        return yield* damaged(`${COMPLETE} contradicts itself: the digest of ${file.path} is not that of its pieces`)
  return completion
})
