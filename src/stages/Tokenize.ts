/**
 * tokenize: documents become token shards, by the native tokenizer, on bytes. The files are cut into parts that processes may share; finished shards and
 * parts wait in the work folder, and a killed attempt goes on after the last one.
 */
import { copyFile, link, mkdir } from "node:fs/promises"
import { join } from "node:path"
import { Effect, Schema } from "effect"
import { countIn } from "../artifacts/Artifact.ts"
import { policies } from "../data/DocumentReader.ts"
import { readList } from "../data/Documents.ts"
import { longestPart } from "../data/DocumentParts.ts"
import { fileFailure } from "../data/FileFailure.ts"
import { partsOfFiles } from "../data/FileParts.ts"
import { addTallies, publishQuarantine, quarantineFile } from "../data/Quarantine.ts"
import { clash, Condition, fieldsOf, Sample } from "../data/RowFilter.ts"
import { bytesNoted, finishedPart, notedPart } from "../data/ShardNotes.ts"
import { Delimiter, shardName, type TokenPolicy } from "../data/TokenShards.ts"
import { secondsOfBytes } from "../engine/MachineSpeed.ts"
import { carryVocabulary } from "../model/CarriedVocabulary.ts"
import { defineStage, parameter, ShareDone, StageError } from "../pipeline/StageType.ts"
import { forecastTokenize } from "./TextForecast.ts"
import { knownName, observeTokenizer, openTokenizer, tokenizerParameter } from "./TokenizerChoice.ts"
import { tokenizeParts } from "./TokenizeParts.ts"
import { extentOf, namesIn, noteTotal, textOf } from "./WorkExtent.ts"

/** Bytes of text a second and thread, reading, digests and writing included: half of what the tokenizer alone does (docs/performance.md). */
const TOKENIZE_RATE = 40e6

const notBuilt = (error: { readonly message: string }): StageError =>
  new StageError({ failure: "internal", message: error.message, next: "npm run build:native" })

/** What the user asked to leave out, in the log's words; everything else that is passed over is a warning. */
const filtered = new Map([
  ["where", "dropped by where"],
  ["sample", "not in the sample"],
  ["too_short", "shorter than min_chars"],
  ["too_long", "longer than max_chars"]
])

