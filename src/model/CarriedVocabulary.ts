/**
 * A vocabulary that is none of the program's own travels with what was made with it: data, checkpoints and models hold it as tokenizer.model, beside
 * their other files. Facts name it and its digest.
 */
import { Effect, FileSystem, Path, Schema } from "effect"
import type { ArtifactHandle } from "../artifacts/Artifact.ts"
import { sentencePieceModel } from "./SentencePieceModel.ts"
import { loadVocabulary, TokenizerName, type Vocabulary } from "./Vocabulary.ts"

const fileName = "tokenizer.model"

const isOwn = Schema.is(TokenizerName)

/** Puts the vocabulary into the folder of what is made with it. Fails with file system errors. */
export const carryVocabulary = Effect.fn("carryVocabulary")(function* (folder: string, vocabulary: Vocabulary) {
  if (isOwn(vocabulary.name)) return
  const fs = yield* FileSystem.FileSystem
  yield* fs.writeFile((yield* Path.Path).join(folder, fileName), sentencePieceModel(vocabulary))
})

/** Hands the vocabulary of an artifact on to what is made of it. Fails with file system errors. */
export const passVocabulary = Effect.fn("passVocabulary")(function* (from: ArtifactHandle, folder: string) {
  const name = from.facts["tokenizer"]
  if (isOwn(name) || typeof name !== "string") return
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  yield* fs.copyFile(path.join(from.folder, fileName), path.join(folder, fileName))
})

/** The vocabulary that an artifact's facts name; whether it is the one with their digest is for the caller to see. */
export const vocabularyIn = Effect.fn("vocabularyIn")(function* (handle: ArtifactHandle) {
  const name = handle.facts["tokenizer"]
  if (isOwn(name)) return yield* loadVocabulary(name)
  const { readVocabularyFile } = yield* Effect.promise(() => import("./VocabularyFile.ts"))
  return yield* readVocabularyFile((yield* Path.Path).join(handle.folder, fileName))
})
