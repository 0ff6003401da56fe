/**
 * Saving behind the training step. A snapshot of the state is taken between two steps, which is all that training waits for; then native threads write
 * and hash it while training goes on, and the checkpoint is published: all files of all ranks first, then COMPLETE.json, each synced, then one rename.
 * After a crash at any instruction the folder is whole or absent, and a former folder of the same step is there until the new one is.
 */
import { availableParallelism } from "node:os"
import { Clock, Effect, Fiber, FileSystem, Option, Path, Schema, Semaphore } from "effect"
import { StageError } from "../pipeline/StageType.ts"
import {
  type CheckpointFile,
  checkpointFile,
  COMPLETE,
  completionOf,
  completionText,
  fileError,
  OPTIMIZER,
  RankFiles,
  readCompletion,
  shardName,
  smallFile,
  STATE,
  WEIGHTS
} from "./CheckpointManifest.ts"
import { alone, type TrainingRanks } from "./TrainingRanks.ts"
import { folderName, stepsBelow, syncFolder, writeSynced } from "./Checkpoints.ts"
import type { NativeModel, StateSnapshot } from "./Native.ts"
import { storageFailure } from "./StorageFailure.ts"
import { progressText, type TrainingProgress } from "./TrainingProgress.ts"
import { nativeFailure } from "./TrainingModel.ts"

/** A third one waits until the first is published. */
const MOST_UNDER_WAY = 2
/** Milliseconds between looks for what other ranks do in the draft. */
const LOOK_AGAIN = 50
/** Looks that a shared file system may be late by. */
const LATE_LOOKS = 40

/** On the CPU the threads that train need the cores: hashing and writing 13 GB takes one of them some ten seconds. */
const writingThreads = (place: StateSnapshot["place"]): number =>
  place === "device"
    ? Math.min(8, Math.max(1, availableParallelism() >> 1))
    : place === "host"
      ? 2
      : availableParallelism()

/** This rank's two files. Interrupted, it ends when nothing writes to them any more. */
const writeShards = Effect.fnUntraced(function* (draft: string, snapshot: StateSnapshot, ranks: TrainingRanks) {
  const path = yield* Path.Path
  const names = ([WEIGHTS, OPTIMIZER] as const).map((name) => shardName(name, ranks.rank, ranks.worldSize))
  const [weights = "", optimizer = ""] = names.map((name) => path.join(draft, name))
  const written = snapshot.write(
    [
      { path: weights, kinds: ["weights"] },
      { path: optimizer, kinds: ["firstMoment", "secondMoment"] }
    ],
    writingThreads(snapshot.place)
  )
  const files = yield* Effect.tryPromise({ try: () => written, catch: fileError }).pipe(
    Effect.onInterrupt(() =>
      Effect.promise(() => {
        snapshot.release()
        return written.then(
          () => undefined,
          () => undefined
        )
      })
    )
  )
  return files.map(({ bytes, path: file, pieces }) => checkpointFile(path.basename(file), bytes, pieces))
})

const rankFile = (kind: "files" | "failed", rank: number): string => `${kind}-${String(rank).padStart(5, "0")}.json`
const decodeRankFiles = Schema.decodeUnknownEffect(Schema.fromJsonString(RankFiles))

/** Tells rank 0, in the draft: this rank's files are durable, or will not come. */
const tellPublisher = Effect.fnUntraced(function* (draft: string, name: string, said: unknown) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const temporary = path.join(draft, `.${name}`)
  yield* writeSynced(temporary, `${JSON.stringify(said)}\n`)
  yield* fs.rename(temporary, path.join(draft, name))
})

/** The other ranks' files, when all are there. */
const filesOfOthers = Effect.fnUntraced(function* (draft: string, step: number, ranks: TrainingRanks) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const all: Array<CheckpointFile> = []
  for (let rank = 1; rank < ranks.worldSize;) {
    const told = path.join(draft, rankFile("files", rank))
    const text = yield* Effect.option(fs.readFileString(told))
    if (Option.isNone(text)) {
      const reason = yield* Effect.option(fs.readFileString(path.join(draft, rankFile("failed", rank))))
      if (Option.isSome(reason)) return yield* fileError(`rank ${rank} could not write: ${reason.value.trim()}`)
      yield* Effect.sleep(LOOK_AGAIN)
      continue
    }
    const found = yield* decodeRankFiles(text.value)
    if (found.step !== step) return yield* fileError(`rank ${rank} saved step ${found.step}`)
    all.push(...found.files)
    yield* fs.remove(told)
    rank++
  }
  return all
})

