/**
 * Events of workers that do not hang on their runner's pipes: ranks of an attempt, jobs of a cluster. Rank 0 appends to the file that the runner
 * follows; each other rank has one beside it, for its warnings and its last word.
 */
import { openSync, readFileSync, writeSync } from "node:fs"
import { dirname, join } from "node:path"
import { Effect, FileSystem, Option, Result, Schema, Stream } from "effect"
import { WorkerEvent } from "./Executor.ts"

/** In the attempt's folder. */
export const eventsFile = "events.jsonl"

/** Where a rank writes, beside rank 0's file. */
export const rankFile = (events: string, rank: number): string =>
  rank === 0 ? events : join(dirname(events), `rank-${rank}.jsonl`)

const encodeEvent = Schema.encodeSync(Schema.fromJsonString(WorkerEvent))
const decodeEvent = Schema.decodeUnknownResult(Schema.fromJsonString(WorkerEvent))

/** Exactly one of these ends an attempt. */
export const isLast = ({ _tag }: WorkerEvent): boolean =>
  _tag === "Completed" || _tag === "Failed" || _tag === "Preempted" || _tag === "Shared"

/** Appends whole lines. A full disk costs events, never the work: whether the last word is missing tells the runner. */
export const appendTo = (file: string): ((event: WorkerEvent) => void) => {
  const fd = openSync(file, "a")
  let torn = false
  return (event) => {
    // One write a line, so that two writers (a requeued job beside its dying former self) never mix theirs.
    const bytes = Buffer.from(`${torn ? "\n" : ""}${encodeEvent(event)}\n`)
    try {
      torn = writeSync(fd, bytes) < bytes.length
    } catch {
      torn = true
    }
  }
}

/** A line as an event; what is none becomes a log line that says so. */
export const eventOf = (line: string): WorkerEvent => {
  const event = decodeEvent(line)
  return Result.isSuccess(event)
    ? event.success
    : { _tag: "Log", line: `the worker said what is no event: ${line.slice(0, 200)}` }
}

const lineFeed = 10
const chunkBytes = 1 << 20
const pollMillis = 100

/** The events from byte `offset` on, and each new one as it is written, until `ended` says that no more will come; what is there by then still comes. */
export const followEvents = (
  file: string,
  options: {
    readonly ended: Effect.Effect<boolean>
    readonly offset?: number
    /** Hears how far it has come, after those events were taken. */
    readonly onOffset?: (offset: number) => void
    readonly pollMillis?: number
  }
): Stream.Stream<WorkerEvent, never, FileSystem.FileSystem> => {
  let offset = options.offset ?? 0
  let over = false
  const poll = Effect.gen(function* () {
    if (over) return undefined
    options.onOffset?.(offset)
    // Asked before reading: what was written before the end is then read after it.
    over = yield* options.ended
    const read = yield* readFrom(file, offset)
    offset += read.bytes
    if (read.events.length === 0 && !over) yield* Effect.sleep(options.pollMillis ?? pollMillis)
    return read.events
  })
  return Stream.fromEffectRepeat(poll).pipe(
    Stream.takeWhile((events) => events !== undefined),
    Stream.flatMap((events) => Stream.fromIterable(events ?? []))
  )
}

/** Whole lines from `offset` on, a megabyte at most; a file that cannot be read now, or is not there yet, has none. */
const readFrom = (file: string, offset: number) =>
  Effect.scoped(
    Effect.gen(function* () {
      const fs = yield* FileSystem.FileSystem
      const handle = yield* fs.open(file, { flag: "r" })
      yield* handle.seek(BigInt(offset), "start")
      const chunk = Option.getOrElse(yield* handle.readAlloc(chunkBytes), () => new Uint8Array())
      const bytes = chunk.lastIndexOf(lineFeed) + 1
      const lines = Buffer.from(chunk.subarray(0, bytes)).toString("utf8").split("\n")
      return { bytes, events: lines.filter((line) => line !== "").map(eventOf) }
    })
  ).pipe(Effect.orElseSucceed(() => ({ bytes: 0, events: [] })))

/** The last word of a rank that has ended, in its last start; undefined when it died without one. */
export const lastWord = (file: string): WorkerEvent | undefined => {
  try {
    const last = readFileSync(file, "utf8")
      .split("\n")
      .filter((line) => line !== "")
      .map(eventOf)
      .findLast((event) => isLast(event) || event._tag === "Started")
    return last?._tag === "Started" ? undefined : last
  } catch {
    return undefined
  }
}
