/** `tinyllama chat [RUN]`: talks with the GGUF model that a run made. */
import { createInterface } from "node:readline"
import { Console, Effect, Option, Schema } from "effect"
import { Command, Flag } from "effect/cli"
import { ArtifactStore } from "../../artifacts/ArtifactStore.ts"
import type { Chat, Generation } from "../../inference/Chat.ts"
import { openChat } from "../../inference/Chat.ts"
import { chooseGguf } from "../../inference/GgufChoice.ts"
import * as LocalRunner from "../../pipeline/run/LocalRunner.ts"
import { Runs } from "../../pipeline/runs/Runs.ts"
import * as Flags from "../Flags.ts"
import * as Format from "../Format.ts"

const Positive = Schema.Int.check(Schema.isGreaterThan(0))
const Share = Schema.Finite.check(Schema.isBetween({ minimum: 0, maximum: 1 }))

const flags = {
  run: Flags.runName,
  runs: Flags.runs,
  file: Flag.String("file").pipe(
    Flag.optional,
    Flag.withMetavar("model.gguf"),
    Flag.withDescription("Any GGUF file instead of a run's")
  ),
  type: Flag.String("type").pipe(
    Flag.optional,
    Flag.withDescription("Q8_0 (where there is one), Q4_0, F16, F32: which of the run's files")
  ),
  once: Flag.String("once").pipe(
    Flag.optional,
    Flag.withMetavar("text"),
    Flag.withDescription("Answer this question and end; nothing else is printed on stdout")
  ),
  maxTokens: Flag.Int("max-tokens").pipe(
    Flag.withSchema(Positive),
    Flag.withDefault(256),
    Flag.withDescription("Longest answer")
  ),
  temperature: Flag.Finite("temperature").pipe(
    Flag.withSchema(Schema.Finite.check(Schema.isGreaterThanOrEqualTo(0))),
    Flag.withDefault(0),
    Flag.withDescription("0: always the most probable token; around 0.8: livelier")
  ),
  topP: Flag.Finite("top-p").pipe(
    Flag.withSchema(Share),
    Flag.withDefault(0.95),
    Flag.withDescription("At a temperature: sample from the most probable tokens that sum up to this")
  ),
  seed: Flag.Int("seed").pipe(Flag.withDefault(0), Flag.withDescription("At a temperature: same seed, same answer")),
  threads: Flag.Int("threads").pipe(
    Flag.withSchema(Positive),
    Flag.optional,
    Flag.withDescription("Threads that compute")
  )
}

/** The file that --file names, or the run's; and whether it was trained on conversations, where that is known. */
const locate = Effect.fn("chat.locate")(function* (options: {
  readonly run: string
  readonly runs: string
  readonly file: Option.Option<string>
  readonly type: Option.Option<string>
}) {
  if (Option.isSome(options.file)) return { path: options.file.value, label: options.file.value, chat: true }
  return yield* Effect.gen(function* () {
    const runs = yield* Runs
    const store = yield* ArtifactStore
    const run = yield* runs.find(options.run)
    const outputs = yield* Effect.forEach(yield* runs.outputs(run), ({ digest, folder, stage }) =>
      Effect.map(store.get(digest), (found) =>
        found === undefined ? [] : [{ stage, folder, manifest: found.manifest }]
      )
    )
    const file = yield* chooseGguf(outputs.flat(), run.id, Option.getOrUndefined(options.type))
    return {
      path: file.path,
      label: `${file.type} of ${file.stage} in run ${run.id} (${Format.bytes(file.bytes)})`,
      chat: file.chat
    }
  }).pipe(Effect.provide(LocalRunner.layer({ runs: options.runs })))
})

const write = (piece: string) => void process.stdout.write(piece)

/** Reads questions line by line and answers each, until the input ends or /quit. Ctrl-C stops an answer, and at the prompt ends the chat. */
const converse = Effect.fn("chat.converse")(function* (chat: Chat, generation: Generation) {
  const terminal = process.stdin.isTTY && process.stdout.isTTY
  const lines = yield* Effect.acquireRelease(
    Effect.sync(() =>
      createInterface({ input: process.stdin, terminal, ...(terminal ? { output: process.stdout, prompt: "> " } : {}) })
    ),
    (lines) => Effect.sync(() => lines.close())
  )
  const iterator = lines[Symbol.asyncIterator]()
  const interrupted = Effect.callback<"interrupted">((resume) => {
    const listener = () => resume(Effect.succeed("interrupted"))
    lines.once("SIGINT", listener)
    return Effect.sync(() => lines.off("SIGINT", listener))
  })
  for (;;) {
    if (terminal) lines.prompt()
    const line = yield* Effect.raceFirst(
      Effect.promise(() => iterator.next()),
      interrupted
    )
    if (line === "interrupted" || line.done === true) break
    const question = line.value.trim()
    if (question === "") continue
    if (question === "/quit") break
    if (question === "/reset") {
      yield* chat.reset
      continue
    }
    yield* Effect.raceFirst(chat.ask(question, generation, write), interrupted)
    write("\n")
  }
  if (terminal) write("\n")
}, Effect.scoped)

export const chatCommand = Command.make(
  "chat",
  flags,
  Effect.fn(function* (options) {
    const generation: Generation = {
      maxTokens: options.maxTokens,
      temperature: options.temperature,
      topP: options.topP,
      seed: options.seed
    }
    const found = yield* locate(options)
    const chat = yield* openChat({
      file: found.path,
      ...(Option.isSome(options.threads) ? { threads: options.threads.value } : {})
    })
    if (!found.chat)
      yield* Console.error("This model was not fine-tuned on conversations: expect continuations, not answers.")
    if (Option.isSome(options.once)) return yield* Console.log(yield* chat.ask(options.once.value, generation))
    if (process.stdin.isTTY) yield* Console.error(`${found.label}\n/reset forgets the conversation, /quit ends it.`)
    yield* converse(chat, generation)
  }, Effect.scoped)
).pipe(
  Command.withDescription("Chat with the model that a run made (RUN: latest), or with any GGUF file"),
  Command.withExamples([
    { command: "tinyllama chat" },
    { command: 'tinyllama chat latest --once "What is a stage?"' },
    { command: "tinyllama chat --file model-Q4_0.gguf --temperature 0.8 --seed 7" }
  ])
)
