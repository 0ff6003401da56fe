/**
 * What did not become documents: bad rows go into a jsonl file, everything is counted by reason. While a stage runs there is one file for each shard of each
 * part of its work, so that an attempt that goes on after a shard writes the files behind it anew.
 */
import {
  closeSync,
  createReadStream,
  createWriteStream,
  fsyncSync,
  mkdirSync,
  openSync,
  readdirSync,
  statSync,
  writeSync
} from "node:fs"
import { join } from "node:path"
import { pipeline } from "node:stream/promises"
import { Schema } from "effect"
import type { PassedItem, Quarantined } from "./DocumentReader.ts"

/** The file in the artifact; absent when nothing is in quarantine. */
export const quarantineFile = "quarantine.jsonl"

/** What was not read as it stands, so far. */
export const Tally = Schema.Struct({
  /** Rows and texts passed over, by reason. */
  skipped: Schema.Record(Schema.String, Schema.Int),
  /** Those of them that are in quarantine. */
  quarantined: Schema.Int,
  /** Documents in which U+FFFD stands for what is not UTF-8. */
  replaced: Schema.Int,
  /** Documents in several parts, all parts of these, and parts that had to be cut inside a word. */
  long_documents: Schema.Int,
  parts: Schema.Int,
  inexact_parts: Schema.Int
})
export type Tally = typeof Tally.Type

export const noTally: Tally = {
  skipped: {},
  quarantined: 0,
  replaced: 0,
  long_documents: 0,
  parts: 0,
  inexact_parts: 0
}

export const withPassed = (tally: Tally, item: PassedItem): Tally => ({
  ...tally,
  skipped: { ...tally.skipped, [item.reason]: (tally.skipped[item.reason] ?? 0) + 1 },
  quarantined: tally.quarantined + (item.quarantined === undefined ? 0 : 1)
})

export const addTallies = (tallies: ReadonlyArray<Tally>): Tally =>
  tallies.reduce(
    (sum, tally) => ({
      skipped: Object.entries(tally.skipped).reduce(
        (counts, [reason, count]) => ({ ...counts, [reason]: (counts[reason] ?? 0) + count }),
        sum.skipped
      ),
      quarantined: sum.quarantined + tally.quarantined,
      replaced: sum.replaced + tally.replaced,
      long_documents: sum.long_documents + tally.long_documents,
      parts: sum.parts + tally.parts,
      inexact_parts: sum.inexact_parts + tally.inexact_parts
    }),
    noTally
  )

const number = (value: number): string => String(value).padStart(9, "0")
const fileName = (part: number, shard: number): string => `quarantine-${number(part)}-${number(shard)}.jsonl`
const flushBytes = 1 << 16

/** Collects the bad rows met while a shard is made. Calls throw file system errors. */
export class QuarantineWriter {
  readonly #folder: string
  #part: number
  #shard: number
  #descriptor: number | undefined
  #pending = ""

  constructor(folder: string, part: number, shard: number) {
    mkdirSync(folder, { recursive: true })
    this.#folder = folder
    this.#part = part
    this.#shard = shard
  }

  add(row: Quarantined): void {
    this.#pending += `${JSON.stringify(row)}\n`
    if (this.#pending.length >= flushBytes) this.#flush()
  }

  #flush(): void {
    if (this.#pending === "" && this.#descriptor === undefined) return
    // always a new file: what an earlier attempt left is of rows that are read again
    this.#descriptor ??= openSync(join(this.#folder, fileName(this.#part, this.#shard)), "w")
    const bytes = Buffer.from(this.#pending)
    for (let at = 0; at < bytes.length;) at += writeSync(this.#descriptor, bytes, at)
    this.#pending = ""
  }

  /** Everything so far is on the disk; what follows belongs to the next shard. */
  nextShard(): void {
    this.#flush()
    if (this.#descriptor !== undefined) {
      fsyncSync(this.#descriptor)
      closeSync(this.#descriptor)
    }
    this.#descriptor = undefined
    this.#shard++
  }

  /** Likewise; what follows belongs to the first shard of another part. */
  nextPart(part: number): void {
    this.nextShard()
    this.#part = part
    this.#shard = 0
  }
}

/** Writes all that writers left in `folder` as one file; writes none where that is nothing. Fails with file system errors. */
export const publishQuarantine = async (folder: string, target: string): Promise<void> => {
  const files = readdirSync(folder)
    .toSorted()
    .map((name) => join(folder, name))
    .filter((file) => statSync(file).size > 0)
  for (const [index, file] of files.entries())
    await pipeline(createReadStream(file), createWriteStream(target, { flags: index === 0 ? "w" : "a" }))
}
