import { createHash } from "node:crypto"
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import type { ArtifactHandle } from "../../src/artifacts/Artifact.ts"
import type { Quarantined } from "../../src/data/DocumentReader.ts"
import { longestPart } from "../../src/data/DocumentParts.ts"
import { encodeList } from "../../src/data/Documents.ts"
import { factsOf, readShard } from "../../src/data/TokenShards.ts"
import { loadTokenizer } from "../../src/engine/Tokenizer.ts"
import { tokenizeStage } from "../../src/stages/Tokenize.ts"
import { artifactOf, filesOf, runStage, temporaryFolder } from "./stage-fixture.ts"

/** A Documents artifact with these files; names ending in .jsonl hold rows. */
const documentsOf = Effect.fnUntraced(function* (files: Readonly<Record<string, string | Buffer>>) {
  const folder = yield* temporaryFolder
  mkdirSync(join(folder, "files"))
  const list = Object.entries(files).map(([name, content]) => {
    const bytes = Buffer.from(content)
    writeFileSync(join(folder, "files", name), bytes)
    return {
      path: `files/${name}`,
      format: name.endsWith(".jsonl") ? ("jsonl" as const) : ("text" as const),
      source: name,
      bytes: bytes.length,
      sha256: createHash("sha256").update(bytes).digest("hex")
    }
  })
  writeFileSync(join(folder, "documents.jsonl"), encodeList(list))
  return artifactOf("Documents", folder, {}, "corpus.documents")
})

const tokensOf = Effect.fnUntraced(function* (handle: ArtifactHandle) {
  const facts = yield* factsOf(handle)
  const parts = yield* Effect.forEach(facts.shards, (shard) => readShard(handle, shard, facts))
  return parts.flat().flatMap((part) =>
    Array.from({ length: part.documents }, (_, row) => ({
      id: part.id(row),
      tokens: [...part.tokens.subarray(part.offsets[row], part.offsets[row + 1])],
      bytes: part.bytes[row]
    }))
  )
})

const tokenize = Effect.fnUntraced(function* (
  files: Readonly<Record<string, string | Buffer>>,
  params: Readonly<Record<string, unknown>> = {}
) {
  const result = yield* runStage(tokenizeStage, { params, inputs: { documents: [yield* documentsOf(files)] } })
  const { tokens } = result.outputs
  return { ...result, facts: yield* factsOf(tokens), documents: yield* tokensOf(tokens) }
})

const refused = (files: Readonly<Record<string, string | Buffer>>, params: Readonly<Record<string, unknown>> = {}) =>
  tokenize(files, params).pipe(
    Effect.flip,
    Effect.map((error) => [error._tag === "StageError" ? error.failure : error._tag, error.message] as const)
  )

const quarantineOf = (handle: ArtifactHandle): ReadonlyArray<Quarantined> =>
  readFileSync(join(handle.folder, "quarantine.jsonl"), "utf8")
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line))

/** `Hello world` under Llama 2's tokenizer, as Hugging Face's LlamaTokenizer gives it. */
const hello = [15043, 3186]

