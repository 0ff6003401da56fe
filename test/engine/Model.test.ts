import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, it, layer } from "@effect/vitest"
import { Effect } from "effect"
import { fileURLToPath } from "node:url"
import { compareWithOracle, withinLimit } from "../../scripts/oracle/compare.ts"
import { readOracleCase } from "../../scripts/oracle/OracleCase.ts"
import { type AdamWStep, type Batch, load, type ModelConfig } from "../../src/engine/Native.ts"

/** Grouped heads, a head size of its own, an odd vocabulary. */
const config: ModelConfig = {
  vocab_size: 97,
  hidden_size: 24,
  intermediate_size: 40,
  num_hidden_layers: 2,
  num_attention_heads: 6,
  num_key_value_heads: 2,
  head_dim: 8,
  rms_norm_eps: 1e-5,
  rope_theta: 10_000,
  tie_word_embeddings: false
}

const batchOf = (batch: number, length: number, seed: number): Batch => {
  const id = (index: number) => (index * 7919 + seed * 104_729 + ((index * index) % 31)) % config.vocab_size
  return {
    tokens: Int32Array.from({ length: batch * length }, (_, index) => id(index)),
    targets: Int32Array.from({ length: batch * length }, (_, index) => id(index + 1)),
    batch,
    length
  }
}

const optimizer: Omit<AdamWStep, "step"> = {
  learningRate: 1e-2,
  beta1: 0.9,
  beta2: 0.95,
  epsilon: 1e-8,
  weightDecay: 0.1,
  decay: "all",
  clip: 1
}

const modelOf = (overrides: Partial<ModelConfig> = {}, threads = 1) =>
  Effect.map(load, (native) => {
    const model = new native.Model({ ...config, ...overrides }, { threads })
    model.initialize(42)
    return model
  })

const rejection = (promise: Promise<unknown>): Promise<string> =>
  promise.then(
    () => "resolved",
    (error: unknown) => (error instanceof Error ? error.message : String(error))
  )

layer(NodeServices.layer)("Model", (it) => {
  it.effect("follows transformers and torch through a whole small training run", () =>
    Effect.gen(function* () {
      const oracle = yield* readOracleCase(fileURLToPath(new URL("../oracle/train/gqa-small", import.meta.url)))
      const deviations = yield* compareWithOracle(yield* load, oracle, { threads: 2 })
      assert.deepStrictEqual(
        deviations.filter((deviation) => !withinLimit(deviation)),
        []
      )
    })
  )
})

for (const tie_word_embeddings of [false, true]) {
  it.effect(`gradients are the slopes of the loss, ${tie_word_embeddings ? "tied" : "untied"}`, () =>
    Effect.gen(function* () {
      const model = yield* modelOf({ tie_word_embeddings })
      const batch = batchOf(2, 9, 1)
      yield* Effect.promise(() => model.accumulate(batch, 1))
      const gradient = model.read("gradients", 0, model.parameterCount)
      const weights = model.read("weights", 0, model.parameterCount)
      const lossAt = (direction: Float32Array, distance: number) =>
        Effect.promise(async () => {
          model.write(
            "weights",
            0,
            weights.map((weight, index) => weight + distance * direction[index]!)
          )
          const { logProbabilities } = await model.score(batch)
          return -logProbabilities.reduce((sum, value) => sum + value, 0)
        })
      // Along the gradient of one tensor, scaled to length 1, the loss rises with the gradient's own length.
      for (const { name, offset, shape } of model.parameters) {
        const end = offset + shape.reduce((product, size) => product * size, 1)
        const norm = Math.hypot(...gradient.subarray(offset, end))
        const direction = gradient.map((value, index) => (index >= offset && index < end ? value / norm : 0))
        const step = 0.02
        const slope = ((yield* lossAt(direction, step)) - (yield* lossAt(direction, -step))) / (2 * step)
        assert.closeTo(slope / norm, 1, 5e-3, name)
      }
      model.dispose()
    })
  )
}

it.effect("weights are the same bits for 1, 2 and 3 threads", () =>
  Effect.gen(function* () {
    const trained = (threads: number) =>
      Effect.gen(function* () {
        const model = yield* modelOf({}, threads)
        for (let step = 1; step <= 5; step++) {
          yield* Effect.promise(() => model.accumulate(batchOf(3, 37, 2 * step), 1 / 222))
          yield* Effect.promise(() => model.accumulate(batchOf(3, 37, 2 * step + 1), 1 / 222))
          yield* Effect.promise(() => model.step({ ...optimizer, step }))
        }
        const bits = new Uint32Array(model.read("weights", 0, model.parameterCount).buffer)
        model.dispose()
        return bits
      })
    const one = yield* trained(1)
    assert.deepStrictEqual(yield* trained(2), one)
    assert.deepStrictEqual(yield* trained(3), one)
  })
)

it.effect("state read from one model makes another go on with the same bits", () =>
  Effect.gen(function* () {
    const first = yield* modelOf()
    const advance = (model: typeof first, step: number) =>
      Effect.promise(async () => {
        await model.accumulate(batchOf(2, 8, step), 1 / 16)
        return model.step({ ...optimizer, step })
      })
    yield* advance(first, 1)
    yield* advance(first, 2)
    const second = yield* modelOf()
    for (const kind of ["weights", "firstMoment", "secondMoment"] as const) {
      second.write(kind, 0, first.read(kind, 0, first.parameterCount))
    }
    assert.deepStrictEqual(yield* advance(first, 3), yield* advance(second, 3))
    assert.deepStrictEqual(
      first.read("weights", 0, first.parameterCount),
      second.read("weights", 0, second.parameterCount)
    )
  })
)

