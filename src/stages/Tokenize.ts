/**
 * tokenize: documents become token shards, by the native tokenizer, on bytes. A shard closes once it holds shard_bytes of text, so its
 * boundaries depend on the documents alone; finished shards wait in the work folder, and a killed attempt goes on after the last one.
 */
import { copyFile, link, mkdir, readFile, rename, writeFile } from "node:fs/promises"
import { join } from "node:path"
import { Effect, Fiber, Schema } from "effect"
import { countIn } from "../artifacts/Artifact.ts"
import { Cursor, policies, readDocuments, start } from "../data/DocumentReader.ts"
import { readList } from "../data/Documents.ts"
import { longestPart } from "../data/DocumentParts.ts"
import { fileFailure } from "../data/FileFailure.ts"
import { sha256OfFile } from "../data/FileDigest.ts"
import { noTally, quarantineFile, QuarantineWriter, Tally, withPassed } from "../data/Quarantine.ts"
import { clash, Condition, fieldsOf, Sample } from "../data/RowFilter.ts"
import { Delimiter, Shard, ShardBuilder, shardName, type TokenPolicy, writeShard } from "../data/TokenShards.ts"
import { BatchEncoder, type Encoded } from "../data/BatchEncoder.ts"
import { secondsOfBytes } from "../engine/MachineSpeed.ts"
import { carryVocabulary } from "../model/CarriedVocabulary.ts"
import { defineStage, parameter, Preempted, StageError } from "../pipeline/StageType.ts"
import { forecastTokenize } from "./TextForecast.ts"
import { knownName, observeTokenizer, openTokenizer, tokenizerParameter } from "./TokenizerChoice.ts"
import { extentOf, namesIn, noteTotal, textOf } from "./WorkExtent.ts"

/** Bytes of text a second and thread, reading, digests and writing included: half of what the tokenizer alone does (docs/performance.md). */
const TOKENIZE_RATE = 40e6

