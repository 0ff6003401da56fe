import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, it, layer } from "@effect/vitest"
import { Effect, FileSystem } from "effect"
import type { Batch } from "../../src/engine/Native.ts"
import type { Scores } from "../../src/engine/Scorer.ts"
import { pairSequence, rollingWindows, type ScoredSequence } from "../../src/evaluation/LogLikelihood.ts"
import { padBatch, planBatches, scoreSequences } from "../../src/evaluation/Scoring.ts"
import { perplexityTask, spread } from "../../src/evaluation/tasks/Perplexity.ts"

const rows = (...lengths: ReadonlyArray<number>): ReadonlyArray<ScoredSequence> =>
  lengths.map((length, row) => ({
    input: Int32Array.from({ length }, (_, at) => 3 + row + at),
    targets: Int32Array.from({ length }, (_, at) => (at < length / 2 ? -1 : 4 + row + at))
  }))

/** A bigram model by formula: the log-probability of a target depends on the id before it alone, so sums can be had by hand. */
const bigram = (input: number, target: number) => -((input * 7 + target * 3) % 11) / 4
const scoreBigram = (batch: Batch): Scores => ({
  logProbabilities: Float32Array.from(batch.tokens, (token, at) => bigram(token, batch.targets[at] ?? -1)),
  greedy: Uint8Array.from(batch.tokens, (token, at) => Number((token + (batch.targets[at] ?? 0)) % 5 !== 0))
})
const byHand = ({ input, targets }: ScoredSequence) => {
  const scored = [...targets.entries()].filter(([, target]) => target >= 0)
  return {
    sum: scored.reduce((sum, [at, target]) => sum + bigram(input[at] ?? 0, target), 0),
    greedy: scored.every(([at, target]) => ((input[at] ?? 0) + target) % 5 !== 0)
  }
}

it("cuts rolling windows as the harness does", () => {
  const windows = rollingWindows(
    Int32Array.from({ length: 10 }, (_, id) => id),
    99,
    4
  )
  assert.deepStrictEqual(
    windows.map(({ input, targets }) => [[...input], [...targets]]),
    [
      [
        [99, 0, 1, 2],
        [0, 1, 2, 3]
      ],
      [
        [3, 4, 5, 6],
        [4, 5, 6, 7]
      ],
      [
        [5, 6, 7, 8],
        [-1, -1, 8, 9]
      ]
    ]
  )
  assert.deepStrictEqual(
    rollingWindows(Int32Array.of(5, 6), 1, 4).map(({ input, targets }) => [[...input], [...targets]]),
    [
      [
        [1, 5],
        [5, 6]
      ]
    ]
  )
  assert.deepStrictEqual(rollingWindows(new Int32Array(0), 1, 4), [])
})

it("keeps the last limit + 1 ids of context and continuation", () => {
  const whole = pairSequence(Int32Array.of(1, 2, 3), Int32Array.of(4, 5), 8)
  assert.deepStrictEqual(
    [[...whole.input], [...whole.targets]],
    [
      [1, 2, 3, 4],
      [-1, -1, 4, 5]
    ]
  )
  const cut = pairSequence(Int32Array.of(1, 2, 3), Int32Array.of(4, 5), 3)
  assert.deepStrictEqual(
    [[...cut.input], [...cut.targets]],
    [
      [2, 3, 4],
      [-1, 4, 5]
    ]
  )
  const full = pairSequence(Int32Array.of(1, 2, 3), Int32Array.of(4, 5), 2)
  assert.deepStrictEqual(
    [[...full.input], [...full.targets]],
    [
      [3, 4],
      [4, 5]
    ]
  )
})

it("plans batches longest first within the token limit", () => {
  assert.deepStrictEqual(planBatches(rows(2, 9, 4, 4, 3), 12), [[1], [2, 3, 4], [0]])
  assert.deepStrictEqual(planBatches(rows(20), 12), [[0]])
  assert.deepStrictEqual(planBatches([], 12), [])
})

it("pads on the right and scores nothing there", () => {
  const batch = padBatch(rows(4, 2))
  assert.deepStrictEqual([...batch.tokens], [3, 4, 5, 6, 4, 5, 0, 0])
  assert.deepStrictEqual([...batch.targets], [-1, -1, 6, 7, -1, 6, -1, -1])
})

