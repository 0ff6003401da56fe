/** Parameter types of the stages that train, and the parameters that mean the same in all of them. */
import { Effect, Schema } from "effect"
import { ScheduleKind } from "../engine/Schedule.ts"
import { parameter } from "../pipeline/StageType.ts"

export const AtLeast = (minimum: number) =>
  Schema.Int.check(Schema.isGreaterThanOrEqualTo(minimum, { message: `must be a whole number from ${minimum} on` }))

/** Sequences per forward and backward pass. */
export const MicroBatch = Schema.Union([AtLeast(1), Schema.Literal("auto")])
/** What auto means on the CPU, and for forecasts. */
export const CPU_MICRO_BATCH = 8
/** Beyond this, larger products gain nothing. */
export const LARGEST_MICRO_BATCH = 32

export const NotNegative = Schema.Finite.check(Schema.isGreaterThanOrEqualTo(0, { message: "must be 0 or above" }))

export const Positive = Schema.Finite.check(Schema.isGreaterThan(0, { message: "must be above 0" }))

export const Fraction = Schema.Finite.check(
  Schema.isBetween({ minimum: 0, maximum: 1 }, { message: "must lie between 0 and 1" })
)

/** A field that the file may leave out. */
export const withDefault = <S extends Schema.Codec<unknown, unknown>>(schema: S, value: S["Encoded"]) =>
  schema.pipe(Schema.withDecodingDefaultKey(Effect.succeed(value)))

/** The learning rate of pretraining; the defaults are TinyLlama's. */
export const LearningRate = Schema.Struct({
  peak: withDefault(Positive, 4e-4),
  min: withDefault(NotNegative, 4e-5),
  warmup_steps: withDefault(AtLeast(0), 2000),
  schedule: withDefault(ScheduleKind, "cosine"),
  decay_fraction: withDefault(Fraction, 0.2)
}).check(
  Schema.makeFilter(({ min, peak }) =>
    min > peak ? { path: ["min"], issue: `${min} is above peak, ${peak}` } : undefined
  )
)

export const clip = parameter(NotNegative, {
  change: "identity",
  default: 1,
  describe: "Largest global gradient norm; 0: no clipping."
})

export const bad_steps = parameter(AtLeast(0), {
  change: "identity",
  default: 3,
  describe: "Steps in a row whose loss or gradient is no number that are left out, aloud, before training stops."
})

export const save_every_seconds = parameter(NotNegative, {
  change: "operational",
  default: 60,
  describe: "Seconds between checkpoints for resuming alone; they leave no trace in the result."
})

export const log_every = parameter(AtLeast(1), {
  change: "operational",
  default: 10,
  describe: "Steps between log lines."
})
