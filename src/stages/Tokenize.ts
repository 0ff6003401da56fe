/**
 * tokenize: documents become token shards, by the native tokenizer, on bytes. A shard closes once it holds shard_bytes of text, so its
 * boundaries depend on the documents alone; finished shards wait in the work folder, and a killed attempt goes on after the last one.
 */
import { copyFile, link, mkdir, readFile, rename, writeFile } from "node:fs/promises"
import { join } from "node:path"
import { Effect, Schema } from "effect"
import { countIn } from "../artifacts/Artifact.ts"
import { type Cursor, type DocumentBytes, openReader, policies, Tally } from "../data/DocumentReader.ts"
import { readList } from "../data/Documents.ts"
import { fileFailure } from "../data/FileFailure.ts"
import { sha256OfFile } from "../data/FileDigest.ts"
import { Delimiter, Shard, ShardBuilder, shardName, type TokenPolicy, writeShard } from "../data/TokenShards.ts"
import { secondsOfBytes } from "../engine/MachineSpeed.ts"
import { TokenizerName } from "../model/Vocabulary.ts"
import { defineStage, parameter, Preempted, StageError } from "../pipeline/StageType.ts"
import { forecastTokenize } from "./TextForecast.ts"
import { extentOf, namesIn, noteTotal, textOf } from "./WorkExtent.ts"

/** Bytes of text a second on the one core that it takes: the tokenizer's 40 to 50 MB/s (docs/performance.md), and reading, digests, writing. */
const TOKENIZE_RATE = 15e6

/** Where the reader stands after a shard, and the shard itself: what the next attempt needs. */
const Finished = Schema.fromJsonString(
  Schema.Struct({
    shard: Shard,
    next: Schema.Struct({ file: Schema.Int, offset: Schema.Int, line: Schema.Int }),
    /** Bytes of the documents' files that were read so far. */
    done: Schema.Int,
    tally: Tally
  })
)

const decodeFinished = Schema.decodeUnknownOption(Finished)

/** The finished shards in `work` that are as they were left; the first that is not ends the list. */
const finishedShards = Effect.fnUntraced(function* (work: string) {
  const finished: Array<typeof Finished.Type> = []
  for (;;) {
    const name = shardName(finished.length)
    const text = yield* Effect.promise(() => readFile(join(work, `${name}.json`), "utf8").catch(() => ""))
    const note = decodeFinished(text)
    if (note._tag === "None") return finished
    const sha256 = yield* Effect.option(sha256OfFile(join(work, name), name))
    if (sha256._tag === "None" || sha256.value !== note.value.shard.sha256) return finished
    finished.push(note.value)
  }
})

