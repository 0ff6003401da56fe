import { readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, it } from "@effect/vitest"
import { Effect } from "effect"
import { parameterCount } from "../../src/model/Architecture.ts"
import { readHfModel } from "../../src/model/HuggingFace.ts"
import { checkpointStage } from "../../src/stages/Checkpoint.ts"
import { randomWeights, sameBits, smallShape } from "../model/random-model.ts"
import { filesOf, runStage } from "./stage-fixture.ts"
import { trainingState } from "./training-state.ts"

const shape = { ...smallShape, vocab_size: 320 }
const saved = [
  { step: 10, loss: 4 },
  { step: 20, loss: 2.5 },
  { step: 30, loss: null },
  { step: 40, loss: 3 }
]

const select = (select: unknown, change: (folder: string) => void = () => undefined) =>
  Effect.gen(function* () {
    const state = yield* trainingState(shape, saved)
    change(`${state.folder}/checkpoints`)
    return yield* runStage(checkpointStage, { params: { select }, inputs: { state } })
  })

const weightsOf = (folder: string) =>
  Effect.gen(function* () {
    const { tensors } = yield* readHfModel(folder)
    return new Map(yield* Effect.forEach(tensors, ([name, t]) => Effect.map(t.toFloat32(), (v) => [name, v] as const)))
  }).pipe(Effect.provide(NodeServices.layer))

const flip = (file: string, at: number) => {
  const bytes = readFileSync(file)
  bytes[at] = bytes[at]! ^ 1
  writeFileSync(file, bytes)
}
const WEIGHTS_40 = "step-00000040/weights.safetensors"

it.live("selects the last, the best, or a step, and drops the optimizer's state", () =>
  Effect.gen(function* () {
    for (const [choice, step, loss] of [
      ["last", 40, 3],
      ["best", 20, 2.5],
      [{ step: 30 }, 30, null]
    ] as const) {
      const { outputs, warnings } = yield* select(choice)
      const { facts, folder } = outputs.checkpoint
      assert.deepStrictEqual(warnings, [])
      assert.deepInclude(facts, {
        step,
        tokens: step * 100,
        validation_loss: loss,
        parameters: parameterCount(shape),
        selected: choice,
        tokenizer: "llama-2",
        context_length: 64
      })
      assert.deepStrictEqual(
        filesOf(folder).map(({ path }) => path),
        ["config.json", "model.safetensors"]
      )
      const weights = yield* weightsOf(folder)
      assert.deepStrictEqual([...weights.keys()], [...randomWeights(shape, step).keys()])
      for (const [name, values] of weights) assert.isTrue(sameBits(values, randomWeights(shape, step).get(name)!))
    }
  })
)

it.live("what several ranks saved gives the bytes of what one did", () =>
  Effect.gen(function* () {
    for (const params of [{ select: "last" }, { select: { average: 2 } }]) {
      const digests = yield* Effect.forEach([1, 3], (ranks) =>
        Effect.gen(function* () {
          const state = yield* trainingState(shape, saved.slice(-2), ranks)
          return (yield* runStage(checkpointStage, { params, inputs: { state } })).outputs.checkpoint.digest
        })
      )
      assert.strictEqual(digests[0], digests[1])
    }
    const state = yield* trainingState(shape, saved.slice(-2), 3)
    flip(`${state.folder}/checkpoints/step-00000040/weights-00002-of-00003.safetensors`, 5000)
    const { outputs, warnings } = yield* runStage(checkpointStage, { inputs: { state } })
    assert.strictEqual(outputs.checkpoint.facts["step"], 30)
    assert.match(warnings[0]!, /weights-00002-of-00003\.safetensors from byte 0 to \d+ has sha256/)
  })
)

it.live("averages the last k in double precision", () =>
  Effect.gen(function* () {
    const { outputs } = yield* select({ average: 3 })
    const all = [20, 30, 40].map((step) => randomWeights(shape, step))
    for (const [name, values] of yield* weightsOf(outputs.checkpoint.folder)) {
      const expected = values.map((_, i) => all.reduce((sum, weights) => sum + weights.get(name)![i]!, 0) / 3)
      assert.isTrue(sameBits(values, expected))
    }
    assert.deepInclude(outputs.checkpoint.facts, { step: 40, steps: [20, 30, 40], validation_loss: null })
  })
)

