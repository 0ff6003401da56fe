/** Lines of JSON on standard input, read as bytes so that a line of any length, and any broken one, is met as it is. */
import { Effect, Schema, Stream } from "effect"

export class BadLine extends Schema.TaggedError<BadLine>()("BadLine", {
  /** 1-based. */
  line: Schema.Int,
  reason: Schema.String,
  next: Schema.String
}) {
  override get message() {
    return `line ${this.line}: ${this.reason}`
  }
}

const lineFeed = 0x0a

/** The lines without their line feeds; text after the last line feed is a line of its own. */
export const byteLines = <E, R>(input: Stream.Stream<Uint8Array, E, R>): Stream.Stream<Uint8Array, E, R> =>
  input.pipe(
    Stream.mapAccum(
      (): ReadonlyArray<Uint8Array> => [],
      (begun, chunk: Uint8Array) => {
        const lines: Array<Uint8Array> = []
        let parts = begun
        let from = 0
        for (let at = chunk.indexOf(lineFeed); at >= 0; at = chunk.indexOf(lineFeed, from)) {
          lines.push(Buffer.concat([...parts, chunk.subarray(from, at)]))
          parts = []
          from = at + 1
        }
        return [from < chunk.length ? [...parts, chunk.subarray(from)] : parts, lines] as const
      },
      { onHalt: (parts) => (parts.length === 0 ? [] : [Buffer.concat(parts)]) }
    )
  )

/** Each line as JSON of the given form; `next` says what to write instead of a line that is not. */
export const decodeLines =
  <A>(form: Schema.Codec<A, unknown>, next: string) =>
  <E, R>(lines: Stream.Stream<Uint8Array, E, R>): Stream.Stream<readonly [A, number], E | BadLine, R> => {
    const decode = Schema.decodeUnknownEffect(Schema.fromJsonString(form))
    return lines.pipe(
      Stream.zipWithIndex,
      Stream.mapEffect(([bytes, index]) => {
        const line = index + 1
        return Effect.try({
          try: () => new TextDecoder("utf-8", { fatal: true }).decode(bytes),
          catch: () => new BadLine({ line, reason: "not valid UTF-8", next })
        }).pipe(
          Effect.flatMap((text) =>
            Effect.mapError(decode(text), ({ message }) => new BadLine({ line, reason: onOneLine(message), next }))
          ),
          Effect.map((value) => [value, line] as const)
        )
      })
    )
  }

/** Schema's messages put each place and each alternative on a line of its own. */
const onOneLine = (message: string) => message.replaceAll(/\n\s+/gu, " ").replaceAll("\n", "; ")
