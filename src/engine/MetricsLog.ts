/**
 * metrics.jsonl: one line per optimizer step and one per validation, deterministic fields only. It is kept consistent with the checkpoints: a
 * resumed run cuts off what its checkpoint does not know, and makes those lines again.
 */
import { Effect, FileSystem, Result } from "effect"
import type { StageError } from "../pipeline/StageType.ts"
import { storageFailure } from "./StorageFailure.ts"

export interface StepMetrics {
  readonly step: number
  readonly tokens: number
  readonly loss: number
  readonly learning_rate: number
  readonly gradient_norm: number
}
export interface ValidationMetrics {
  readonly step: number
  readonly tokens: number
  readonly validation_loss: number
}

export interface MetricsLog {
  readonly append: (line: StepMetrics | ValidationMetrics) => Effect.Effect<void, StageError>
  /** Makes what was appended durable. */
  readonly sync: Effect.Effect<void, StageError>
  /** Bytes, with what was appended. */
  readonly length: () => number
}

/** Opens the log at `path` for the time of the scope, cut to its first `bytes` bytes. */
export const openMetricsLog = Effect.fn("MetricsLog.open")(function* (
  path: string,
  bytes: number,
  warn: (line: string) => void
) {
  const fs = yield* FileSystem.FileSystem
  const failed = Effect.mapError(
    storageFailure(path, "the checkpoints beside it are intact", "it goes on from the last checkpoint")
  )
  const file = yield* failed(fs.open(path, { flag: "a" }))
  const found = Number((yield* failed(file.stat)).size)
  if (found < bytes) warn(`${path} has lost lines: ${found} bytes of ${bytes}; the training itself is whole`)
  else if (found > bytes) yield* failed(fs.truncate(path, bytes))
  let length = Math.min(found, bytes)
  const log: MetricsLog = {
    append: (line) => {
      const text = new TextEncoder().encode(`${JSON.stringify(line)}\n`)
      length += text.length
      return failed(file.writeAll(text))
    },
    sync: failed(file.sync),
    length: () => length
  }
  return log
})

/** For ranks that leave the log to another: knows its length alone. */
export const countingLog = (bytes: number): MetricsLog => {
  let length = bytes
  return {
    append: (line) =>
      Effect.sync(() => {
        length += new TextEncoder().encode(`${JSON.stringify(line)}\n`).length
      }),
    sync: Effect.void,
    length: () => length
  }
}

/** A line as it stands in the file, newline included, with what resuming and continuing look at. */
export type ReadLine = { readonly text: string; readonly step: number } & (
  | { readonly learning_rate: number }
  | { readonly validation_loss: number }
)

/** By hand: a long run has millions of lines. */
const parseLine = (text: string): ReadLine | undefined => {
  const parsed = Result.try((): unknown => JSON.parse(text))
  if (Result.isFailure(parsed) || typeof parsed.success !== "object" || parsed.success === null) return undefined
  const { learning_rate, step, validation_loss } = parsed.success as Readonly<Record<string, unknown>>
  if (typeof step !== "number") return undefined
  if (typeof validation_loss === "number") return { text, step, validation_loss }
  return typeof learning_rate === "number" ? { text, step, learning_rate } : undefined
}

/** The whole lines at the start of a metrics.jsonl; a torn or foreign line ends them. */
export const readMetrics = (text: string): ReadonlyArray<ReadLine> => {
  const lines: Array<ReadLine> = []
  for (let from = 0, to = text.indexOf("\n"); to >= 0; from = to + 1, to = text.indexOf("\n", from)) {
    const line = parseLine(text.slice(from, to + 1))
    if (line === undefined) break
    lines.push(line)
  }
  return lines
}

/** The validations among the lines, in their order. */
export const validationsIn = (
  lines: ReadonlyArray<ReadLine>
): ReadonlyArray<{ readonly step: number; readonly loss: number }> =>
  lines.flatMap((line) => ("validation_loss" in line ? [{ step: line.step, loss: line.validation_loss }] : []))
