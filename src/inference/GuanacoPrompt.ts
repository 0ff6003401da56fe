/** The prompt of a conversation in openassistant-guanaco's form, as fine-tuning saw it. Pure. */

export interface Turn {
  readonly human: string
  readonly assistant: string
}

/** Where a model goes on to speak for the human: an answer ends there. */
export const humanMarker = "### Human"

/** Without a space at the end: the answer's first piece brings its own. */
const opening = (question: string): string => `### Human: ${question}### Assistant:`

export interface Vocabulary<Id extends number> {
  readonly bos: Id
  readonly eos: Id
  /** Ids of a text by itself: with SentencePiece's dummy prefix, without BOS and EOS; a written-out `<s>` stays text. */
  readonly encode: (text: string) => ReadonlyArray<Id>
}

/** BOS, each past turn closed by EOS, and the question: `### Human: …### Assistant:`. */
export const promptIds = <Id extends number>(
  vocabulary: Vocabulary<Id>,
  past: ReadonlyArray<Turn>,
  question: string
): ReadonlyArray<Id> => [
  vocabulary.bos,
  ...past.flatMap(({ assistant, human }) => [...vocabulary.encode(`${opening(human)} ${assistant}`), vocabulary.eos]),
  ...vocabulary.encode(opening(question))
]
