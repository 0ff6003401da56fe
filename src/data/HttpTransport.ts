/**
 * One request to one server, and the patience with which it is tried again. Redirects are followed here, so that a token goes to the host it is
 * meant for and to no other, and so that what the first host says of the file is seen. What may pass by itself fails as Transient: a broken
 * connection, a stall, statuses 408, 425, 429 and 5xx; every other failure is final.
 */
import { Data, Duration, Effect, Random, type Scope, Semaphore } from "effect"
import * as FetchHttpClient from "effect/http/FetchHttpClient"
import * as HttpClient from "effect/http/HttpClient"
import * as HttpClientRequest from "effect/http/HttpClientRequest"
import type * as HttpClientResponse from "effect/http/HttpClientResponse"
import { Preempted, StageError } from "../pipeline/StageType.ts"

export interface Patience {
  /** Tries in a row that bring nothing before the stage fails as network, and the runner's retry policy has its say. */
  readonly tries: number
  /** The wait after the first failure; it doubles, with jitter. */
  readonly base: Duration.Duration
  readonly longest: Duration.Duration
  /** No byte for this long, and the connection counts as broken. */
  readonly stall: Duration.Duration
  /** A server that asks for a longer pause is left to the runner. */
  readonly longestPause: Duration.Duration
}

export const usualPatience: Patience = {
  tries: 8,
  base: Duration.millis(500),
  longest: Duration.seconds(30),
  stall: Duration.seconds(30),
  longestPause: Duration.minutes(15)
}

/** What all transfers of one stage share: how many requests run at once, and until when each server wants to be left alone. */
export interface Session {
  readonly patience: Patience
  readonly connections: number
  readonly permits: Semaphore.Semaphore
  /** Origin → time in milliseconds before which no request is sent. */
  readonly notBefore: Map<string, number>
  /** Bytes of bodies so far. */
  readonly received: { bytes: number }
  readonly stopRequested: () => boolean
  readonly log: (line: string) => void
}

export const makeSession = (options: {
  readonly connections: number
  readonly stopRequested: () => boolean
  readonly log: (line: string) => void
  readonly patience?: Partial<Patience>
}): Effect.Effect<Session> =>
  Effect.map(Semaphore.make(options.connections), (permits) => ({
    ...options,
    patience: { ...usualPatience, ...options.patience },
    permits,
    notBefore: new Map(),
    received: { bytes: 0 }
  }))

/** A failure that may pass. `progress`: bytes arrived, so that it counts as the first. */
export class Transient extends Data.TaggedError("Transient")<{
  readonly reason: string
  readonly progress?: boolean
  /** What the server asks for. */
  readonly pauseMillis?: number
}> {}

/** A URL as it may be shown: without user, password and query, where secrets ride. */
export const shownUrl = (url: string): string => {
  const { host, pathname, protocol } = new URL(url)
  return `${protocol}//${host}${pathname}`
}

export const network = (place: string, reason: string): StageError =>
  new StageError({
    failure: "network",
    message: `${place}: ${reason}`,
    next: "check the connection and run again: what has arrived is kept and the download goes on from there"
  })

/** A failure of the client in words, without the query string that its message may carry. */
export const connectionFault = (error: { readonly message: string; readonly cause?: unknown }): string => {
  const causes: Array<string> = []
  for (let cause = error.cause; cause instanceof Error && causes.length < 3; cause = cause.cause)
    causes.push(cause.message)
  return [error.message, ...new Set(causes)].join(": ").replaceAll(/\?[^\s)]*/gu, "")
}

const passing = (status: number): boolean => status === 408 || status === 425 || status === 429 || status >= 500

/** The pause that a server asks for, in milliseconds: Retry-After in seconds or as a date, else the `t` of RateLimit. */
export const pauseAsked = (headers: Readonly<Record<string, string | undefined>>, now: number): number | undefined => {
  const after = headers["retry-after"]
  if (after !== undefined && /^\d+$/u.test(after.trim())) return Number(after) * 1000
  const date = after === undefined ? NaN : Date.parse(after)
  if (!Number.isNaN(date)) return Math.max(0, date - now)
  const window = /(?:^|;)\s*t=(\d+)/u.exec(headers["ratelimit"] ?? "")?.[1]
  return window === undefined ? undefined : Number(window) * 1000
}

/** What a refusal means and what helps: `explain` knows the kind of server. */
export type Explain = (
  status: number,
  headers: Readonly<Record<string, string | undefined>>
) => {
  readonly cause: string
  readonly next: string
}

export const explainPlain: Explain = (status) => ({
  cause: status === 404 || status === 410 ? "not found" : status === 401 || status === 403 ? "no access" : "",
  next: status === 401 || status === 403 ? "name a file that is open to all" : "check the address"
})

const refusal = (place: string, status: number, { cause, next }: ReturnType<Explain>): StageError =>
  new StageError({
    failure: "invalid-input",
    message: `${place}: the server answers ${status}${cause === "" ? "" : ` (${cause})`}`,
    next
  })

export interface Ask {
  readonly url: string
  readonly place: string
  readonly headers?: Readonly<Record<string, string>>
  /** The address whose origin may see the proof, where `url` is one that it led to. */
  readonly home?: string
  /** Headers that prove who asks: for one origin only, made anew for each request. */
  readonly authorize?:
    | ((url: string, headers: Readonly<Record<string, string>>) => Effect.Effect<Readonly<Record<string, string>>>)
    | undefined
  readonly explain?: Explain | undefined
}

export interface Answer {
  readonly response: HttpClientResponse.HttpClientResponse
  readonly headers: Readonly<Record<string, string | undefined>>
  /** Where redirects led. */
  readonly url: string
  /** Headers of the first host where it sent the request on to another: a hub tells digest and size there. */
  readonly origin: Readonly<Record<string, string | undefined>>
}

