/** `tinyllama tokenizer encode|decode`: the tokenizer by itself, for looking and for comparing with other implementations. */
import { Console, Effect, FileSystem, Option, Schema, Stdio, Stream } from "effect"
import { Argument, Command, Flag } from "effect/cli"
import type { EncodeOptions } from "../../engine/Native.ts"
import { loadTokenizer } from "../../engine/Tokenizer.ts"
import { Ended } from "../Ending.ts"
import { BadLine, byteLines, decodeLines } from "../JsonLines.ts"

const LineOptions = {
  add_bos: Schema.optionalKey(Schema.Boolean),
  add_eos: Schema.optionalKey(Schema.Boolean),
  dummy_prefix: Schema.optionalKey(Schema.Boolean)
}
/** A line of `encode --jsonl`; what an object does not say comes from the flags, what else it says is not looked at. */
const DocumentLine = Schema.Union([
  Schema.String.check(wellFormed()),
  Schema.Struct({
    text: Schema.String.check(wellFormed()),
    bytes_hex: Schema.optionalKey(Schema.Never),
    ...LineOptions
  }),
  Schema.Struct({
    text: Schema.optionalKey(Schema.Never),
    bytes_hex: Schema.String.check(
      Schema.isPattern(/^([0-9a-f]{2})*$/iu, { message: "two hexadecimal digits a byte" })
    ),
    ...LineOptions
  })
])
const documentForm =
  'write each line as a JSON string, or as an object like {"text": "…", "add_bos": true} or {"bytes_hex": "ff0a"}'

const IdsLine = Schema.Array(Schema.Int)
const idsForm = "write each line as a JSON array of ids below the vocabulary's size, like [1, 15043]"

class UnknownId extends Schema.TaggedError<UnknownId>()("UnknownId", { message: Schema.String }) {
  get next() {
    return "give ids that `tinyllama tokenizer encode` printed"
  }
}

const encode = Command.make(
  "encode",
  {
    text: Argument.String("text").pipe(
      Argument.optional,
      Argument.withDescription("The document; without it, --file or --jsonl, all of standard input is one")
    ),
    file: Flag.File("file", { mustExist: true }).pipe(
      Flag.optional,
      Flag.withDescription("The document is this file, byte by byte")
    ),
    jsonl: Flag.Boolean("jsonl").pipe(
      Flag.withDefault(false),
      Flag.withDescription(
        "Every line of standard input is a document: a JSON string, or an object with text or bytes_hex"
      )
    ),
    bos: Flag.Boolean("bos").pipe(Flag.withDefault(false), Flag.withDescription("Begin with <s>")),
    eos: Flag.Boolean("eos").pipe(Flag.withDefault(false), Flag.withDescription("End with </s>")),
    dummyPrefix: Flag.Boolean("dummy-prefix").pipe(
      Flag.withDefault(true),
      Flag.withDescription(
        "Put SentencePiece's ▁ in front of the text, as the model expects; --no-dummy-prefix leaves it out"
      )
    )
  },
  Effect.fn(function* (flags) {
    if (Number(Option.isSome(flags.text)) + Number(Option.isSome(flags.file)) + Number(flags.jsonl) > 1) {
      return yield* misused("a text, --file and --jsonl: give one of them")
    }
    const { stdin } = yield* Stdio.Stdio
    const tokenizer = yield* loadTokenizer("llama-2")
    const options = { addBos: flags.bos, addEos: flags.eos, dummyPrefix: flags.dummyPrefix }
    const ids = (document: Uint8Array, chosen: EncodeOptions) => `[${tokenizer.encode(document, chosen).join(",")}]\n`
    if (flags.jsonl) {
      return yield* stdin.pipe(
        byteLines,
        decodeLines(DocumentLine, documentForm),
        Stream.map(([line]) => ids(bytesOf(line), optionsOf(line, options))),
        print
      )
    }
    const fs = yield* FileSystem.FileSystem
    const document = Option.isSome(flags.text)
      ? new TextEncoder().encode(flags.text.value)
      : yield* Option.isSome(flags.file) ? fs.readFile(flags.file.value) : Stream.mkUint8Array(stdin)
    return yield* print(Stream.succeed(ids(document, options)))
  })
).pipe(
  Command.withDescription("Print the ids of a document as a JSON array"),
  Command.withExamples([
    { command: 'tinyllama tokenizer encode "Hello world"' },
    { command: "tinyllama tokenizer encode --jsonl < documents.jsonl" }
  ])
)

