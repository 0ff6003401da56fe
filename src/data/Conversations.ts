/**
 * Conversations in openassistant-guanaco's form, `{"text": "### Human: …### Assistant: …"}` per line, and the token rows that a model is
 * fine-tuned on. Each turn is encoded by itself, so that what the model reads in training is exactly what it reads when it is asked.
 */
import { Result, Schema } from "effect"
import type { EncodeOptions } from "../engine/Native.ts"

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
