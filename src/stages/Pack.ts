/**
 * pack: token shards become blocks of seq_len + 1 tokens, ready to train on. Documents are held out for validation by their content, the rest is
 * shuffled, then joined end to end and cut, or placed whole where they fit; sources are mixed by weights. Where every token went is in the log and the
 * facts. Shards are read one at a time to check them, and document by document to pack them: memory is that of one shard and one batch of blocks.
 */
import { mkdir } from "node:fs/promises"
import { join } from "node:path"
import { Effect, Fiber, Schema } from "effect"
import { countIn } from "../artifacts/Artifact.ts"
import { emptyRoom } from "../data/ArrowFile.ts"
import { fileFailure } from "../data/FileFailure.ts"
import { type DatasetMetadata, openSplitWriter, type Split } from "../data/PackedDataset.ts"
import { FilePool, rowsInFile, Source } from "../data/DocumentStore.ts"
import { LitWriter } from "../data/LitPacked.ts"
import { HoldOut } from "../data/HoldOut.ts"
import { BestFitStream, interleave, type Share, shareOut, shareOutBestFit, TokenStream } from "../data/Packing.ts"
import { secondsOfBytes } from "../engine/MachineSpeed.ts"
import { passVocabulary } from "../model/CarriedVocabulary.ts"
import { factsOf, readShard, type TokenPolicy, type TokenShardsFacts } from "../data/TokenShards.ts"
import { defineStage, parameter, Preempted, StageError } from "../pipeline/StageType.ts"
import { forecastPack } from "./TextForecast.ts"

/** Bytes of tokens a second: each is read, checked, copied, hashed and written once. */
const PACK_RATE = 100e6

const invalid = (message: string, next: string): StageError =>
  new StageError({ failure: "invalid-input", message, next })

const policyFields = ["tokenizer", "tokenizer_digest", "vocabulary_size", "bos", "eos"] as const

/** Inputs must agree in what their token ids mean and how documents are delimited. */
const commonPolicy = (
  inputs: ReadonlyArray<{ readonly name: string; readonly facts: TokenShardsFacts }>
): Effect.Effect<TokenPolicy, StageError> => {
  const [first, ...others] = inputs
  if (first === undefined) return Effect.fail(invalid("no input", "join a tokenize stage's tokens to pack"))
  for (const other of others)
    for (const field of policyFields)
      if (other.facts[field] !== first.facts[field])
        return Effect.fail(
          invalid(
            `${other.name} has ${field} ${other.facts[field]}, but ${first.name} has ${first.facts[field]}`,
            "tokenize all inputs with the same tokenizer and the same bos and eos"
          )
        )
  const { tokenizer, tokenizer_digest, vocabulary_size, bos, eos } = first.facts
  return Effect.succeed({ tokenizer, tokenizer_digest, vocabulary_size, bos, eos })
}

const normalised = (
  weights: ReadonlyArray<number>,
  inputs: number,
  mustBeOne: boolean
): Effect.Effect<ReadonlyArray<number>, StageError> => {
  const sum = weights.reduce((total, weight) => total + weight, 0)
  if (weights.length !== inputs)
    return Effect.fail(
      invalid(`weights has ${weights.length} numbers for ${inputs} inputs`, "give one weight per input, in their order")
    )
  if (sum === 0) return Effect.fail(invalid("all weights are 0", "give at least one input a weight above 0"))
  if (mustBeOne && !isOne(sum))
    return Effect.fail(
      invalid(`weights sum to ${sum}, not to 1`, "correct weights, or set weights_sum: any to have them normalised")
    )
  return Effect.succeed(weights.map((weight) => weight / sum))
}

/** Up to rounding of the file's decimals. */
const isOne = (sum: number): boolean => Math.abs(sum - 1) < 1e-6

const number = (value: number): string => value.toLocaleString("en-US")
const percent = (share: number): string => `${(100 * share).toFixed(1)} %`
const sumOf = <T>(items: ReadonlyArray<T>, value: (item: T) => number): number =>
  items.reduce((sum, item) => sum + value(item), 0)

/** Rows of equal columns, the first flush left, the others flush right. */
const table = (rows: ReadonlyArray<ReadonlyArray<string>>): ReadonlyArray<string> => {
  const widths = (rows[0] ?? []).map((_, column) => Math.max(...rows.map((row) => row[column]?.length ?? 0)))
  return rows.map((row) =>
    row
      .map((cell, column) => (column === 0 ? cell.padEnd(widths[column] ?? 0) : cell.padStart(widths[column] ?? 0)))
      .join("  ")
  )
}

