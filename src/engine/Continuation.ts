/**
 * Going on from an older run of the same lineage: one with a smaller budget, a later decay, fewer checkpoints to keep. What the new run would have
 * made itself up to some step is put into its work folder, byte for byte, as if it had been interrupted there; all else is made anew. The older
 * run's files are linked, never written to: no file of a checkpoint is ever written again in place.
 */
import { Effect, FileSystem, Path } from "effect"
import { COMPLETE, completionText, readCompletion, smallFile, STATE, withFile } from "./CheckpointManifest.ts"
import { folderName, stepsBelow, syncFolder, verifyCheckpoint, writeSynced } from "./Checkpoints.ts"
import { type ReadLine, readMetrics, validationsIn } from "./MetricsLog.ts"
import { isRegularValidation, type Measured, type RetentionPlan, retainedSteps } from "./Retention.ts"
import { learningRateAt } from "./Schedule.ts"
import { storageFailure } from "./StorageFailure.ts"
import { progressText, readProgress, type TrainingProgress } from "./TrainingProgress.ts"

export interface ContinuationPlan extends RetentionPlan {
  readonly totalSamples: number
  readonly samplesPerStep: number
  readonly seed: number
}

/** The older run's lines that the new run would write up to `step`: without the validation that ended the older run, when it was due for that alone. */
const sharedLines = (plan: ContinuationPlan, lines: ReadonlyArray<ReadLine>, step: number): ReadonlyArray<ReadLine> =>
  lines.filter(
    (line) =>
      line.step <= step &&
      (!("validation_loss" in line) ||
        line.step === plan.totalSteps ||
        isRegularValidation(plan.validateEvery, line.step))
  )

/** So many first steps were made with the learning rates of the new run. */
const stepsInCommon = (plan: ContinuationPlan, lines: ReadonlyArray<ReadLine>): number => {
  let step = 0
  for (const line of lines) {
    if (!("learning_rate" in line)) continue
    if (line.step !== step + 1 || line.learning_rate !== learningRateAt(plan.schedule, line.step)) break
    step = line.step
  }
  return step
}

/** So many validations the new run has made once `step` is done, when it has held-out data. */
const validationsDue = ({ totalSteps, validateEvery }: ContinuationPlan, step: number): number =>
  1 +
  (validateEvery > 0 ? Math.floor(step / validateEvery) : 0) +
  (step === totalSteps && !isRegularValidation(validateEvery, step) ? 1 : 0)

/** The state that the new run would have saved at this step. */
const stateAt = (state: TrainingProgress, validations: ReadonlyArray<Measured>, metricsBytes: number) => {
  const later = validations.filter(({ step }) => step > 0)
  const own: TrainingProgress = {
    ...state,
    first_validation_loss: validations[0]?.loss ?? null,
    validation: validations.at(-1) ?? null,
    best: later.reduce<Measured | null>(
      (lowest, measured) => (lowest === null || measured.loss < lowest.loss ? measured : lowest),
      null
    ),
    metrics_bytes: metricsBytes
  }
  return own
}

interface Found {
  readonly step: number
  readonly state: TrainingProgress
  readonly metrics: string
  /** All checkpoints to take, in rising order; the last is `step`'s. */
  readonly checkpoints: ReadonlyArray<number>
}