/** Waits until rank 0 has published what this rank wrote. */
const publishedByOther = Effect.fnUntraced(function* (
  target: string,
  draft: string,
  own: ReadonlyArray<CheckpointFile>
) {
  const fs = yield* FileSystem.FileSystem
  for (let late = 0; ;) {
    const completion = yield* Effect.option(readCompletion(target))
    const digests = Option.match(completion, {
      onNone: () => new Set<string>(),
      onSome: ({ files }) => new Set(files.map((file) => ("digest" in file ? file.digest : "")))
    })
    if (own.every(({ digest }) => digests.has(digest))) return
    if (!(yield* fs.exists(draft)) && ++late > LATE_LOOKS)
      return yield* fileError("rank 0 did not publish it: its log says why")
    yield* Effect.sleep(LOOK_AGAIN)
  }
})

/** Rank 0's part once all files of all ranks are in the draft. */
const publish = Effect.fnUntraced(function* (
  root: string,
  draft: string,
  state: TrainingProgress,
  worldSize: number,
  shards: ReadonlyArray<CheckpointFile>
) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const target = path.join(root, folderName(state.step))
  const replaced = path.join(root, `.replaced-${folderName(state.step)}`)
  const progress = smallFile(STATE, yield* writeSynced(path.join(draft, STATE), progressText(state)))
  const completion = completionOf(state.step, worldSize, [...shards, progress])
  yield* writeSynced(path.join(draft, COMPLETE), completionText(completion))
  yield* syncFolder(draft)
  const before = yield* fs.exists(target)
  if (before) yield* fs.rename(target, replaced)
  yield* fs.rename(draft, target)
  yield* syncFolder(root)
  if (before) yield* fs.remove(replaced, { recursive: true, force: true })
})

/** Writes the snapshot as the checkpoint of `state.step` below `root`; on all ranks, which share that folder. */
const saveSnapshot = Effect.fn("CheckpointSave.saveSnapshot")(
  function* (root: string, snapshot: StateSnapshot, state: TrainingProgress, ranks: TrainingRanks) {
    const fs = yield* FileSystem.FileSystem
    const path = yield* Path.Path
    const draft = path.join(root, `.draft-${folderName(state.step)}`)
    const isPublisher = ranks.rank === 0
    const removeOwn = isPublisher
      ? fs.remove(draft, { recursive: true, force: true })
      : Effect.forEach([WEIGHTS, OPTIMIZER] as const, (name) =>
          fs.remove(path.join(draft, shardName(name, ranks.rank, ranks.worldSize)), { force: true })
        )
    // What is left of a save that failed; other ranks may be at work here already.
    if (ranks.worldSize === 1) yield* removeOwn
    yield* fs.makeDirectory(draft, { recursive: true })
    yield* Effect.gen(function* () {
      const own = yield* writeShards(draft, snapshot, ranks)
      if (isPublisher) {
        const others = yield* filesOfOthers(draft, state.step, ranks)
        yield* publish(root, draft, state, ranks.worldSize, [...own, ...others])
      } else {
        yield* tellPublisher(draft, rankFile("files", ranks.rank), { step: state.step, files: own })
        yield* publishedByOther(path.join(root, folderName(state.step)), draft, own)
      }
    }).pipe(
      Effect.tapError((error) =>
        isPublisher
          ? Effect.void
          : Effect.ignore(
              Effect.andThen(removeOwn, tellPublisher(draft, rankFile("failed", ranks.rank), error.message))
            )
      ),
      Effect.onError(() => (isPublisher ? Effect.ignore(removeOwn) : Effect.void))
    )
  },
  (effect, root, _snapshot, state) =>
    effect.pipe(Effect.catch((error) => Effect.flatMap(describeSaveFailure(root, state.step, error), Effect.fail)))
)

const describeSaveFailure = Effect.fnUntraced(function* (root: string, step: number, error: Error) {
  const before = (yield* Effect.orElseSucceed(stepsBelow(root), () => [])).findLast((other) => other !== step)
  const kept = before === undefined ? "no earlier checkpoint exists" : `the checkpoint of step ${before} is intact`
  const resume = before === undefined ? "it starts again at step 1" : `it goes on from step ${before}`
  return storageFailure(`the checkpoint of step ${step} in ${root}`, kept, resume)(error)
})

