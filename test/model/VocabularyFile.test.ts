import { writeFile } from "node:fs/promises"
import { join } from "node:path"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import { Effect, FileSystem } from "effect"
import { loadTokenizer, tokenizerOf } from "../../src/engine/Tokenizer.ts"
import { tokenizerFiles } from "../../src/model/TokenizerFiles.ts"
import { loadVocabulary } from "../../src/model/Vocabulary.ts"
import { readVocabularyFile } from "../../src/model/VocabularyFile.ts"

const utf8 = (text: string) => new TextEncoder().encode(text)
const text =
  "  if (a) {\n\n        return 'né en 1 999';\r\n}\t中文😀 internationalization  of   ▁it <s> <0x0A>" + " ".repeat(40)

const withFiles = <A, E, R>(
  body: (write: (name: string, bytes: Uint8Array) => Effect.Effect<string>) => Effect.Effect<A, E, R>
) =>
  Effect.gen(function* () {
    const fs = yield* FileSystem.FileSystem
    const folder = yield* fs.makeTempDirectoryScoped()
    return yield* body((name, bytes) => {
      const path = join(folder, name)
      return Effect.as(
        Effect.promise(() => writeFile(path, bytes)),
        path
      )
    })
  }).pipe(Effect.scoped, Effect.provide(NodeServices.layer))

interface Fast {
  normalizer: unknown
  pre_tokenizer: unknown
  model: { merges: Array<string | ReadonlyArray<string>>; byte_fallback: boolean }
}

/** Llama 2's tokenizer.json after a change. */
const changed = Effect.fnUntraced(function* (change: (json: Fast) => void) {
  const vocabulary = yield* loadVocabulary("llama-2")
  const [fast] = tokenizerFiles(vocabulary, { chat: null, contextLength: 2048 })
  const json = JSON.parse(new TextDecoder().decode(fast!.bytes)) as Fast
  change(json)
  return utf8(JSON.stringify(json))
})

const messageOf = Effect.fnUntraced(function* (path: string) {
  const error = yield* Effect.flip(readVocabularyFile(path))
  return error.message
})

describe("VocabularyFile", () => {
  it.effect("gives the same ids from tokenizer.model and from tokenizer.json", () =>
    withFiles((write) =>
      Effect.gen(function* () {
        const own = yield* loadTokenizer("llama-2")
        for (const { name, bytes } of tokenizerFiles(own.vocabulary, { chat: null, contextLength: 2048 }).slice(0, 2)) {
          const vocabulary = yield* readVocabularyFile(yield* write(name, bytes))
          const other = yield* tokenizerOf(vocabulary)
          assert.deepStrictEqual([...other.encode(utf8(text))], [...own.encode(utf8(text))], name)
          assert.deepStrictEqual([other.name, other.digest], [own.name, own.digest], name)
          assert.deepStrictEqual([vocabulary.unknown, vocabulary.bos, vocabulary.eos], [0, 1, 2])
        }
      })
    )
  )

  it.effect("reads merges as pairs, and the Metaspace form", () =>
    withFiles((write) =>
      Effect.gen(function* () {
        const own = yield* loadTokenizer("llama-2")
        const bytes = yield* changed((json) => {
          json.model.merges = json.model.merges.map((merge) => String(merge).split(" "))
          json.normalizer = null
          json.pre_tokenizer = { type: "Metaspace", replacement: "▁", prepend_scheme: "never", split: false }
        })
        const vocabulary = yield* readVocabularyFile(yield* write("tokenizer.json", bytes))
        assert.isFalse(vocabulary.dummyPrefix)
        assert.strictEqual(vocabulary.name, `spm-${vocabulary.digest.slice(0, 12)}`)
        const other = yield* tokenizerOf(vocabulary)
        assert.deepStrictEqual([...other.encode(utf8(text), { dummyPrefix: true })], [...own.encode(utf8(text))])
        assert.deepStrictEqual([...other.encode(utf8(text))], [...own.encode(utf8(text), { dummyPrefix: false })])
        const [, model] = tokenizerFiles(vocabulary, { chat: null, contextLength: 2048 })
        assert.strictEqual(
          (yield* readVocabularyFile(yield* write("tokenizer.model", model!.bytes))).digest,
          vocabulary.digest
        )
      })
    )
  )

  it.effect("refuses what would be encoded otherwise, and what is no tokenizer", () =>
    withFiles((write) =>
      Effect.gen(function* () {
        const cases: ReadonlyArray<readonly [name: string, bytes: Uint8Array, reason: RegExp]> = [
          ["a.json", utf8("{"), /a\.json cannot be used as a tokenizer/u],
          ["b.json", yield* changed((json) => void json.model.merges.pop()), /can be put together from pieces in/u],
          ["c.json", yield* changed((json) => void json.model.merges.push("▁never seen")), /is not of pieces/u],
          ["d.json", yield* changed((json) => void (json.normalizer = { type: "NFKC" })), /normalizes or splits/u],
          ["e.json", yield* changed((json) => void (json.model.byte_fallback = false)), /byte_fallback/u],
          ["f.model", utf8("version https://git-lfs.github.com/spec/v1\noid sha256:0"), /not a SentencePiece model/u],
          ["g.model", new Uint8Array(), /no pieces/u]
        ]
        for (const [name, bytes, reason] of cases)
          assert.match(yield* messageOf(yield* write(name, bytes)), reason, name)
        assert.match(yield* messageOf("/nowhere/tokenizer.model"), /nowhere/u)
      })
    )
  )
})
