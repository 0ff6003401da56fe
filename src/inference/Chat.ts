/**
 * Chat with a GGUF file on the CPU, through node-llama-cpp (llama.cpp), which is loaded when a chat starts and neither compiles nor downloads anything.
 */
import { statSync } from "node:fs"
import { availableParallelism, loadavg } from "node:os"
import { Effect, Schema, type Scope } from "effect"
import type { LlamaModel, Token } from "node-llama-cpp"
import type { Exchange } from "../data/Conversations.ts"
import { certainAnswer, finalAnswer } from "./AnswerText.ts"
import { humanMarker, promptIds, type Vocabulary } from "./GuanacoPrompt.ts"

/** A chat that cannot start or go on: `message` names the place and the cause, `next` the step that helps. */
export class ChatError extends Schema.TaggedError<ChatError>()("ChatError", {
  message: Schema.String,
  next: Schema.String
}) {}

export interface Generation {
  readonly maxTokens: number
  /** 0: always the most probable token. */
  readonly temperature: number
  /** Smallest set of tokens whose probabilities reach this sum; without effect at temperature 0. */
  readonly topP: number
  /** Same seed, same answer at a temperature above 0. */
  readonly seed?: number
}

export interface Chat {
  /** In tokens: prompt and answer together. */
  readonly contextLength: number
  /** Ids that the model would be fed for this question, now. */
  readonly promptIds: (question: string, generation: Generation) => ReadonlyArray<number>
  /** The answer, and the conversation goes on with it. `onText` gets each further piece as soon as it is certain. Interruption stops the generation. */
  readonly ask: (
    question: string,
    generation: Generation,
    onText?: (piece: string) => void
  ) => Effect.Effect<string, ChatError>
  /** Forgets the conversation. */
  readonly reset: Effect.Effect<void>
}

/** Tokens that a longer context would cost memory for without use: answers are short, and old turns are dropped. */
const longestContext = 4096

/**
 * llama.cpp's threads wait for each other in busy loops: with fewer free cores than threads an answer takes a hundred times as long (measured: 20
 * tokens in 0.2 s on one thread and in 4 to 14 s on two, on two busy cores). A small file gains nothing from a second one.
 */
const smallFile = 200e6
const threadsFor = (bytes: number): number =>
  bytes < smallFile ? 1 : Math.max(1, availableParallelism() - Math.round(loadavg()[0] ?? 0))

const reasonOf = (cause: unknown): string => (cause instanceof Error ? cause.message : String(cause))

const load = async (file: string, threads: number) => {
  const { getLlama, LlamaLogLevel } = await import("node-llama-cpp")
  const llama = await getLlama({
    gpu: false,
    build: "never",
    skipDownload: true,
    progressLogs: false,
    logLevel: LlamaLogLevel.error,
    maxThreads: threads
  })
  const model = await llama.loadModel({ modelPath: file })
  const contextSize = Math.min(model.trainContextSize, longestContext)
  const context = await model.createContext({ contextSize, threads })
  return { llama, model, context, sequence: context.getSequence() }
}

/**
 * The file's own vocabulary; undefined when it names no BOS or EOS. "trimLeadingSpace" gives a text's ids without dummy prefix: node-llama-cpp
 * encodes it after a line feed, whose ids it then drops.
 */
const vocabularyOf = (model: LlamaModel): Vocabulary<Token> | undefined => {
  const { bos, eos } = model.tokens
  if (bos === null || eos === null) return undefined
  return {
    bos,
    eos,
    encode: (text, { dummyPrefix }) => model.tokenize(text, false, dummyPrefix ? undefined : "trimLeadingSpace")
  }
}

