/**
 * The work of tokenize: parts of the files become token shards. A shard closes once it holds shard_bytes of text, or with its part, so its boundaries
 * depend on the documents alone. While one batch is tokenized, on threads of its own, the next is read; while one shard is written, the next is gathered.
 */
import { rename } from "node:fs/promises"
import { join } from "node:path"
import { Effect, Fiber } from "effect"
import { temporaryName } from "../artifacts/DurableFile.ts"
import { BatchEncoder, type Encoded, type Entry } from "../data/BatchEncoder.ts"
import { type Cursor, type LocatedFile, readDocuments, type ReaderOptions } from "../data/DocumentReader.ts"
import { fileFailure } from "../data/FileFailure.ts"
import type { FilePart } from "../data/FileParts.ts"
import { noTally, QuarantineWriter, type Tally, withPassed } from "../data/Quarantine.ts"
import { finishedShards, partShardName, type ShardNote, writePartNote, writeShardNote } from "../data/ShardNotes.ts"
import { type Shard, ShardBuilder, type TokenPolicy, writeShard } from "../data/TokenShards.ts"
import type { Native } from "../engine/Native.ts"
import type { Tokenizer } from "../engine/Tokenizer.ts"
import { Preempted, type StageError } from "../pipeline/StageType.ts"

export interface PartsWork {
  readonly files: ReadonlyArray<LocatedFile>
  /** Parts that are not finished, in order, at least one. */
  readonly todo: ReadonlyArray<FilePart>
  /** Where shards and their notes go. */
  readonly folder: string
  readonly quarantine: string
  readonly native: Native
  readonly tokenizer: Tokenizer
  readonly policy: TokenPolicy
  readonly reading: ReaderOptions
  readonly shardBytes: number
  readonly threads: number
  readonly stopRequested: () => boolean
  readonly log: (line: string) => void
  /** Hears how many bytes of the files of `todo` are read. */
  readonly report: (done: number) => void
}

/** A part that is being worked on. `begun` counts shards, also those that are still being written. */
interface Open {
  readonly part: FilePart
  /** Bytes of the parts before it. */
  readonly before: number
  readonly shards: Array<Shard>
  begun: number
  tally: Tally
}

const openPart = (part: FilePart, before: number, finished: ReadonlyArray<ShardNote> = []): Open => ({
  part,
  before,
  shards: finished.map(({ shard }) => shard),
  begun: finished.length,
  tally: finished.at(-1)?.tally ?? noTally
})