const mostRedirects = 10

/**
 * Sends the request and follows redirects; the response's body lives as long as the scope. Statuses below 400 and 416 come back, to be
 * judged by the caller. Fails as Transient, or finally as StageError.
 */
export const ask = (
  session: Session,
  request: Ask
): Effect.Effect<Answer, Transient | StageError, HttpClient.HttpClient | Scope.Scope> =>
  Effect.gen(function* () {
    const client = HttpClient.withScope(yield* HttpClient.HttpClient)
    const home = new URL(request.home ?? request.url).origin
    const plain = { "accept-encoding": "identity", ...request.headers }
    let url = request.url
    let trusted = true
    let origin: Answer["origin"] = {}
    for (let redirects = 0; ; redirects++) {
      trusted &&= new URL(url).origin === home
      const proof = trusted && request.authorize !== undefined ? yield* request.authorize(url, plain) : {}
      const response = yield* client.execute(HttpClientRequest.get(url, { headers: { ...plain, ...proof } })).pipe(
        Effect.provideService(FetchHttpClient.RequestInit, { redirect: "manual" }),
        Effect.mapError((error) => new Transient({ reason: connectionFault(error) })),
        Effect.timeoutOrElse({
          duration: session.patience.stall,
          orElse: () => Effect.fail(new Transient({ reason: `no answer within ${seconds(session.patience.stall)}` }))
        })
      )
      const headers: Answer["headers"] = response.headers
      const { status } = response
      const location = headers["location"]
      if (status >= 300 && status < 400 && location !== undefined && URL.canParse(location, url)) {
        if (redirects >= mostRedirects)
          return yield* refusal(request.place, status, { cause: "it redirects in circles", next: "check the address" })
        if (redirects === 0) origin = headers
        url = new URL(location, url).href
        continue
      }
      if (passing(status)) {
        const pauseMillis = pauseAsked(headers, yield* now)
        if (pauseMillis !== undefined) session.notBefore.set(new URL(url).origin, (yield* now) + pauseMillis)
        return yield* new Transient({
          reason: `the server answers ${status}`,
          ...(pauseMillis === undefined ? {} : { pauseMillis })
        })
      }
      if (status >= 300 && status !== 416) {
        // A signed address that a redirect led to may have run out; the host that gave it gives another.
        if (url !== request.url && (status === 401 || status === 403))
          return yield* new Transient({ reason: `the server that the address leads to answers ${status}` })
        return yield* refusal(request.place, status, (request.explain ?? explainPlain)(status, headers))
      }
      return { response, headers, url, origin }
    }
  })

const now = Effect.clockWith((clock) => clock.currentTimeMillis)
export const seconds = (duration: Duration.Duration): string => `${Duration.toSeconds(duration)} s`

/** Waits in short steps, so that a stop is noticed. */
export const pause = Effect.fnUntraced(function* (session: Session, place: string, until: number) {
  for (;;) {
    if (session.stopRequested())
      return yield* new Preempted({ message: `${place}: stopped while waiting; what arrived is kept` })
    const left = until - (yield* now)
    if (left <= 0) return
    yield* Effect.sleep(Math.min(left, 200))
  }
})

/** Waits until the server of `url` may be asked again. */
export const takeTurn = (session: Session, place: string, url: string) =>
  pause(session, place, session.notBefore.get(new URL(url).origin) ?? 0)

/**
 * Runs `attempt` until it succeeds, or until `tries` failures in a row brought nothing. Each attempt has a permit of the session and a scope of its
 * own; waits have none.
 */
export const patiently = <A, E, R>(
  session: Session,
  place: string,
  url: () => string,
  attempt: Effect.Effect<A, E | Transient, R | Scope.Scope>
): Effect.Effect<A, Exclude<E, Transient> | StageError | Preempted, Exclude<R, Scope.Scope>> =>
  Effect.gen(function* () {
    const { base, longest, longestPause, tries } = session.patience
    for (let failures = 0; ;) {
      yield* takeTurn(session, place, url())
      const outcome = yield* Effect.scoped(attempt).pipe(
        session.permits.withPermits(1),
        Effect.map((value) => ({ value })),
        Effect.catchIf(
          (error) => error instanceof Transient,
          (error) => Effect.succeed(error)
        )
      )
      if (!(outcome instanceof Transient)) return outcome.value
      failures = outcome.progress === true ? 1 : failures + 1
      if (failures >= tries) return yield* network(place, `${outcome.reason}, ${failures} times in a row`)
      const asked = outcome.pauseMillis ?? 0
      if (asked > Duration.toMillis(longestPause))
        return yield* network(place, `${outcome.reason} and asks to wait ${Math.ceil(asked / 1000)} s`)
      const backoff = Math.min(Duration.toMillis(longest), Duration.toMillis(base) * 2 ** (failures - 1))
      const jitter = 0.5 + (yield* Random.next) / 2
      yield* pause(session, place, (yield* now) + Math.max(asked, backoff * jitter))
    }
  })

/** A page of text, for listings. Fails as network or invalid-input. */
export const askForText = (session: Session, request: Ask) => {
  const attempt = Effect.gen(function* () {
    const { headers, response } = yield* ask(session, request)
    if (response.status !== 200) return yield* new Transient({ reason: `the server answers ${response.status}` })
    const text = yield* response.text.pipe(
      Effect.mapError((error) => new Transient({ reason: connectionFault(error) })),
      Effect.timeoutOrElse({
        duration: session.patience.stall,
        orElse: () => Effect.fail(new Transient({ reason: `no answer within ${seconds(session.patience.stall)}` }))
      })
    )
    return { headers, text }
  })
  return patiently(session, request.place, () => request.url, attempt)
}
