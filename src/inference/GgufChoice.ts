/** Which GGUF file of a run a chat opens. */
import { join } from "node:path"
import { Effect, Option, Schema } from "effect"
import type { Manifest } from "../artifacts/Artifact.ts"
import { ChatError } from "./Chat.ts"

/** The facts of a GgufModel artifact that matter here. */
const GgufFacts = Schema.Struct({
  files: Schema.Array(Schema.Struct({ type: Schema.String, path: Schema.String, bytes: Schema.Int })),
  chat: Schema.NullOr(Schema.String)
})

/** An output of a run's stage, with the manifest of its artifact. */
export interface Candidate {
  readonly stage: string
  readonly folder: string
  readonly manifest: Manifest
}

export interface GgufFile {
  readonly stage: string
  readonly type: string
  readonly path: string
  readonly bytes: number
  /** Trained on conversations; without it answers are mere continuations. */
  readonly chat: boolean
}

/** All GGUF files among a run's outputs, in the outputs' order. */
export const ggufFiles = (outputs: ReadonlyArray<Candidate>): ReadonlyArray<GgufFile> =>
  outputs.flatMap(({ folder, manifest, stage }) => {
    if (manifest.type !== "GgufModel") return []
    const facts = Option.getOrUndefined(Schema.decodeUnknownOption(GgufFacts)(manifest.facts))
    return (facts?.files ?? []).map(({ bytes, path, type }) => ({
      stage,
      type,
      path: join(folder, path),
      bytes,
      chat: facts?.chat != null
    }))
  })

/** Almost lossless and half the size of F16: what a chat takes when no type is asked for. */
const preferredType = "Q8_0"

/**
 * The file for a chat: of `type` when one is named, else Q8_0, else what there is; fine-tuned models first, and of several stages the last.
 * `run` is named in errors.
 */
export const chooseGguf = Effect.fn("chooseGguf")(function* (
  outputs: ReadonlyArray<Candidate>,
  run: string,
  type: string | undefined
) {
  const files = ggufFiles(outputs)
  if (files.length === 0)
    return yield* new ChatError({
      message: `run ${run} has no GGUF file yet`,
      next: "finish the run with tinyllama run FILE (a quantize or convert stage writes GGUF), or name a file with --file"
    })
  const same = (a: string, b: string) => a.toUpperCase() === b.toUpperCase()
  const wanted = type === undefined ? files : files.filter((file) => same(file.type, type))
  const rank = (file: GgufFile) => (file.chat ? 2 : 0) + (file.type === preferredType ? 1 : 0)
  const best = wanted.reduce<GgufFile | undefined>(
    (found, file) => (found === undefined || rank(file) >= rank(found) ? file : found),
    undefined
  )
  if (best === undefined)
    return yield* new ChatError({
      message: `run ${run} has no GGUF file of type ${type}`,
      next: `choose one with --type: ${[...new Set(files.map((file) => file.type))].join(", ")}`
    })
  return best
})
