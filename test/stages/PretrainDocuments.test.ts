/** Pretraining with document_mask: packed documents train as if each were alone. */
import { readFileSync } from "node:fs"
import { join } from "node:path"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Schema } from "effect"
import type { ArtifactHandle } from "../../src/artifacts/Artifact.ts"
import { pretrainStage } from "../../src/stages/Pretrain.ts"
import { filesOf, type RunOptions, runStage, temporaryFolder } from "./stage-fixture.ts"
import { documentDataset, tinyDataset, tinyShape } from "./training-fixture.ts"

const params = {
  model: tinyShape,
  micro_batch: 2,
  lr: { peak: 1e-2, min: 1e-3, warmup_steps: 2 },
  validate_every: 4,
  save_every: 3,
  document_mask: true
}

const pretrain = (data: ArtifactHandle, options: Omit<RunOptions, "inputs"> = {}) =>
  runStage(pretrainStage, { ...options, inputs: { data }, params: { ...params, ...options.params } })

const steps = (sequences: number) => ({ batch_tokens: 16 * sequences, max_tokens: 10 * 16 * sequences })

/** A document whose tokens follow from the first. */
const document = (first: number, length: number): ReadonlyArray<number> => {
  const tokens = [first]
  while (tokens.length < length) tokens.push(((tokens.at(-1) ?? 0) * 5 + 3) % 96)
  return tokens
}

/** The documents of a block of 17, and the same as blocks of their own: the last token of one is still followed by the first of the next. */
const together = (a: number, b: number) => [document(a, 9), document(b, 8)]
const apart = (a: number, b: number) => [[[...document(a, 9), b]], [document(b, 8)]]

const packed = documentDataset({ train: [together(7, 50)], validation: [together(20, 77)] }, { padded: false })
const alone = documentDataset({ train: apart(7, 50), validation: apart(20, 77) }, { padded: true })

const Numbers = Schema.fromJsonString(Schema.Record(Schema.String, Schema.Finite))

/** Of each line of the log, all but the tokens, of which blocks of their own have more places. */
const lossesOf = (state: ArtifactHandle) =>
  readFileSync(join(state.folder, "metrics.jsonl"), "utf8")
    .trimEnd()
    .split("\n")
    .map((line) =>
      Object.entries(Schema.decodeSync(Numbers)(line)).flatMap(([name, value]) => (name === "tokens" ? [] : [value]))
    )

const largestDifference = (a: ReturnType<typeof lossesOf>, b: ReturnType<typeof lossesOf>) => {
  assert.strictEqual(a.length, b.length)
  return Math.max(
    ...a.flatMap((line, i) => line.map((value, k) => Math.abs(value - (b[i]?.[k] ?? Number.NaN)) / Math.max(1, value)))
  )
}

describe("pretrain with document_mask", () => {
  it.live("gives two documents in a block the losses and gradients that they have in blocks of their own", () =>
    Effect.gen(function* () {
      const masked = yield* pretrain(yield* packed, { params: steps(1) })
      const separate = yield* pretrain(yield* alone, { params: steps(2) })
      const unmasked = yield* pretrain(yield* packed, { params: { ...steps(1), document_mask: false } })
      const expected = lossesOf(separate.outputs.state)
      assert.isBelow(largestDifference(lossesOf(masked.outputs.state), expected), 1e-5)
      assert.isAbove(largestDifference(lossesOf(unmasked.outputs.state), expected), 1e-2)
      assert.isTrue(masked.logs.some((line) => line.includes("tokens attend to their own document alone")))
      assert.isTrue(masked.logs.some((line) => line.includes("also what document_mask leaves out")))
    }).pipe(Effect.scoped)
  )

  it.live("blocks of one document train as without a mask, bit for bit", () =>
    Effect.gen(function* () {
      const blocks = [[document(3, 17)], [document(31, 17)]]
      const data = yield* documentDataset({ train: blocks, validation: blocks }, { padded: false })
      const weights = Effect.fnUntraced(function* (document_mask: boolean) {
        const { outputs } = yield* pretrain(data, { params: { ...steps(2), document_mask } })
        return filesOf(join(outputs.state.folder, "checkpoints"))
      })
      assert.deepStrictEqual(yield* weights(true), yield* weights(false))
    }).pipe(Effect.scoped)
  )

  it.live("interrupted and resumed it leaves the same bytes, on another number of threads too", () =>
    Effect.gen(function* () {
      const blocks = Array.from({ length: 6 }, (_, i) => together(5 * i, 40 + 3 * i))
      const data = yield* documentDataset({ train: blocks, validation: blocks.slice(0, 3) }, { padded: false })
      const options = { params: steps(4) }
      const undisturbed = filesOf((yield* pretrain(data, { ...options, threads: 2 })).outputs.state.folder)
      const work = yield* temporaryFolder
      const stopped = yield* Effect.flip(pretrain(data, { ...options, work, stopAfterPolls: 11, threads: 1 }))
      assert.strictEqual(stopped._tag, "Preempted")
      const { outputs } = yield* pretrain(data, { ...options, work, threads: 1 })
      assert.deepStrictEqual(filesOf(outputs.state.folder), undisturbed)
    }).pipe(Effect.scoped)
  )

  it.live("refuses data that do not tell where documents begin", () =>
    Effect.gen(function* () {
      const data = yield* tinyDataset({ train: 4, validation: 1 })
      const error = yield* Effect.flip(pretrain(data, { params: steps(1) }))
      assert.deepInclude(error, {
        _tag: "StageError",
        failure: "invalid-input",
        next: "set attention_reset: true on packed, or document_mask: false"
      })
      assert.match(error.message, /^packed\.dataset: its blocks do not tell where documents begin/u)
    }).pipe(Effect.scoped)
  )
})