it("spreads a limited number of blocks over all of them", () => {
  assert.deepStrictEqual(spread(10, 4), [0, 2, 5, 7])
  assert.deepStrictEqual(spread(3, 9), [0, 1, 2])
})

it("scores each target of packed blocks once and counts their bytes", () => {
  const task = perplexityTask(
    "perplexity",
    [
      [1, 5, 6],
      [7, 8, 9]
    ],
    (previous, id) => (previous === 1 ? 1 : id % 3)
  )
  assert.deepStrictEqual([...(task.sequences[1]?.targets ?? [])], [8, 9])
  const metrics = task.metrics([
    { sum: -2 * Math.log(4), greedy: false },
    { sum: -2 * Math.log(16), greedy: false }
  ])
  // bytes: 1 after the first id, then 6 % 3, 8 % 3, 9 % 3 = 0, 2, 0.
  assert.closeTo(metrics["perplexity"] ?? Number.NaN, 8, 1e-12)
  assert.closeTo(metrics["bits_per_byte"] ?? Number.NaN, 12 / 3, 1e-12)
  assert.deepInclude(metrics, { tokens: 4, bytes: 3, blocks: 2 })
})

layer(NodeServices.layer)("scoreSequences", (it) => {
  const sequences = rows(5, 2, 9, 9, 3, 7, 1, 6)
  const run = (log: string, options: { readonly batchTokens: number; readonly stopAfter?: number }) => {
    const calls: Array<number> = []
    let polls = 0
    return scoreSequences({
      task: "fake",
      owner: "model",
      sequences,
      batchTokens: options.batchTokens,
      log,
      score: (batch) => Effect.sync(() => (calls.push(batch.batch), scoreBigram(batch))),
      onScored: () => {},
      afterBatch: Effect.void,
      stopRequested: () => polls++ >= (options.stopAfter ?? Infinity)
    }).pipe(Effect.map((results) => ({ results, calls: calls.length })))
  }
  const temporary = Effect.gen(function* () {
    return `${yield* (yield* FileSystem.FileSystem).makeTempDirectoryScoped()}/log.jsonl`
  })

  it.effect("gives each row's own result, in order, for every batch size", () =>
    Effect.gen(function* () {
      const expected = sequences.map(byHand)
      for (const batchTokens of [1, 10, 18, 1000])
        assert.deepStrictEqual((yield* run(yield* temporary, { batchTokens })).results, expected)
    })
  )

  it.effect("goes on after a stop and after a torn line, and scores nothing twice", () =>
    Effect.gen(function* () {
      const fs = yield* FileSystem.FileSystem
      const log = yield* temporary
      const all = (yield* run(yield* temporary, { batchTokens: 10 })).calls
      const stopped = yield* Effect.exit(run(log, { batchTokens: 10, stopAfter: 3 }))
      assert.strictEqual(stopped._tag, "Failure")
      yield* fs.writeFileString(log, '{"batch":3,"resu', { flag: "a" })
      const { calls, results } = yield* run(log, { batchTokens: 10 })
      assert.strictEqual(calls, all - 3)
      assert.deepStrictEqual(results, sequences.map(byHand))
      assert.strictEqual((yield* run(log, { batchTokens: 10 })).calls, 0)
      // Other batches: nothing of the log applies.
      assert.strictEqual((yield* run(log, { batchTokens: 1 })).calls, sequences.length)
    })
  )

  it.effect("refuses log-likelihoods that are not finite", () =>
    Effect.gen(function* () {
      const error = yield* Effect.flip(
        scoreSequences({
          task: "broken",
          owner: "model",
          sequences,
          batchTokens: 10,
          log: yield* temporary,
          score: (batch) =>
            Effect.succeed({
              logProbabilities: new Float32Array(batch.tokens.length).fill(Number.NaN),
              greedy: new Uint8Array(batch.tokens.length)
            }),
          onScored: () => {},
          afterBatch: Effect.void,
          stopRequested: () => false
        })
      )
      assert.strictEqual(error._tag, "NotFinite")
    })
  )
})
