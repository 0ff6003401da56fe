import { readFileSync } from "node:fs"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Result } from "effect"
import {
  encodeConversation,
  hasScoredTarget,
  parseConversation,
  readConversations,
  truncateRow
} from "../../src/data/Conversations.ts"
import { loadTokenizer } from "../../src/engine/Tokenizer.ts"
import { conversationDocuments } from "../stages/training-fixture.ts"

const parsed = (text: string) => Result.getOrThrowWith(parseConversation(text), (reason) => new Error(reason))
const fault = (text: string) => Result.getOrThrow(Result.flip(parseConversation(text)))

/** Ids of a text without BOS, with or without the dummy prefix. */
const tokenizer = loadTokenizer("llama-2")
const bytes = (text: string) => new TextEncoder().encode(text)

const faq = readFileSync(new URL("../fixtures/small/conversations.jsonl", import.meta.url), "utf8")
  .trimEnd()
  .split("\n")
  .map((line) => (JSON.parse(line) as { readonly text: string }).text)

describe("parseConversation", () => {
  it("cuts turns at the markers, whatever white space stands around them", () => {
    const expected = {
      exchanges: [
        { human: "Hello!\nHow are you?", assistant: "Fine." },
        { human: "Good.", assistant: "Indeed,\n\n1. yes" }
      ],
      unanswered: false
    }
    const texts = [
      "### Human: Hello!\nHow are you?### Assistant: Fine.### Human: Good.### Assistant: Indeed,\n\n1. yes",
      "  ### Human: Hello!\nHow are you?\n### Assistant: Fine.\n### Human: Good.\n### Assistant: Indeed,\n\n1. yes\n",
      "###Human:Hello!\nHow are you? ### Assistant:\nFine. ###  Human : Good. ###Assistant:Indeed,\n\n1. yes"
    ]
    for (const text of texts) assert.deepStrictEqual(parsed(text), expected)
  })

  it("leaves a last question without answer out", () => {
    assert.deepStrictEqual(parsed("### Human: a### Assistant: b### Human: c"), {
      exchanges: [{ human: "a", assistant: "b" }],
      unanswered: true
    })
  })

  it("other hash signs are text", () => {
    assert.strictEqual(parsed("### Human: a # b ## c ### d### Assistant: e").exchanges[0]?.human, "a # b ## c ### d")
  })

  it("says what is wrong", () => {
    assert.include(fault(" \n "), "empty")
    assert.include(fault("Hi there### Assistant: b"), 'starts with "Hi there"')
    assert.include(fault("### Assistant: b"), "turn 1 is the Assistant's")
    assert.include(fault("### Human: a### Human: b"), "turn 2 is the Human's")
    assert.include(fault("### Human: ### Assistant: b"), "turn 1, the Human's, is empty")
    assert.include(fault("### Human: a### Assistant: "), "turn 2, the Assistant's, is empty")
    assert.include(fault("### Human: a"), "no Assistant turn")
    assert.include(fault("no marker at all"), "starts with")
  })
})

describe("encodeConversation", () => {
  const options = { lossOn: "assistant", eos: "every_turn" } as const

  it.live("a question and its answer give the ids of the whole text, between BOS and EOS", () =>
    Effect.gen(function* () {
      const { bos, encode, eos } = yield* tokenizer
      for (const text of faq.map((text) => parsed(text)).filter(({ exchanges }) => exchanges.length === 1)) {
        const { assistant, human } = text.exchanges[0]!
        const whole = encode(bytes(`### Human: ${human}### Assistant: ${assistant}`))
        const prompt = encode(bytes(`### Human: ${human}### Assistant:`))
        const { scored, tokens } = encodeConversation(encode, text, options)
        assert.deepStrictEqual([...tokens], [bos, ...whole, eos])
        assert.deepStrictEqual([...tokens.subarray(1, 1 + prompt.length)], [...prompt])
        assert.deepStrictEqual(
          [...scored],
          [...tokens].map((_, index) => (index > prompt.length ? 1 : 0))
        )
      }
    })
  )

  it.live("later turns carry no dummy prefix; EOS after every answer or at the end alone", () =>
    Effect.gen(function* () {
      const { bos, decode, encode, eos } = yield* tokenizer
      const conversation = parsed("### Human: Hi### Assistant: Yes### Human: Why?### Assistant: So it is")
      const part = (text: string) => [...encode(bytes(text), { dummyPrefix: false })]
      const first = [bos, ...encode(bytes("### Human: Hi### Assistant:")), ...part(" Yes")]
      const second = [...part("### Human: Why?### Assistant:"), ...part(" So it is"), eos]
      assert.deepStrictEqual([...encodeConversation(encode, conversation, options).tokens], [...first, eos, ...second])
      const once = encodeConversation(encode, conversation, { ...options, eos: "end" })
      assert.deepStrictEqual([...once.tokens], [...first, ...second])
      assert.strictEqual(
        new TextDecoder().decode(decode(once.tokens)),
        "### Human: Hi### Assistant: Yes### Human: Why?### Assistant: So it is"
      )
    })
  )

  it.live("loss on all turns scores everything but BOS", () =>
    Effect.gen(function* () {
      const { encode } = yield* tokenizer
      const { scored } = encodeConversation(encode, parsed(faq[0]!), { ...options, lossOn: "all" })
      assert.deepStrictEqual(
        [...scored],
        [...scored].map((_, index) => (index === 0 ? 0 : 1))
      )
    })
  )

  it.live("truncation keeps the left; a row cut before its answer has nothing to score", () =>
    Effect.gen(function* () {
      const { encode } = yield* tokenizer
      const row = encodeConversation(encode, parsed("### Human: Hi### Assistant: Yes"), options)
      const cut = truncateRow(row, 4)
      assert.deepStrictEqual([...cut.tokens], [...row.tokens.subarray(0, 5)])
      assert.isFalse(hasScoredTarget(cut))
      assert.isTrue(hasScoredTarget(truncateRow(row, row.tokens.length)))
    })
  )
})

describe("readConversations", () => {
  it.live("names every faulty row by source and line", () =>
    Effect.gen(function* () {
      const documents = yield* conversationDocuments([
        '{"text":"### Human: a### Assistant: b"}',
        "{",
        '{"content":"### Human: a### Assistant: b"}',
        '{"text":"Hello"}'
      ])
      const error = yield* Effect.flip(readConversations(documents))
      assert.strictEqual(error.failure, "invalid-input")
      assert.match(error.message, /^talk\.jsonl:2: .*\ntalk\.jsonl:3: .*"text".*\ntalk\.jsonl:4: .*"Hello"/u)
    }).pipe(Effect.scoped)
  )

  it.live("an empty file is an error", () =>
    Effect.gen(function* () {
      const error = yield* Effect.flip(readConversations(yield* conversationDocuments([])))
      assert.include(error.message, "talk.documents has no conversation")
    }).pipe(Effect.scoped)
  )
})
