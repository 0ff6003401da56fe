/**
 * A server that does to one file what servers and what lies before them do to downloads: it stalls, resets connections, is busy, lies about ranges in
 * several ways, and damages a byte once. It counts every byte of a body that it hands to a socket. All by a seed, so that a run can be repeated.
 */
import { createCipheriv } from "node:crypto"
import { createServer, type ServerResponse } from "node:http"
import { setTimeout as sleep } from "node:timers/promises"
import { askedRange } from "./HttpTestServer.ts"

/** A small generator (mulberry32). */
export const randomFrom = (seed: number) => () => {
  seed = (seed + 0x6d2b79f5) | 0
  let mixed = Math.imul(seed ^ (seed >>> 15), 1 | seed)
  mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
  return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296
}

/** Bytes that do not repeat. */
export const noise = (bytes: number, seed: number): Buffer => {
  const key = Buffer.alloc(16)
  key.writeUInt32LE(seed)
  return createCipheriv("aes-128-ctr", key, Buffer.alloc(16)).update(Buffer.alloc(bytes))
}

/** How often each thing is done to an answer, of 1. */
const shares = { stall: 0.01, reset: 0.02, busy: 0.01, lie: 0.03 }
type Trick = keyof typeof shares

/** Bytes that a broken answer brings at most. */
const brokenBytes = 300_000
const chunkBytes = 16_384

export interface Hostile {
  readonly url: string
  /** Bytes of bodies so far. */
  readonly served: () => number
  readonly tricks: () => Readonly<Record<Trick | "damage" | "answers", number>>
  /** Called whenever more was served. */
  onServed: () => void
  readonly close: () => void
}

export interface HostileOptions {
  readonly seed: number
  /** Bytes a second in all. */
  readonly rate: number
  /** Once this much was served, the next answer that is no trick has a damaged byte. */
  readonly damagedAfter: number
  /** broken: the answer with the damaged byte then breaks off, as from a bad node; silent: nothing about it tells. */
  readonly damage: "broken" | "silent"
}

/** Until there is room again, or nobody to send to. */
const drained = (response: ServerResponse): Promise<void> =>
  new Promise((resolve) => {
    const go = (): void => {
      response.off("drain", go).off("close", go)
      resolve()
    }
    response.on("drain", go).on("close", go)
  })

export const serveHostile = async (body: Buffer, options: HostileOptions): Promise<Hostile> => {
  const { damage, rate, seed } = options
  const random = randomFrom(seed)
  const count = { stall: 0, reset: 0, busy: 0, lie: 0, damage: 0, answers: 0 }
  const etag = '"the-one"'
  let served = 0
  let next = performance.now()

  const trick = (): Trick | undefined => {
    let draw = random()
    for (const name of ["stall", "reset", "busy", "lie"] as const) if ((draw -= shares[name]) < 0) return name
    return undefined
  }

  /** Sends at the server's rate; stops when the connection is gone. */
  const send = async (response: ServerResponse, bytes: Buffer): Promise<void> => {
    for (let at = 0; at < bytes.length && !response.destroyed; at += chunkBytes) {
      const chunk = bytes.subarray(at, at + chunkBytes)
      next = Math.max(next, performance.now() - 20) + (chunk.length / rate) * 1000
      const early = next - performance.now()
      if (early > 1) await sleep(early)
      if (response.destroyed) return
      served += chunk.length
      hostile.onServed()
      if (!response.write(chunk)) await drained(response)
    }
  }

  const lies = [
    // another place than was asked for
    (response: ServerResponse, start: number, end: number) => {
      const other = Math.max(0, start - 4096)
      response.writeHead(206, { "content-range": `bytes ${other}-${end - 1}/${body.length}` })
      return body.subarray(other, end)
    },
    // the whole file instead of a part
    (response: ServerResponse) => {
      response.writeHead(200, { "content-length": body.length })
      return body
    },
    // another size
    (response: ServerResponse, start: number, end: number) => {
      response.writeHead(206, { "content-range": `bytes ${start}-${end - 1}/${body.length + 1}` })
      return body.subarray(start, end)
    },
    // fewer bytes than it says
    (response: ServerResponse, start: number, end: number) => {
      const few = Math.min(end - start, 50_000)
      response.writeHead(206, { "content-range": `bytes ${start}-${end - 1}/${body.length}` })
      return body.subarray(start, start + few)
    },
    // more bytes than were asked for
    (response: ServerResponse, start: number) => {
      response.writeHead(206, { "content-range": `bytes ${start}-${body.length - 1}/${body.length}` })
      return body.subarray(start)
    },
    // no such range, of its own file
    (response: ServerResponse) => {
      response.writeHead(416, { "content-range": `bytes */${body.length}` })
      return Buffer.alloc(0)
    }
  ]

  const server = createServer((request, response) => {
    const { end, start } = askedRange(request, body.length) ?? { start: 0, end: body.length }
    count.answers++
    const chosen = trick()
    if (chosen !== undefined) count[chosen]++
    response.setHeader("etag", etag)
    const answer = async (): Promise<void> => {
      if (chosen === "busy") return void response.writeHead(503, { "retry-after": "0" }).end()
      if (chosen === "lie") {
        const bytes = lies[Math.floor(random() * lies.length)]?.(response, start, end) ?? Buffer.alloc(0)
        await send(response, bytes)
        return void response.end()
      }
      const bad = chosen === undefined && count.damage === 0 && served >= options.damagedAfter
      const cut = chosen !== undefined || (bad && damage === "broken")
      const length = cut ? Math.ceil(random() * Math.min(end - start - 1, brokenBytes)) : end - start
      const bytes = Buffer.from(body.subarray(start, start + length))
      response.setHeader("content-range", `bytes ${start}-${end - 1}/${body.length}`)
      response.setHeader("content-length", end - start)
      response.writeHead(206)
      if (bad) {
        count.damage++
        const place = Math.floor(random() * Math.min(length, brokenBytes))
        bytes[place] = (bytes[place] ?? 0) ^ (1 << Math.floor(random() * 8))
      }
      await send(response, bytes)
      if (chosen === "stall") return // until the other side has had enough
      if (cut) return void response.destroy()
      response.end()
    }
    answer().catch(() => response.destroy())
  })
  await new Promise<void>((go) => server.listen(0, "127.0.0.1", go))
  const address = server.address()
  const port = typeof address === "object" && address !== null ? address.port : 0
  const hostile: Hostile = {
    url: `http://127.0.0.1:${port}/file.bin`,
    served: () => served,
    tricks: () => ({ ...count }),
    onServed: () => {},
    close: () => {
      server.closeAllConnections()
      server.close()
    }
  }
  return hostile
}
