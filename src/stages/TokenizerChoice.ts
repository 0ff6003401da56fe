/** The parameter `tokenizer`: one of the program's own by name, or the file of any Llama-family repository. */
import { isAbsolute, join } from "node:path"
import { Effect, type FileSystem, Schema } from "effect"
import { sha256OfInput } from "../data/FileDigest.ts"
import type { Tokenizer } from "../engine/Tokenizer.ts"
import { TokenizerName } from "../model/Vocabulary.ts"
import { parameter, StageError } from "../pipeline/StageType.ts"

const isOwn = Schema.is(TokenizerName)

const TokenizerChoice = Schema.Union([
  TokenizerName,
  Schema.String.check(
    Schema.isPattern(/\.(model|json)$/u, {
      message: `the tokenizers are ${TokenizerName.literals.join(", ")}, and files that end in .model or .json`
    })
  )
])
export type TokenizerChoice = typeof TokenizerChoice.Type

/** `whose` ends the sentence that explains it. */
export const tokenizerParameter = (whose: string) =>
  parameter(TokenizerChoice, {
    change: "identity",
    describe: `${whose}: llama-2, or the path of a tokenizer.model or tokenizer.json of any Llama-family repository`,
    default: "llama-2"
  })

const pathOf = (choice: string, baseDirectory: string): string =>
  isAbsolute(choice) ? choice : join(baseDirectory, choice)

/** What the stage key must know of the choice: the file's digest. */
export const observeTokenizer = (
  choice: TokenizerChoice,
  baseDirectory: string
): Effect.Effect<string | null, StageError> =>
  isOwn(choice) ? Effect.succeed(null) : sha256OfInput(pathOf(choice, baseDirectory), `tokenizer ${choice}`)

/** The name that facts will have; undefined where the file must be read to know. */
export const knownName = (choice: TokenizerChoice): string | undefined => (isOwn(choice) ? choice : undefined)

/** Opens the tokenizer. Fails as invalid-input where the file cannot be used as one. */
export const openTokenizer = (
  choice: TokenizerChoice,
  baseDirectory: string
): Effect.Effect<Tokenizer, StageError, FileSystem.FileSystem> =>
  Effect.gen(function* () {
    const { loadTokenizer, tokenizerOf } = yield* Effect.promise(() => import("../engine/Tokenizer.ts"))
    if (isOwn(choice)) return yield* loadTokenizer(choice)
    const { readVocabularyFile } = yield* Effect.promise(() => import("../model/VocabularyFile.ts"))
    return yield* tokenizerOf(yield* readVocabularyFile(pathOf(choice, baseDirectory)))
  }).pipe(
    Effect.mapError((error) =>
      error._tag === "VocabularyFileError"
        ? new StageError({ failure: "invalid-input", message: `tokenizer: ${error.message}`, next: error.next })
        : new StageError({ failure: "internal", message: error.message, next: "npm ci && npm run build:native" })
    )
  )
