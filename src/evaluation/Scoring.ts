/** Scoring many rows: batches of similar length, right padding, and a log of finished batches so that a killed attempt goes on where it stood. */
import { createHash } from "node:crypto"
import { Effect, FileSystem, Option, Schema } from "effect"
import type { Batch } from "../engine/Native.ts"
import type { Scores } from "../engine/Scorer.ts"
import type { LogLikelihood, ScoredSequence } from "./LogLikelihood.ts"

/** Indices of rows that are scored together: longest first, so that a batch pads little and memory is known from the start. */
export const planBatches = (
  sequences: ReadonlyArray<ScoredSequence>,
  batchTokens: number
): ReadonlyArray<ReadonlyArray<number>> => {
  const length = (index: number) => sequences[index]?.input.length ?? 0
  const order = sequences.map((_, index) => index).sort((a, b) => length(b) - length(a) || a - b)
  const batches: Array<Array<number>> = []
  for (const index of order) {
    const last = batches.at(-1)
    if (last !== undefined && (last.length + 1) * length(last[0] ?? 0) <= batchTokens) last.push(index)
    else batches.push([index])
  }
  return batches
}

/** Rows padded on the right with id 0 whose outputs nobody reads: attention is causal, so padding cannot reach a scored position. */
export const padBatch = (rows: ReadonlyArray<ScoredSequence>): Batch => {
  const length = Math.max(...rows.map((row) => row.input.length))
  const tokens = new Int32Array(rows.length * length)
  const targets = new Int32Array(rows.length * length).fill(-1)
  rows.forEach((row, index) => {
    tokens.set(row.input, index * length)
    targets.set(row.targets, index * length)
  })
  return { tokens, targets, batch: rows.length, length }
}

/** Sums in position order, in double precision. */
export const sumScores = (batch: Batch, scores: Scores): ReadonlyArray<LogLikelihood> =>
  Array.from({ length: batch.batch }, (_, row) => {
    let sum = 0
    let greedy = true
    for (let at = row * batch.length; at < (row + 1) * batch.length; at++) {
      if ((batch.targets[at] ?? -1) < 0) continue
      sum += scores.logProbabilities[at] ?? Number.NaN
      greedy &&= scores.greedy[at] === 1
    }
    return { sum, greedy }
  })

/** A log-likelihood came out NaN or infinite: the weights are broken. */
export class NotFinite extends Schema.TaggedError<NotFinite>()("NotFinite", { task: Schema.String }) {
  override get message() {
    return `task ${this.task}: the model gives log-likelihoods that are not finite`
  }
}

/** Asked to stop between two batches; everything scored is in the log. */
export class Stopped extends Schema.TaggedError<Stopped>()("Stopped", {}) {}

/** Rows that a log of finished batches holds. */
export const rowsInLog = (text: string): number =>
  text
    .split("\n")
    .slice(1, -1)
    .reduce(
      (sum, line) =>
        sum + Option.match(decodeLogLine(line), { onNone: () => 0, onSome: ({ results }) => results.length }),
      0
    )

const LogLine = Schema.fromJsonString(
  Schema.Struct({ batch: Schema.Int, results: Schema.Array(Schema.Tuple([Schema.Finite, Schema.Boolean])) })
)

const decodeLogLine = Schema.decodeUnknownOption(LogLine)

/** Names rows and model: a log made for others is not read. */
const identity = (owner: string, sequences: ReadonlyArray<ScoredSequence>, batchTokens: number): string => {
  const hash = createHash("sha256").update(`${owner}\n${batchTokens}\n`)
  for (const { input, targets } of sequences) hash.update(`${input.length}\n`).update(input).update(targets)
  return hash.digest("hex")
}

/**
 * The log-likelihoods of `sequences`, in their order. `log` is a file that this task of this model alone writes: a first line with the identity of
 * rows and `owner` (the model's digest), then one line per finished batch; what a killed attempt wrote of a last line is dropped.
 */
export const scoreSequences = Effect.fn("scoreSequences")(function* <E, R>(options: {
  readonly task: string
  readonly owner: string
  readonly sequences: ReadonlyArray<ScoredSequence>
  readonly batchTokens: number
  readonly log: string
  /** A log that another run left, read where there is no own one. */
  readonly earlierLog?: string | undefined
  readonly score: (batch: Batch) => Effect.Effect<Scores, E, R>
  /** After each batch, and once for all that the log held: how many rows were added, and the tokens that went through the model. */
  readonly onScored: (rows: number, tokens: number, fromLog: boolean) => void
  /** Runs after each batch: progress that needs a clock. */
  readonly afterBatch: Effect.Effect<void>
  readonly stopRequested: () => boolean
}) {
  const fs = yield* FileSystem.FileSystem
  const { sequences } = options
  const batches = planBatches(sequences, options.batchTokens)
  const header = JSON.stringify({ identity: identity(options.owner, sequences, options.batchTokens) })
  const found = (yield* fs.exists(options.log)) ? yield* fs.readFileString(options.log) : ""
  const earlier =
    found.startsWith(`${header}\n`) || options.earlierLog === undefined
      ? found
      : yield* Effect.orElseSucceed(fs.readFileString(options.earlierLog), () => found)
  const lines = earlier.split("\n")
  const results: Array<LogLikelihood | undefined> = sequences.map(() => undefined)
  let kept = header + "\n"
  let done = 0
  if (lines[0] === header)
    // The text after the last newline is a torn line or nothing.
    for (const line of lines.slice(1, -1)) {
      const decoded = yield* Effect.option(Schema.decodeEffect(LogLine)(line))
      const rows = batches[done]
      if (decoded._tag === "None" || rows === undefined || decoded.value.batch !== done) break
      if (decoded.value.results.length !== rows.length) break
      decoded.value.results.forEach(([sum, greedy], at) => (results[rows[at] ?? 0] = { sum, greedy }))
      kept += line + "\n"
      done += 1
    }
  const resumed = batches.slice(0, done).flat()
  if (done > 0) options.onScored(resumed.length, 0, true)
  if (found !== kept) yield* fs.writeFileString(options.log, kept)
  for (const [index, rows] of batches.entries()) {
    if (index < done) continue
    if (options.stopRequested()) return yield* new Stopped({})
    const batch = padBatch(rows.flatMap((row) => sequences[row] ?? []))
    const scored = sumScores(batch, yield* options.score(batch))
    if (!scored.every(({ sum }) => Number.isFinite(sum))) return yield* new NotFinite({ task: options.task })
    scored.forEach((result, at) => (results[rows[at] ?? 0] = result))
    const line = JSON.stringify({ batch: index, results: scored.map(({ sum, greedy }) => [sum, greedy]) })
    yield* fs.writeFileString(options.log, line + "\n", { flag: "a" })
    options.onScored(rows.length, batch.batch * batch.length, false)
    yield* options.afterBatch
  }
  return results.flatMap((result) => result ?? [])
})
