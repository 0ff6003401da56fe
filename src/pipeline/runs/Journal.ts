/**
 * A run's append-only event log, the single source of what happened: one JSON event a line in events.jsonl. Only the holder of the run's lock
 * writes it. A crash may tear the last line, and nothing else; readers skip what does not decode.
 */
import { Clock, Effect, FileSystem, Option, PubSub } from "effect"
import { readContents } from "./JournalReader.ts"
import { shared } from "../../artifacts/SharedSync.ts"
import { type RunEvent, RunEvents } from "./RunEvent.ts"

export const journalFile = "events.jsonl"

const encoder = new TextEncoder()

/** Of a stage's progress, one reading a second is kept; live displays see all. */
const progressIntervalMillis = 1000

/** Events whose loss would make the journal wrong: on disk before the run goes on. */
const durable: ReadonlySet<RunEvent["_tag"]> = new Set(["RunStarted", "StageFinished", "RunFinished"])

export interface Journal {
  /** Appends and publishes. Never fails: a journal that cannot be written is announced once, live, and the work goes on. */
  readonly emit: (event: RunEvent) => Effect.Effect<void>
}

/** Opens the journal for appending, until the scope closes. */
export const openJournal = Effect.fn("openJournal")(function* (path: string) {
  const fs = yield* FileSystem.FileSystem
  const live = yield* RunEvents
  const file = yield* fs.open(path, { flag: "a+" })
  const shown = new Map<string, number>()
  /** Bytes that are whole lines; what a failed append left beyond them is cut off by the next one. */
  let whole = Number((yield* file.stat).size)
  /** Lines that found no room yet: written with the next one that does. A line that a crash tore in an earlier run is ended first. */
  let waiting = (yield* endsTorn(file)) ? "\n" : ""
  let torn = false
  let announced = false

  const kept = Effect.fnUntraced(function* (event: RunEvent) {
    if (event._tag !== "Progress") return true
    const now = yield* Clock.currentTimeMillis
    const last = shown.get(event.stage)
    if (last !== undefined && now - last < progressIntervalMillis && event.done < event.total) return false
    shown.set(event.stage, now)
    return true
  })

  // One write, and one fsync, serve all stages that have something to say at about the same time.
  const writeWaiting = shared(
    Effect.gen(function* () {
      const text = waiting
      const bytes = encoder.encode(text)
      if (torn) yield* file.truncate(whole)
      torn = true
      yield* file.writeAll(bytes)
      torn = false
      waiting = waiting.slice(text.length)
      whole += bytes.length
    })
  )
  const makeDurable = shared(file.sync)
  const append = Effect.fnUntraced(function* (event: RunEvent) {
    // Events are JSON as they are: nothing in their schema changes in encoding.
    waiting += `${JSON.stringify(event)}\n`
    yield* writeWaiting
    if (durable.has(event._tag)) yield* makeDurable
  })

  const emit = Effect.fnUntraced(function* (event: RunEvent) {
    if (yield* kept(event)) {
      const failure = yield* append(event).pipe(
        Effect.as(undefined),
        Effect.catch((error) => Effect.succeed(error.message))
      )
      if (failure !== undefined && !announced) {
        announced = true
        yield* PubSub.publish(live, {
          _tag: "Warning",
          at: yield* timestamp,
          line: `the journal ${path} cannot be written: ${failure}`
        })
      }
    }
    yield* PubSub.publish(live, event)
  })
  const journal: Journal = { emit }
  return journal
})

const endsTorn = Effect.fnUntraced(function* (file: FileSystem.File) {
  const size = Number((yield* file.stat).size)
  if (size === 0) return false
  yield* file.seek(BigInt(size - 1), "start")
  const last = yield* file.readAlloc(1)
  return Option.isSome(last) && last.value[0] !== 10
})

/** The events of a journal, in order; none when there is no journal yet. */
export const readJournal = (path: string) => Effect.map(readContents(path), ({ events }) => events)

/** Now, ISO 8601 in UTC. */
export const timestamp: Effect.Effect<string> = Effect.map(Clock.currentTimeMillis, (millis) =>
  new Date(millis).toISOString()
)