/** Leaves shards and notes of all parts in the folder, going on within the first where an earlier attempt stopped. */
export const tokenizeParts = Effect.fn("tokenizeParts")(function* (work: PartsWork) {
  const { folder, native, policy, todo } = work
  const [first] = todo
  if (first === undefined) return
  const finished = yield* finishedShards(folder, first.index)
  const last = finished.at(-1)
  if (last !== undefined) work.log(`going on after ${finished.length} finished shards of part ${first.index + 1}`)
  const quarantine = yield* Effect.try({
    try: () => new QuarantineWriter(work.quarantine, first.index, finished.length),
    catch: fileFailure("the work folder")
  })
  const wanted = new Uint8Array(work.files.length)
  for (const part of todo) wanted.fill(1, part.first, part.end)
  let cursor: Cursor = last?.next ?? { file: first.first, offset: 0, row: 1, part: 0 }
  let open = openPart(first, 0, finished)
  let at = 0
  let done = last?.done ?? 0
  let written = finished.length

  let [builder, spare] = [new ShardBuilder(policy.vocabulary_size), new ShardBuilder(policy.vocabulary_size)]
  /** What is being written; each waits for the one before. */
  let writing: Fiber.Fiber<void, StageError> | undefined
  const settle = Effect.suspend(() => (writing === undefined ? Effect.void : Fiber.join(writing)))

  const write = Effect.fnUntraced(function* (full: ShardBuilder, owner: Open, note: Omit<ShardNote, "shard">) {
    const path = partShardName(owner.part.index, owner.begun - 1)
    const temporary = temporaryName(path)
    const shard = { ...(yield* writeShard(full, folder, temporary, policy)), path }
    yield* Effect.tryPromise({
      try: () => rename(join(folder, temporary), join(folder, path)),
      catch: fileFailure(path)
    })
    yield* writeShardNote(folder, { shard, ...note }) // it vouches for the shard, and comes last
    owner.shards.push(shard)
    written++
    full.clear()
    native.releaseFreeMemory()
  })
  const closeShard = Effect.fnUntraced(function* () {
    yield* settle
    yield* Effect.try({ try: () => quarantine.nextShard(), catch: fileFailure("the quarantine") })
    const [full, owner] = [builder, open]
    ;[builder, spare] = [spare, builder]
    owner.begun++
    writing = yield* Effect.forkChild(
      write(full, owner, { next: cursor, done: done - owner.before, tally: owner.tally }),
      { startImmediately: true }
    )
    work.report(done)
  })
  const closePart = Effect.fnUntraced(function* () {
    if (builder.documents > 0) yield* closeShard()
    const next = todo[++at]
    yield* Effect.try({ try: () => quarantine.nextPart(next?.index ?? -1), catch: fileFailure("the quarantine") })
    const [owner, earlier] = [open, writing]
    writing = yield* Effect.forkChild(
      Effect.gen(function* () {
        if (earlier !== undefined) yield* Fiber.join(earlier)
        const { part, shards, tally } = owner
        yield* writePartNote(folder, part.index, { shards, bytes: part.bytes, tally })
      })
    )
    if (next !== undefined) open = openPart(next, open.before + open.part.bytes)
  })

  /** Enters what a batch gave, in order. */
  const enter = Effect.fnUntraced(function* ({ encoded, entries }: Encoded) {
    let document = 0
    for (const entry of entries) {
      if (work.stopRequested()) {
        yield* settle
        return yield* new Preempted({ message: `stopped after ${written} shards, which are kept` })
      }
      while (entry.file >= open.part.end) yield* closePart()
      cursor = entry.next
      done = entry.done
      open.tally = tallied(open.tally, entry)
      if (entry.kind === "passed") {
        const { quarantined } = entry
        if (quarantined === undefined) continue
        yield* Effect.try({ try: () => quarantine.add(quarantined), catch: fileFailure("the quarantine") })
        continue
      }
      const [from, to] = [encoded.offsets[document], encoded.offsets[document + 1]]
      builder.add(entry.id, encoded.ids.subarray(from, to), entry.length)
      document++
      if (builder.textBytes >= work.shardBytes) yield* closeShard()
    }
  })

  const reader = readDocuments(work.files, work.reading, cursor, (file) => wanted[file] === 1)
  const encoder = new BatchEncoder(work.tokenizer, { ...policy, threads: work.threads })
  const read = Effect.gen(function* () {
    let running: Fiber.Fiber<Encoded> | undefined
    for (;;) {
      const batch = yield* Effect.tryPromise({ try: () => reader.next(), catch: fileFailure("the documents") })
      const ended = batch.done === true
      if (!ended && !encoder.add(batch.value)) continue
      const encoded = running === undefined ? undefined : yield* Fiber.join(running)
      running = yield* Effect.forkChild(encoder.start(), { startImmediately: true })
      if (encoded !== undefined) yield* enter(encoded)
      if (ended) return yield* enter(yield* Fiber.join(running))
      work.report(done)
      yield* Effect.yieldNow // lets signals and progress through
    }
  })
  yield* Effect.ensuring(
    read,
    Effect.promise(() => reader.return(undefined))
  )
  while (at < todo.length) yield* closePart()
  yield* settle
})

const tallied = (tally: Tally, entry: Entry): Tally => {
  if (entry.kind === "passed") return withPassed(tally, entry)
  const { exact, first, last, replaced } = entry
  const whole = first && last
  if (whole && !replaced) return tally
  return {
    ...tally,
    replaced: tally.replaced + (replaced ? 1 : 0),
    long_documents: tally.long_documents + (!whole && first ? 1 : 0),
    parts: tally.parts + (whole ? 0 : 1),
    inexact_parts: tally.inexact_parts + (whole || exact ? 0 : 1)
  }
}