/** The newest step of the older run at which everything is there that the new run would have, or may still need. */
const findCommonStep = Effect.fnUntraced(function* (plan: ContinuationPlan, earlier: string) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const root = path.join(earlier, "checkpoints")
  const text = yield* Effect.orElseSucceed(fs.readFileString(path.join(earlier, "metrics.jsonl")), () => "")
  const lines = readMetrics(text)
  const inCommon = stepsInCommon(plan, lines)
  const present: ReadonlyArray<number> = yield* Effect.orElseSucceed(stepsBelow(root), () => [])
  for (const step of present.toReversed()) {
    if (step < 1 || step > Math.min(inCommon, plan.totalSteps)) continue
    const shared = sharedLines(plan, lines, step)
    const validations = validationsIn(shared)
    const needed = retainedSteps(plan, plan.totalSteps, validations).filter((other) => other < step)
    if (!needed.every((other) => present.includes(other))) continue
    const checkpoints = [...needed, step]
    const verified = yield* Effect.forEach(checkpoints, (other) =>
      verifyCheckpoint(path.join(root, folderName(other)))
    ).pipe(Effect.orElseSucceed(() => undefined))
    const state = verified?.at(-1)
    if (state === undefined || state.step !== step || state.seed !== plan.seed) continue
    if (state.next_sample !== Math.min(plan.totalSamples, step * plan.samplesPerStep)) continue
    // A log that has lost a validation is no longer what the new run would write.
    if (validations.length !== (state.first_validation_loss === null ? 0 : validationsDue(plan, step))) continue
    const metrics = shared.map((line) => line.text).join("")
    const found: Found = {
      step,
      state: stateAt(state, validations, new TextEncoder().encode(metrics).length),
      metrics,
      checkpoints
    }
    return found
  }
  return undefined
})

const link = Effect.fnUntraced(function* (from: string, to: string) {
  const fs = yield* FileSystem.FileSystem
  yield* fs.link(from, to).pipe(Effect.catch(() => fs.copyFile(from, to)))
  yield* Effect.scoped(Effect.flatMap(fs.open(to, { flag: "r" }), (file) => file.sync))
})

/** A checkpoint of the older run under `target`, with `state` in place of its own where that differs. */
const linkCheckpoint = Effect.fnUntraced(function* (
  folder: string,
  target: string,
  state: TrainingProgress | undefined
) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  yield* fs.makeDirectory(target, { recursive: true })
  const completion = yield* readCompletion(folder)
  for (const { path: name } of completion.files)
    if (name !== STATE) yield* link(path.join(folder, name), path.join(target, name))
  if (state === undefined || progressText(state) === progressText(yield* readProgress(folder))) {
    for (const name of [STATE, COMPLETE]) yield* link(path.join(folder, name), path.join(target, name))
  } else {
    const own = smallFile(STATE, yield* writeSynced(path.join(target, STATE), progressText(state)))
    yield* writeSynced(path.join(target, COMPLETE), completionText(withFile(completion, own)))
  }
  yield* syncFolder(target)
})

/**
 * Fills an empty work folder from `earlier`, the folder of an older run (its work folder, or its TrainingState), and returns the step that training
 * goes on from; undefined where there is nothing to take. One rename puts all of it in place, so a crash leaves all or nothing.
 */
export const continueFrom = Effect.fn("Continuation.continueFrom")(function* (
  plan: ContinuationPlan,
  earlier: string,
  work: string
) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const root = path.join(work, "checkpoints")
  const names = yield* Effect.orElseSucceed(fs.readDirectory(root), () => [])
  if (names.some((name) => !name.startsWith(".draft-"))) return undefined
  const found = yield* findCommonStep(plan, earlier)
  if (found === undefined) return undefined
  const draft = path.join(work, ".continued-checkpoints")
  yield* Effect.gen(function* () {
    yield* fs.remove(draft, { recursive: true, force: true })
    yield* fs.makeDirectory(draft, { recursive: true })
    for (const step of found.checkpoints)
      yield* linkCheckpoint(
        path.join(earlier, "checkpoints", folderName(step)),
        path.join(draft, folderName(step)),
        step === found.step ? found.state : undefined
      )
    yield* syncFolder(draft)
    // Without a checkpoint beside it nobody looks at this file's content.
    yield* writeSynced(path.join(work, "metrics.jsonl"), found.metrics)
    yield* fs.remove(root, { recursive: true, force: true })
    yield* fs.rename(draft, root)
    yield* syncFolder(work)
  }).pipe(
    Effect.tapError(() => Effect.ignore(fs.remove(draft, { recursive: true, force: true }))),
    Effect.mapError(
      storageFailure(`the checkpoints taken over into ${root}`, "the older run is intact", "they are taken over then")
    )
  )
  return found.step
})
