import { createHash } from "node:crypto"
import { assert, describe, it } from "@effect/vitest"
import { Template } from "@huggingface/jinja"
import { Effect } from "effect"
import llamaTokenizer from "llama-tokenizer-js"
import { guanacoTemplate } from "../../src/model/ChatTemplate.ts"
import { mergesOf, tokenizerFiles } from "../../src/model/TokenizerFiles.ts"
import { loadVocabulary } from "../../src/model/Vocabulary.ts"

const files = Effect.fn(function* (options: Parameters<typeof tokenizerFiles>[1]) {
  const vocabulary = yield* loadVocabulary("llama-2")
  return Object.fromEntries(tokenizerFiles(vocabulary, options).map(({ name, bytes }) => [name, bytes]))
})

const parse = (bytes: Uint8Array | undefined) => JSON.parse(new TextDecoder().decode(bytes)) as Record<string, unknown>

describe("TokenizerFiles", () => {
  it.effect(
    "tokenizer.model: the bytes that SentencePiece 0.1.97 read back as Meta's pieces, scores, types and golden ids",
    () =>
      Effect.gen(function* () {
        const bytes = (yield* files({ chat: null, contextLength: 256 }))["tokenizer.model"]!
        assert.strictEqual(
          createHash("sha256").update(bytes).digest("hex"),
          "7d4926f0ad2ecea2107d795c5c448cdea4b3356a6e5563fd1fcb4bf71918f64d"
        )
      })
  )

  it.effect("tokenizer.json: every piece under its id, and the merges that llama-tokenizer-js carries", () =>
    Effect.gen(function* () {
      const vocabulary = yield* loadVocabulary("llama-2")
      const { model, added_tokens } = parse((yield* files({ chat: null, contextLength: 256 }))["tokenizer.json"]) as {
        readonly model: { readonly vocab: Record<string, number>; readonly merges: ReadonlyArray<string> }
        readonly added_tokens: ReadonlyArray<{ readonly id: number; readonly content: string }>
      }
      assert.strictEqual(Object.keys(model.vocab).length, 32_000)
      assert.isTrue(vocabulary.pieces.every((piece, id) => model.vocab[piece] === id))
      assert.strictEqual(model.merges.length, 61_249)
      assert.isTrue(model.merges.every((merge) => llamaTokenizer.merges.has(merge)))
      assert.strictEqual(new Set(model.merges).size, llamaTokenizer.merges.size)
      assert.deepStrictEqual(
        added_tokens.map(({ id, content }) => [id, content]),
        [
          [0, "<unk>"],
          [1, "<s>"],
          [2, "</s>"]
        ]
      )
    })
  )

  it.effect("merges come best first, and a run of ▁ grows from its left end", () =>
    Effect.gen(function* () {
      const merges = mergesOf(yield* loadVocabulary("llama-2"))
      assert.deepStrictEqual(merges.slice(0, 3), ["▁ t", "e r", "i n"])
      assert.deepStrictEqual(merges.slice(-2), ["▁ ▁▁", "▁ ▁"])
      assert.isBelow(merges.indexOf("▁▁ ▁"), merges.indexOf("▁ ▁▁"))
    })
  )

  it.effect("tokenizer_config.json: a chat model carries its template, a base model none", () =>
    Effect.gen(function* () {
      const base = parse((yield* files({ chat: null, contextLength: 256 }))["tokenizer_config.json"])
      const chat = parse((yield* files({ chat: "guanaco", contextLength: 2048 }))["tokenizer_config.json"])
      assert.isUndefined(base.chat_template)
      assert.strictEqual(base.model_max_length, 256)
      assert.strictEqual(chat.chat_template, guanacoTemplate)
      assert.deepStrictEqual(
        [
          chat.tokenizer_class,
          chat.bos_token,
          chat.eos_token,
          chat.unk_token,
          chat.add_bos_token,
          chat.add_eos_token,
          chat.legacy
        ],
        ["LlamaTokenizer", "<s>", "</s>", "<unk>", true, false, false]
      )
    })
  )

  it.effect("the same bytes every time", () =>
    Effect.gen(function* () {
      assert.deepStrictEqual(
        yield* files({ chat: "guanaco", contextLength: 256 }),
        yield* files({ chat: "guanaco", contextLength: 256 })
      )
    })
  )
})

describe("guanacoTemplate", () => {
  const render = (
    messages: ReadonlyArray<{ readonly role: string; readonly content: string }>,
    add_generation_prompt: boolean
  ) => new Template(guanacoTemplate).render({ messages, add_generation_prompt, bos_token: "<s>", eos_token: "</s>" })

  it("renders turns as openassistant-guanaco writes them", () => {
    const messages = [
      { role: "system", content: "left out" },
      { role: "user", content: "Hi\nthere" },
      { role: "assistant", content: "Hello." },
      { role: "user", content: "Bye" }
    ]
    assert.strictEqual(
      render(messages, true),
      "<s>### Human: Hi\nthere### Assistant: Hello.</s>### Human: Bye### Assistant:"
    )
    assert.strictEqual(render(messages.slice(1, 3), false), "<s>### Human: Hi\nthere### Assistant: Hello.</s>")
  })
})
