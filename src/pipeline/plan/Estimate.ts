/** What running a stage will take: time from past runs scaled by the amount of work, else from the engine's own model; disk from the forecast. */
import { Effect, Result, type Schema } from "effect"
import type { Facts } from "../../artifacts/Artifact.ts"
import { ArtifactStore, type KeyRecord } from "../../artifacts/ArtifactStore.ts"
import type { PreviousResult } from "./Decision.ts"
import type { HistoryEntry } from "./KeyLedger.ts"
import { peakOf } from "../file/Gpu.ts"
import { decodeParams } from "../file/Parameters.ts"
import type { StageFacts } from "./Plan.ts"
import type { ResolvedStage } from "../file/ResolvedPipeline.ts"
import type { Extent, Forecast, Gpus, StageError } from "../StageType.ts"

export interface Estimate {
  /** undefined where neither past runs nor a model can tell. */
  readonly seconds: number | undefined
  /** What `seconds` rests on: so many past runs of this stage, or the engine's model of this machine. */
  readonly basis: { readonly _tag: "PastRuns"; readonly runs: number } | { readonly _tag: "Model" } | undefined
  /** Bytes on disk, at most. */
  readonly bytes: number | undefined
  /** Bytes of memory, at most. */
  readonly memory: number | undefined
}

/** Past runs that are looked at: the newest ones. */
const mostRuns = 5

/** The type's forecast from what is known of its inputs: facts of real artifacts, forecast ones, or none. */
export const forecastOf = Effect.fnUntraced(function* (
  stage: ResolvedStage,
  facts: ReadonlyMap<string, StageFacts>,
  previous: PreviousResult | undefined,
  observed: Result.Result<Schema.Json, StageError> | undefined
) {
  const { type } = stage
  if (type.forecast === undefined) return undefined
  const inputs: Record<string, ReadonlyArray<Facts>> = {}
  const origins: Record<string, ReadonlyArray<string>> = {}
  for (const [port, edges] of Object.entries(stage.inputs)) {
    inputs[port] = edges.map((edge) => facts.get(edge.stage)?.[edge.port] ?? {})
    origins[port] = edges.map((edge) => `${edge.stage}.${edge.port}`)
  }
  const params = yield* Effect.orDie(decodeParams(type, stage.params))
  const before =
    previous?.artifacts === undefined
      ? undefined
      : yield* Effect.result(decodeParams(type, { ...stage.params, ...previous.parts.params })).pipe(
          Effect.map((decoded) =>
            Result.isFailure(decoded)
              ? undefined
              : {
                  params: decoded.success,
                  outputs: Object.fromEntries(
                    Object.entries(previous.artifacts ?? {}).map(([port, { manifest }]) => [port, manifest.facts])
                  )
                }
          )
        )
  return type.forecast(
    params,
    inputs,
    before,
    observed !== undefined && Result.isSuccess(observed) ? observed.success : undefined,
    origins,
    inOneMemory(stage)
  )
})

/** Ranks that compute in this machine's memory: not those with a GPU each, nor a cluster's. */
const inOneMemory = ({ executor, resources: { gpus, ranks } }: ResolvedStage): number =>
  executor.kind === "local" && ranks > gpus ? ranks : 1

export const estimate = Effect.fnUntraced(function* (question: {
  readonly stage: ResolvedStage
  /** Keys that the stage had, newest first. */
  readonly past: ReadonlyArray<HistoryEntry>
  readonly forecast: Forecast | undefined
  readonly resumesAt: Extent | undefined
  readonly cpus: number
}) {
  const { cpus, forecast, past, resumesAt, stage } = question
  const left = resumesAt === undefined || resumesAt.total <= 0 ? 1 : 1 - Math.min(1, resumesAt.done / resumesAt.total)
  const gpus = gpusOf(stage)
  // What was measured on cores tells nothing of GPUs.
  const records = gpus === undefined ? yield* pastRecords(past) : []
  const whole = secondsOfPast(records, forecast, cpus)
  const sizes = { bytes: forecast?.bytes, memory: forecast?.memory }
  if (whole !== undefined) {
    const basis = { _tag: "PastRuns", runs: whole.runs } as const
    return { ...sizes, seconds: whole.seconds * left, basis } satisfies Estimate
  }
  if (forecast === undefined || stage.type.modelSeconds === undefined) {
    return { ...sizes, seconds: undefined, basis: undefined } satisfies Estimate
  }
  const params = yield* Effect.orDie(decodeParams(stage.type, stage.params))
  const seconds = yield* stage.type.modelSeconds(forecast, params, cpus, gpus)
  return {
    ...sizes,
    seconds: seconds === undefined ? undefined : seconds * left,
    basis: seconds === undefined ? undefined : ({ _tag: "Model" } as const)
  } satisfies Estimate
})

const gpusOf = ({ resources: { gpu, gpus } }: ResolvedStage): Gpus | undefined =>
  gpu === undefined || gpus === 0 ? undefined : { count: gpus, peak: peakOf(gpu) }

const pastRecords = Effect.fnUntraced(function* (past: ReadonlyArray<HistoryEntry>) {
  const store = yield* ArtifactStore
  const records: Array<KeyRecord> = []
  for (const { key } of past) {
    const record = yield* store.record(key)
    if (record !== undefined) records.push(record)
    if (records.length === mostRuns) break
  }
  return records
})

/** The median over runs of equal unit, each scaled by amount and by cores; where no amounts are known, of the plain times. */
const secondsOfPast = (
  records: ReadonlyArray<KeyRecord>,
  forecast: Forecast | undefined,
  cpus: number
): { readonly seconds: number; readonly runs: number } | undefined => {
  const scaled = records.flatMap((record) => {
    if (forecast?.amount === undefined || record.unit !== forecast.unit) return []
    if (!(record.amount !== undefined && record.amount > 0)) return []
    return [((record.seconds * forecast.amount) / record.amount) * ((record.cpus ?? cpus) / cpus)]
  })
  const values = scaled.length > 0 ? scaled : records.map(({ seconds }) => seconds)
  const seconds = median(values)
  return seconds === undefined ? undefined : { seconds, runs: values.length }
}

const median = (values: ReadonlyArray<number>): number | undefined =>
  values.toSorted((a, b) => a - b)[(values.length - 1) >> 1]
