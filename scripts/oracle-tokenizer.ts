/**
 * Compares the Llama 2 tokenizer with SentencePiece's library, which Debian's libsentencepiece-dev brings: the committed golden ids, text and code of this
 * machine, texts named on the command line, fuzzed texts, and 10 MB without a space, whose time must grow with their length alone.
 *
 *   npm run oracle:tokenizer [-- TEXTS...] [--fuzz N] [--megabytes N]
 *
 * TEXTS: files and folders; .gz and .zst are decompressed. Exit 1 at the first difference, and where SentencePiece is missing after the golden ids alone.
 */
import { execFile } from "node:child_process"
import { existsSync, readFileSync, statSync } from "node:fs"
import { glob, mkdtemp, rm, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { promisify } from "node:util"
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { Console, Effect, Runtime, Schema } from "effect"
import { Argument, Command, Flag } from "effect/cli"
import { readPieces } from "../src/data/Decompression.ts"
import { loadTokenizer, type Tokenizer } from "../src/engine/Tokenizer.ts"
import { sentencePieceModel } from "../src/model/SentencePieceModel.ts"
import { realCorpora } from "./bench/TextCorpora.ts"

const fromHere = (path: string): string => fileURLToPath(new URL(path, import.meta.url))
const program = fromHere("../build/programs/sentencepiece_oracle")
const goldenFile = fromHere("../test/oracle/tokenizer/golden.jsonl")

class Differs extends Schema.TaggedError<Differs>()("Differs", { message: Schema.String }) {
  override readonly [Runtime.errorExitCode] = 1
}

const Golden = Schema.fromJsonString(
  Schema.Struct({
    text: Schema.optionalKey(Schema.String),
    bytes_hex: Schema.optionalKey(Schema.String),
    ids: Schema.Array(Schema.Int),
    add_bos: Schema.optionalKey(Schema.Boolean),
    add_eos: Schema.optionalKey(Schema.Boolean),
    dummy_prefix: Schema.optionalKey(Schema.Boolean)
  })
)

const golden = Effect.fnUntraced(function* (tokenizer: Tokenizer) {
  const lines = readFileSync(goldenFile, "utf8").trimEnd().split("\n")
  for (const [index, line] of lines.entries()) {
    const {
      add_bos = false,
      add_eos = false,
      bytes_hex,
      dummy_prefix = true,
      ids,
      text = ""
    } = yield* Schema.decodeEffect(Golden)(line)
    const document = bytes_hex === undefined ? Buffer.from(text) : Buffer.from(bytes_hex, "hex")
    const got = tokenizer.encode(document, { addBos: add_bos, addEos: add_eos, dummyPrefix: dummy_prefix })
    if (got.join() !== ids.join())
      return yield* new Differs({ message: `${goldenFile}:${index + 1}: ids differ: ${got.join()}, not ${ids.join()}` })
  }
  yield* Console.log(`golden.jsonl: ${lines.length} documents: equal`)
})

/** The library's program, which compares both sides itself. */
const sentencePiece = (name: string, args: ReadonlyArray<string>): Effect.Effect<void, Differs> =>
  Effect.tryPromise({
    try: () => promisify(execFile)(program, args, { maxBuffer: 2 ** 26 }),
    catch: (cause) => new Differs({ message: `${name}: ${cause instanceof Error ? cause.message : String(cause)}` })
  }).pipe(Effect.flatMap(({ stdout }) => Console.log(`${name}: ${stdout.trimEnd()}`)))

const documentsBelow = async (path: string): Promise<ReadonlyArray<Uint8Array>> => {
  const files: Array<string> = []
  if (statSync(path).isFile()) files.push(path)
  else
    for await (const entry of glob("**", { cwd: path, withFileTypes: true }))
      if (entry.isFile()) files.push(join(entry.parentPath, entry.name))
  return Promise.all(
    files.toSorted().map(async (file) => {
      const pieces: Array<Uint8Array> = []
      for await (const { bytes } of readPieces(file)) pieces.push(bytes)
      return Buffer.concat(pieces)
    })
  )
}

/** Without a space or another place to cut. */
const unbroken = (bytes: number): ReadonlyArray<readonly [name: string, text: Buffer]> => {
  const words = readFileSync(goldenFile, "latin1").replaceAll(/[^a-z]/gu, "")
  const digits = Buffer.alloc((bytes * 3) >> 2)
  for (let i = 0, state = 1; i < digits.length; i++) digits[i] = (state = (state * 48271) % 2147483647) & 255
  return [
    ["a", Buffer.alloc(bytes, "a")],
    ["glued words", Buffer.alloc(bytes, words, "latin1")],
    ["base64", Buffer.from(digits.toString("base64"))]
  ]
}

const growth = Effect.fnUntraced(function* (tokenizer: Tokenizer, name: string, text: Buffer) {
  // CPU time: on a shared machine the wall clock measures the others
  const seconds = (bytes: number): number => {
    const started = process.cpuUsage()
    tokenizer.encode(text.subarray(0, bytes))
    return process.cpuUsage(started).user / 1e6
  }
  seconds(1e6)
  const [one, ten] = [Math.min(seconds(1e6), seconds(1e6)), seconds(1e7)]
  yield* Console.log(
    `10 MB of ${name}: ${ten.toFixed(2)} s (${(10 / ten).toFixed(0)} MB/s), ${(ten / one).toFixed(1)} times 1 MB`
  )
})

const compare = Effect.fnUntraced(function* (options: {
  readonly texts: ReadonlyArray<string>
  readonly fuzz: number
  readonly megabytes: number
}) {
  const tokenizer = yield* loadTokenizer("llama-2")
  yield* golden(tokenizer)
  if (!existsSync(program))
    return yield* new Differs({
      message:
        "SentencePiece itself is not there, so nothing else was compared. Next: apt-get install libsentencepiece-dev, then npm run build:native"
    })
  const folder = yield* Effect.acquireRelease(
    Effect.promise(() => mkdtemp(join(tmpdir(), "tinyllama-oracle-"))),
    (path) => Effect.promise(() => rm(path, { recursive: true, force: true }))
  )
  const model = join(folder, "tokenizer.model")
  yield* Effect.promise(() => writeFile(model, sentencePieceModel(tokenizer.vocabulary)))
  const files = Effect.fnUntraced(function* (name: string, documents: ReadonlyArray<Uint8Array>) {
    const paths = documents.map((_, index) => join(folder, String(index)))
    yield* Effect.promise(() => Promise.all(paths.map((path, index) => writeFile(path, documents[index] ?? ""))))
    yield* Effect.promise(() => writeFile(join(folder, "list"), `${paths.join("\n")}\n`))
    yield* sentencePiece(name, [model, "files", join(folder, "list")])
  })
  for (const path of options.texts) yield* files(path, yield* Effect.promise(() => documentsBelow(path)))
  const corpora = yield* Effect.promise(() => realCorpora((options.megabytes * 1e6) / 2.5))
  for (const { documents, name } of corpora) yield* files(`${name} of this machine`, documents)
  for (const [name, text] of unbroken(1e7)) {
    yield* growth(tokenizer, name, text)
    yield* files(`10 MB of ${name}`, [text])
  }
  yield* sentencePiece("random Unicode, invalid UTF-8, NULs, pieces, repeats", [
    model,
    "fuzz",
    String(options.fuzz),
    "7"
  ])
}, Effect.scoped)

Command.make(
  "oracle-tokenizer",
  {
    texts: Argument.String("TEXTS").pipe(
      Argument.withDescription("More files and folders to compare"),
      Argument.variadic()
    ),
    fuzz: Flag.Int("fuzz").pipe(Flag.withDescription("Fuzzed texts"), Flag.withDefault(1_000_000)),
    megabytes: Flag.Int("megabytes").pipe(
      Flag.withDescription("Text and code of this machine, in MB"),
      Flag.withDefault(50)
    )
  },
  compare
).pipe(
  Command.withDescription("Compare the tokenizer with SentencePiece"),
  Command.run({ version: "0.1.0" }),
  Effect.provide(NodeServices.layer),
  NodeRuntime.runMain
)