/** Opens `file`; the model leaves memory with the scope. `threads`: as many as are of use and free, when not given. */
export const openChat: (options: {
  readonly file: string
  readonly threads?: number
}) => Effect.Effect<Chat, ChatError, Scope.Scope> = Effect.fn("openChat")(function* ({ file, threads }) {
  const size = statSync(file, { throwIfNoEntry: false })?.size
  if (size === undefined)
    return yield* new ChatError({
      message: `${file}: no such file`,
      next: "give --file an existing GGUF file, or leave it out to chat with the latest run's model"
    })
  // An interrupted generation ends after its current token: what comes next waits for it.
  let generating: Promise<unknown> = Promise.resolve()
  const { context, model, sequence } = yield* Effect.acquireRelease(
    Effect.tryPromise({
      try: () => load(file, threads ?? threadsFor(size)),
      catch: (cause) =>
        new ChatError({
          message: `${file}: llama.cpp cannot open it as a GGUF model: ${reasonOf(cause)}`,
          next: "check that the file is whole and holds a Llama model; tinyllama run makes it anew with --force STAGE"
        })
    }),
    ({ llama }) => Effect.promise(() => generating.then(() => llama.dispose()))
  )
  const vocabulary = vocabularyOf(model)
  if (vocabulary === undefined)
    return yield* new ChatError({
      message: `${file}: the model's vocabulary has no begin or end of text`,
      next: "chat needs a Llama model; give another GGUF file"
    })
  let turns: ReadonlyArray<Exchange> = []

  /** The turns that stay and the ids with `question`: old turns go until `room` tokens are left for the answer, if that is to be had. */
  const fit = (question: string, room: number) => {
    for (let first = 0; ; first++) {
      const kept = turns.slice(first)
      const ids = promptIds(vocabulary, kept, question)
      if (ids.length + room <= context.contextSize || kept.length === 0) return { kept, ids }
    }
  }
  const roomFor = (generation: Generation) => Math.min(generation.maxTokens, Math.floor(context.contextSize / 2))

  const generate = async (
    prompt: ReadonlyArray<Token>,
    generation: Generation,
    signal: AbortSignal,
    onText: (piece: string) => void
  ): Promise<string> => {
    // What the last turn left in the cache stays; at least one id must be evaluated to get the first prediction.
    await sequence.adaptStateToTokens(prompt.slice(0, -1), false)
    const generated: Array<Token> = []
    let text = ""
    let shown = ""
    const limit = Math.min(generation.maxTokens, context.contextSize - prompt.length)
    if (limit <= 0) return ""
    const tokens = sequence.evaluate(prompt.slice(sequence.nextTokenIndex), {
      temperature: generation.temperature,
      topP: generation.topP,
      topK: 0,
      ...(generation.seed === undefined ? {} : { seed: generation.seed })
    })
    // The iterator ends at EOS by itself.
    for await (const token of tokens) {
      if (signal.aborted) return shown
      generated.push(token)
      text = model.detokenize(generated)
      const { answer, ended } = certainAnswer(text, humanMarker)
      onText(answer.slice(shown.length))
      shown = answer
      if (ended || generated.length >= limit) break
    }
    const answer = finalAnswer(text, humanMarker)
    onText(answer.slice(shown.length))
    return answer
  }

  const ask = Effect.fn("Chat.ask")(function* (
    question: string,
    generation: Generation,
    onText: (piece: string) => void = () => {}
  ) {
    const { ids, kept } = fit(question, roomFor(generation))
    if (ids.length >= context.contextSize)
      return yield* new ChatError({
        message: `the question does not fit into the model's context of ${context.contextSize} tokens`,
        next: "ask in fewer words"
      })
    const answer = yield* Effect.tryPromise({
      try: (signal) => {
        const answering = generating.then(() => generate(ids, generation, signal, onText))
        generating = answering.catch(() => undefined)
        return answering
      },
      catch: (cause) =>
        new ChatError({
          message: `llama.cpp failed while it answered: ${reasonOf(cause)}`,
          next: "start the chat again"
        })
    })
    if (answer !== "") turns = [...kept, { human: question, assistant: answer }]
    return answer
  })

  return {
    contextLength: context.contextSize,
    promptIds: (question, generation) => fit(question, roomFor(generation)).ids,
    ask,
    reset: Effect.sync(() => (turns = []))
  }
})
