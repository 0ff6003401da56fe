/** What the ranks of an attempt said last, in its folder. */
import { readdirSync, statSync } from "node:fs"
import { join } from "node:path"
import { eventsFile, lastWord } from "./EventsFile.ts"
import type { WorkerEvent } from "./Executor.ts"

/** Of the ranks but the first, the one that failed first. */
export const firstFailure = (folder: string) => {
  const failures = readdirSync(folder).flatMap((name) => {
    const [, rank] = /^rank-(\d+)\.jsonl$/u.exec(name) ?? []
    const word = rank === undefined ? undefined : lastWord(join(folder, name))
    if (word?._tag !== "Failed") return []
    return [{ at: statSync(join(folder, name)).mtimeMs, word: { ...word, message: `rank ${rank}: ${word.message}` } }]
  })
  const [first] = failures.toSorted((a, b) => a.at - b.at)
  return first
}

/** Rank 0's last word, or that of the rank that failed first. */
export const wordOf = (folder: string): WorkerEvent | undefined => {
  const own = lastWord(join(folder, eventsFile))
  if (own !== undefined && own._tag !== "Failed") return own
  const first = firstFailure(folder)
  if (own === undefined || first === undefined) return own ?? first?.word
  return first.at < statSync(join(folder, eventsFile)).mtimeMs ? first.word : own
}
