/** What a plan takes as a whole: hours with independent stages side by side, disk, money. Pure. */
import type { ResolvedPipeline } from "../file/ResolvedPipeline.ts"
import { type StagePlan, willRun } from "./Plan.ts"

export interface PlanTotals {
  /** Stages that will run, or may have to. */
  readonly stages: number
  /** From the first start to the last end; null when no stage's time is known. */
  readonly seconds: number | null
  /** Stages that run and whose time nobody can tell. */
  readonly unknown: ReadonlyArray<string>
  /** Bytes on disk, at most. */
  readonly bytes: number
  readonly money: Money | null
}

export interface Money {
  readonly amount: number
  readonly currency: string
}

/** `pending` stages count as if they ran: the promise is an upper bound. */
export const totals = (pipeline: ResolvedPipeline, plans: ReadonlyArray<StagePlan>, cpus: number): PlanTotals => {
  const running = plans.filter(willRun)
  const unknown = running.filter(({ estimate }) => estimate?.seconds === undefined).map(({ stage }) => stage)
  const seconds = running.length > unknown.length || running.length === 0 ? makespan(pipeline, running, cpus) : null
  const { price } = pipeline
  return {
    stages: running.length,
    seconds,
    unknown,
    bytes: running.reduce((sum, { estimate }) => sum + (estimate?.bytes ?? 0), 0),
    money:
      price === undefined || seconds === null
        ? null
        : { amount: (seconds / 3600) * price.perHour, currency: price.currency }
  }
}

/**
 * The runner's own order, simulated: a stage starts once its needs are done and its cores are free, earlier ones in the file first. Stages of
 * unknown time count as none.
 */
const makespan = (pipeline: ResolvedPipeline, running: ReadonlyArray<StagePlan>, cpus: number): number => {
  const seconds = new Map(running.map(({ estimate, stage }) => [stage, estimate?.seconds ?? 0]))
  const waiting = pipeline.stages.filter(({ name }) => seconds.has(name))
  const active: Array<{ readonly end: number; readonly cpus: number; readonly name: string }> = []
  const pendingNames = new Set(seconds.keys())
  let now = 0
  let free = cpus
  while (waiting.length > 0 || active.length > 0) {
    for (let index = 0; index < waiting.length;) {
      const stage = waiting[index]
      const wanted = stage === undefined || stage.resources.cpus === "all" ? cpus : Math.min(stage.resources.cpus, cpus)
      const ready = stage !== undefined && stage.needs.every((need) => !pendingNames.has(need))
      if (stage === undefined || !ready || wanted > free) {
        index++
        continue
      }
      waiting.splice(index, 1)
      active.push({ end: now + (seconds.get(stage.name) ?? 0), cpus: wanted, name: stage.name })
      free -= wanted
    }
    active.sort((a, b) => a.end - b.end)
    const first = active.shift()
    if (first === undefined) break
    now = first.end
    free += first.cpus
    pendingNames.delete(first.name)
  }
  return now
}
