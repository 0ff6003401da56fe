/**
 * Conversations in openassistant-guanaco's form, `{"text": "### Human: …### Assistant: …"}` per line, and the token rows that a model is
 * fine-tuned on. Each turn is encoded by itself, so that what the model reads in training is exactly what it reads when it is asked.
 */
import { join } from "node:path"
import { Effect, Result, Schema } from "effect"
import type { ArtifactHandle } from "../artifacts/Artifact.ts"
import type { EncodeOptions } from "../engine/Native.ts"
import { StageError } from "../pipeline/StageType.ts"
import { readList, readRows } from "./Documents.ts"
import { fileFailure } from "./FileFailure.ts"

export interface Exchange {
  readonly human: string
  readonly assistant: string
}

export interface Conversation {
  /** At least one. */
  readonly exchanges: ReadonlyArray<Exchange>
  /** The text ends with a question that nobody answered; it is left out of the exchanges. */
  readonly unanswered: boolean
}

const MARKER = /###[ \t]*(Human|Assistant)[ \t]*:/gu
const excerpt = (text: string): string => JSON.stringify(text.length > 40 ? `${text.slice(0, 40)}…` : text)

/** Cuts a row's text at its markers; white space around markers and turns does not count. The failure says what is wrong with it. */
export const parseConversation = (text: string): Result.Result<Conversation, string> => {
  if (text.trim() === "") return Result.fail("the text is empty")
  const markers = [...text.matchAll(MARKER)]
  const before = text.slice(0, markers[0]?.index ?? text.length)
  if (before.trim() !== "") return Result.fail(`the text starts with ${excerpt(before.trim())}, not with "### Human:"`)
  const turns = markers.map((marker, index) => ({
    speaker: marker[1],
    text: text.slice(marker.index + marker[0].length, markers[index + 1]?.index ?? text.length).trim()
  }))
  const exchanges: Array<Exchange> = []
  for (const [index, turn] of turns.entries()) {
    const expected = index % 2 === 0 ? "Human" : "Assistant"
    if (turn.speaker !== expected)
      return Result.fail(`turn ${index + 1} is the ${turn.speaker}'s, where the ${expected}'s must come`)
    if (turn.text === "") return Result.fail(`turn ${index + 1}, the ${turn.speaker}'s, is empty`)
    if (index % 2 === 1) exchanges.push({ human: turns[index - 1]!.text, assistant: turn.text })
  }
  return exchanges.length === 0
    ? Result.fail("nobody answers: there is no Assistant turn")
    : Result.succeed({ exchanges, unanswered: turns.length % 2 === 1 })
}

const decodeRow = Schema.decodeUnknownResult(Schema.fromJsonString(Schema.Struct({ text: Schema.String })))

const parseRow = (bytes: Uint8Array): Result.Result<Conversation, string> =>
  Result.try({
    try: () => new TextDecoder("utf-8", { fatal: true }).decode(bytes),
    catch: () => "the line is not valid UTF-8"
  }).pipe(
    Result.flatMap((line) =>
      Result.mapError(decodeRow(line), () => 'the line is not a JSON object with a string field "text"')
    ),
    Result.flatMap(({ text }) => parseConversation(text))
  )

/** Faults that one message names before it only counts them. */
const MOST_NAMED = 5

/** All conversations of a Documents artifact, in its order. Every faulty row is an error, named by source and line. */
export const readConversations = Effect.fn("Conversations.read")(function* (documents: ArtifactHandle) {
  const conversations: Array<Conversation> = []
  const faults: Array<string> = []
  for (const { format, path, source } of yield* readList(documents)) {
    if (format !== "jsonl")
      return yield* new StageError({
        failure: "invalid-input",
        message: `${source}: plain text, where conversations are read from JSON lines`,
        next: 'give files of lines like {"text": "### Human: …### Assistant: …"}, with format: jsonl'
      })
    yield* Effect.tryPromise({
      try: async () => {
        for await (const { bytes, line } of readRows(join(documents.folder, path))) {
          const parsed = parseRow(bytes)
          if (Result.isSuccess(parsed)) conversations.push(parsed.success)
          else faults.push(`${source}:${line}: ${parsed.failure}`)
        }
      },
      catch: fileFailure(`${documents.origin}: ${path}`)
    })
  }
  if (faults.length > 0) {
    const more = faults.length > MOST_NAMED ? [`and ${faults.length - MOST_NAMED} more`] : []
    return yield* new StageError({
      failure: "invalid-input",
      message: [...faults.slice(0, MOST_NAMED), ...more].join("\n"),
      next: 'each line must be {"text": "### Human: …### Assistant: …"}, both in turns; mend or remove these'
    })
  }
  if (conversations.length === 0)
    return yield* new StageError({
      failure: "invalid-input",
      message: `${documents.origin} has no conversation`,
      next: "give at least one file with at least one conversation"
    })
  return conversations
})

/** Which targets are scored: the assistant's alone, or all but the begin of text, as TinyLlama's own fine-tuning does. */
export const LossOn = Schema.Literals(["assistant", "all"])
export type LossOn = typeof LossOn.Type

/** After which of the assistant's turns the end of text comes. */
export const EndOfText = Schema.Literals(["every_turn", "end"])
export type EndOfText = typeof EndOfText.Type

/** Text as the model sees it up to where an answer starts. */
export const questionText = (human: string): string => `### Human: ${human}### Assistant:`
export const answerText = (assistant: string): string => ` ${assistant}`

export interface ConversationRow {
  readonly tokens: Int32Array
  /** 1 where a token is scored as a target; the first token never is. */
  readonly scored: Uint8Array
}

type Encode = (text: Uint8Array, options: EncodeOptions) => Int32Array

/**
 * The token row of a conversation: begin of text, then its turns, each encoded by itself; the first with the dummy prefix that a whole prompt gets.
 * Cutting before the answer's space is exact: no piece of the vocabulary continues a word across a space, so question and answer together give
 * the ids of the whole text.
 */
export const encodeConversation = (
  encode: Encode,
  { exchanges }: Conversation,
  options: { readonly lossOn: LossOn; readonly eos: EndOfText }
): ConversationRow => {
  const bytes = new TextEncoder()
  const segments = exchanges.flatMap(({ assistant, human }, index) => [
    {
      ids: encode(bytes.encode(questionText(human)), { addBos: index === 0, addEos: false, dummyPrefix: index === 0 }),
      scored: options.lossOn === "all"
    },
    {
      ids: encode(bytes.encode(answerText(assistant)), {
        addBos: false,
        addEos: options.eos === "every_turn" || index === exchanges.length - 1,
        dummyPrefix: false
      }),
      scored: true
    }
  ])
  const tokens = Int32Array.from(segments.flatMap(({ ids }) => [...ids]))
  const scored = Uint8Array.from(segments.flatMap(({ ids, scored }) => Array.from(ids, () => (scored ? 1 : 0))))
  scored[0] = 0
  return { tokens, scored }
}

/** The row's first `length` + 1 tokens, which make `length` inputs and targets. */
export const truncateRow = (row: ConversationRow, length: number): ConversationRow => ({
  tokens: row.tokens.subarray(0, length + 1),
  scored: row.scored.subarray(0, length + 1)
})

export const hasScoredTarget = (row: ConversationRow): boolean => row.scored.includes(1)
