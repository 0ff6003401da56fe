import { readFileSync } from "node:fs"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Exit, Layer, Cause, Sink, Stdio, Stream } from "effect"
import { Command } from "effect/cli"
import { tokenizerCommand } from "../../src/cli/commands/tokenizer.ts"
import { Ended } from "../../src/cli/Ending.ts"
import { BadLine, byteLines } from "../../src/cli/JsonLines.ts"

const utf8 = (text: string) => new TextEncoder().encode(text)

/** Runs the command with these bytes on standard input, in chunks of 7 so that lines and characters are cut anywhere. */
const run = Effect.fn(function* (args: ReadonlyArray<string>, input: Uint8Array = new Uint8Array()) {
  const written: Array<Uint8Array> = []
  const chunks = Array.from({ length: Math.ceil(input.length / 7) }, (_, i) => input.subarray(7 * i, 7 * i + 7))
  const stdio = Stdio.layerTest({
    stdin: Stream.fromIterable(chunks),
    stdout: () =>
      Sink.forEach((output) => Effect.sync(() => void written.push(typeof output === "string" ? utf8(output) : output)))
  })
  const exit = yield* Command.runWith(tokenizerCommand, { version: "0" })(args).pipe(
    Effect.provide(Layer.merge(NodeServices.layer, stdio)),
    Effect.exit
  )
  return { output: Buffer.concat(written), error: Exit.isFailure(exit) ? Cause.squash(exit.cause) : undefined }
})

describe("tokenizer encode", () => {
  it.effect("prints the ids of a text", () =>
    Effect.gen(function* () {
      assert.strictEqual((yield* run(["encode", "Hello world"])).output.toString(), "[15043,3186]\n")
      const marked = yield* run(["encode", "--bos", "--eos", "--no-dummy-prefix", "Hello"])
      assert.strictEqual(marked.output.toString(), "[1,10994,2]\n")
    })
  )

  it.effect("reads a whole document from standard input as bytes", () =>
    Effect.gen(function* () {
      const { output } = yield* run(["encode"], Buffer.concat([utf8("Hello\n"), Uint8Array.of(0xff)]))
      assert.strictEqual(output.toString(), "[15043,13,30140]\n")
    })
  )

  it.effect("reads golden lines and prints their ids", () =>
    Effect.gen(function* () {
      const golden = readFileSync(new URL("../oracle/tokenizer/golden.jsonl", import.meta.url))
      const { output, error } = yield* run(["encode", "--jsonl"], golden)
      assert.isUndefined(error)
      const ids = (text: string) => text.trimEnd().split("\n")
      assert.deepStrictEqual(
        ids(output.toString()),
        ids(golden.toString()).map((line) =>
          JSON.stringify((JSON.parse(line) as { readonly ids: ReadonlyArray<number> }).ids)
        )
      )
    })
  )

  it.effect("a line without options takes the flags'", () =>
    Effect.gen(function* () {
      const { output } = yield* run(["encode", "--jsonl", "--bos"], utf8('"Hello"\n{"text":"Hello","add_bos":false}'))
      assert.strictEqual(output.toString(), "[1,15043]\n[15043]\n")
    })
  )

  it.effect.each([
    ["{", /line 2: Expected a valid JSON/u],
    ["", /line 2: /u],
    ["[1]", /line 2: /u],
    ['{"ids":[]}', /line 2: Missing key/u],
    ['{"text":"a","bytes_hex":"61"}', /line 2: /u],
    ['{"bytes_hex":"abc"}', /line 2: .*two hexadecimal digits/u],
    ['"\\ud800"', /line 2: .*lone surrogates/u]
  ] as const)("names the line that it cannot read: %s", ([line, message]) =>
    Effect.gen(function* () {
      const { output, error } = yield* run(["encode", "--jsonl"], utf8(`"ok"\n${line}\n"more"\n`))
      assert.strictEqual(output.toString(), "[3431]\n")
      assert.instanceOf(error, BadLine)
      assert.match(error.message, message)
    })
  )

  it.effect("names the line that is not UTF-8", () =>
    Effect.gen(function* () {
      const { error } = yield* run(["encode", "--jsonl"], Uint8Array.of(0x22, 0xff, 0x22, 0x0a))
      assert.strictEqual(error instanceof BadLine ? error.message : error, "line 1: not valid UTF-8")
    })
  )

  it.effect("takes one document, not two", () =>
    Effect.gen(function* () {
      const { error } = yield* run(["encode", "text", "--jsonl"])
      assert.strictEqual(error instanceof Ended ? error.code : error, 2)
    })
  )
})

describe("tokenizer decode", () => {
  it.effect("prints the text of ids, and nothing else", () =>
    Effect.gen(function* () {
      assert.strictEqual((yield* run(["decode", "15043", "3186"])).output.toString(), "Hello world")
    })
  )

  it.effect("turns lines of ids into lines of JSON strings", () =>
    Effect.gen(function* () {
      const { output } = yield* run(["decode", "--jsonl"], utf8("[15043,13,3186]\n[]\n"))
      assert.strictEqual(output.toString(), '"Hello\\n world"\n""\n')
    })
  )

  it.effect("names the line with an id outside the vocabulary", () =>
    Effect.gen(function* () {
      const { error } = yield* run(["decode", "--jsonl"], utf8("[1]\n[32000]\n"))
      assert.match(error instanceof BadLine ? error.message : "", /line 2: token id 32000 is outside the vocabulary/u)
    })
  )
})

describe("byteLines", () => {
  it.effect("cuts at line feeds, wherever the chunks are cut", () =>
    Effect.gen(function* () {
      const lines = (chunks: ReadonlyArray<string>) =>
        Stream.fromIterable(chunks.map(utf8)).pipe(
          byteLines,
          Stream.map((line) => Buffer.from(line).toString()),
          Stream.runCollect
        )
      assert.deepStrictEqual(yield* lines(["a", "b\nc\n\nd", "", "e", "f"]), ["ab", "c", "", "def"])
      assert.deepStrictEqual(yield* lines(["a\n", "b\n"]), ["a", "b"])
      assert.deepStrictEqual(yield* lines([]), [])
    })
  )
})
