/**
 * What did not become documents: bad rows go into a jsonl file, everything is counted by reason. While a stage runs there is one file a shard, so that
 * an attempt that goes on after a shard writes the files behind it anew.
 */
import {
  closeSync,
  createReadStream,
  createWriteStream,
  fsyncSync,
  mkdirSync,
  openSync,
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

const partName = (shard: number): string => `quarantine-${String(shard).padStart(5, "0")}.jsonl`
const flushBytes = 1 << 16

/** Collects the bad rows met while a shard is made. Calls throw file system errors. */
export class QuarantineWriter {
  readonly #folder: string
  #shard: number
  #descriptor: number | undefined
  #pending = ""

  constructor(folder: string, shard: number) {
    mkdirSync(folder, { recursive: true })
    this.#folder = folder
    this.#shard = shard
  }

  add(row: Quarantined): void {
    this.#pending += `${JSON.stringify(row)}\n`
    if (this.#pending.length >= flushBytes) this.#flush()
  }

  #flush(): void {
    // always a new file: what an earlier attempt left is of rows that are read again
    this.#descriptor ??= openSync(join(this.#folder, partName(this.#shard)), "w")
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

  /** Writes all parts as one file; returns false, and writes none, where they are empty. */
  async publish(target: string): Promise<boolean> {
    this.nextShard()
    const parts = Array.from({ length: this.#shard }, (_, shard) => join(this.#folder, partName(shard))).filter(
      (file) => (statSync(file, { throwIfNoEntry: false })?.size ?? 0) > 0
    )
    for (const [index, part] of parts.entries())
      await pipeline(createReadStream(part), createWriteStream(target, { flags: index === 0 ? "w" : "a" }))
    return parts.length > 0
  }
}
