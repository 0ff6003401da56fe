import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { digestOf, loadVocabulary } from "../../src/model/Vocabulary.ts"

describe("Vocabulary", () => {
  it.effect(
    "is Llama 2's: the digest is that of the pieces, scores and types which SentencePiece reads from Meta's tokenizer.model",
    () =>
      Effect.gen(function* () {
        const vocabulary = yield* loadVocabulary("llama-2")
        assert.strictEqual(vocabulary.digest, "71e85685b2b806b7d25a9e6e0611a33632494fb4d593f99afbffa8dc38803b92")
        assert.strictEqual(digestOf(vocabulary), vocabulary.digest)
        const entry = (id: number) => [vocabulary.pieces[id], vocabulary.scores[id], vocabulary.types[id]]
        assert.deepStrictEqual([0, 1, 2, 3, 258, 259, 260, 29_871, 31_999].map(entry), [
          ["<unk>", 0, 2],
          ["<s>", 0, 3],
          ["</s>", 0, 3],
          ["<0x00>", 0, 6],
          ["<0xFF>", 0, 6],
          ["▁▁", -1e9, 1],
          ["▁t", -1, 1],
          ["▁", -1e9, 1],
          ["给", -31_740, 1]
        ])
      })
  )

  it("tells vocabularies apart by any piece, score or type", () => {
    const base = { pieces: ["a", "b"], scores: Float32Array.of(0, -1), types: Uint8Array.of(1, 1) }
    const digests = [
      base,
      { ...base, pieces: ["a", "c"] },
      { ...base, scores: Float32Array.of(0, -2) },
      { ...base, types: Uint8Array.of(1, 3) }
    ].map(digestOf)
    assert.strictEqual(new Set(digests).size, 4)
  })
})
