/** The tasks of an evaluation, as its inputs hold them, before it is known which models they are put to. */
import { basename } from "node:path"
import { Effect, FileSystem, Path } from "effect"
import type { ArtifactHandle } from "../artifacts/Artifact.ts"
import { readList } from "../data/Documents.ts"
import { openSplit } from "../data/PackedDataset.ts"
import { isDiskFull } from "../engine/StorageFailure.ts"
import type { Tokenizer } from "../engine/Tokenizer.ts"
import type { Profile } from "../evaluation/LogLikelihood.ts"
import type { Task, TaskError } from "../evaluation/Task.ts"
import { type Item, multipleChoice, questions, readItems } from "../evaluation/tasks/MultipleChoice.ts"
import { perplexityTask, spread } from "../evaluation/tasks/Perplexity.ts"
import { tokenBytes } from "../evaluation/TokenBytes.ts"
import { StageError } from "../pipeline/StageType.ts"
import { stageOf } from "./ModelArtifact.ts"

/** The parameters that decide how a task is asked. */
export interface Asked {
  readonly profile: Profile
  readonly max_blocks: "all" | number
}

const perplexityName = "perplexity"

export const invalid = (message: string, next: string) => new StageError({ failure: "invalid-input", message, next })

export const internal = (error: Error) =>
  isDiskFull(error)
    ? new StageError({
        failure: "disk-full",
        message: `no room for the scores: the disk is full; what is scored so far is kept (${error.message})`,
        next: "free space on that disk, then give the same command again"
      })
    : new StageError({
        failure: "internal",
        message: error.message,
        next: "see that the folder can be read and written"
      })

/** What will be asked, before it is known of whom: rows depend on a model's context length. */
export interface Subject {
  readonly name: string
  readonly input: ArtifactHandle
  /** Whether results that were made with these parameters are what this run would measure. */
  readonly sameUnder: (earlier: Asked) => boolean
  readonly prepare: (contextLength: number, model: string) => Effect.Effect<Task, StageError | TaskError>
}

/** Perplexity on the validation split; fails where the split has no blocks, or holds another tokenizer's ids. */
export const perplexitySubject = Effect.fnUntraced(function* (
  data: ArtifactHandle,
  tokenizer: Tokenizer,
  max_blocks: Asked["max_blocks"]
) {
  const split = yield* openSplit(data, "validation")
  if (split.metadata.tokenizer_digest !== tokenizer.digest)
    return yield* invalid(
      `${data.origin}: its tokens come from another tokenizer (${split.metadata.tokenizer})`,
      `tokenize the text of ${data.origin} with ${tokenizer.name}`
    )
  if (split.blocks === 0)
    return yield* invalid(
      `${data.origin}: its validation split has no blocks to measure perplexity on`,
      `raise validation of stage ${stageOf(data)}, or do not connect data`
    )
  const blocks = spread(split.blocks, max_blocks === "all" ? Infinity : max_blocks)
    .map((index) => split.tokens(index).subarray(0, split.length(index)))
    .filter((block) => block.length > 1)
  const task = perplexityTask(perplexityName, blocks, tokenBytes(tokenizer.vocabulary))
  const subject: Subject = {
    name: task.name,
    input: data,
    sameUnder: (earlier) => earlier.max_blocks === max_blocks,
    prepare: (contextLength, model) =>
      split.seqLen <= contextLength
        ? Effect.succeed(task)
        : invalid(
            `${model} takes ${contextLength} tokens, and the blocks of ${data.origin} have ${split.seqLen}`,
            `pack with seq_len ${contextLength} or less, or evaluate a model with a longer context`
          )
  }
  return subject
})

/** A task for each file of questions. */
export const questionSubjects = Effect.fnUntraced(function* (
  documents: ArtifactHandle,
  tokenizer: Tokenizer,
  profile: Profile
) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const utf8 = new TextEncoder()
  const encode = (text: string) => tokenizer.encode(utf8.encode(text))
  const files = yield* readList(documents)
  const stems = files.map((file) => basename(file.path, ".jsonl"))
  return yield* Effect.forEach(files, (file, index) =>
    Effect.gen(function* () {
      const stem = stems[index] ?? file.path
      // Two files of one name are told apart by their folders.
      const unique = stems.filter((other) => other === stem).length === 1 && stem !== perplexityName
      const name = unique ? stem : file.path.replace(/^files\//u, "")
      const text = yield* fs.readFileString(path.join(documents.folder, file.path)).pipe(Effect.mapError(internal))
      const items: ReadonlyArray<Item> = yield* readItems(questions, file.source, text)
      const subject: Subject = {
        name,
        input: documents,
        sameUnder: (earlier) => earlier.profile === profile,
        prepare: (contextLength) => multipleChoice(name, items, { encode, profile, contextLength })
      }
      return subject
    })
  )
})

/** The subjects that `tasks` names, in the inputs' order. */
export const select = (subjects: ReadonlyArray<Subject>, tasks: "all" | ReadonlyArray<string>) => {
  if (tasks === "all") return Effect.succeed(subjects)
  const known = subjects.map(({ name }) => name)
  const unknown = tasks.find((name) => !known.includes(name))
  return unknown === undefined
    ? Effect.succeed(subjects.filter(({ name }) => tasks.includes(name)))
    : invalid(`no task "${unknown}" in the inputs`, `name some of: ${known.join(", ")}`)
}
