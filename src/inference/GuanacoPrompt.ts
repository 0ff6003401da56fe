/** The prompt of a conversation in openassistant-guanaco's form, id by id as fine-tuning encodes it (src/data/Conversations.ts). Pure. */
import { answerText, type Exchange, questionText } from "../data/Conversations.ts"

/** Where a model goes on to speak for the human: an answer ends there. */
export const humanMarker = "### Human"

export interface Vocabulary<Id extends number> {
  readonly bos: Id
  readonly eos: Id
  /** Ids of a text without BOS and EOS; a written-out `<s>` stays text. */
  readonly encode: (text: string, options: { readonly dummyPrefix: boolean }) => ReadonlyArray<Id>
}

/** BOS, each past turn closed by EOS, and the question; the dummy prefix stands before the first turn alone. */
export const promptIds = <Id extends number>(
  { bos, encode, eos }: Vocabulary<Id>,
  past: ReadonlyArray<Exchange>,
  question: string
): ReadonlyArray<Id> => [
  bos,
  ...past.flatMap(({ assistant, human }, index) => [
    ...encode(questionText(human), { dummyPrefix: index === 0 }),
    ...encode(answerText(assistant), { dummyPrefix: false }),
    eos
  ]),
  ...encode(questionText(question), { dummyPrefix: past.length === 0 })
]