it.effect("the initial weights depend on the seed and have TinyLlama's deviations", () =>
  Effect.gen(function* () {
    const model = yield* modelOf({ hidden_size: 64, intermediate_size: 128 })
    const values = (name: string) => {
      const { offset, shape } = model.parameters.find((parameter) => parameter.name === name)!
      return model.read(
        "weights",
        offset,
        shape.reduce((product, size) => product * size, 1)
      )
    }
    const deviation = (name: string) => {
      const tensor = values(name)
      return Math.sqrt(tensor.reduce((sum, value) => sum + value * value, 0) / tensor.length)
    }
    assert.closeTo(deviation("lm_head.weight"), Math.sqrt(2 / (5 * 64)), 0.003)
    assert.closeTo(deviation("model.layers.1.mlp.down_proj.weight"), 1 / (Math.sqrt(64) * 2), 0.003)
    assert.deepStrictEqual(values("model.norm.weight"), new Float32Array(64).fill(1))
    const before = values("lm_head.weight")
    model.initialize(43)
    assert.notDeepEqual(values("lm_head.weight"), before)
    model.initialize(42)
    assert.deepStrictEqual(values("lm_head.weight"), before)
  })
)

it.effect("a gradient that is not finite is reported and changes nothing", () =>
  Effect.gen(function* () {
    const model = yield* modelOf()
    const before = model.read("weights", 0, model.parameterCount)
    model.write("gradients", 3, Float32Array.of(Number.NaN))
    const { gradientNorm } = yield* Effect.promise(() => model.step({ ...optimizer, step: 1 }))
    assert.isNaN(gradientNorm)
    assert.deepStrictEqual(model.read("weights", 0, model.parameterCount), before)
    assert.deepStrictEqual(model.read("gradients", 0, 8), new Float32Array(8))
  })
)

it.effect("calls run in the order they were made", () =>
  Effect.gen(function* () {
    const [ordered, awaited] = [yield* modelOf(), yield* modelOf()]
    const results = yield* Effect.promise(() =>
      Promise.all([
        ordered.accumulate(batchOf(4, 40, 1), 1 / 160),
        ordered.step({ ...optimizer, step: 1 }),
        ordered.accumulate(batchOf(1, 5, 2), 1 / 5)
      ])
    )
    const first = yield* Effect.promise(() => awaited.accumulate(batchOf(4, 40, 1), 1 / 160))
    const second = yield* Effect.promise(() => awaited.step({ ...optimizer, step: 1 }))
    const third = yield* Effect.promise(() => awaited.accumulate(batchOf(1, 5, 2), 1 / 5))
    assert.deepStrictEqual(results, [first, second, third])
  })
)

it.effect("what cannot be computed is refused with the place", () =>
  Effect.gen(function* () {
    const native = yield* load
    const model = yield* modelOf()
    const batch = batchOf(2, 4, 1)
    const refused = (call: () => Promise<unknown>) => Effect.promise(() => rejection(call()))
    const withId = (name: "tokens" | "targets", index: number, id: number) => ({
      ...batch,
      [name]: batch[name].map((value, at) => (at === index ? id : value))
    })
    assert.include(
      yield* refused(() => model.accumulate(withId("tokens", 5, 97), 1)),
      "token 97 at index 5 (sequence 1, position 1) is outside the vocabulary of 97"
    )
    assert.include(yield* refused(() => model.score(withId("tokens", 0, -1))), "token -1 at index 0")
    assert.include(yield* refused(() => model.accumulate(withId("targets", 7, 500), 1)), "target 500 at index 7")
    assert.include(yield* refused(() => model.logits({ ...batch, length: 3 })), "tokens has 8 ids")
    assert.include(yield* refused(() => model.step({ ...optimizer, step: 0 })), "step counts from 1")
    const firstKeys = (...keys: ReadonlyArray<number>) => ({ ...batch, firstKeys: Int32Array.from(keys) })
    assert.include(
      yield* refused(() => model.accumulate(firstKeys(0, 0, 3, 0, 0, 0, 0, 0), 1)),
      "first key 3 at index 2 must lie between 0 and its position 2"
    )
    assert.include(yield* refused(() => model.score(firstKeys(0, 0, 0))), "first keys has 3 ids")
    assert.throws(() => model.read("weights", model.parameterCount - 1, 2), /outside the \d+ parameters/u)
    assert.throws(() => new native.Model({ ...config, num_key_value_heads: 4 }, { threads: 1 }), /multiple of/u)
    assert.throws(() => new native.Model({ ...config, hidden_size: 2.5 }, { threads: 1 }), /config\.hidden_size/u)
    assert.throws(() => new native.Model(config, { threads: 0 }), /options\.threads/u)
    // A refused call leaves the model usable.
    assert.strictEqual((yield* Effect.promise(() => model.accumulate(batch, 1))).scored, 8)
  })
)

it.effect("a disposed model refuses every call", () =>
  Effect.gen(function* () {
    const model = yield* modelOf()
    const pending = [model.accumulate(batchOf(4, 40, 1), 1), model.score(batchOf(4, 40, 1))].map(rejection)
    model.dispose()
    model.dispose()
    assert.throws(() => model.read("weights", 0, 1), /disposed/u)
    assert.include(yield* Effect.promise(() => rejection(model.logits(batchOf(1, 1, 1)))), "disposed")
    // What ran already may end well; nothing may crash.
    for (const call of pending) assert.match(yield* Effect.promise(() => call), /resolved|disposed/u)
  })
)
