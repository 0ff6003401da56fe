/**
 * import-packed: files of lit-gpt's PackedDataset become token shards, so that data prepared for TinyLlama is not lost. The files hold tokens end to end,
 * across files of one writer; documents begin at BOS or end at EOS, as the file's policy says.
 */
import { join } from "node:path"
import { Effect, Schema } from "effect"
import { countIn } from "../artifacts/Artifact.ts"
import { readList } from "../data/Documents.ts"
import { fileFailure } from "../data/FileFailure.ts"
import { readLitFile } from "../data/LitPacked.ts"
import { Delimiter, type Shard, ShardBuilder, shardName, type TokenPolicy, writeShard } from "../data/TokenShards.ts"
import { secondsOfBytes } from "../engine/MachineSpeed.ts"
import { carryVocabulary } from "../model/CarriedVocabulary.ts"
import { defineStage, parameter, Preempted, StageError } from "../pipeline/StageType.ts"
import { forecastImport } from "./TextForecast.ts"
import { knownName, observeTokenizer, openTokenizer, tokenizerParameter } from "./TokenizerChoice.ts"

/** Bytes of tokens a second: read, cut, decoded to know their text's length, written. */
const IMPORT_RATE = 20e6

/** Longer documents are cut here, into documents without delimiter in between. */
const longestDocument = 2 ** 22

/** Files of one writer are numbered behind the last underscore: a document goes on from one to the next. */
const writerOf = (source: string): string => source.replace(/_\d+\.bin$/u, "")

export const importPackedStage = defineStage({
  name: "import-packed",
  version: 1,
  describe: "Takes in tokens that lit-gpt's or TinyLlama's scripts prepared (LITPKDS files)",
  params: {
    tokenizer: tokenizerParameter("whose vocabulary the ids are of, which the files do not say"),
    bos: parameter(Delimiter, {
      change: "identity",
      describe: "document: <s> begins every document, as in TinyLlama's run; none",
      default: "document"
    }),
    eos: parameter(Delimiter, {
      change: "identity",
      describe: "document: </s> ends every document, as TinyLlama's scripts write since October 2023; none",
      default: "none"
    }),
    shard_tokens: parameter(Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 2 ** 27 })), {
      change: "identity",
      describe: "tokens after which a shard is closed",
      default: 2 ** 22
    })
  },
  inputs: { documents: { type: "Documents", many: true, describe: "files of format litpkds, taken in order" } },
  outputs: { tokens: { type: "TokenShards", describe: "the tokens, document by document" } },
  headline: ({ tokens }) => `${countIn(tokens, "tokens")} tokens of ${countIn(tokens, "documents")} documents`,
  observe: ({ tokenizer }, baseDirectory) => observeTokenizer(tokenizer, baseDirectory),
  forecast: ({ bos, eos, tokenizer }, { documents }) =>
    forecastImport({ tokenizer: knownName(tokenizer), bos, eos }, documents),
  modelSeconds: ({ amount }) => secondsOfBytes(amount, IMPORT_RATE),

  run: Effect.fn("import-packed")(function* (context) {
    const { bos, eos, shard_tokens } = context.params
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
    const other = files.find(({ format }) => format !== "litpkds")
    if (other !== undefined)
      return yield* new StageError({
        failure: "invalid-input",
        message: `${other.source} is of format ${other.format}, not litpkds`,
        next: "give text to the stage type tokenize; name .bin files here, or set format: litpkds at their source"
      })
    const total = files.reduce((sum, { bytes }) => sum + bytes, 0)
    const output = context.output("tokens")
    const shards: Array<Shard> = []
    let builder = new ShardBuilder(policy.vocabulary_size)
    let document = new Int32Array(1 << 12)
    let length = 0
    let id = ""
    let fill = 0
    let cut = 0

    /** Ends the document that is being gathered. */
    const end = (): void => {
      const ids = document.subarray(0, length)
      length = 0
      if (ids.length === 0) return
      if (bos === "document" && ids.length === 1 && ids[0] === tokenizer.bos) fill++ // what fills the last file of a writer
      else builder.add(id, ids, tokenizer.decode(ids).length)
    }
    const close = Effect.fnUntraced(function* () {
      shards.push(yield* writeShard(builder, output, shardName(shards.length), policy))
      builder = new ShardBuilder(policy.vocabulary_size)
    })
    const take = (token: number, source: string, at: number): void => {
      if (!(token >= 0 && token < policy.vocabulary_size))
        throw new StageError({
          failure: "corrupt",
          message: `${source}: token ${at} has the id ${token}, the vocabulary of ${tokenizer.name} ends at ${policy.vocabulary_size}`,
          next: "name the tokenizer that the files were made with, or fetch the file anew"
        })
      if (bos === "document" && token === tokenizer.bos) end()
      if (length === longestDocument) {
        cut++
        end()
      }
      if (length === document.length) {
        const grown = new Int32Array(2 * document.length)
        grown.set(document)
        document = grown
      }
      if (length === 0) id = `${source}@${at}`
      document[length++] = token
      if (eos === "document" && token === tokenizer.eos) end()
    }

    let done = 0
    let writer: string | undefined
    for (const { bytes, file, source } of files) {
      if (writer !== undefined && writer !== writerOf(source)) end()
      writer = writerOf(source)
      const pieces = readLitFile(file, source)
      let at = 0
      for (;;) {
        if (context.stopRequested()) {
          yield* Effect.promise(() => pieces.return(undefined))
          return yield* new Preempted({ message: "stopped while importing; it starts anew" })
        }
        const piece = yield* Effect.tryPromise({ try: () => pieces.next(), catch: fileFailure(source) })
        if (piece.done === true) break
        const ids = piece.value
        yield* Effect.try({
          try: () => {
            for (let i = 0; i < ids.length; i++) take(ids[i] ?? 0, source, at++)
          },
          catch: fileFailure(source)
        })
        if (builder.tokens >= shard_tokens) yield* close()
        yield* Effect.yieldNow
      }
      done += bytes
      context.progress({ done, total, unit: "bytes" })
    }
    end()
    if (builder.documents > 0) yield* close()
    const tokens = shards.reduce((sum, shard) => sum + shard.tokens, 0)
    const documents = shards.reduce((sum, shard) => sum + shard.documents, 0)
    if (documents === 0)
      return yield* new StageError({
        failure: "invalid-input",
        message: `there is no document in ${files.length} files`,
        next: "check bos and eos: they tell where documents begin and end"
      })
    if (fill > 0) context.warn(`${fill} tokens <s> that fill the ends of files are left out`)
    if (cut > 0) context.log(`documents of more than ${longestDocument} tokens are cut there, ${cut} times`)
    if (documents <= files.length && bos === "none" && eos === "none")
      context.warn("without bos and eos each writer's files are one document: validation can hardly be held out")
    context.log(`${documents} documents, ${tokens} tokens, ${shards.length} shards, of ${files.length} files`)
    yield* Effect.mapError(carryVocabulary(output, tokenizer.vocabulary), fileFailure("tokenizer.model"))
    const bytes = shards.reduce((sum, shard) => sum + shard.bytes, 0)
    const skipped = fill > 0 ? { fill_tokens: fill } : {}
    return { tokens: { ...policy, documents, tokens, bytes, skipped, replaced: 0, shards } }
  })
})
