import { writeFileSync } from "node:fs"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, layer } from "@effect/vitest"
import { Context, Effect, Fiber, FileSystem, Layer } from "effect"
import { encodeConversation } from "../../src/data/Conversations.ts"
import { loadTokenizer } from "../../src/engine/Tokenizer.ts"
import { type Generation, openChat } from "../../src/inference/Chat.ts"
import { promptIds } from "../../src/inference/GuanacoPrompt.ts"
import { writeLlamaGguf } from "../../src/model/Gguf.ts"
import { loadVocabulary } from "../../src/model/Vocabulary.ts"
import { randomWeights, smallShape } from "../model/random-model.ts"

/** A GGUF file with random weights, there for all tests. */
class GgufFile extends Context.Service<GgufFile, string>()("test/GgufFile") {}
const file = Layer.effect(
  GgufFile,
  Effect.gen(function* () {
    const path = `${yield* (yield* FileSystem.FileSystem).makeTempDirectoryScoped()}/model.gguf`
    const shape = { ...smallShape, max_position_embeddings: 96 }
    const values = randomWeights(shape)
    yield* writeLlamaGguf(path, {
      name: "random",
      shape,
      type: "F32",
      vocabulary: yield* loadVocabulary("llama-2"),
      chat: "guanaco",
      weights: (name) => Effect.succeed(values.get(name) ?? new Float32Array())
    })
    return path
  })
).pipe(Layer.provideMerge(NodeServices.layer))

const greedy: Generation = { maxTokens: 12, temperature: 0, topP: 0.95 }
const vocabularyOf = Effect.map(loadTokenizer("llama-2"), (tokenizer) => ({
  bos: tokenizer.bos,
  eos: tokenizer.eos,
  encode: (text: string, options: { readonly dummyPrefix: boolean }) => [
    ...tokenizer.encode(new TextEncoder().encode(text), options)
  ]
}))

layer(file, { excludeTestServices: true })("chat", (it) => {
  it.effect("prompts with the ids that fine-tuning trains on", () =>
    Effect.gen(function* () {
      const tokenizer = yield* loadTokenizer("llama-2")
      const exchanges = [
        { human: "What is a port?", assistant: "A typed input." },
        { human: "  And naïve ☕ <s> edges?", assistant: "### They join ports." }
      ]
      const trained = [
        ...encodeConversation(tokenizer.encode, { exchanges, unanswered: false }, { lossOn: "all", eos: "every_turn" })
          .tokens
      ]
      const prompt = promptIds(yield* vocabularyOf, exchanges.slice(0, 1), exchanges[1]?.human ?? "")
      assert.deepStrictEqual(trained.slice(0, prompt.length), prompt)
    })
  )

  it.effect("feeds llama.cpp our own tokenizer's ids, also of later turns", () =>
    Effect.gen(function* () {
      const chat = yield* openChat({ file: yield* GgufFile, threads: 1 })
      const own = yield* vocabularyOf
      for (const question of ["What is a stage?", " spaces,  é ☕ <s> ", "a\nb"]) {
        yield* chat.reset
        assert.deepStrictEqual(chat.promptIds(question, greedy), promptIds(own, [], question))
        const answer = yield* chat.ask(question, greedy)
        assert.deepStrictEqual(
          chat.promptIds("And a port?", greedy),
          promptIds(own, [{ human: question, assistant: answer }], "And a port?")
        )
      }
    })
  )

  it.effect("repeats itself: greedy, and by seed; a conversation changes the answer", () =>
    Effect.gen(function* () {
      const chat = yield* openChat({ file: yield* GgufFile, threads: 1 })
      let pieces = ""
      const first = yield* chat.ask("What is a stage?", greedy, (piece) => (pieces += piece))
      assert.strictEqual(pieces, first)
      assert.notStrictEqual(first, "")
      const again = yield* chat.ask("What is a stage?", greedy)
      yield* chat.reset
      assert.strictEqual(yield* chat.ask("What is a stage?", greedy), first)
      assert.notStrictEqual(again, first)
      const sample = (seed: number) => Effect.andThen(chat.reset, chat.ask("b", { ...greedy, temperature: 1, seed }))
      assert.strictEqual(yield* sample(5), yield* sample(5))
      assert.notStrictEqual(yield* sample(5), yield* sample(6))
    })
  )

  it.effect("drops old turns when the context is full, and refuses a question that cannot fit", () =>
    Effect.gen(function* () {
      const chat = yield* openChat({ file: yield* GgufFile, threads: 1 })
      assert.strictEqual(chat.contextLength, 96)
      for (let turn = 0; turn < 5; turn++) yield* chat.ask("How many words fit into this context at once?", greedy)
      assert.isAtMost(chat.promptIds("And now?", greedy).length, 96)
      const error = yield* Effect.flip(chat.ask("word ".repeat(100), greedy))
      assert.include(error.message, "96 tokens")
    })
  )

  it.effect("can be interrupted, and goes on with the next question", () =>
    Effect.gen(function* () {
      const chat = yield* openChat({ file: yield* GgufFile, threads: 1 })
      const first = yield* chat.ask("What is a stage?", greedy)
      yield* chat.reset
      const fiber = yield* Effect.forkChild(chat.ask("Tell me everything.", { ...greedy, maxTokens: 60 }))
      yield* Effect.sleep("5 millis")
      yield* Fiber.interrupt(fiber)
      assert.strictEqual(yield* chat.ask("What is a stage?", greedy), first)
    })
  )

  it.effect("says what is wrong with a file", () =>
    Effect.gen(function* () {
      const folder = yield* (yield* FileSystem.FileSystem).makeTempDirectoryScoped()
      const missing = yield* Effect.flip(openChat({ file: `${folder}/none.gguf` }))
      assert.include(missing.message, "none.gguf: no such file")
      writeFileSync(`${folder}/text.gguf`, "this is no model")
      const broken = yield* Effect.flip(openChat({ file: `${folder}/text.gguf` }))
      assert.include(broken.message, "text.gguf")
      assert.include(broken.next, "--force")
    })
  )
})