describe("tokenize", () => {
  it.live("texts and rows become documents with their ids, tokens and lengths", () =>
    Effect.gen(function* () {
      const { documents, facts, warnings } = yield* tokenize({
        "a.txt": "Hello world",
        "b.jsonl": '{"text":"Hello world"}\n\n{"text":""}\r\n{"text":"größer 😀\\n","meta":1}',
        "c.txt": ""
      })
      assert.deepStrictEqual(
        documents.map(({ id, bytes }) => [id, bytes]),
        [
          ["a.txt", 11],
          ["b.jsonl#1", 11],
          ["b.jsonl#4", 14]
        ]
      )
      assert.deepStrictEqual(documents[0]?.tokens, [1, ...hello])
      assert.deepStrictEqual(documents[1]?.tokens, [1, ...hello])
      const tokenizer = yield* loadTokenizer("llama-2")
      assert.strictEqual(
        Buffer.from(tokenizer.decode(documents[2]?.tokens ?? []))
          .toString()
          .trimStart(),
        "größer 😀\n"
      )
      const { shards, ...rest } = facts
      assert.strictEqual(shards.length, 1)
      assert.deepStrictEqual(rest, {
        tokenizer: "llama-2",
        tokenizer_digest: tokenizer.digest,
        vocabulary_size: 32000,
        bos: "document",
        eos: "none",
        documents: 3,
        tokens: documents.flatMap(({ tokens }) => tokens).length,
        bytes: 36,
        skipped: { empty_documents: 2 },
        quarantined: 0,
        replaced: 0
      })
      assert.deepStrictEqual(warnings, ["skipped 2 empty documents"])
    })
  )

  it.live("delimiters go where the policy says, and other fields may hold the text", () =>
    Effect.gen(function* () {
      const rows = { "a.jsonl": '{"content":"Hello world"}\n' }
      for (const [bos, eos, expected] of [
        ["none", "none", hello],
        ["none", "document", [...hello, 2]],
        ["document", "document", [1, ...hello, 2]]
      ] as const) {
        const { documents, facts } = yield* tokenize(rows, { text_field: "content", bos, eos })
        assert.deepStrictEqual(documents[0]?.tokens, expected)
        assert.deepStrictEqual([facts.bos, facts.eos], [bos, eos])
      }
    })
  )

  it.live("a document that is not UTF-8 is refused with its place, replaced or skipped", () =>
    Effect.gen(function* () {
      const files = {
        "good.txt": "fine",
        "bad.txt": Buffer.from([0x61, 0x62, 0xff, 0x63]),
        "rows.jsonl": Buffer.concat([Buffer.from('{"text":"x"}\n{"text":"'), Buffer.from([0xc3]), Buffer.from('"}\n')])
      }
      assert.deepStrictEqual(yield* refused(files), ["invalid-input", "bad.txt: not UTF-8 at byte 2 (0xff)"])
      const { "bad.txt": _, ...rows } = files
      assert.deepStrictEqual(yield* refused(rows), ["invalid-input", "rows.jsonl:2: not UTF-8 at byte 9 of the line"])
      const half = { "half.jsonl": '{"text":"x\\ud800"}\n' }
      assert.include((yield* refused(half))[1], "half.jsonl:1: the text holds half of a surrogate pair")
      const replaced = yield* tokenize(files, { invalid_utf8: "replace" })
      assert.deepStrictEqual([replaced.facts.documents, replaced.facts.replaced], [4, 2])
      const tokenizer = yield* loadTokenizer("llama-2")
      assert.strictEqual(Buffer.from(tokenizer.decode(replaced.documents[1]?.tokens ?? [])).toString(), "ab\ufffdc")
      const skipped = yield* tokenize(files, { invalid_utf8: "skip" })
      assert.deepStrictEqual([skipped.facts.documents, skipped.facts.skipped], [2, { invalid_utf8: 2 }])
      assert.include(skipped.warnings, "skipped 2 invalid utf8")
      assert.deepStrictEqual(
        quarantineOf(skipped.outputs.tokens).map(({ file, head, row }) => [file, row, head]),
        [
          ["bad.txt", 1, "ab\ufffdc"],
          ["rows.jsonl", 2, '{"text":"\ufffd"}']
        ]
      )
    })
  )

  it.live("a bad row is refused with file and line, or skipped and counted", () =>
    Effect.gen(function* () {
      const rows = '{"text":"Hello world"}\n{"text":\n{"txt":"x"}\n{"text":5}\n[1]\nnull\n'
      assert.match((yield* refused({ "a.jsonl": rows }))[1], /^a\.jsonl:2: this is not JSON: /)
      assert.deepStrictEqual(yield* refused({ "a.jsonl": '{"txt":"x"}\n' }), [
        "invalid-input",
        'a.jsonl:1: the row has no field "text"; did you mean "txt"?'
      ])
      assert.include((yield* refused({ "a.jsonl": '{"text":5}' }))[1], 'a.jsonl:1: the field "text" is not a string')
      const { facts, documents, outputs } = yield* tokenize({ "a.jsonl": rows }, { bad_rows: "skip" })
      assert.deepStrictEqual(
        [documents.length, facts.skipped, facts.quarantined],
        [1, { not_json: 1, missing_field: 1, not_text: 1, not_an_object: 2 }, 5]
      )
      assert.deepStrictEqual(quarantineOf(outputs.tokens)[0], {
        file: "a.jsonl",
        row: 2,
        offset: 23,
        reason: "not_json",
        message: "this is not JSON: the line ends too early",
        head: '{"text":'
      })
    })
  )

  it.live("an empty corpus is refused", () =>
    Effect.gen(function* () {
      const [failure, message] = yield* refused({ "a.txt": "", "b.jsonl": "\n\n" })
      assert.strictEqual(failure, "invalid-input")
      assert.include(message, "the corpus is empty: 2 files without one document")
    })
  )

  const corpus = {
    "a.txt": "The first text. ".repeat(20),
    "rows.jsonl": Array.from({ length: 40 }, (_, i) =>
      i % 7 === 0 ? "bad" : JSON.stringify({ text: `Row ${i} says ${i * i}. `.repeat(i % 5) })
    ).join("\n"),
    "b.txt": "The last text. ".repeat(3)
  }

  it.live("however often it is stopped, the shards are those of an undisturbed run", () =>
    Effect.gen(function* () {
      const documents = [yield* documentsOf(corpus)]
      const params = { shard_bytes: 150, bad_rows: "skip" }
      const whole = yield* runStage(tokenizeStage, { params, inputs: { documents } })
      assert.isAbove(readdirSync(whole.outputs.tokens.folder).length, 4)
      const work = yield* temporaryFolder
      let stops = 0
      for (let polls = 3; ; polls += 1) {
        const attempt = yield* Effect.result(
          runStage(tokenizeStage, { params, inputs: { documents }, work, stopAfterPolls: polls })
        )
        if (attempt._tag === "Success") {
          assert.deepStrictEqual(filesOf(attempt.success.outputs.tokens.folder), filesOf(whole.outputs.tokens.folder))
          assert.strictEqual(attempt.success.outputs.tokens.digest, whole.outputs.tokens.digest)
          assert.include(attempt.success.logs.join("\n"), "going on after")
          break
        }
        assert.strictEqual(attempt.failure._tag, "Preempted")
        stops++
      }
      assert.isAbove(stops, 3)
    })
  )

  it.live("a finished shard that was damaged meanwhile is made anew", () =>
    Effect.gen(function* () {
      const documents = [yield* documentsOf(corpus)]
      const options = { params: { shard_bytes: 150, bad_rows: "skip" }, inputs: { documents } }
      const whole = yield* runStage(tokenizeStage, options)
      const shard = join(whole.work, "shards", "part-00001-00001.arrow")
      rmSync(shard) // not in place: the published shard is the same file under another name
      writeFileSync(shard, "damaged")
      const again = yield* runStage(tokenizeStage, { ...options, work: whole.work })
      assert.deepStrictEqual(again.logs.slice(0, 2), [
        "going on after 2 of 3 parts",
        "going on after 1 finished shards of part 2"
      ])
      assert.strictEqual(again.outputs.tokens.digest, whole.outputs.tokens.digest)
    })
  )

  it.live("rows of many batches, which are tokenized where the reader left them, beside filtered and small ones", () =>
    Effect.gen(function* () {
      const texts = Array.from({ length: 3000 }, (_, i) => `${i}: ${"one word after another, ".repeat(1 + (i % 300))}`)
      const rows = texts.map((text, i) => JSON.stringify({ text, keep: i % 7 === 0 ? "no" : "yes" }))
      const files = {
        "a.jsonl": rows.slice(0, 2990).join("\n"),
        "b.txt": "small",
        "c.jsonl": rows.slice(2990).join("\n")
      }
      const tokenizer = yield* loadTokenizer("llama-2")
      const encode = (text: string) => [1, ...tokenizer.encode(Buffer.from(text))]
      const { documents } = yield* tokenize(
        { "a.jsonl": files["a.jsonl"], "c.jsonl": files["c.jsonl"] },
        { where: [{ field: "keep", equals: "yes" }], shard_bytes: 3_000_000 }
      )
      assert.deepStrictEqual(
        documents.map(({ tokens }) => tokens),
        texts.filter((_, i) => i % 7 !== 0).map(encode)
      )
      const mixed = yield* tokenize(files)
      assert.deepStrictEqual(
        mixed.documents.map(({ tokens }) => tokens),
        [...texts.slice(0, 2990), "small", ...texts.slice(2990)].map(encode)
      )
    })
  )

  it.live("progress counts bytes up to the whole", () =>
    Effect.gen(function* () {
      const { progress } = yield* tokenize(corpus, { shard_bytes: 100, bad_rows: "skip" })
      const total = Object.values(corpus).reduce((sum, text) => sum + Buffer.byteLength(text), 0)
      assert.deepStrictEqual(progress.at(-1), { done: total, total, unit: "bytes" })
      assert.isTrue(progress.every(({ done }, i) => done >= (progress[i - 1]?.done ?? 0)))
    })
  )

  it.live("several inputs follow each other", () =>
    Effect.gen(function* () {
      const documents = [yield* documentsOf({ "a.txt": "Hello" }), yield* documentsOf({ "b.txt": "world" })]
      const { outputs } = yield* runStage(tokenizeStage, { inputs: { documents } })
      assert.deepStrictEqual(
        (yield* tokensOf(outputs.tokens)).map(({ id }) => id),
        ["a.txt", "b.txt"]
      )
    })
  )

  it.live("a document of many parts has the tokens of the whole, and one BOS and EOS", () =>
    Effect.gen(function* () {
      const line = "A line of text that is repeated, with größe and  two spaces.\n"
      const text = line.repeat(Math.ceil((longestPart * 1.02) / Buffer.byteLength(line)))
      const files = { "long.txt": text, "rows.jsonl": `${JSON.stringify({ text })}\n{"text":"x"}\n` }
      const { documents, logs } = yield* tokenize(files, { eos: "document" })
      const tokenizer = yield* loadTokenizer("llama-2")
      const whole = tokenizer.encode(Buffer.from(text), { addBos: true, addEos: true })
      assert.deepStrictEqual(
        documents.map(({ id }) => id),
        ["long.txt", "long.txt (part 2)", "rows.jsonl#1", "rows.jsonl#1 (part 2)", "rows.jsonl#2"]
      )
      for (const first of [0, 2]) {
        const joined = Int32Array.from([...(documents[first]?.tokens ?? []), ...(documents[first + 1]?.tokens ?? [])])
        assert.isTrue(Buffer.from(joined.buffer).equals(Buffer.from(whole.buffer, whole.byteOffset, whole.byteLength)))
      }
      assert.include(logs.join("\n"), "2 documents of more than 4194304 bytes are in 4 rows")
    })
  )

  it.live("a field that is asked for as a value and as an object is refused", () =>
    Effect.gen(function* () {
      const where = [{ field: "text.length", equals: 1 }]
      assert.include((yield* refused({ "a.jsonl": "{}" }, { where }))[1], "text is asked for as a value")
    })
  )
})