/** Where the reader stands after a shard, and the shard itself: what the next attempt needs. */
const Finished = Schema.fromJsonString(
  Schema.Struct({
    shard: Shard,
    next: Cursor,
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
  version: 2,
  describe: "Turns documents into token ids, in shards",
  cpus: "all",
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
      describe: "bytes of text after which a shard is closed",
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
    let done = 0
    for (const name of yield* namesIn(folder)) {
      if (!name.endsWith(".arrow.json")) continue
      const note = decodeFinished(yield* textOf(join(folder, name)))
      if (note._tag === "Some") done = Math.max(done, note.value.done)
    }
    return yield* extentOf(work, done)
  }),
  forecast: ({ bos, eos, tokenizer }, { documents }) =>
    forecastTokenize({ tokenizer: knownName(tokenizer), bos, eos }, documents),
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
    const total = files.reduce((sum, { bytes }) => sum + bytes, 0)
    const work = join(context.work, "shards")
    yield* Effect.tryPromise({ try: () => mkdir(work, { recursive: true }), catch: fileFailure("the work folder") })

    yield* noteTotal(context.work, total, "bytes")

    const finished = yield* finishedShards(work)
    const shards = finished.map(({ shard }) => shard)
    const last = finished.at(-1)
    if (last !== undefined) context.log(`going on after ${shards.length} finished shards`)
    const { bad_rows, invalid_utf8, max_chars, min_chars, sample, text_field, where } = context.params
    const fields = clash([text_field, ...fieldsOf(where)])
    if (fields !== undefined)
      return yield* new StageError({
        failure: "invalid-input",
        message: `${fields[0]} is asked for as a value, and ${fields[1]} as a field inside it`,
        next: "correct text_field or where"
      })
    const native = yield* load.pipe(Effect.mapError(notBuilt))
    const reader = readDocuments(
      files,
      {
        native,
        textField: text_field,
        filter: { where, sample, minCharacters: min_chars, maxCharacters: max_chars },
        invalidUtf8: invalid_utf8,
        badRows: bad_rows,
        firstInvalidUtf8: (bytes) => tokenizer.firstInvalidUtf8(bytes)
      },
      last?.next ?? start
    )
    let cursor = last?.next ?? start
    let done = last?.done ?? 0
    let tally: Tally = last?.tally ?? noTally
    const quarantine = yield* Effect.try({
      try: () => new QuarantineWriter(join(context.work, "quarantine"), shards.length),
      catch: fileFailure("the work folder")
    })
    const report = (): void => context.progress({ done, total, unit: "bytes" })

    // One shard is written while the next is gathered.
    let [builder, spare] = [new ShardBuilder(policy.vocabulary_size), new ShardBuilder(policy.vocabulary_size)]
    let closing: Fiber.Fiber<void, StageError> | undefined
    const write = Effect.fnUntraced(function* (full: ShardBuilder, at: Omit<typeof Finished.Type, "shard">) {
      const name = shardName(shards.length)
      const shard = { ...(yield* writeShard(full, work, `${name}.part`, policy)), path: name }
      yield* Effect.tryPromise({
        try: async () => {
          // the note comes last: it vouches for the shard
          await rename(join(work, `${name}.part`), join(work, name))
          await writeFile(join(work, `${name}.json.part`), JSON.stringify({ shard, ...at }))
          await rename(join(work, `${name}.json.part`), join(work, `${name}.json`))
        },
        catch: fileFailure(name)
      })
      shards.push(shard)
      full.clear()
      native.releaseFreeMemory()
    })
    const settle = Effect.suspend(() => (closing === undefined ? Effect.void : Fiber.join(closing)))
    const close = Effect.fnUntraced(function* () {
      yield* settle
      yield* Effect.try({ try: () => quarantine.nextShard(), catch: fileFailure("the quarantine") })
      const full = builder
      ;[builder, spare] = [spare, builder]
      closing = yield* Effect.forkChild(write(full, { next: cursor, done, tally }))
      report()
    })
    /** Enters what a batch gave, in order; a shard closes behind the document that fills it. */
    const enter = Effect.fnUntraced(function* ({ encoded, entries }: Encoded) {
      let document = 0
      for (const entry of entries) {
        if (context.stopRequested()) {
          yield* settle
          return yield* new Preempted({ message: `stopped after ${shards.length} shards, which are kept` })
        }
        cursor = entry.next
        done = entry.done
        if (entry.kind === "passed") {
          tally = withPassed(tally, entry)
          if (entry.quarantined === undefined) continue
          const { quarantined } = entry
          yield* Effect.try({ try: () => quarantine.add(quarantined), catch: fileFailure("the quarantine") })
          continue
        }
        const { exact, first, id, last: whole, length, replaced } = entry
        const [from, to] = [encoded.offsets[document], encoded.offsets[document + 1]]
        builder.add(id, encoded.ids.subarray(from, to), length)
        document++
        if (replaced) tally = { ...tally, replaced: tally.replaced + 1 }
        if (!first || !whole)
          tally = {
            ...tally,
            long_documents: tally.long_documents + (first ? 1 : 0),
            parts: tally.parts + 1,
            inexact_parts: tally.inexact_parts + (exact ? 0 : 1)
          }
        if (builder.textBytes >= shard_bytes) yield* close()
      }
    })

    const encoder = new BatchEncoder(tokenizer, { bos, eos, threads: context.threads })
    const read = Effect.gen(function* () {
      let shown = done
      // While one batch is tokenized, on threads of its own, the next is read.
      let running: Fiber.Fiber<Encoded> | undefined
      for (;;) {
        const batch = yield* Effect.tryPromise({ try: () => reader.next(), catch: fileFailure("the documents") })
        const ended = batch.done === true
        const full = ended || encoder.add(batch.value)
        if (!full) continue
        const finished = running === undefined ? undefined : yield* Fiber.join(running)
        running = yield* Effect.forkChild(encoder.start(), { startImmediately: true })
        if (finished !== undefined) yield* enter(finished)
        if (ended) return yield* enter(yield* Fiber.join(running))
        yield* Effect.yieldNow // lets signals and progress through
        if (done - shown >= total / 200) {
          report()
          shown = done
        }
      }
    })
    yield* Effect.ensuring(
      read,
      Effect.promise(() => reader.return(undefined))
    )
    if (builder.documents > 0) yield* close()
    yield* settle

    const tokens = shards.reduce((sum, shard) => sum + shard.tokens, 0)
    const documents = shards.reduce((sum, shard) => sum + shard.documents, 0)
    const bytes = shards.reduce((sum, shard) => sum + shard.bytes, 0)
    const { inexact_parts, long_documents, parts, quarantined, replaced, skipped } = tally
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
    yield* Effect.mapError(carryVocabulary(output, tokenizer.vocabulary), fileFailure("tokenizer.model"))
    yield* Effect.tryPromise({
      try: () => quarantine.publish(join(output, quarantineFile)),
      catch: fileFailure(quarantineFile)
    })
    done = total
    report()
    if (replaced > 0) context.warn(`${replaced} documents hold U+FFFD for what is not UTF-8`)
    if (long_documents > 0)
      context.log(
        `${long_documents} documents of more than ${longestPart} bytes are in ${parts} rows, with the same tokens`
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
    return { tokens: { ...policy, documents, tokens, bytes, skipped, quarantined, replaced, shards } }
  })
})