const decode = Command.make(
  "decode",
  {
    ids: Argument.Int("id").pipe(
      Argument.variadic(),
      Argument.withDescription("Token ids; their text is printed as it is")
    ),
    jsonl: Flag.Boolean("jsonl").pipe(
      Flag.withDefault(false),
      Flag.withDescription(
        "Every line of standard input is a JSON array of ids; each text is printed as a JSON string on a line"
      )
    )
  },
  Effect.fn(function* (flags) {
    if (flags.ids.length > 0 === flags.jsonl) return yield* misused("decode needs ids or --jsonl, one of them")
    const { stdin, stdoutIsTerminal } = yield* Stdio.Stdio
    const tokenizer = yield* loadTokenizer("llama-2")
    const text = (ids: ReadonlyArray<number>) =>
      Effect.try({
        try: () => tokenizer.decode(ids),
        catch: (cause) => new UnknownId({ message: cause instanceof Error ? cause.message : String(cause) })
      })
    if (flags.jsonl) {
      return yield* stdin.pipe(
        byteLines,
        decodeLines(IdsLine, idsForm),
        Stream.mapEffect(([ids, line]) =>
          Effect.mapError(text(ids), ({ message }) => new BadLine({ line, reason: message, next: idsForm }))
        ),
        Stream.map((bytes) => `${JSON.stringify(new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes))}\n`),
        print
      )
    }
    const bytes = yield* text(flags.ids)
    // A shell's prompt should not stand behind the text; in a file or a pipe the bytes are the text and nothing else.
    return yield* print((yield* stdoutIsTerminal) ? Stream.make(bytes, "\n") : Stream.succeed(bytes))
  })
).pipe(
  Command.withDescription("Print the text of token ids"),
  Command.withExamples([{ command: "tinyllama tokenizer decode 15043 3186" }])
)

export const tokenizerCommand = Command.make("tokenizer").pipe(
  Command.withDescription("Turn text into Llama 2's token ids and back"),
  Command.withSubcommands([encode, decode])
)

const bytesOf = (line: typeof DocumentLine.Type): Uint8Array => {
  if (typeof line === "string") return new TextEncoder().encode(line)
  return line.text !== undefined ? new TextEncoder().encode(line.text) : Buffer.from(line.bytes_hex, "hex")
}

const optionsOf = (line: typeof DocumentLine.Type, defaults: EncodeOptions): EncodeOptions => {
  if (typeof line === "string") return defaults
  const { add_bos = defaults.addBos, add_eos = defaults.addEos, dummy_prefix = defaults.dummyPrefix } = line
  return { addBos: add_bos, addEos: add_eos, dummyPrefix: dummy_prefix }
}

/** Half a surrogate pair has no UTF-8: JavaScript would make it U+FFFD without a word. */
function wellFormed() {
  return Schema.makeFilter((text: string) =>
    text.isWellFormed() ? undefined : "text without lone surrogates (give such bytes as bytes_hex)"
  )
}

const misused = (message: string) =>
  Effect.andThen(Console.error(`${message}\nTry: tinyllama tokenizer --help`), new Ended({ code: 2 }))

const print = Effect.fnUntraced(function* <E, R>(output: Stream.Stream<string | Uint8Array, E, R>) {
  const stdio = yield* Stdio.Stdio
  yield* Stream.run(output, stdio.stdout())
})
