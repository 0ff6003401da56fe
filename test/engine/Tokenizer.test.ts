import { readFileSync } from "node:fs"
import { assert, describe, it } from "@effect/vitest"
import { Cause, Effect, Exit } from "effect"
import { loadTokenizer } from "../../src/engine/Tokenizer.ts"

interface Golden {
  readonly text?: string
  readonly bytes_hex?: string
  readonly ids: ReadonlyArray<number>
  readonly add_bos?: boolean
  readonly add_eos?: boolean
  readonly dummy_prefix?: boolean
}

const golden = readFileSync(new URL("../oracle/tokenizer/golden.jsonl", import.meta.url), "utf8")
  .trimEnd()
  .split("\n")
  .map((line) => JSON.parse(line) as Golden)

const utf8 = (text: string) => new TextEncoder().encode(text)
const textOf = (bytes: Uint8Array) => new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes)

const bytesOf = (ids: Uint16Array | Uint32Array, offsets: Uint32Array, document: number) => {
  const part = ids.subarray(offsets[document], offsets[document + 1])
  return Buffer.from(part.buffer, part.byteOffset, part.byteLength)
}

describe("Tokenizer", () => {
  it.effect("gives SentencePiece's ids for every golden document", () =>
    Effect.gen(function* () {
      const tokenizer = yield* loadTokenizer("llama-2")
      assert.strictEqual(golden.length, 536)
      for (const { text, bytes_hex = "", ids, add_bos = false, add_eos = false, dummy_prefix = true } of golden) {
        const document = text === undefined ? Buffer.from(bytes_hex, "hex") : utf8(text)
        const got = tokenizer.encode(document, { addBos: add_bos, addEos: add_eos, dummyPrefix: dummy_prefix })
        assert.deepStrictEqual([...got], ids, JSON.stringify(text ?? bytes_hex))
      }
    })
  )

  it.effect("decodes back every golden text, but for a written ▁, which is a space", () =>
    Effect.gen(function* () {
      const tokenizer = yield* loadTokenizer("llama-2")
      for (const { text, ids, dummy_prefix = true } of golden) {
        if (text === undefined || !dummy_prefix) continue
        assert.strictEqual(textOf(tokenizer.decode(ids)), text.replaceAll("▁", " "))
      }
    })
  )

  it.effect("decodes special, unknown and broken byte pieces as SentencePiece does", () =>
    Effect.gen(function* () {
      const { decode } = yield* loadTokenizer("llama-2")
      const cases: ReadonlyArray<readonly [ids: ReadonlyArray<number>, text: string]> = [
        [[], ""],
        [[1, 15043, 3186, 2], "Hello world"],
        [[1, 29871, 15043], " Hello"],
        [[10994, 15043], "Hello Hello"],
        [[29871, 29871], " "],
        [[0], " ⁇ "],
        [[15043, 0, 3186], "Hello ⁇  world"],
        [[3 + 0xff, 3 + 0x41], "\uFFFDA"],
        [[3 + 0xe4, 3 + 0xb8, 15043], "\uFFFD\uFFFD Hello"],
        [[3 + 0xe4, 3 + 0xb8, 3 + 0xad], "中"]
      ]
      for (const [ids, text] of cases) assert.strictEqual(textOf(decode(ids)), text, JSON.stringify(ids))
    })
  )

  it.effect("refuses ids outside the vocabulary", () =>
    Effect.gen(function* () {
      const { decode } = yield* loadTokenizer("llama-2")
      assert.throws(() => decode([32_000]), /token id 32000 is outside the vocabulary of 32000 pieces/u)
      assert.throws(() => decode([-1]), /token id -1 is outside/u)
    })
  )

  it.effect("says where a document stops being UTF-8", () =>
    Effect.gen(function* () {
      const { firstInvalidUtf8 } = yield* loadTokenizer("llama-2")
      assert.strictEqual(firstInvalidUtf8(utf8("plain, é, 中 and 😀")), -1)
      assert.strictEqual(firstInvalidUtf8(Uint8Array.of(0x61, 0xc3, 0xa9, 0xff)), 3)
      assert.strictEqual(firstInvalidUtf8(utf8("cut: 中").subarray(0, 7)), 5)
    })
  )

  it.effect("reads a view into a larger buffer", () =>
    Effect.gen(function* () {
      const { encode } = yield* loadTokenizer("llama-2")
      assert.deepStrictEqual([...encode(utf8("xxHello worldxx").subarray(2, 13))], [15043, 3186])
    })
  )

  it.effect("encodes many documents at once, on any number of threads, as one by one", () =>
    Effect.gen(function* () {
      const { encode, encodeBatch, encodeRanges } = yield* loadTokenizer("llama-2")
      const lines = "  if (a) {\n\n    return é\n".repeat(60_000)
      const texts = [...golden.map(({ text = "" }) => text), "", lines, "the end"].map(utf8)
      const offsets = new Uint32Array(texts.length + 1)
      for (const [i, text] of texts.entries()) offsets[i + 1] = offsets[i]! + text.length
      const options = { addBos: true, addEos: true }
      const expected = texts.map((text) => encode(text, options))
      for (const threads of [1, 2, 5]) {
        const batch = yield* encodeBatch(Buffer.concat(texts), offsets, { ...options, threads })
        assert.instanceOf(batch.ids, Uint16Array)
        assert.strictEqual(batch.offsets.length, texts.length + 1)
        assert.strictEqual(batch.offsets[texts.length], batch.ids.length)
        for (const [i, ids] of expected.entries()) {
          assert.isTrue(
            Buffer.from(Uint16Array.from(ids).buffer).equals(bytesOf(batch.ids, batch.offsets, i)),
            `document ${i}`
          )
        }
      }
      const backwards = texts.map((_, i) => texts.length - 1 - i)
      const ranges = backwards.flatMap((i) => [offsets[i]!, offsets[i + 1]!])
      const batch = yield* encodeRanges(Buffer.concat(texts), Uint32Array.from(ranges), { ...options, threads: 3 })
      for (const [at, i] of backwards.entries())
        assert.isTrue(
          Buffer.from(Uint16Array.from(expected[i]!).buffer).equals(bytesOf(batch.ids, batch.offsets, at)),
          `document ${i}, out of order`
        )
      const nothing = yield* encodeBatch(new Uint8Array(), Uint32Array.of(0), { threads: 1 })
      assert.deepStrictEqual([nothing.ids.length, [...nothing.offsets]], [0, [0]])
    })
  )

  it.effect("refuses batches whose offsets leave the text, descend, or are none", () =>
    Effect.gen(function* () {
      const { encodeBatch, encodeRanges } = yield* loadTokenizer("llama-2")
      for (const offsets of [[0, 6], [3, 2], []]) {
        const exit = yield* Effect.exit(encodeBatch(utf8("text"), Uint32Array.from(offsets), { threads: 1 }))
        assert.match(String(Exit.isFailure(exit) && Cause.squash(exit.cause)), /the offsets of a batch/u)
      }
      for (const [ranges, reason] of [
        [[0, 5], /lie inside the text/u],
        [[3, 2], /lie inside the text/u],
        [[0], /a begin and an end/u]
      ] as const) {
        const refused = yield* Effect.exit(encodeRanges(utf8("text"), Uint32Array.from(ranges), { threads: 1 }))
        assert.match(String(Exit.isFailure(refused) && Cause.squash(refused.cause)), reason)
      }
      const exit = yield* Effect.exit(encodeBatch(utf8("text"), Uint32Array.of(0, 4), { threads: 0 }))
      assert.match(String(Exit.isFailure(exit) && Cause.squash(exit.cause)), /threads/u)
    })
  )

  it.effect("encodes a megabyte without a space in it", () =>
    Effect.gen(function* () {
      const { encode, decode } = yield* loadTokenizer("llama-2")
      const text = "a".repeat(1 << 20)
      assert.strictEqual(textOf(decode(encode(utf8(text)))), text)
    })
  )

  it.effect("describes itself", () =>
    Effect.gen(function* () {
      const { name, vocabularySize, bos, eos, digest, vocabulary } = yield* loadTokenizer("llama-2")
      assert.deepStrictEqual(
        { name, vocabularySize, bos, eos },
        { name: "llama-2", vocabularySize: 32_000, bos: 1, eos: 2 }
      )
      assert.strictEqual(digest, vocabulary.digest)
    })
  )
})