export const tokenizeStage = defineStage({
  name: "tokenize",
  version: 1,
  describe: "Turns documents into token ids, in shards",
  params: {
    tokenizer: parameter(TokenizerName, { change: "identity", describe: "whose vocabulary", default: "llama-2" }),
    bos: parameter(Delimiter, {
      change: "identity",
      describe: "document: <s> in front of every document, as in TinyLlama's run; none",
      default: "document"
    }),
    eos: parameter(Delimiter, {
      change: "identity",
      describe: "document: </s> after every document; none, as in TinyLlama's run",
      default: "none"
    }),
    text_field: parameter(Schema.NonEmptyString, {
      change: "identity",
      describe: "the field of a jsonl row that holds the text",
      default: "text"
    }),
    invalid_utf8: parameter(policies.invalid_utf8, {
      change: "identity",
      describe: "what to do with a document that is not UTF-8: error; replace each bad byte by U+FFFD; skip it",
      default: "error"
    }),
    bad_rows: parameter(policies.bad_rows, {
      change: "identity",
      describe: "what to do with a jsonl row that is not JSON or lacks text_field: error; skip it",
      default: "error"
    }),
    shard_bytes: parameter(Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 2 ** 29 })), {
      change: "identity",
      describe: "bytes of text after which a shard is closed",
      default: 2 ** 24
    })
  },
  inputs: { documents: { type: "Documents", many: true, describe: "text files and jsonl, taken in order" } },
  outputs: { tokens: { type: "TokenShards", describe: "token ids of every document" } },
  headline: ({ tokens }) => `${countIn(tokens, "tokens")} tokens of ${countIn(tokens, "documents")} documents`,
  resumePoint: Effect.fn("tokenize.resumePoint")(function* (work) {
    const folder = join(work, "shards")
    let done = 0
    for (const name of yield* namesIn(folder)) {
      if (!name.endsWith(".arrow.json")) continue
      const note = decodeFinished(yield* textOf(join(folder, name)))
      if (note._tag === "Some") done = Math.max(done, note.value.done)
    }
    return yield* extentOf(work, done)
  }),
  forecast: ({ bos, eos, tokenizer }, { documents }) => forecastTokenize({ tokenizer, bos, eos }, documents),
  modelSeconds: ({ amount }) => secondsOfBytes(amount, TOKENIZE_RATE),

  run: Effect.fn("tokenize")(function* (context) {
    const { bos, eos, shard_bytes } = context.params
    const { loadTokenizer } = yield* Effect.promise(() => import("../engine/Tokenizer.ts"))
    const tokenizer = yield* loadTokenizer(context.params.tokenizer).pipe(
      Effect.mapError(
        (error) => new StageError({ failure: "internal", message: error.message, next: "npm run build:native" })
      )
    )
    const policy: TokenPolicy = {
      tokenizer: tokenizer.name,
      tokenizer_digest: tokenizer.digest,
      vocabulary_size: tokenizer.vocabularySize,
      bos,
      eos
    }
    const options = { addBos: bos === "document", addEos: eos === "document", dummyPrefix: true }
    const files = (yield* Effect.forEach(context.inputs.documents, (handle) =>
      Effect.map(readList(handle), (list) => list.map((file) => ({ ...file, file: join(handle.folder, file.path) })))
    )).flat()
    const total = files.reduce((sum, { bytes }) => sum + bytes, 0)
    const work = join(context.work, "shards")
    yield* Effect.tryPromise({ try: () => mkdir(work, { recursive: true }), catch: fileFailure("the work folder") })

    yield* noteTotal(context.work, total, "bytes")

    const finished = yield* finishedShards(work)
    const shards = finished.map(({ shard }) => shard)
    const last = finished.at(-1)
    if (last !== undefined) context.log(`going on after ${shards.length} finished shards`)
    const reader = openReader(files, {
      textField: context.params.text_field,
      invalidUtf8: context.params.invalid_utf8,
      badRows: context.params.bad_rows,
      firstInvalidUtf8: (bytes) => tokenizer.firstInvalidUtf8(bytes),
      from: last?.next ?? { file: 0, offset: 0, line: 1 },
      tally: last?.tally ?? { skipped: {}, replaced: 0 }
    })
    const bytesBefore = ({ file, offset }: Cursor): number =>
      files.slice(0, file).reduce((sum, { bytes }) => sum + bytes, offset)
    const report = (cursor: Cursor): void => context.progress({ done: bytesBefore(cursor), total, unit: "bytes" })

    let builder = new ShardBuilder()
    const close = Effect.fnUntraced(function* () {
      const name = shardName(shards.length)
      const shard = yield* writeShard(builder, work, `${name}.part`, policy)
      const note = {
        shard: { ...shard, path: name },
        next: reader.cursor(),
        done: bytesBefore(reader.cursor()),
        tally: reader.tally()
      }
      yield* Effect.tryPromise({
        try: async () => {
          // the note comes last: it vouches for the shard
          await rename(join(work, `${name}.part`), join(work, name))
          await writeFile(join(work, `${name}.json.part`), JSON.stringify(note))
          await rename(join(work, `${name}.json.part`), join(work, `${name}.json`))
        },
        catch: fileFailure(name)
      })
      shards.push(note.shard)
      builder = new ShardBuilder()
      report(note.next)
    })
    const add = ({ id, bytes, length }: DocumentBytes): void =>
      builder.add(id, tokenizer.encode(bytes, options), length)

    let sinceYield = 0
    let sinceReport = 0
    for (;;) {
      if (context.stopRequested())
        return yield* new Preempted({ message: `stopped after ${shards.length} shards, which are kept` })
      const document = yield* reader.next
      if (document === undefined) break
      add(document)
      sinceYield += document.length
      sinceReport += document.length
      if (builder.textBytes >= shard_bytes) yield* close()
      else if (sinceReport >= total / 200) {
        report(reader.cursor())
        sinceReport = 0
      }
      if (sinceYield >= 2 ** 18) {
        yield* Effect.yieldNow // lets signals and progress through
        sinceYield = 0
      }
    }
    if (builder.documents > 0) yield* close()

    const tokens = shards.reduce((sum, shard) => sum + shard.tokens, 0)
    const documents = shards.reduce((sum, shard) => sum + shard.documents, 0)
    const bytes = shards.reduce((sum, shard) => sum + shard.bytes, 0)
    const { skipped, replaced } = reader.tally()
    if (documents === 0)
      return yield* new StageError({
        failure: "invalid-input",
        message: `the corpus is empty: ${files.length} files without one document (skipped: ${JSON.stringify(skipped)})`,
        next: "name sources that hold text, or check text_field"
      })
    const output = context.output("tokens")
    for (const { path } of shards)
      yield* Effect.tryPromise({
        try: () =>
          link(join(work, path), join(output, path)).catch(() => copyFile(join(work, path), join(output, path))),
        catch: fileFailure(path)
      })
    report({ file: files.length, offset: 0, line: 1 })
    if (replaced > 0) context.warn(`${replaced} documents hold U+FFFD for what is not UTF-8`)
    for (const [reason, count] of Object.entries(skipped))
      context.warn(`skipped ${count} ${reason.replaceAll("_", " ")}`)
    context.log(
      `${documents} documents, ${bytes} bytes, ${tokens} tokens (${(bytes / tokens).toFixed(2)} bytes a token), ${shards.length} shards`
    )
    return { tokens: { ...policy, documents, tokens, bytes, skipped, replaced, shards } }
  })
})
