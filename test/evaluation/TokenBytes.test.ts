import { assert, it } from "@effect/vitest"
import { Effect } from "effect"
import { loadTokenizer } from "../../src/engine/Tokenizer.ts"
import { tokenBytes } from "../../src/evaluation/TokenBytes.ts"

it.effect("sums up to the UTF-8 length of every document, in a stream of documents", () =>
  Effect.gen(function* () {
    const tokenizer = yield* loadTokenizer("llama-2")
    const bytesOf = tokenBytes(tokenizer.vocabulary)
    const documents = [
      "plain words, and\n\n  white space\t",
      " leading space",
      "café ☕ 😀 ไทย 漢字 \u0000 <s> </s>",
      "x".repeat(300),
      "    if (a) {\r\n\treturn b\r\n    }"
    ].map((text) => new TextEncoder().encode(text))
    for (const policy of [
      { addBos: true, addEos: false },
      { addBos: true, addEos: true },
      { addBos: false, addEos: true }
    ]) {
      const ids = [tokenizer.eos, ...documents.flatMap((document) => [...tokenizer.encode(document, policy)])]
      const bytes = ids.slice(1).reduce((sum, id, index) => sum + bytesOf(ids[index] ?? 0, id), 0)
      assert.strictEqual(
        bytes,
        documents.reduce((sum, document) => sum + document.length, 0)
      )
    }
  })
)
