/**
 * Multiple choice by log-likelihood. A task is a file's row schema and one function from row to item; `questions` below is one, and every task of
 * lm-evaluation-harness (HellaSwag, ARC, PIQA, …) is another file beside this one.
 */
import { Effect, Schema } from "effect"
import { type Encode, encodePair, pairSequence, type Profile, type ScoredSequence } from "../LogLikelihood.ts"
import { argmax, codePoints, mean, standardError } from "../Metrics.ts"
import { type Metrics, type Task, TaskError } from "../Task.ts"

/** One way to answer: the continuation is scored after the context; `text`, without the delimiter, is what acc_norm counts. */
export interface Choice {
  readonly context: string
  readonly continuation: string
  readonly text: string
}
export interface Item {
  readonly choices: ReadonlyArray<Choice>
  /** Index of the right choice. */
  readonly gold: number
}

export interface MultipleChoiceDefinition<Row> {
  readonly row: Schema.Codec<Row, unknown>
  readonly item: (row: Row) => Item
}

/** What joins a prompt and an answer in the harness: the space belongs to the continuation. */
const delimiter = " "

/** One context, several continuations: all tasks of the harness but WinoGrande. */
export const continuations = (context: string, choices: ReadonlyArray<string>, gold: number): Item => ({
  choices: choices.map((text) => ({ context, continuation: delimiter + text, text })),
  gold
})

const Question = Schema.Struct({
  query: Schema.String,
  choices: Schema.Array(Schema.NonEmptyString).check(Schema.isMinLength(2)),
  gold: Schema.Int.check(Schema.isGreaterThanOrEqualTo(0))
}).check(
  Schema.makeFilter(({ choices, gold }) =>
    gold < choices.length ? undefined : { path: ["gold"], issue: `no choice ${gold} among ${choices.length}` }
  )
)

/** Files of {query, choices, gold}, the form that the harness' own tasks take after their preprocessing. */
export const questions: MultipleChoiceDefinition<typeof Question.Type> = {
  row: Question,
  item: ({ query, choices, gold }) => continuations(query, choices, gold)
}

/** The items of a JSON Lines text; `file` is named in errors. Blank lines are skipped. */
export const readItems = Effect.fn("readItems")(function* <Row>(
  definition: MultipleChoiceDefinition<Row>,
  file: string,
  text: string
) {
  const decode = Schema.decodeUnknownEffect(Schema.fromJsonString(definition.row))
  const items: Array<Item> = []
  for (const [index, line] of text.split("\n").entries()) {
    if (line.trim() === "") continue
    const row = yield* decode(line).pipe(
      Effect.mapError(
        (error) => new TaskError({ place: `${file}:${index + 1}`, reason: error.message.replaceAll("\n", " ") })
      )
    )
    items.push(definition.item(row))
  }
  if (items.length === 0) return yield* new TaskError({ place: file, reason: "holds no questions" })
  return items
})

/** The rows of all choices, item by item. Fails when a choice has no ids of its own or more than the model's context takes. */
export const multipleChoice = Effect.fn("multipleChoice")(function* (
  name: string,
  items: ReadonlyArray<Item>,
  options: { readonly encode: Encode; readonly profile: Profile; readonly contextLength: number }
) {
  const sequences: Array<ScoredSequence> = []
  for (const [index, item] of items.entries())
    for (const choice of item.choices) {
      const pair = encodePair(options.encode, choice.context, choice.continuation, options.profile)
      const length = pair.continuation.length
      if (length === 0 || length > options.contextLength)
        return yield* new TaskError({
          place: `${name}, question ${index + 1}`,
          reason: `the choice ${JSON.stringify(choice.text.slice(0, 40))} has ${length} tokens; 1 to ${options.contextLength} can be scored`
        })
      sequences.push(pairSequence(pair.context, pair.continuation, options.contextLength))
    }
  const task: Task = {
    name,
    sequences,
    metrics: (results) =>
      scoreItems(
        items,
        results.map((result) => result.sum)
      )
  }
  return task
})

/** acc and acc_norm with their standard errors, from the choices' log-likelihoods, item by item. */
export const scoreItems = (items: ReadonlyArray<Item>, sums: ReadonlyArray<number>): Metrics => {
  const right: Array<number> = []
  const rightNormalized: Array<number> = []
  let next = 0
  for (const { choices, gold } of items) {
    const own = sums.slice(next, next + choices.length)
    next += choices.length
    right.push(Number(argmax(own) === gold))
    rightNormalized.push(Number(argmax(own.map((sum, index) => sum / codePoints(choices[index]?.text ?? ""))) === gold))
  }
  const error = standardError(right)
  const errorNormalized = standardError(rightNormalized)
  return {
    acc: mean(right),
    ...(error === undefined ? {} : { acc_stderr: error }),
    acc_norm: mean(rightNormalized),
    ...(errorNormalized === undefined ? {} : { acc_norm_stderr: errorNormalized }),
    n: items.length
  }
}