it.live("equal inputs give equal bytes", () =>
  Effect.gen(function* () {
    const [a, b] = [yield* select({ average: 2 }), yield* select({ average: 2 })]
    assert.deepStrictEqual(filesOf(a.outputs.checkpoint.folder), filesOf(b.outputs.checkpoint.folder))
    assert.strictEqual(a.outputs.checkpoint.digest, b.outputs.checkpoint.digest)
  })
)

it.live("a damaged newest checkpoint is passed over aloud", () =>
  Effect.gen(function* () {
    const damages: ReadonlyArray<readonly [(root: string) => void, RegExp]> = [
      [
        (root) => flip(`${root}/${WEIGHTS_40}`, 5000),
        /weights\.safetensors from byte 0 to \d+ has sha256 [0-9a-f]{64}, COMPLETE\.json says [0-9a-f]{64}/
      ],
      [
        (root) => truncateSync(`${root}/${WEIGHTS_40}`, 100),
        /weights\.safetensors has 100 bytes, COMPLETE\.json says \d+/
      ],
      [
        (root) => flip(`${root}/step-00000040/optimizer.safetensors`, 3000),
        /optimizer\.safetensors from byte 0 to \d+ has/
      ],
      [(root) => rmSync(`${root}/step-00000040/COMPLETE.json`), /no COMPLETE\.json/]
    ]
    for (const [damage, warning] of damages) {
      const { outputs, warnings } = yield* select("last", damage)
      assert.strictEqual(outputs.checkpoint.facts["step"], 30)
      assert.strictEqual(warnings.length, 1)
      assert.match(warnings[0]!, /base\.state: the checkpoint of step 40 is damaged/)
      assert.match(warnings[0]!, warning)
    }
    const best = yield* select("best", (root) => flip(`${root}/step-00000020/weights.safetensors`, 5000))
    assert.strictEqual(best.outputs.checkpoint.facts["step"], 40)
    assert.strictEqual(best.warnings.length, 1)
  })
)

it.live("a step that was asked for by number is not replaced: damage is a failure with both digests", () =>
  Effect.gen(function* () {
    for (const choice of [{ step: 40 }, { average: 2 }]) {
      const error = yield* Effect.flip(select(choice, (root) => flip(`${root}/${WEIGHTS_40}`, 5000)))
      assert.deepInclude(error, { _tag: "StageError", failure: "corrupt" })
      assert.match(
        error.message,
        /step 40.*weights\.safetensors from byte 0 to \d+ has sha256 [0-9a-f]{64}, COMPLETE\.json says [0-9a-f]{64}/
      )
    }
  })
)

it.live("says what cannot be chosen, and from what", () =>
  Effect.gen(function* () {
    const reason = (choice: unknown, change?: (root: string) => void) =>
      Effect.map(Effect.flip(select(choice, change)), (error) =>
        error._tag === "StageError" ? `${error.failure}: ${error.message} | ${error.next}` : error.message
      )
    assert.match(yield* reason({ step: 15 }), /^invalid-input: .*no checkpoint of step 15 \| .*10, 20, 30, 40/)
    assert.match(yield* reason({ average: 5 }), /^invalid-input: .*has 4 checkpoints, 5 were to be averaged/)
    const all = (root: string) => saved.forEach(({ step }) => rmSync(`${root}/step-000000${step}/COMPLETE.json`))
    assert.match(yield* reason("last", all), /^corrupt: .*none of its 4 checkpoints/)
    assert.match(yield* reason("best", all), /^corrupt: .*none of its 4 checkpoints/)
    const empty = (root: string) => rmSync(root, { recursive: true })
    assert.match(yield* reason("last", empty), /^corrupt: .*none of its 0 checkpoints.*tinyllama run FILE --force base/)
    const unvalidated = (root: string) =>
      [10, 20, 40].forEach((step) => rmSync(`${root}/step-000000${step}`, { recursive: true }))
    assert.match(yield* reason("best", unvalidated), /^invalid-input: .*no checkpoint has a validation loss/)
  })
)

it.live("stops when asked to", () =>
  Effect.gen(function* () {
    const state = yield* trainingState(shape, saved.slice(0, 1))
    const error = yield* Effect.flip(runStage(checkpointStage, { inputs: { state }, stopAfterPolls: 3 }))
    assert.strictEqual(error._tag, "Preempted")
  })
)
