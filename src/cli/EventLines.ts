/** A run's events as lines of text, for a pipe, for the lines above the live display, and for `runs show`. Pure. */
import type { RunEvent } from "../pipeline/runs/RunEvent.ts"
import * as Format from "./Format.ts"

/** The permanent line of an event, or undefined for what only the live display shows (progress). */
export const eventLine = (event: RunEvent): string | undefined => {
  switch (event._tag) {
    case "RunStarted":
      return `run ${event.run}${event.continued ? " (continued)" : ""}: ${event.pipeline}, ${event.stages.length} stages`
    case "StagePlanned":
      return undefined
    case "StageCached":
      return `= ${event.stage}: up to date (from ${event.from})`
    case "AttemptStarted":
      return `> ${event.stage}: started${event.attempt > 1 ? `, attempt ${event.attempt}` : ""}${event.resumes ? ", resuming from its last checkpoint" : ""}`
    case "Progress":
      return undefined
    case "Log":
      return `  ${event.stage}: ${event.line}`
    case "Warning":
      return `! ${event.stage === undefined ? "" : `${event.stage}: `}${event.line}`
    case "AttemptFailed":
      return event.retryInSeconds === undefined
        ? `x ${event.stage}: ${event.message}`
        : `! ${event.stage}: ${event.message}\n  ${event.stage}: trying again in ${Format.duration(event.retryInSeconds)} (${event.failure})`
    case "ArtifactPublished":
      return undefined
    case "StageFinished":
      return finishedLine(event)
    case "RunFinished":
      return `run ${event.run}: ${event.status} in ${Format.duration(event.seconds)}`
  }
}

const finishedLine = (event: RunEvent & { readonly _tag: "StageFinished" }): string | undefined => {
  switch (event.outcome) {
    case "cached":
      return undefined
    case "done":
      return `+ ${event.stage}: done in ${Format.duration(event.seconds)}`
    case "partial":
      return `+ ${event.stage}: this share is done in ${Format.duration(event.seconds)}${event.message === undefined ? "" : `; ${event.message}`}`
    case "failed":
      return `x ${event.stage}: failed after ${Format.duration(event.seconds)}${event.next === undefined ? "" : `\n  Next: ${event.next}`}`
    case "skipped":
      return `- ${event.stage}: skipped${event.message === undefined ? "" : `, ${event.message}`}`
    case "preempted":
      return `- ${event.stage}: stopped and saved; the same command goes on from there`
  }
}

/** What is known of a stage that runs: its last reading, and the first one, from which the rate counts. */
export interface StageReading {
  readonly stage: string
  readonly startedAt: number
  readonly first?: { readonly at: number; readonly done: number }
  readonly last?: RunEvent & { readonly _tag: "Progress" }
}

/** Takes an event in: a stage appears with its attempt, moves with its progress, and leaves when it ends. Times are in milliseconds. */
export const follow = (
  readings: ReadonlyMap<string, StageReading>,
  event: RunEvent
): ReadonlyMap<string, StageReading> => {
  if (event._tag === "AttemptStarted") {
    return new Map(readings).set(event.stage, { stage: event.stage, startedAt: Date.parse(event.at) })
  }
  if (event._tag === "Progress") {
    const known = readings.get(event.stage) ?? { stage: event.stage, startedAt: Date.parse(event.at) }
    // A new unit is a new phase of the stage (training, then validation): its rate counts from its own first reading.
    const first = known.last?.unit === event.unit ? known.first : undefined
    return new Map(readings).set(event.stage, {
      ...known,
      first: first ?? { at: Date.parse(event.at), done: event.done },
      last: event
    })
  }
  if (event._tag === "AttemptFailed" || event._tag === "StageFinished") {
    const remaining = new Map(readings)
    remaining.delete(event.stage)
    return remaining
  }
  return readings
}

/** Metrics that the line already says by its own means: amounts, rates, time left. The journal keeps them all. */
const IMPLIED_METRIC = /^(steps?|tokens)$|_(left|per_second|bytes)$/u

/** One live line: name, bar, share, amounts, rate, time left, metrics; cut to `width` columns. */
export const readingLine = (reading: StageReading, now: number, nameWidth: number, width: number): string => {
  const name = reading.stage.padEnd(nameWidth)
  const { first, last } = reading
  if (last === undefined || first === undefined)
    return `${name}  starting  ${Format.duration((now - reading.startedAt) / 1000)}`.slice(0, width)
  const share = last.total > 0 ? last.done / last.total : 0
  const seconds = (Date.parse(last.at) - first.at) / 1000
  const rate = seconds > 0 ? (last.done - first.done) / seconds : 0
  const left = rate > 0 ? `${Format.duration((last.total - last.done) / rate)} left` : ""
  const amounts =
    last.unit === "bytes"
      ? `${Format.bytes(last.done)} of ${Format.bytes(last.total)}`
      : `${Format.count(last.done)} of ${Format.count(last.total)} ${last.unit}`
  const pace =
    rate > 0 ? (last.unit === "bytes" ? `${Format.bytes(rate)}/s` : `${Format.count(rate)} ${last.unit}/s`) : ""
  const metrics = Object.entries(last.metrics)
    .flatMap(([metric, value]) =>
      value === null || IMPLIED_METRIC.test(metric) ? [] : [`${metric} ${Format.count(value)}`]
    )
    .join("  ")
  return [name, Format.bar(share, 16), `${String(Math.floor(share * 100)).padStart(3)} %`, amounts, pace, left, metrics]
    .filter((part) => part !== "")
    .join("  ")
    .slice(0, width)
}
