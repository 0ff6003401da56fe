/**
 * llama.cpp and our own forward pass give the same logits and the same greedy text for GGUF files that we write. This guards the order of query
 * and key rows, tensor names, transposition, and metadata: each of them wrong gives other numbers, not an error.
 */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, layer } from "@effect/vitest"
import { Effect, FileSystem } from "effect"
import { getLlama, LlamaLogLevel, type Token } from "node-llama-cpp"
import * as Native from "../../src/engine/Native.ts"
import { type ModelShape, toModelConfig } from "../../src/model/Architecture.ts"
import { type GgufType, pairNeighbours, writeLlamaGguf } from "../../src/model/Gguf.ts"
import { loadVocabulary } from "../../src/model/Vocabulary.ts"
import { randomWeights, smallShape } from "./random-model.ts"

const PROMPT = [1, 450, 4996, 17354, 1701, 29916, 432, 17204, 975, 278, 17366, 11203, 29889, 13, 3118, 1023]
const GENERATED = 12

const llama = Effect.promise(() =>
  getLlama({ gpu: false, build: "never", skipDownload: true, progressLogs: false, logLevel: LlamaLogLevel.error })
)

/** Positions whose logits are compared: near, far and last. */
const COMPARED = [1, 7, 15]

/** Logits at the compared positions of PROMPT, then the greedy continuation, by llama.cpp. */
const byLlamaCpp = (path: string) =>
  Effect.gen(function* () {
    const engine = yield* llama
    const model = yield* Effect.acquireRelease(
      Effect.promise(() => engine.loadModel({ modelPath: path })),
      (model) => Effect.promise(() => model.dispose())
    )
    // fp32 keys and values and plain attention: the same arithmetic as ours but for the order of sums.
    const context = yield* Effect.promise(() =>
      model.createContext({
        contextSize: 64,
        threads: 1,
        flashAttention: false,
        experimentalKvCacheKeyType: "F32",
        experimentalKvCacheValueType: "F32"
      })
    )
    const sequence = context.getSequence()
    const answers = yield* Effect.promise(() =>
      sequence.controlledEvaluate(
        PROMPT.map((token, i) => [token as Token, COMPARED.includes(i) ? { generateNext: { logits: true } } : {}])
      )
    )
    const logits = COMPARED.map((position) => {
      const row = new Float32Array(32_000)
      for (const [token, logit] of answers[position]!.next.logits!) row[token] = logit
      return row
    })
    const greedy: Array<number> = [argmax(logits.at(-1)!)]
    while (greedy.length < GENERATED) {
      const [answer] = yield* Effect.promise(() =>
        sequence.controlledEvaluate([[greedy.at(-1)! as Token, { generateNext: { token: true } }]])
      )
      greedy.push(answer!.next.token!)
    }
    return { logits, greedy }
  }).pipe(Effect.scoped)

const byOurs = (shape: ModelShape, weights: ReadonlyMap<string, Float32Array>) =>
  Effect.gen(function* () {
    const native = yield* Native.load
    const model = yield* Effect.acquireRelease(
      Effect.sync(() => new native.Model(toModelConfig(shape), { threads: 1 })),
      (model) => Effect.sync(() => model.dispose())
    )
    for (const { name, offset } of model.parameters) model.write("weights", offset, weights.get(name)!)
    const rows = (tokens: ReadonlyArray<number>) =>
      Effect.map(
        Effect.promise(() => model.logits({ tokens: Int32Array.from(tokens), batch: 1, length: tokens.length })),
        (all) => tokens.map((_, i) => all.subarray(i * shape.vocab_size, (i + 1) * shape.vocab_size))
      )
    const all = yield* rows(PROMPT)
    const logits = COMPARED.map((position) => all[position]!)
    const greedy: Array<number> = [argmax(logits.at(-1)!)]
    while (greedy.length < GENERATED) greedy.push(argmax((yield* rows([...PROMPT, ...greedy])).at(-1)!))
    return { logits, greedy }
  }).pipe(Effect.scoped)

const argmax = (row: Float32Array): number => row.reduce((best, value, i) => (value > row[best]! ? i : best), 0)
const top5 = (row: Float32Array): ReadonlyArray<number> =>
  Array.from(row.keys())
    .sort((a, b) => row[b]! - row[a]!)
    .slice(0, 5)

/** The largest difference of two logits, relative to the root mean square of `a`. */
const largestDifference = (a: ReadonlyArray<Float32Array>, b: ReadonlyArray<Float32Array>): number => {
  let most = 0
  let squares = 0
  for (const [i, row] of a.entries()) {
    for (let j = 0; j < row.length; j++) {
      most = Math.max(most, Math.abs(row[j]! - b[i]![j]!))
      squares += row[j]! ** 2
    }
  }
  return most / Math.sqrt(squares / (a.length * a[0]!.length))
}

const write = (path: string, shape: ModelShape, weights: ReadonlyMap<string, Float32Array>, type: GgufType) =>
  Effect.gen(function* () {
    const vocabulary = yield* loadVocabulary("llama-2")
    const values = (name: string) => Effect.succeed(weights.get(name)!)
    yield* writeLlamaGguf(path, { name: "random", shape, type, vocabulary, chat: null, weights: values })
  })

const shapes: Readonly<Record<string, ModelShape>> = {
  "four heads in two groups": smallShape,
  "one key and value head for all": { ...smallShape, num_key_value_heads: 1, rope_theta: 500_000 },
  "a group per head": { ...smallShape, num_key_value_heads: 4, rms_norm_eps: 1e-2 },
  "tied, with a head size of its own": { ...smallShape, head_dim: 32, tie_word_embeddings: true }
}

layer(NodeServices.layer)("GGUF in llama.cpp", (it) => {
  for (const [name, shape] of Object.entries(shapes)) {
    it.effect(`logits and greedy text of our own forward pass: ${name}`, () =>
      Effect.gen(function* () {
        const fs = yield* FileSystem.FileSystem
        const path = `${yield* fs.makeTempDirectoryScoped()}/model.gguf`
        const weights = randomWeights(shape)
        const ours = yield* byOurs(shape, weights)
        // In an F16 file llama.cpp rounds the inputs of every product to fp16 as well.
        for (const type of shape === smallShape ? (["F32", "F16"] as const) : (["F32"] as const)) {
          yield* write(path, shape, weights, type)
          const theirs = yield* byLlamaCpp(path)
          assert.isBelow(largestDifference(ours.logits, theirs.logits), { F32: 5e-5, F16: 2e-2 }[type])
          assert.deepStrictEqual(top5(theirs.logits.at(-1)!), top5(ours.logits.at(-1)!))
          assert.deepStrictEqual(theirs.greedy, ours.greedy)
        }
      })
    )
  }

  it.effect("rows in the wrong order are noticed: the comparison has teeth", () =>
    Effect.gen(function* () {
      const fs = yield* FileSystem.FileSystem
      const path = `${yield* fs.makeTempDirectoryScoped()}/model.gguf`
      const weights = randomWeights(smallShape)
      const ours = yield* byOurs(smallShape, weights)
      const name = "model.layers.0.self_attn.k_proj.weight"
      const disordered = new Map(weights).set(name, pairNeighbours(weights.get(name)!, 64, 16))
      yield* write(path, smallShape, disordered, "F32")
      assert.isAbove(largestDifference(ours.logits, (yield* byLlamaCpp(path)).logits), 0.5)
    })
  )
})
