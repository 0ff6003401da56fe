/**
 * The training loop that pretraining and fine-tuning share. Everything it does is a function of the step and of the global sample index, so a run
 * that was interrupted anywhere ends with the same bits as one that was not: weights, moments, metrics, and the set of checkpoints that stay.
 */
import { Clock, Effect, FileSystem, Path, type Scope } from "effect"
import { Preempted, type Progress, StageError } from "../pipeline/StageType.ts"
import { alone, type TrainingRanks, everyRank } from "./TrainingRanks.ts"
import { openSaver } from "./CheckpointSave.ts"
import { folderName, pruneCheckpoints, restoreNewest, stepsBelow } from "./Checkpoints.ts"
import { continueFrom } from "./Continuation.ts"
import { countingLog, openMetricsLog, readMetrics, validationsIn } from "./MetricsLog.ts"
import type { AdamWStep, Batch, NativeModel } from "./Native.ts"
import { readAhead } from "./ReadAhead.ts"
import { isScheduled, keptBranch, type Measured, type RetentionPlan, retainedSteps } from "./Retention.ts"
import { type LearningRateSchedule, learningRateAt } from "./Schedule.ts"
import { progressText, type TrainingProgress } from "./TrainingProgress.ts"
import { nativeFailure } from "./TrainingModel.ts"
import { accumulateStep, agreeOnStep, scoreAll, type TrainingBatch } from "./TrainingStep.ts"

export interface TrainingData {
  /** This rank's (ownIndices) of the micro-batches of the samples [first, first + count) in the run's global order. */
  readonly batches: (first: number, count: number) => Effect.Effect<ReadonlyArray<TrainingBatch>, StageError>
  /** Held-out batches, the same at every call and on every rank; none: no validation. */
  readonly validation: Effect.Effect<ReadonlyArray<Batch>, StageError>
}

export interface TrainingPlan {
  /** Samples of the whole run; the last step takes what is left. */
  readonly totalSamples: number
  readonly samplesPerStep: number
  readonly schedule: LearningRateSchedule
  readonly optimizer: Omit<AdamWStep, "step" | "learningRate" | "seed">
  /** Of the order of samples, and of what rounds a state of bf16. */
  readonly seed: number
  /** In steps, beside before the first and after the last; 0: only those. */
  readonly validateEvery: number
  /** In steps, beside after the last; 0: only that. */
  readonly saveEvery: number
  /** Checkpoints of scheduled steps (multiples of saveEvery, and the last step) that stay; Retention.ts says which stay besides. */
  readonly keep: number
  /** Retention.ts. */
  readonly milestones?: RetentionPlan["milestones"]
  /** Seconds after which a checkpoint is saved for resuming alone. */
  readonly saveEverySeconds: number
  /** Steps in a row, with a loss or a gradient that is no number, that are left out before training stops. */
  readonly badSteps: number
  /** Steps between log lines. */
  readonly logEvery: number
  /** Floating-point operations of one trained token, forward and backward; `flopsFormula` says how they are counted. */
  readonly flopsPerToken: number
  readonly flopsFormula: string
  /** What a user of the stage lowers when training diverges or memory runs out. */
  readonly advice: { readonly diverged: string; readonly memory: string }
}

export interface TrainingSurroundings {
  /** Holds checkpoints/ and metrics.jsonl across attempts. */
  readonly work: string
  /** Folder of an older run of the same lineage (its work folder, or its TrainingState), for the steps that both have in common. */
  readonly earlier?: string | undefined
  readonly progress: (reading: Progress) => void
  readonly log: (line: string) => void
  readonly warn: (line: string) => void
  readonly stopRequested: () => boolean
  /** Of those that train together, in the same work folder; without: this one alone. */
  readonly world?: TrainingRanks | undefined
}

export interface TrainingOutcome {
  readonly state: TrainingProgress
  readonly totalSteps: number
  /** Folders of the checkpoints that stay, in rising order of steps. */
  readonly checkpoints: ReadonlyArray<string>
  readonly metricsPath: string
}

/**
 * Whatever saveEverySeconds says: training may wait for this share of the time for snapshots that serve resuming alone, and such saves may be under way,
 * behind it, for that share of the time. One is not begun while another is under way.
 */
const WAITING_SHARE = 0.05
const SAVING_SHARE = 0.5

/** Steps whose batches are on their way from the disk while one computes: slow reads are evened out. A token takes 8 to 12 bytes. */
const STEPS_READ_AHEAD = 4

