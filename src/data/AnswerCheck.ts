/**
 * What is believed of an answer: bytes under a Content-Range that starts where it was asked to, within a file of the known size and validator; a 200 is
 * the file from its start. Any other answer is a fault: it is thrown away unread, and asked for again. A file counts as changed, and a server as one
 * without ranges, once three answers in a row say the same, because a single one may be wrong.
 */
import { Effect } from "effect"
import { contentLength, contentRange, identify, sizeOfUnsatisfied, validatorOf } from "./HttpIdentity.ts"
import { type Answer, Transient } from "./HttpTransport.ts"
import { Changed, type Transfer, WholeOnly } from "./Transfer.ts"

const believed = 3

/** What an answer's body is. */
export interface Extent {
  /** Exclusive; of the file, not of the body. */
  readonly end: number
  readonly total: number
  /** The body is the whole file. */
  readonly whole: boolean
}

/** Says what part of the file this answer's body is, if it can be believed. */
export const judge = Effect.fnUntraced(function* (transfer: Transfer, answer: Answer, at: number, end: number) {
  const { headers, response } = answer
  const identity = transfer.journal?.identity
  if (response.status === 416) {
    const size = sizeOfUnsatisfied(headers)
    if (identity === undefined && size === 0) return yield* accept(transfer, answer, { end: 0, total: 0, whole: true })
    if (size === undefined || identity === undefined || size === identity.size)
      return yield* new Transient({ reason: `the server refuses a range of its own file (416)` })
    return yield* other(transfer, `${size} bytes`)
  }
  const strange = foreign(transfer, answer)
  if (strange !== undefined) return yield* other(transfer, strange)
  if (response.status === 206) {
    const range = contentRange(headers)
    if (range === undefined) return yield* whole(transfer, "a range whose place it does not tell")
    const length = contentLength(headers)
    if (range.start !== at || (length !== undefined && length !== range.end - range.start))
      return yield* new Transient({
        reason: `the server sends other bytes than those asked for: ${headers["content-range"]} for ${at}-${end - 1}${length === undefined ? "" : `, ${length} bytes long`}`
      })
    return yield* accept(transfer, answer, { end: range.end, total: range.total, whole: false })
  }
  const length = contentLength(headers)
  if (at > 0 || length === undefined) return yield* whole(transfer, "the whole file where a part was asked for")
  transfer.session.log(
    `${transfer.ask.place}: the server sends the whole file where a part was asked for: one connection`
  )
  return yield* accept(transfer, answer, { end: length, total: length, whole: true })
})

const accept = (transfer: Transfer, answer: Answer, extent: Extent) => {
  transfer.said = undefined
  if (answer.url !== transfer.ask.url) transfer.direct = answer.url
  return Effect.succeed(extent)
}

/** What contradicts the file that the pieces are of; undefined where nothing does. */
const foreign = (transfer: Transfer, { headers, origin, response }: Answer): string | undefined => {
  const identity = transfer.journal?.identity
  if (identity === undefined) return undefined
  const range = contentRange(headers)
  const size = response.status === 206 ? range?.total : contentLength(headers)
  if (size !== undefined && size !== identity.size) return `${size} bytes`
  const linked = identify({ headers, origin }, { key: "", size: 0, md5Etag: false })
  if (identity.sha256 !== null && linked.sha256 !== null && linked.sha256 !== identity.sha256)
    return `sha256 ${linked.sha256}`
  const validator = validatorOf(headers)
  if (!transfer.pinned && identity.validator !== null && validator !== null && validator !== identity.validator)
    return `validator ${validator}`
  return undefined
}

const repeated = (transfer: Transfer, what: string): boolean => {
  const times = transfer.said?.what === what ? transfer.said.times + 1 : 1
  transfer.said = { what, times }
  return times >= believed
}

export const other = (transfer: Transfer, what: string): Effect.Effect<never, Changed | Transient> =>
  repeated(transfer, what)
    ? Effect.fail(new Changed({ what }))
    : Effect.fail(new Transient({ reason: `the server speaks of another file: ${what}` }))

const whole = (transfer: Transfer, reason: string): Effect.Effect<never, WholeOnly | Transient> =>
  repeated(transfer, reason)
    ? Effect.fail(new WholeOnly({ reason: `the server sends ${reason}` }))
    : Effect.fail(new Transient({ reason: `the server sends ${reason}` }))
