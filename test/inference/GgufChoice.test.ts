import { assert, it } from "@effect/vitest"
import { Effect } from "effect"
import type { Manifest } from "../../src/artifacts/Artifact.ts"
import { type Candidate, chooseGguf } from "../../src/inference/GgufChoice.ts"

const artifact = (
  stage: string,
  type: Manifest["type"],
  chat: string | null,
  types: ReadonlyArray<string>
): Candidate => ({
  stage,
  folder: `/store/${stage}`,
  manifest: {
    type,
    digest: stage,
    files: [],
    facts: {
      chat,
      context_length: 256,
      files: types.map((type) => ({ type, path: `model-${type}.gguf`, bytes: 1000 }))
    },
    madeBy: { stageType: "quantize", stageVersion: 1, stageKey: "k", run: "r", stage, attempt: 1 }
  }
})

const outputs = [
  artifact("hf", "GgufModel", null, ["F16"]),
  artifact("chat", "HfModel", "guanaco", ["Q8_0"]),
  artifact("gguf", "GgufModel", "guanaco", ["Q4_0", "Q8_0"]),
  artifact("base-gguf", "GgufModel", null, ["Q8_0"])
]

it.effect("prefers the fine-tuned model in Q8_0", () =>
  Effect.gen(function* () {
    const file = yield* chooseGguf(outputs, "r", undefined)
    assert.deepStrictEqual(file, {
      stage: "gguf",
      type: "Q8_0",
      path: "/store/gguf/model-Q8_0.gguf",
      bytes: 1000,
      chat: true
    })
    assert.strictEqual((yield* chooseGguf(outputs, "r", "q4_0")).path, "/store/gguf/model-Q4_0.gguf")
    assert.deepInclude(yield* chooseGguf(outputs, "r", "F16"), { stage: "hf", chat: false })
    assert.strictEqual((yield* chooseGguf(outputs.toReversed(), "r", undefined)).stage, "gguf")
  })
)

it.effect("says what there is when the type is missing, and what to do when nothing is there", () =>
  Effect.gen(function* () {
    const wrong = yield* Effect.flip(chooseGguf(outputs, "r", "Q5_K"))
    assert.include(wrong.message, "Q5_K")
    assert.include(wrong.next, "F16, Q4_0, Q8_0")
    const none = yield* Effect.flip(chooseGguf(outputs.slice(1, 2), "r", undefined))
    assert.include(none.message, "run r")
    assert.include(none.next, "tinyllama run")
  })
)
