import { assert, layer } from "@effect/vitest"
import { Context, Effect, Layer } from "effect"
import { loadTokenizer } from "../../src/engine/Tokenizer.ts"
import { type Encode, encodePair } from "../../src/evaluation/LogLikelihood.ts"
import { continuations, multipleChoice, questions, readItems } from "../../src/evaluation/tasks/MultipleChoice.ts"

class Encoder extends Context.Service<Encoder, Encode>()("test/Encoder") {}
const encoder = Layer.effect(
  Encoder,
  Effect.map(loadTokenizer("llama-2"), (tokenizer): Encode => {
    const utf8 = new TextEncoder()
    return (text) => tokenizer.encode(utf8.encode(text))
  })
)

/** Ids from lm-evaluation-harness with the Llama-2 tokenizer, without BOS. */
const pairs: ReadonlyArray<readonly [string, string, ReadonlyArray<number>, ReadonlyArray<number>]> = [
  ["foo ", "bar", [7953], [2594]],
  ["foo", " bar", [7953], [2594]],
  ["x.", "  Foo bar", [921, 29889], [29871, 13679, 2594]],
  [
    "High jump: A boy is running down a track. The boy",
    " runs into a car.",
    [5057, 12500, 29901, 319, 8023, 338, 2734, 1623, 263, 5702, 29889, 450, 8023],
    [6057, 964, 263, 1559, 29889]
  ],
  [
    "There is most likely going to be fog around:",
    " a marsh",
    [1670, 338, 1556, 5517, 2675, 304, 367, 16847, 2820, 29901],
    [263, 1766, 845]
  ],
  ["Predators eat", " grass", [21099, 4097, 17545], [17455]],
  [
    "Question: dresser\nAnswer:",
    " finish, woodgrain with  bobby pin ",
    [894, 29901, 10714, 261, 13, 22550, 29901],
    [8341, 29892, 8112, 3874, 262, 411, 29871, 289, 711, 1609, 12534, 29871]
  ]
]

layer(encoder)("log-likelihood requests", (it) => {
  it.effect("cut context and continuation where the harness does", () =>
    Effect.gen(function* () {
      const encode = yield* Encoder
      for (const [context, continuation, C, K] of pairs) {
        const legacy = encodePair(encode, context, continuation, "legacy")
        assert.deepStrictEqual([[...legacy.context], [...legacy.continuation]], [C, K], context)
        const current = encodePair(encode, context, continuation, "current")
        assert.deepStrictEqual([[...current.context], [...current.continuation]], [[1, ...C], K], context)
      }
      assert.deepStrictEqual([...encode("\n    return x")], [29871, 13, 1678, 736, 921])
    })
  )

  it.effect("moves newlines and Unicode spaces to the continuation, too", () =>
    Effect.gen(function* () {
      const encode = yield* Encoder
      for (const space of ["\n", " \n\n", "\u00a0", "\u3000 ", "\u0085", "\u001f"])
        assert.deepStrictEqual(
          encodePair(encode, `foo${space}`, "bar", "current"),
          encodePair(encode, "foo", `${space}bar`, "current")
        )
      // Python does not count the byte order mark as white space, JavaScript does.
      assert.notDeepEqual(
        encodePair(encode, "foo\ufeff", "bar", "current"),
        encodePair(encode, "foo", "\ufeffbar", "current")
      )
    })
  )

  it.effect("take BOS or EOS as the context of nothing", () =>
    Effect.gen(function* () {
      const encode = yield* Encoder
      const current = encodePair(encode, "", "foo bar", "current")
      assert.deepStrictEqual([[...current.context], [...current.continuation]], [[1], [7953, 2594]])
      const legacy = encodePair(encode, "", "foo bar", "legacy")
      assert.deepStrictEqual([[...legacy.context], [...legacy.continuation]], [[2], [7953, 2594]])
      // A prompt that spells BOS has it already.
      const spelled = encodePair(encode, "<s>foo", " bar", "current")
      assert.deepStrictEqual([[...spelled.context], [...spelled.continuation]], [[1, 7953], [2594]])
    })
  )

  it.effect("make one row per choice, and refuse a choice that cannot be scored", () =>
    Effect.gen(function* () {
      const encode = yield* Encoder
      const items = [continuations("Predators eat", ["lions", "bunnies"], 1)]
      const task = yield* multipleChoice("eat", items, { encode, profile: "current", contextLength: 64 })
      assert.deepStrictEqual(
        task.sequences.map(({ input, targets }) => [[...input], [...targets]]),
        [
          [
            [1, 21099, 4097, 17545, 301],
            [-1, -1, -1, 301, 1080]
          ],
          [
            [1, 21099, 4097, 17545, 289, 5963],
            [-1, -1, -1, 289, 5963, 583]
          ]
        ]
      )
      const error = yield* Effect.flip(multipleChoice("eat", items, { encode, profile: "current", contextLength: 2 }))
      assert.include(error.message, "eat, question 1")
    })
  )

  it.effect("name file and line of a question that is no question", () =>
    Effect.gen(function* () {
      const good = JSON.stringify({ query: "q", choices: ["a", "b"], gold: 1 })
      assert.lengthOf(yield* readItems(questions, "q.jsonl", `${good}\n\n${good}\n`), 2)
      for (const [line, words] of [
        ["{", ["q.jsonl:2"]],
        ['{"query":"q","choices":["a","b"],"gold":2}', ["q.jsonl:2", "gold", "no choice 2"]],
        ['{"query":"q","choices":["a"],"gold":0}', ["q.jsonl:2", "choices"]],
        ['{"query":"q","choices":["a",""],"gold":0}', ["q.jsonl:2", "choices"]]
      ] as const) {
        const error = yield* Effect.flip(readItems(questions, "q.jsonl", `${good}\n${line}\n`))
        for (const word of words) assert.include(error.message, word)
      }
      assert.include((yield* Effect.flip(readItems(questions, "q.jsonl", "\n"))).message, "no questions")
    })
  )
})
