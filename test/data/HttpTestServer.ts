/** A server on 127.0.0.1 whose answers each test scripts; it keeps what was asked of it. Closed with the test's scope. */
import { createServer, type IncomingMessage, type ServerResponse } from "node:http"
import { Effect } from "effect"

export interface Asked {
  readonly url: string
  readonly headers: IncomingMessage["headers"]
}

/** `answer` gets the request, the response, and how many requests for this path came before. */
export const serve = (answer: (request: IncomingMessage, response: ServerResponse, earlier: number) => void) =>
  Effect.acquireRelease(
    Effect.callback<{ readonly base: string; readonly asked: Array<Asked>; readonly close: () => void }>((resume) => {
      const asked: Array<Asked> = []
      const server = createServer((request, response) => {
        const earlier = asked.filter(({ url }) => url === request.url).length
        asked.push({ url: request.url ?? "", headers: request.headers })
        answer(request, response, earlier)
      })
      server.listen(0, "127.0.0.1", () => {
        const address = server.address()
        const port = typeof address === "object" && address !== null ? address.port : 0
        resume(
          Effect.succeed({
            base: `http://127.0.0.1:${port}`,
            asked,
            close: () => {
              server.closeAllConnections()
              server.close()
            }
          })
        )
      })
    }),
    ({ close }) => Effect.sync(close)
  )

/** The range that was asked for, end exclusive; undefined without one. */
export const askedRange = (request: IncomingMessage, size: number): { start: number; end: number } | undefined => {
  const match = /^bytes=(\d+)-(\d*)$/u.exec(request.headers.range ?? "")
  if (match === null) return undefined
  return { start: Number(match[1]), end: match[2] === "" ? size : Math.min(size, Number(match[2]) + 1) }
}

/** Answers with `body`, or the range of it that was asked for. */
export const sendRange = (request: IncomingMessage, response: ServerResponse, body: Buffer, etag?: string): void => {
  const range = askedRange(request, body.length)
  const fresh = request.headers["if-range"] !== undefined && request.headers["if-range"] !== etag
  if (etag !== undefined) response.setHeader("etag", etag)
  if (range === undefined || fresh) {
    response.writeHead(200, { "content-length": body.length }).end(body)
  } else if (range.start >= body.length) {
    response.writeHead(416, { "content-range": `bytes */${body.length}` }).end()
  } else {
    const { end, start } = range
    response
      .writeHead(206, { "content-length": end - start, "content-range": `bytes ${start}-${end - 1}/${body.length}` })
      .end(body.subarray(start, end))
  }
}