const duration = (seconds: number): string => {
  if (!Number.isFinite(seconds)) return "?"
  const [hours, minutes] = [Math.floor(seconds / 3600), Math.floor((seconds % 3600) / 60)]
  return hours > 0 ? `${hours} h ${minutes} min` : minutes > 0 ? `${minutes} min` : `${Math.ceil(seconds)} s`
}

/**
 * Trains `model` as `plan` says, from the newest usable checkpoint in the work folder, or else from what `initialize` puts into it.
 * Fails as preempted (after saving) when asked to stop, as diverged, disk-full, out-of-memory or internal otherwise.
 */
export const train: (
  model: NativeModel,
  plan: TrainingPlan,
  data: TrainingData,
  initialize: Effect.Effect<void, StageError>,
  surroundings: TrainingSurroundings
) => Effect.Effect<TrainingOutcome, StageError | Preempted, FileSystem.FileSystem | Path.Path | Scope.Scope> =
  Effect.fn("Trainer.train")(function* (model, plan, data, initialize, surroundings) {
    const path = yield* Path.Path
    const { log, warn, work, world: ranks = alone } = surroundings
    // Several ranks stop between two steps alone, where all of them agree to.
    const stopRequested = () => ranks.worldSize === 1 && surroundings.stopRequested()
    const root = path.join(work, "checkpoints")
    const metricsPath = path.join(work, "metrics.jsonl")
    const totalSteps = Math.ceil(plan.totalSamples / plan.samplesPerStep)
    const retention = { ...plan, totalSteps }
    const now = Clock.currentTimeMillis
    const fs = yield* FileSystem.FileSystem
    const context = yield* Effect.context<FileSystem.FileSystem | Path.Path>()

    if (surroundings.earlier !== undefined && ranks.rank === 0) {
      const taken = yield* continueFrom(retention, surroundings.earlier, work)
      if (taken !== undefined) log(`continues an earlier run, of which the first ${taken} steps are the same`)
    }
    const restored = yield* restoreNewest(root, model, warn, ranks)
    let state: TrainingProgress = restored?.state ?? {
      version: 1,
      step: 0,
      tokens: 0,
      next_sample: 0,
      seed: plan.seed,
      training_loss: null,
      first_validation_loss: null,
      validation: null,
      best: null,
      metrics_bytes: 0
    }
    if (restored === undefined) yield* initialize
    else if (state.step < totalSteps) log(`goes on from the checkpoint of step ${state.step} of ${totalSteps}`)
    const metrics =
      ranks.rank === 0
        ? yield* openMetricsLog(metricsPath, state.metrics_bytes, warn)
        : countingLog(state.metrics_bytes)
    const written = yield* Effect.orElseSucceed(fs.readFile(metricsPath), () => new Uint8Array(0))
    const validations: Array<Measured> = [
      ...validationsIn(readMetrics(new TextDecoder().decode(written.subarray(0, state.metrics_bytes))))
    ]
    // Lines that a damaged log has lost.
    for (const known of [state.best, state.validation])
      if (known !== null && !validations.some(({ step }) => step === known.step)) validations.push(known)
    if (state.step < totalSteps) log(`FLOP per token: ${plan.flopsFormula} = ${plan.flopsPerToken.toExponential(4)}`)

    const inEngine =
      (during: string) =>
      <A>(call: () => Promise<A>) =>
        Effect.tryPromise({ try: call, catch: nativeFailure(during, plan.advice.memory) })

    let savedText = restored === undefined ? undefined : progressText(state)
    let savedAt = yield* now
    const saver = yield* openSaver(root, model, ranks)

    /** Begins a save; the files follow behind the coming steps, and `after` when they are a checkpoint. */
    const save = Effect.fnUntraced(function* (after: Effect.Effect<void, StageError>) {
      state = { ...state, metrics_bytes: metrics.length() }
      const text = progressText(state)
      if (state.step === 0 || text === savedText) return
      yield* saver.begin(state, { before: metrics.sync, after })
      savedText = text
      savedAt = yield* now
    })

    const lastCheckpoint = Effect.map(
      Effect.orElseSucceed(stepsBelow(root), () => []),
      (steps) => {
        const step = steps.findLast((candidate) => candidate <= state.step)
        return step === undefined ? undefined : { step, folder: path.join(root, folderName(step)) }
      }
    )

    const stop = Effect.fnUntraced(function* (during: string) {
      yield* save(Effect.void)
      yield* saver.settled
      const kept =
        state.step === 0 ? "nothing was trained yet" : `the checkpoint of step ${state.step} of ${totalSteps} is saved`
      return yield* new Preempted({ message: `stopped ${during} as asked: ${kept}` })
    })

    const diverged = Effect.fnUntraced(function* (step: number, what: string) {
      yield* Effect.ignore(saver.settled)
      const last = yield* lastCheckpoint
      const kept = last === undefined ? "no checkpoint was saved yet" : `the last good checkpoint is ${last.folder}`
      return yield* new StageError({
        failure: "diverged",
        message: `training diverged at step ${step} of ${totalSteps}: ${what}, learning rate ${learningRateAt(plan.schedule, step)}; ${kept}`,
        next: plan.advice.diverged
      })
    })

    const validate = Effect.fnUntraced(function* () {
      const batches = yield* data.validation
      const during = `validating after step ${state.step}`
      const interrupt = Effect.suspend(() => (stopRequested() ? stop(`while ${during}`) : Effect.void))
      const loss = yield* scoreAll(model, ranks, batches, inEngine(during), interrupt)
      if (loss === undefined) return
      if (!Number.isFinite(loss)) return yield* diverged(state.step, `the validation loss is ${loss}`)
      const measured: Measured = { step: state.step, loss }
      validations.push(measured)
      yield* metrics.append({ step: state.step, tokens: state.tokens, validation_loss: loss })
      state = {
        ...state,
        first_validation_loss: state.first_validation_loss ?? loss,
        validation: measured,
        best: state.step > 0 && (state.best === null || loss < state.best.loss) ? measured : state.best
      }
      log(`step ${state.step}/${totalSteps}: validation loss ${loss.toFixed(4)}`)
    })

    const keptSteps = () => retainedSteps(retention, state.step, validations)
    const isSaved = (step: number) =>
      isScheduled(retention, step) || state.best?.step === step || keptBranch(retention) === step

    /** What is due once `state.step` steps are done. Doing it twice is doing it once, so a resumed run starts here. */
    const settle = Effect.fnUntraced(function* () {
      const { step } = state
      // Several ranks fail together: agreedWishes.
      if (ranks.worldSize === 1) yield* saver.check
      const validationDue =
        step === 0 || step === totalSteps || (plan.validateEvery > 0 && step % plan.validateEvery === 0)
      if (validationDue && state.validation?.step !== step) yield* validate()
      const wishes = yield* agreedWishes(yield* isTimeToSave())
      if (isSaved(step) || wishes.save) yield* save(prune(step, keptSteps()))
      if (wishes.stop) return yield* stop(`after step ${step}`)
    })

    /** The two newest stay whatever the schedule, so that a damaged one has one to fall back to. */
    const prune = (step: number, kept: ReadonlyArray<number>) =>
      ranks.rank > 0
        ? Effect.void
        : Effect.gen(function* () {
            const steps = yield* Effect.orElseSucceed(stepsBelow(root), () => [])
            const newest = steps.filter((other) => other <= step).slice(-2)
            yield* pruneCheckpoints(root, step, new Set([...kept, ...newest]))
          }).pipe(Effect.provide(context))

    const isTimeToSave = Effect.fnUntraced(function* () {
      const { saving, stall, underWay } = saver.cost()
      const waited = ((yield* now) - savedAt) / 1000
      return underWay === 0 && waited >= Math.max(plan.saveEverySeconds, stall / WAITING_SHARE, saving / SAVING_SHARE)
    })

    /** What one rank wishes, all do, at the same step; and none goes on when another's save has failed. */
    const agreedWishes = Effect.fnUntraced(function* (save: boolean) {
      if (ranks.worldSize === 1) return { save, stop: false }
      const failed = (yield* Effect.result(saver.check))._tag === "Failure"
      const said = yield* everyRank(
        ranks,
        [save, surroundings.stopRequested(), failed].map((wish) => (wish ? 1 : 0))
      )
      const other = said.findIndex((wishes) => wishes[2] === 1)
      if (other < 0)
        return { save: said.some((wishes) => wishes[0] === 1), stop: said.some((wishes) => wishes[1] === 1) }
      yield* saver.settled
      return yield* new StageError({
        failure: "internal",
        message: `rank ${other} could not save its part of a checkpoint; its log says why`,
        next: "mend that, then give the same command again: it goes on from the last checkpoint"
      })
    })

    const startedAt = yield* now
    const startedTokens = state.tokens
    let lastReading = { at: startedAt, tokens: state.tokens }

    const report = Effect.fnUntraced(function* (loss: number, learningRate: number, gradientNorm: number) {
      const at = yield* now
      const { step, tokens } = state
      const due = step % plan.logEvery === 0 || step === totalSteps
      if (!due && at - lastReading.at < 1000) return
      const rate = (1000 * (tokens - lastReading.tokens)) / Math.max(1, at - lastReading.at)
      const totalTokens = tokens * (plan.totalSamples / state.next_sample)
      const averageRate = (1000 * (tokens - startedTokens)) / Math.max(1, at - startedAt)
      const secondsLeft = (totalTokens - tokens) / averageRate
      const gigaflops = (rate * plan.flopsPerToken) / 1e9
      const peakMemory = process.resourceUsage().maxRSS * 1024
      lastReading = { at, tokens }
      surroundings.progress({
        done: tokens,
        total: Math.round(totalTokens),
        unit: "tokens",
        metrics: {
          step,
          steps: totalSteps,
          tokens,
          loss,
          learning_rate: learningRate,
          gradient_norm: gradientNorm,
          tokens_per_second: rate,
          ...(ranks.worldSize > 1 ? { tokens_per_second_per_rank: rate / ranks.worldSize } : {}),
          gflops_per_second: gigaflops,
          peak_memory_bytes: peakMemory,
          seconds_left: secondsLeft,
          ...(state.validation === null ? {} : { validation_loss: state.validation.loss })
        }
      })
      if (due)
        log(
          [
            `step ${step}/${totalSteps}: ${tokens} tokens`,
            `loss ${loss.toFixed(4)}`,
            `lr ${learningRate.toExponential(3)}`,
            `gradient norm ${gradientNorm.toFixed(3)}`,
            `${Math.round(rate)} tokens/s`,
            ...(ranks.worldSize > 1 ? [`${Math.round(rate / ranks.worldSize)} per rank`] : []),
            `${gigaflops.toFixed(1)} GFLOP/s`,
            `peak memory ${(peakMemory / 2 ** 20).toFixed(0)} MiB`,
            `${duration(secondsLeft)} left`
          ].join(", ")
        )
    })

    const countFrom = (first: number) => Math.min(plan.samplesPerStep, plan.totalSamples - first)
    const resumedAt = state
    const nextBatches = readAhead(
      (step) => {
        const first = resumedAt.next_sample + step * plan.samplesPerStep
        return data.batches(first, countFrom(first))
      },
      totalSteps - resumedAt.step,
      STEPS_READ_AHEAD
    )

    yield* settle()
    let badInARow = 0
    while (state.step < totalSteps) {
      const step = state.step + 1
      const first = state.next_sample
      const count = countFrom(first)
      const batches = yield* nextBatches
      const surely = inEngine(`step ${step}`)
      const shape = yield* agreeOnStep(ranks, batches)
      const lossSum = yield* accumulateStep(model, ranks, batches, shape, { inEngine: surely, stopRequested })
      if (lossSum === undefined) return yield* stop(`in step ${step}`)
      const loss = lossSum / shape.scored
      const learningRate = learningRateAt(plan.schedule, step)
      const gradientNorm = yield* surely(async () => {
        if (Number.isFinite(loss))
          return (await model.step({ ...plan.optimizer, step, learningRate, seed: plan.seed })).gradientNorm
        await model.discard()
        return Number.NaN
      })
      const tokens = state.tokens + shape.inputTokens
      state = { ...state, step, tokens, next_sample: first + count }
      if (!Number.isFinite(gradientNorm)) {
        const what = Number.isFinite(loss) ? `the gradient norm is ${gradientNorm}` : `the loss is ${loss}`
        if (++badInARow > plan.badSteps) return yield* diverged(step, what)
        warn(`step ${step} is left out: ${what}; ${badInARow} of at most ${plan.badSteps} in a row`)
        yield* settle()
        continue
      }
      badInARow = 0
      state = { ...state, training_loss: loss }
      yield* metrics.append({ step, tokens, loss, learning_rate: learningRate, gradient_norm: gradientNorm })
      yield* report(loss, learningRate, gradientNorm)
      yield* settle()
    }
    yield* saver.settled
    const checkpoints = keptSteps().map((step) => path.join(root, folderName(step)))
    return { state, totalSteps, checkpoints, metricsPath }
  })
