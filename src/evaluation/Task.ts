/** What evaluation asks of a model: rows to score, and the metrics that their log-likelihoods become. */
import { Schema } from "effect"
import type { LogLikelihood, ScoredSequence } from "./LogLikelihood.ts"

/** By metric: perplexity, bits_per_byte, acc, acc_norm, their standard errors (…_stderr), and the counts behind them (n, tokens, bytes, blocks). */
export const Metrics = Schema.Record(Schema.String, Schema.Finite)
export type Metrics = typeof Metrics.Type

/** A task made ready for one model: its tokenizer, context length and profile are already in the rows. */
export interface Task {
  readonly name: string
  /** Scored in any order; results come back in this one. */
  readonly sequences: ReadonlyArray<ScoredSequence>
  /** `results[i]` belongs to `sequences[i]`. */
  readonly metrics: (results: ReadonlyArray<LogLikelihood>) => Metrics
}

/** A task that cannot be asked: `place` is the file and line or the task, `reason` what is wrong with it. */
export class TaskError extends Schema.TaggedError<TaskError>()("TaskError", {
  place: Schema.String,
  reason: Schema.String
}) {
  override get message() {
    return `${this.place}: ${this.reason}`
  }
}
