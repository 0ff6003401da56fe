import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, layer } from "@effect/vitest"
import { Effect, FileSystem } from "effect"
import * as Native from "../../src/engine/Native.ts"
import { openScorer } from "../../src/engine/Scorer.ts"
import type { ScoredSequence } from "../../src/evaluation/LogLikelihood.ts"
import { padBatch, planBatches, sumScores } from "../../src/evaluation/Scoring.ts"
import type { ModelShape } from "../../src/model/Architecture.ts"
import { toModelConfig } from "../../src/model/Architecture.ts"
import { weightsOf, writeWeights } from "../../src/model/HuggingFace.ts"

const shape: ModelShape = {
  vocab_size: 97,
  hidden_size: 48,
  intermediate_size: 80,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  head_dim: 12,
  max_position_embeddings: 64,
  rms_norm_eps: 1e-5,
  rope_theta: 10_000,
  tie_word_embeddings: false
}

/** Log-softmax of one row of logits in double precision, at `id`, and whether `id` is its first maximum. */
const bruteForce = (row: Float32Array, id: number) => {
  const top = Math.max(...row)
  const total = row.reduce((sum, logit) => sum + Math.exp(logit - top), 0)
  return { logProbability: (row[id] ?? Number.NaN) - top - Math.log(total), greedy: row.indexOf(top) === id }
}

layer(NodeServices.layer)("openScorer", (it) => {
  it.effect("agrees with log-softmax over all logits, whatever shares the batch", () =>
    Effect.gen(function* () {
      const folder = yield* (yield* FileSystem.FileSystem).makeTempDirectoryScoped()
      const native = yield* Native.load
      const model = new native.Model(toModelConfig(shape), { threads: 2 })
      model.initialize(11)
      // The initial weights are small: larger ones make predictions that differ from each other.
      for (const { offset, name, shape: sizes } of model.parameters)
        if (!name.includes("norm")) {
          const length = sizes.reduce((product, size) => product * size, 1)
          model.write(
            "weights",
            offset,
            model.read("weights", offset, length).map((value) => value * 6)
          )
        }
      yield* writeWeights(folder, { shape, precision: "fp32", weights: weightsOf(model) })

      const sequences = [5, 31, 12, 12, 1, 20, 7].map((length, row): ScoredSequence => {
        const ids = Int32Array.from({ length: length + 1 }, (_, at) => (row * 31 + at * at * 7 + at) % shape.vocab_size)
        return { input: ids.slice(0, -1), targets: ids.slice(1).fill(-1, 0, Math.floor(length / 2)) }
      })
      const expected = yield* Effect.forEach(sequences, ({ input, targets }) =>
        Effect.promise(async () => {
          const logits = await model.logits({ tokens: input, batch: 1, length: input.length })
          const rows = [...targets.entries()].filter(([, target]) => target >= 0)
          const scores = rows.map(([at, target]) =>
            bruteForce(logits.subarray(at * shape.vocab_size, (at + 1) * shape.vocab_size), target)
          )
          return {
            sum: scores.reduce((sum, score) => sum + score.logProbability, 0),
            greedy: scores.every((score) => score.greedy)
          }
        })
      )
      const scorer = yield* openScorer({ folder, origin: "test.model", compute: { threads: 1 } })
      assert.deepStrictEqual(scorer.shape, shape)
      for (const batchTokens of [1, 40, 1000])
        for (const rows of planBatches(sequences, batchTokens)) {
          const batch = padBatch(rows.flatMap((row) => sequences[row] ?? []))
          const scored = sumScores(batch, yield* scorer.score(batch))
          scored.forEach(({ greedy, sum }, at) => {
            const wanted = expected[rows[at] ?? 0]
            assert.closeTo(sum, wanted?.sum ?? Number.NaN, 1e-4 * Math.abs(wanted?.sum ?? 1))
            assert.strictEqual(greedy, wanted?.greedy)
          })
        }
      model.dispose()
    })
  )

  it.effect("names the model that cannot be read, and what makes it anew", () =>
    Effect.gen(function* () {
      const folder = yield* (yield* FileSystem.FileSystem).makeTempDirectoryScoped()
      const error = yield* Effect.flip(openScorer({ folder, origin: "chat.model", compute: { threads: 1 } }))
      assert.strictEqual(error.failure, "corrupt")
      assert.include(error.message, "chat.model")
      assert.include(error.next, "--force chat")
    })
  )
})