export const tokenizeStage = defineStage({
  name: "tokenize",
  version: 3,
  describe: "Turns documents into token ids, in shards",
  cpus: "all",
  shares: true,
  params: {
    tokenizer: tokenizerParameter("whose vocabulary"),
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
      describe: "the field of a row, or the column, that holds the text; a dotted path leads into objects",
      default: "text"
    }),
    where: parameter(Schema.Array(Condition), {
      change: "identity",
      describe:
        "rows to keep: a list of {field, equals | not | in | not_in}, all of which must hold, for example {field: meta.redpajama_set_name, not: RedPajamaGithub}",
      default: []
    }),
    sample: parameter(Schema.NullOr(Sample), {
      change: "identity",
      describe: "take a share of the documents, {fraction, seed}, chosen by a hash of their text; by default all",
      default: null
    }),
    min_chars: parameter(Schema.NullOr(Schema.Int.check(Schema.isGreaterThan(0))), {
      change: "identity",
      describe: "drop documents of fewer characters",
      default: null
    }),
    max_chars: parameter(Schema.NullOr(Schema.Int.check(Schema.isGreaterThan(0))), {
      change: "identity",
      describe: "drop documents of more characters",
      default: null
    }),
    invalid_utf8: parameter(policies.invalid_utf8, {
      change: "identity",
      describe:
        "what to do with a document that is not UTF-8: error; replace each bad byte by U+FFFD; skip it: into quarantine.jsonl",
      default: "error"
    }),
    bad_rows: parameter(policies.bad_rows, {
      change: "identity",
      describe:
        "what to do with a row that is not JSON or lacks text_field, and with a file that is cut off: error; skip it: into quarantine.jsonl",
      default: "error"
    }),
    shard_bytes: parameter(Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 2 ** 29 })), {
      change: "identity",
      describe: "bytes of text after which a shard is closed, and bytes of files after which a part of the work is",
      default: 2 ** 24
    })
  },
  inputs: {
    documents: {
      type: "Documents",
      many: true,
      describe: "text, jsonl (plain, .gz, .zst), parquet and Arrow files, taken in order"
    }
  },
  outputs: { tokens: { type: "TokenShards", describe: "token ids of every document" } },
  headline: ({ tokens }) => `${countIn(tokens, "tokens")} tokens of ${countIn(tokens, "documents")} documents`,
  observe: ({ tokenizer }, baseDirectory) => observeTokenizer(tokenizer, baseDirectory),
  resumePoint: Effect.fn("tokenize.resumePoint")(function* (work) {
    const folder = join(work, "shards")
    const done = yield* bytesNoted(yield* namesIn(folder), (name) => textOf(join(folder, name)))
    return yield* extentOf(work, done)
  }),
  forecast: (asked, { documents }) => forecastTokenize({ ...asked, tokenizer: knownName(asked.tokenizer) }, documents),
  modelSeconds: ({ amount }, _, threads) => secondsOfBytes(amount, TOKENIZE_RATE * threads),

  run: Effect.fn("tokenize")(function* (context) {
    const { bos, eos, shard_bytes } = context.params
    const { load } = yield* Effect.promise(() => import("../engine/Native.ts"))
    const tokenizer = yield* openTokenizer(context.params.tokenizer, context.baseDirectory)
    const policy: TokenPolicy = {
      tokenizer: tokenizer.name,
      tokenizer_digest: tokenizer.digest,
      vocabulary_size: tokenizer.vocabularySize,
      bos,
      eos
    }
    const files = (yield* Effect.forEach(context.inputs.documents, (handle) =>
      Effect.map(readList(handle), (list) => list.map((file) => ({ ...file, file: join(handle.folder, file.path) })))
    )).flat()
    const { bad_rows, invalid_utf8, max_chars, min_chars, sample, text_field, where } = context.params
    const fields = clash([text_field, ...fieldsOf(where)])
    if (fields !== undefined)
      return yield* new StageError({
        failure: "invalid-input",
        message: `${fields[0]} is asked for as a value, and ${fields[1]} as a field inside it`,
        next: "correct text_field or where"
      })
    const folder = join(context.work, "shards")
    const quarantine = join(context.work, "quarantine")
    yield* Effect.tryPromise({
      try: () => Promise.all([folder, quarantine].map((name) => mkdir(name, { recursive: true }))),
      catch: fileFailure("the work folder")
    })
    const all = partsOfFiles(files, shard_bytes)
    const sum = (parts: ReadonlyArray<{ readonly bytes: number }>) =>
      parts.reduce((bytes, part) => bytes + part.bytes, 0)
    yield* noteTotal(context.work, sum(all), "bytes")

    const { share } = context
    const mine = share === undefined ? all : all.filter(({ index }) => index % share.of === share.index - 1)
    const notes = yield* Effect.forEach(mine, ({ index }) => finishedPart(folder, index))
    const todo = mine.filter((_, index) => notes[index] === undefined)
    const [before, total] = [sum(mine) - sum(todo), sum(mine)]
    if (todo.length < mine.length) context.log(`going on after ${mine.length - todo.length} of ${mine.length} parts`)
    const native = yield* load.pipe(Effect.mapError(notBuilt))
    yield* tokenizeParts({
      files,
      todo,
      folder,
      quarantine,
      native,
      tokenizer,
      policy,
      reading: {
        native,
        textField: text_field,
        filter: { where, sample, minCharacters: min_chars, maxCharacters: max_chars },
        invalidUtf8: invalid_utf8,
        badRows: bad_rows,
        firstInvalidUtf8: (bytes) => tokenizer.firstInvalidUtf8(bytes)
      },
      shardBytes: shard_bytes,
      threads: context.threads,
      stopRequested: context.stopRequested,
      log: context.log,
      report: (done) => context.progress({ done: before + done, total, unit: "bytes" })
    })
    context.progress({ done: total, total, unit: "bytes" })

    const finished = yield* Effect.forEach(all, ({ index }) => notedPart(folder, index))
    const parts = finished.filter((part) => part !== undefined)
    if (share !== undefined) return yield* new ShareDone({ done: parts.length, total: all.length, unit: "parts" })
    const made = parts.flatMap((part) => part.shards)
    const shards = made.map((shard, index) => ({ ...shard, path: shardName(index) }))
    const tokens = shards.reduce((sum, shard) => sum + shard.tokens, 0)
    const documents = shards.reduce((sum, shard) => sum + shard.documents, 0)
    const bytes = shards.reduce((sum, shard) => sum + shard.bytes, 0)
    const tally = addTallies(parts.map((part) => part.tally))
    const { inexact_parts, long_documents, quarantined, replaced, skipped } = tally
    if (documents === 0)
      return yield* new StageError({
        failure: "invalid-input",
        message: `the corpus is empty: ${files.length} files without one document (skipped: ${JSON.stringify(skipped)})`,
        next: "name sources that hold text, or check text_field"
      })
    const output = context.output("tokens")
    for (const [index, { path }] of made.entries()) {
      const [from, to] = [join(folder, path), join(output, shardName(index))]
      yield* Effect.tryPromise({ try: () => link(from, to).catch(() => copyFile(from, to)), catch: fileFailure(path) })
    }
    yield* Effect.mapError(carryVocabulary(output, tokenizer.vocabulary), fileFailure("tokenizer.model"))
    yield* Effect.tryPromise({
      try: () => publishQuarantine(quarantine, join(output, quarantineFile)),
      catch: fileFailure(quarantineFile)
    })
    if (replaced > 0) context.warn(`${replaced} documents hold U+FFFD for what is not UTF-8`)
    if (long_documents > 0)
      context.log(
        `${long_documents} documents of more than ${longestPart} bytes are in ${tally.parts} rows, with the same tokens`
      )
    if (inexact_parts > 0)
      context.warn(
        `${inexact_parts} parts of such documents had to be cut inside a word: they have no line end and no space in ${longestPart} bytes`
      )
    for (const [reason, count] of Object.entries(skipped))
      if (filtered.has(reason)) context.log(`${filtered.get(reason)}: ${count} documents`)
      else context.warn(`skipped ${count} ${reason.replaceAll("_", " ")}`)
    if (quarantined > 0) context.warn(`${quarantined} of these are listed in ${quarantineFile} of the result`)
    context.log(
      `${documents} documents, ${bytes} bytes, ${tokens} tokens (${(bytes / tokens).toFixed(2)} bytes a token), ${shards.length} shards`
    )
    return {
      tokens: {
        ...policy,
        documents,
        tokens,
        bytes,
        skipped,
        quarantined,
        replaced,
        shards
      }
    }
  })
})
