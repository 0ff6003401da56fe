/**
 * Reads journals: at once, or along with a runner in another process. A line that is no event is damage: it is counted with its number and
 * otherwise skipped. What follows the last line feed is a line still being written, or torn by a crash; neither is damage.
 */
import { Effect, FileSystem, Option, type PlatformError, Result, Schema, Stream } from "effect"
import { RunEvent } from "./RunEvent.ts"

export interface DamagedLine {
  /** 1-based. */
  readonly line: number
  readonly reason: string
}

export interface JournalContents {
  readonly events: ReadonlyArray<RunEvent>
  readonly damaged: ReadonlyArray<DamagedLine>
}

/** Where in a journal an event or a damaged line stands. */
export type JournalLine =
  | { readonly _tag: "Event"; readonly line: number; readonly event: RunEvent }
  | ({ readonly _tag: "Damaged" } & DamagedLine)

// JSON.parse and decoding apart take half the time of one Schema for both: 1.5 µs a line.
const decodeEvent = Schema.decodeUnknownResult(RunEvent)

/** The lines of a text that begins with line `first`; empty ones hold nothing. */
export const journalLines = (text: string, first = 1): ReadonlyArray<JournalLine> =>
  text.split("\n").flatMap((line, index) => (line === "" ? [] : [journalLine(line, first + index)]))

const journalLine = (text: string, line: number): JournalLine => {
  let json: unknown
  try {
    json = JSON.parse(text)
  } catch {
    return { _tag: "Damaged", line, reason: "it is not JSON" }
  }
  const event = decodeEvent(json)
  return Result.isSuccess(event)
    ? { _tag: "Event", line, event: event.success }
    : { _tag: "Damaged", line, reason: event.failure.message.replaceAll(/\s*\n\s*/gu, " ") }
}

/** The whole journal at `path`; empty when there is none yet. */
export const readContents = Effect.fn("readContents")(function* (path: string) {
  const fs = yield* FileSystem.FileSystem
  const text = yield* fs.readFileString(path).pipe(
    Effect.catchIf(
      (error) => error.reason._tag === "NotFound",
      () => Effect.succeed("")
    )
  )
  const events: Array<RunEvent> = []
  const damaged: Array<DamagedLine> = []
  const lines = journalLines(text)
  for (const [index, line] of lines.entries()) {
    if (line._tag === "Event") events.push(line.event)
    else if (index < lines.length - 1 || text.endsWith("\n")) damaged.push({ line: line.line, reason: line.reason })
  }
  const contents: JournalContents = { events, damaged }
  return contents
})

const lineFeed = 10
const chunkBytes = 1 << 20

/**
 * The journal's lines from its start, and then each new one as it is written, until `ended` says that no more will come; what is in the file by
 * then still comes. A journal that is not there yet is waited for.
 */
export const followJournal = (
  path: string,
  options: { readonly ended: Effect.Effect<boolean>; readonly pollMillis?: number }
): Stream.Stream<ReadonlyArray<JournalLine>, PlatformError.PlatformError, FileSystem.FileSystem> =>
  Stream.unwrap(
    Effect.gen(function* () {
      const fs = yield* FileSystem.FileSystem
      const tail = new Tail()
      const read = Effect.fnUntraced(function* () {
        if (!(yield* fs.exists(path))) return []
        return yield* Effect.scoped(
          Effect.gen(function* () {
            const file = yield* fs.open(path, { flag: "r" })
            yield* file.seek(BigInt(tail.offset), "start")
            const lines: Array<JournalLine> = []
            for (;;) {
              const chunk = yield* file.readAlloc(chunkBytes)
              if (Option.isNone(chunk)) return lines
              lines.push(...tail.take(chunk.value))
            }
          })
        )
      })
      let over = false
      const poll = Effect.gen(function* (): Effect.fn.Return<
        ReadonlyArray<JournalLine> | undefined,
        PlatformError.PlatformError,
        FileSystem.FileSystem
      > {
        if (over) return undefined
        // Asked before reading: what was written before the end is then read after it.
        over = yield* options.ended
        const lines = yield* read()
        if (lines.length === 0 && !over) yield* Effect.sleep(options.pollMillis ?? 150)
        return lines
      })
      return Stream.fromEffectRepeat(poll).pipe(
        Stream.takeWhile((lines) => lines !== undefined),
        Stream.map((lines) => lines ?? []),
        Stream.filter((lines) => lines.length > 0)
      )
    })
  )

/** What was read of a growing file: where to go on, and the bytes of a line that has no end yet. */
class Tail {
  offset = 0
  private line = 1
  private rest: Uint8Array = new Uint8Array()

  take(chunk: Uint8Array): ReadonlyArray<JournalLine> {
    this.offset += chunk.length
    const end = chunk.lastIndexOf(lineFeed)
    if (end < 0) {
      this.rest = Buffer.concat([this.rest, chunk])
      return []
    }
    const text = Buffer.concat([this.rest, chunk.subarray(0, end)]).toString("utf8")
    const lines = journalLines(text, this.line)
    this.line += text.split("\n").length
    this.rest = chunk.slice(end + 1)
    return lines
  }
}