const accountingTable = (shares: ReadonlyArray<Share>): ReadonlyArray<string> => {
  const padded = shares.some(({ accounting }) => accounting.padding !== undefined)
  const columns = [
    ...(["documents", "tokens", "train", "validation", "tail", "left_out"] as const),
    ...(padded ? (["padding"] as const) : [])
  ]
  const rows = shares.map(({ accounting }) => [
    accounting.source,
    ...columns.map((column) => number(accounting[column] ?? 0))
  ])
  const total = ["all", ...columns.map((column) => number(sumOf(shares, ({ accounting }) => accounting[column] ?? 0)))]
  return table([
    ["source", ...columns.map((column) => column.replace("_", " "))],
    ...rows,
    ...(rows.length > 1 ? [total] : [])
  ])
}

/** Why there is nothing to train on, in the terms of what the user can change. */
const tooShort = (
  sources: ReadonlyArray<Source>,
  seqLen: number,
  weights: ReadonlyArray<number> | undefined
): StageError => {
  const tokens = sumOf(sources, (source) => source.tokens)
  const empty = sources.find((source, s) => (weights?.[s] ?? 0) > 0 && source.tokens - source.tokensHeldOut <= seqLen)
  return empty !== undefined && sources.length > 1
    ? invalid(
        `${empty.name} has ${number(empty.tokens - empty.tokensHeldOut)} tokens to train on, less than one block of seq_len + 1 = ${number(seqLen + 1)}, so no mixture with it is possible`,
        "give it weight 0, add text to it, or lower seq_len"
      )
    : invalid(
        `seq_len ${number(seqLen)} is larger than the data: ${number(tokens)} tokens in all, ${number(sumOf(sources, (source) => source.tokens - source.tokensHeldOut))} of them to train on`,
        "lower seq_len, add text, or lower validation"
      )
}

const LitGpt = Schema.Struct({
  chunk_blocks: Schema.Int.check(Schema.isGreaterThan(0))
    .pipe(Schema.optionalKey)
    .annotate({ description: "blocks in a file; default 1024, as TinyLlama's scripts write" })
})
const LIT_CHUNK_BLOCKS = 1024

/** Blocks that are written between two looks at signals. */
const BLOCKS_A_TURN = 256

/** lit-gpt's reader takes eight files at a time of each rank's share. */
const LIT_FILES_PER_RANK = 8

