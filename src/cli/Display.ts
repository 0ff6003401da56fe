/**
 * Shows a run while it goes on. On a terminal: one live line per running stage on stderr, permanent lines above it. In a pipe: plain lines,
 * with a progress line now and then. With --json: every event as one line of JSON on stdout.
 */
import { Clock, Effect, PubSub, Ref, Schedule, Schema, type Scope } from "effect"
import { RunEvent, RunEvents } from "../pipeline/runs/RunEvent.ts"
import { eventLine, follow, readingLine, type StageReading } from "./EventLines.ts"

export type DisplayMode = "live" | "plain" | "json"

/** Live on a terminal, plain elsewhere. */
export const displayMode = (options: { readonly json: boolean; readonly plain: boolean }): DisplayMode =>
  options.json ? "json" : process.stderr.isTTY && !options.plain ? "live" : "plain"

const encodeEvent = Schema.encodeEffect(Schema.fromJsonString(RunEvent))

/**
 * Starts showing this process's run. The returned effect waits until every event published so far is shown and ends the display; closing the
 * scope ends it too.
 */
export const startDisplay = Effect.fn("startDisplay")(function* (
  mode: DisplayMode
): Effect.fn.Return<Effect.Effect<void>, never, RunEvents | Scope.Scope> {
  const subscription = yield* PubSub.subscribe(yield* RunEvents)
  const show = yield* showIn(mode)
  const shown = yield* Ref.make(0)
  yield* PubSub.take(subscription).pipe(
    Effect.flatMap((event) => show.event(event)),
    Effect.andThen(Ref.update(shown, (n) => n + 1)),
    Effect.forever,
    Effect.forkScoped
  )
  const drained = PubSub.remaining(subscription).pipe(
    Effect.repeat({ until: (remaining) => remaining === 0, schedule: Schedule.spaced("5 millis") }),
    Effect.timeoutOption("2 seconds"),
    Effect.andThen(show.end)
  )
  return drained
})

/** Shows events one by one, wherever they come from; `end` takes the live lines away. */
export interface Show {
  readonly event: (event: RunEvent) => Effect.Effect<void>
  readonly end: Effect.Effect<void>
}

export const showIn = (mode: DisplayMode): Effect.Effect<Show, never, Scope.Scope> =>
  mode === "json" ? Effect.succeed(showJson) : mode === "live" ? showLive : showPlain

const write = (stream: NodeJS.WriteStream, text: string) => Effect.sync(() => void stream.write(text))

const showJson: Show = {
  event: (event) =>
    encodeEvent(event).pipe(
      Effect.orDie,
      Effect.flatMap((line) => write(process.stdout, `${line}\n`))
    ),
  end: Effect.void
}

/** Seconds between two progress lines of one stage in a pipe. */
const PLAIN_PROGRESS_SECONDS = 10

const showPlain = Effect.gen(function* () {
  const readings = yield* Ref.make<ReadonlyMap<string, StageReading>>(new Map())
  const printed = new Map<string, number>()
  const event = (occurred: RunEvent) =>
    Effect.gen(function* () {
      const known = yield* Ref.updateAndGet(readings, (map) => follow(map, occurred))
      const line = eventLine(occurred)
      if (line !== undefined) yield* write(process.stdout, `${line}\n`)
      if (occurred._tag === "AttemptStarted") printed.set(occurred.stage, Date.parse(occurred.at))
      if (occurred._tag !== "Progress") return
      const now = Date.parse(occurred.at)
      const reading = known.get(occurred.stage)
      if (reading === undefined || now - (printed.get(occurred.stage) ?? 0) < PLAIN_PROGRESS_SECONDS * 1000) return
      printed.set(occurred.stage, now)
      yield* write(process.stdout, `  ${readingLine(reading, now, 0, 400)}\n`)
    })
  return { event, end: Effect.void } satisfies Show
})

const showLive = Effect.gen(function* () {
  const readings = yield* Ref.make<ReadonlyMap<string, StageReading>>(new Map())
  let painted = 0
  // Moves to the first live line and clears from there down: what follows is painted anew.
  const erase = () => (painted > 0 ? `\u001b[${painted}A\r\u001b[0J` : "")
  const paint = (now: number, known: ReadonlyMap<string, StageReading>, above: string) => {
    const width = Math.max(20, (process.stderr.columns ?? 80) - 1)
    const names = Math.max(0, ...[...known.keys()].map((stage) => stage.length))
    const lines = [...known.values()].map((reading) => readingLine(reading, now, names, width))
    process.stderr.write(`${erase()}${above}${lines.map((line) => `${line}\n`).join("")}`)
    painted = lines.length
  }
  yield* Effect.gen(function* () {
    paint(yield* Clock.currentTimeMillis, yield* Ref.get(readings), "")
  }).pipe(Effect.repeat(Schedule.spaced("150 millis")), Effect.forkScoped)
  const event = (occurred: RunEvent) =>
    Effect.gen(function* () {
      const known = yield* Ref.updateAndGet(readings, (map) => follow(map, occurred))
      const line = eventLine(occurred)
      if (line !== undefined) paint(yield* Clock.currentTimeMillis, known, `${line}\n`)
    })
  const end = Effect.gen(function* () {
    yield* Ref.set(readings, new Map())
    paint(yield* Clock.currentTimeMillis, new Map(), "")
  })
  return { event, end } satisfies Show
})