const takeSnapshot = (model: Pick<NativeModel, "snapshot">, step: number) =>
  Effect.tryPromise({
    try: () => model.snapshot(),
    catch: nativeFailure(`the snapshot after step ${step}`, "use a smaller model, or a machine with more memory")
  })

/** Saves and waits for it. Returns the folder. */
export const saveCheckpoint = Effect.fn("CheckpointSave.saveCheckpoint")(function* (
  root: string,
  model: Pick<NativeModel, "snapshot">,
  state: TrainingProgress,
  ranks: TrainingRanks = alone
) {
  const path = yield* Path.Path
  const snapshot = yield* takeSnapshot(model, state.step)
  yield* Effect.ensuring(
    saveSnapshot(root, snapshot, state, ranks),
    Effect.sync(() => snapshot.release())
  )
  return path.join(root, folderName(state.step))
})

/** Around one save: what must be durable before it is published, and what comes after it. */
export interface Surrounding {
  readonly before: Effect.Effect<void, StageError>
  readonly after: Effect.Effect<void, StageError>
}

export interface CheckpointSaver {
  /**
   * Takes a snapshot of the state and returns; the rest goes on behind. Waits while two saves are under way, and until the files are written where memory is
   * too short for a snapshot. Fails with what an earlier save failed with.
   */
  readonly begin: (state: TrainingProgress, around: Surrounding) => Effect.Effect<void, StageError>
  /** Fails with what a save behind the training has failed with. */
  readonly check: Effect.Effect<void, StageError>
  /** Waits for all saves; fails if one of them did. */
  readonly settled: Effect.Effect<void, StageError>
  /** Seconds that training waited for the last `begin`, and that the last save took from its turn to the end. */
  readonly cost: () => { readonly underWay: number; readonly stall: number; readonly saving: number }
}

const seconds = Effect.map(Clock.currentTimeMillis, (millis) => millis / 1000)

/** Saves one after the other, in the order of `begin`, for the time of the scope; one that is under way when the scope closes is given up. */
export const openSaver = Effect.fn("CheckpointSave.openSaver")(function* (
  root: string,
  model: Pick<NativeModel, "snapshot">,
  ranks: TrainingRanks
) {
  const scope = yield* Effect.scope
  const context = yield* Effect.context<FileSystem.FileSystem | Path.Path>()
  const room = yield* Semaphore.make(MOST_UNDER_WAY)
  const turn = yield* Semaphore.make(1)
  let failure: StageError | undefined
  let [underWay, stall, saving] = [0, 0, 0]
  const check = Effect.suspend(() => (failure === undefined ? Effect.void : Effect.fail(failure)))

  const save = (snapshot: StateSnapshot, state: TrainingProgress, { after, before }: Surrounding) =>
    Effect.gen(function* () {
      yield* check
      const started = yield* seconds
      yield* before
      yield* saveSnapshot(root, snapshot, state, ranks)
      yield* after
      saving = (yield* seconds) - started
    }).pipe(
      turn.withPermits(1),
      Effect.catch((error) =>
        Effect.sync(() => {
          failure ??= error
        })
      ),
      Effect.ensuring(
        Effect.suspend(() => {
          snapshot.release()
          underWay--
          return room.release(1)
        })
      ),
      Effect.provide(context)
    )

  const begin = Effect.fn("CheckpointSave.begin")(function* (state: TrainingProgress, around: Surrounding) {
    const started = yield* seconds
    yield* room.take(1)
    const snapshot = yield* check.pipe(
      Effect.andThen(takeSnapshot(model, state.step)),
      Effect.onError(() => room.release(1))
    )
    underWay++
    const fiber = yield* Effect.forkIn(save(snapshot, state, around), scope, { startImmediately: true })
    if (snapshot.place === "live") {
      yield* Fiber.await(fiber)
      yield* check
    }
    stall = (yield* seconds) - started
  })

  const saver: CheckpointSaver = {
    begin,
    check,
    settled: Effect.andThen(room.withPermits(MOST_UNDER_WAY)(Effect.void), check),
    cost: () => ({ underWay, stall, saving })
  }
  return saver
})