export const packStage = defineStage({
  name: "pack",
  version: 2,
  describe: "Cuts tokens into blocks of seq_len + 1, mixes sources, holds documents out for validation",
  params: {
    seq_len: parameter(Schema.Int.check(Schema.isGreaterThan(0)), {
      change: "identity",
      describe: "tokens that the model sees at once; a block holds one more, the last target"
    }),
    weights: parameter(Schema.NullOr(Schema.Array(Schema.Finite.check(Schema.isGreaterThanOrEqualTo(0)))), {
      change: "identity",
      describe: "share of each input in the train blocks, in any unit; by default all of every input is used",
      default: null
    }),
    weights_sum: parameter(Schema.Literals(["any", "one"]), {
      change: "operational",
      describe: "any: weights are divided by their sum; one: weights that do not sum to 1 are refused",
      default: "any"
    }),
    packing: parameter(Schema.Literals(["concatenate", "best-fit"]), {
      change: "identity",
      describe:
        "concatenate: documents end to end, cut at block ends, as in TinyLlama; best-fit: documents whole where they fit into a block, the rest of which is padding that is not trained on",
      default: "concatenate"
    }),
    attention_reset: parameter(Schema.Boolean, {
      change: "identity",
      describe: "keep where documents begin in each block, which document_mask of pretrain needs",
      default: false
    }),
    litgpt: parameter(Schema.NullOr(LitGpt), {
      change: "identity",
      describe:
        "also write the blocks as files of lit-gpt's PackedDataset, litgpt/train_0000000000.bin and so on: {chunk_blocks}, blocks a file",
      default: null
    }),
    validation: parameter(Schema.Finite.check(Schema.isGreaterThanOrEqualTo(0), Schema.isLessThan(1)), {
      change: "identity",
      describe: "fraction of the documents to hold out, chosen by their content; 0 for none",
      default: 0.02
    }),
    seed: parameter(Schema.Int.check(Schema.isGreaterThanOrEqualTo(0)), {
      change: "identity",
      describe: "of the order of documents",
      default: 3407
    })
  },
  inputs: { tokens: { type: "TokenShards", many: true, describe: "token shards, one source each" } },
  outputs: { dataset: { type: "PackedDataset", describe: "blocks to train on and to validate with" } },
  headline: ({ dataset }) =>
    `${countIn(dataset, "train_blocks")} blocks of ${countIn(dataset, "seq_len")} tokens to train on, ${countIn(dataset, "validation_blocks")} to validate with`,
  forecast: (params, { tokens }, _, __, origins) => forecastPack(params, tokens, origins?.tokens),
  modelSeconds: ({ amount }) => secondsOfBytes(amount, PACK_RATE),

  run: Effect.fn("pack")(function* (context) {
    const { attention_reset, litgpt, packing, seq_len, validation, seed } = context.params
    const blockLength = seq_len + 1
    if (litgpt !== null && packing === "best-fit")
      return yield* invalid(
        "litgpt's files cannot tell padding from text, which packing: best-fit has",
        "set packing: concatenate, or drop litgpt"
      )
    const { load } = yield* Effect.promise(() => import("../engine/Native.ts"))
    const native = yield* Effect.mapError(
      load,
      (error) => new StageError({ failure: "internal", message: error.message, next: "npm run build:native" })
    )
    const inputs = yield* Effect.forEach(context.inputs.tokens, (handle) =>
      Effect.map(factsOf(handle), (facts) => ({ handle, name: handle.origin, facts }))
    )
    const policy = yield* commonPolicy(inputs)
    const asked = context.params.weights
    const weights =
      asked === null ? undefined : yield* normalised(asked, inputs.length, context.params.weights_sum === "one")
    const askedSum = sumOf(asked ?? [], (weight) => weight)
    if (weights !== undefined && !isOne(askedSum))
      context.log(`weights sum to ${askedSum}: taken as ${weights.map(percent).join(", ")}`)

    const stop = Effect.suspend(() =>
      context.stopRequested() ? new Preempted({ message: "stopped while packing; it starts anew" }) : Effect.void
    )
    const sources = inputs.map(({ name }) => new Source(name))
    const rooms = [emptyRoom(), emptyRoom(), emptyRoom()]
    const decision = new HoldOut(sources, validation, blockLength)
    for (const [s, { facts, handle }] of inputs.entries()) {
      const pool = yield* Effect.acquireRelease(
        Effect.sync(() => new FilePool()),
        (opened) => Effect.sync(() => opened.close())
      )
      // While one shard is gone through, the next two are read and their digests taken, on threads of their own.
      const startReading = (index: number) => {
        const shard = facts.shards[index]
        const reading =
          shard === undefined ? Effect.succeed([]) : readShard(handle, shard, policy, rooms[index % rooms.length])
        return Effect.forkChild(reading, { startImmediately: true })
      }
      let running = yield* startReading(0)
      let next = yield* startReading(1)
      for (const [index, shard] of facts.shards.entries()) {
        yield* stop
        const parts = yield* Fiber.join(running)
        running = next
        next = yield* startReading(index + 2)
        for (const rows of parts) {
          const before = sources[s]?.documents ?? 0
          sources[s]?.add(rowsInFile(pool, join(handle.folder, shard.path), rows))
          const hashes = native.documentHashes(rows.tokens, rows.offsets)
          for (const [row, value] of hashes.entries())
            decision.see(s, before + row, value, (rows.offsets[row + 1] ?? 0) - (rows.offsets[row] ?? 0))
        }
      }
    }
    for (const room of rooms) room.bytes = new Uint8Array(0)
    const added = decision.finish()
    const bestFit = packing === "best-fit"
    const shares = bestFit
      ? yield* Effect.try({
          try: () => shareOutBestFit(sources, weights, blockLength, seed),
          catch: fileFailure("the token shards")
        })
      : shareOut(sources, weights, blockLength)
    const trainBlocks = sumOf(shares, (share) => share.trainBlocks)
    const validationBlocks = sumOf(shares, (share) => share.validationBlocks)
    if (trainBlocks === 0) {
      const documents = sumOf(sources, (source) => source.documents)
      const tokens = sumOf(sources, (source) => source.tokens)
      if (added > 0 && tokens >= 2 * blockLength)
        return yield* invalid(
          `holding out one block of validation leaves nothing to train on: ${number(documents)} documents, ${number(tokens)} tokens`,
          "cut the text into more documents, lower seq_len, or set validation: 0"
        )
      return yield* tooShort(sources, seq_len, weights)
    }
    if (added > 0)
      context.warn(
        `validation ${validation} of the documents does not fill one block: ${added} more documents are held out, ${number(validationBlocks)} blocks in all`
      )

    const metadata: DatasetMetadata = {
      ...policy,
      seq_len,
      ...(bestFit ? { packing } : {}),
      ...(attention_reset ? { attention_reset } : {}),
      train_blocks: trainBlocks,
      validation_blocks: validationBlocks,
      mixture: shares.map((share, s) => ({
        source: share.source.name,
        weight: weights?.[s] ?? share.trainBlocks / trainBlocks,
        realised: share.trainBlocks / trainBlocks,
        blocks: share.trainBlocks
      })),
      accounting: shares.map((share) => share.accounting)
    }
    for (const line of accountingTable(shares)) context.log(line)
    for (const { source, weight, realised, blocks } of metadata.mixture)
      context.log(`mixture: ${source} ${percent(realised)} (asked ${percent(weight)}), ${number(blocks)} blocks`)
    const leftOut = sumOf(shares, ({ accounting }) => accounting.left_out)
    const tokens = sumOf(shares, ({ accounting }) => accounting.tokens)
    for (const { source, trainBlocks } of shares)
      if (trainBlocks === 0 && weights === undefined)
        context.warn(
          `${source.name} does not fill one block: none of its ${number(source.tokens)} tokens is trained on`
        )
    if (weights !== undefined && leftOut > tokens / 5)
      context.warn(
        `the weights leave out ${percent(leftOut / tokens)} of the tokens: a source that is asked for more than it has limits the rest`
      )

    const openLit = Effect.fnUntraced(function* (split: Split, blocksPerFile: number) {
      const folder = join(context.output("dataset"), "litgpt")
      yield* Effect.tryPromise({ try: () => mkdir(folder, { recursive: true }), catch: fileFailure("litgpt") })
      const lit = yield* Effect.acquireRelease(
        Effect.sync(
          () =>
            new LitWriter({
              path: (name) => join(folder, name),
              prefix: split,
              vocabularySize: policy.vocabulary_size,
              blockLength,
              blocksPerFile,
              blocks: split === "train" ? trainBlocks : validationBlocks
            })
        ),
        (opened) => Effect.sync(() => opened.close())
      )
      const rest = (split === "train" ? trainBlocks : validationBlocks) - lit.blocks
      context.log(`litgpt: ${lit.files} files of ${blocksPerFile} ${split} blocks`)
      if (rest > 0)
        context.warn(
          `litgpt: ${rest} ${split} blocks do not fill a file of ${blocksPerFile} and are in the Arrow file only`
        )
      if (split === "train" && lit.files < LIT_FILES_PER_RANK)
        context.warn(
          `litgpt: its reader needs ${LIT_FILES_PER_RANK} files for each rank, there are ${lit.files}: lower chunk_blocks`
        )
      return lit
    })
    let done = 0
    const total = (trainBlocks + validationBlocks) * blockLength
    const writeSplit = Effect.fnUntraced(function* (split: Split, order: Iterable<number>) {
      const writer = yield* openSplitWriter(context.output("dataset"), split, metadata)
      const lit = litgpt === null ? undefined : yield* openLit(split, litgpt.chunk_blocks ?? LIT_CHUNK_BLOCKS)
      // the seed orders what is trained on; validation blocks are the same for every seed, so that losses compare
      const streamSeed = split === "train" ? seed : 0
      const streams = sources.map((source, s) =>
        bestFit
          ? new BestFitStream(source, s, split === "validation", streamSeed, blockLength)
          : new TokenStream(source, s, split === "validation", streamSeed)
      )
      const iterator = order[Symbol.iterator]()
      /** Writes up to `most` blocks; false: these were the last. */
      const writeSome = (most: number): boolean => {
        for (let i = 0; i < most; i++) {
          const next = iterator.next()
          if (next.done === true) return false
          const block = writer.next()
          const filled = streams[next.value]?.fill(block)
          if (filled !== undefined) writer.describe(filled.boundaries, filled.length)
          lit?.write(block)
          done += blockLength
        }
        return true
      }
      const onDisk = fileFailure(`${split}.arrow`)
      for (;;) {
        const room = yield* Effect.tryPromise({ try: () => writer.room(), catch: onDisk })
        if (!(yield* Effect.try({ try: () => writeSome(Math.min(room, BLOCKS_A_TURN)), catch: onDisk }))) break
        yield* stop
        context.progress({ done, total, unit: "tokens" })
        yield* Effect.yieldNow
      }
      return yield* Effect.tryPromise({ try: () => writer.close(), catch: onDisk })
    })
    const train = yield* writeSplit("train", interleave(shares.map((share) => share.trainBlocks)))
    const held = yield* writeSplit(
      "validation",
      shares.flatMap((share, s) => Array.from({ length: share.validationBlocks }, () => s))
    )
    const [first] = context.inputs.tokens
    if (first !== undefined)
      yield* Effect.mapError(passVocabulary(first, context.output("dataset")), fileFailure("tokenizer.model"))
    context.progress({ done, total, unit: "tokens" })
    context.log(
      `${number(trainBlocks)} train blocks and ${number(validationBlocks)} validation blocks of ${number(blockLength)} tokens`
    )
    return { dataset: { ...metadata, files: { train: train.sha256, validation: held.sha256 } } }
  }, Effect.scoped)
})
