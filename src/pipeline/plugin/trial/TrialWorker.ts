/**
 * The inside of a worker on trial: the real one, but it counts the stage's progress readings, and at one of them it gets the signal that trial.json
 * beside its job asks for. So a kill comes at the same place in the work every time, however fast the machine is.
 */
import { readFileSync, writeFileSync } from "node:fs"
import { dirname, join } from "node:path"
import { Effect, Layer, Schema } from "effect"
import { StageRegistry } from "../../StageRegistry.ts"
import type { AnyStageType } from "../../StageType.ts"

export const TrialOrder = Schema.Struct({
  /** null: only count. */
  signal: Schema.NullOr(Schema.Literals(["SIGKILL", "SIGTERM"])),
  /** The reading, counted from 1, at which the signal comes. */
  at: Schema.Int
})
export type TrialOrder = typeof TrialOrder.Type

/** What the stage reported: the first reading of this attempt, and how many there were. Written when the attempt ends by itself. */
export const TrialCount = Schema.Struct({
  readings: Schema.Int,
  first: Schema.NullOr(Schema.Struct({ done: Schema.Finite, total: Schema.Finite, unit: Schema.String }))
})
export type TrialCount = typeof TrialCount.Type

export const orderFile = "trial.json"
export const countFile = "readings.json"
/** The log line that tells the tester that SIGTERM has been sent. */
export const terminationLine = "stage test: SIGTERM"

/** The registry with every stage type on trial. */
export const onTrial = (registry: Layer.Layer<StageRegistry>, jobFile: string): Layer.Layer<StageRegistry> => {
  const folder = dirname(jobFile)
  const order = Schema.decodeUnknownSync(Schema.fromJsonString(TrialOrder))(
    readFileSync(join(folder, orderFile), "utf8")
  )
  return Layer.effect(
    StageRegistry,
    Effect.map(StageRegistry, ({ load, names }) =>
      StageRegistry.of({
        names,
        load: (uses, baseDirectory) =>
          Effect.map(load(uses, baseDirectory), (type) =>
            type === undefined ? undefined : observed(type, order, folder)
          )
      })
    )
  ).pipe(Layer.provide(registry))
}

const observed = (type: AnyStageType, order: TrialOrder, folder: string): AnyStageType => ({
  ...type,
  run: (context) => {
    let readings = 0
    let first: TrialCount["first"] = null
    const progress: typeof context.progress = (reading) => {
      readings += 1
      first ??= { done: reading.done, total: reading.total, unit: reading.unit }
      context.progress(reading)
      if (readings !== order.at || order.signal === null) return
      if (order.signal === "SIGTERM") context.log(terminationLine)
      process.kill(process.pid, order.signal)
    }
    return type
      .run({ ...context, progress })
      .pipe(
        Effect.ensuring(
          Effect.sync(() =>
            writeFileSync(join(folder, countFile), JSON.stringify({ readings, first } satisfies TrialCount))
          )
        )
      )
  }
})
