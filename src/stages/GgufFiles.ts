/**
 * One GGUF file per type from one model, for convert and quantize. A finished file and its report stay in the work folder, so an attempt that was
 * stopped, or a list that grew, makes only what is missing.
 */
import { createHash } from "node:crypto"
import { Effect, FileSystem, Path, Schema, Stream } from "effect"
import type { ArtifactHandle } from "../artifacts/Artifact.ts"
import type { ChatFormat } from "../model/ChatTemplate.ts"
import { type GgufReport, type GgufType, ggufTypes, writeLlamaGguf } from "../model/Gguf.ts"
import type { HfModel } from "../model/HuggingFace.ts"
import type { Vocabulary } from "../model/Vocabulary.ts"
import type { Progress } from "../pipeline/StageType.ts"
import { modelFailure, stopIfRequested } from "./ModelArtifact.ts"

/** A list without repetition, as the file writes it. */
export const GgufTypes = Schema.Array(Schema.Literals(ggufTypes)).check(
  Schema.makeFilter((types) => (new Set(types).size === types.length ? undefined : "a type is listed twice"))
)

const Report = Schema.fromJsonString(
  Schema.Struct({
    /** Digest of the artifact that the file was made from. */
    source: Schema.String,
    bytes: Schema.Int,
    sha256: Schema.String,
    bitsPerWeight: Schema.Finite,
    rmsError: Schema.Finite,
    relativeRmsError: Schema.Finite,
    fallbacks: Schema.Array(Schema.String)
  })
)
const decodeReport = Schema.decodeUnknownEffect(Report)
const encodeReport = Schema.encodeEffect(Report)

const sha256Of = Effect.fnUntraced(function* (file: string) {
  const fs = yield* FileSystem.FileSystem
  const hash = createHash("sha256")
  yield* Stream.runForEach(fs.stream(file, { chunkSize: 1 << 20 }), (chunk) => Effect.sync(() => hash.update(chunk)))
  return hash.digest("hex")
})

/** The report of a file that an earlier attempt finished, if both are still what they were. */
const finished = Effect.fnUntraced(function* (file: string, source: string) {
  const fs = yield* FileSystem.FileSystem
  return yield* fs.readFileString(`${file}.json`).pipe(
    Effect.flatMap(decodeReport),
    Effect.filterOrFail((report) => report.source === source),
    Effect.tap((report) => Effect.filterOrFail(sha256Of(file), (sha256) => sha256 === report.sha256)),
    Effect.orElseSucceed(() => undefined)
  )
})

const megabytes = (bytes: number): string => `${(bytes / 1e6).toFixed(bytes < 1e8 ? 2 : 0)} MB`

/** "Q8_0 4.51 MB, Q4_0 2.41 MB", from the facts of a GgufModel. */
export const ggufHeadline = (facts: { readonly [key: string]: Schema.Json }): string =>
  Array.isArray(facts["files"])
    ? (facts["files"] as ReadonlyArray<{ readonly type: string; readonly bytes: number }>)
        .map(({ bytes, type }) => `${type} ${megabytes(bytes)}`)
        .join(", ")
    : ""

const line = (type: GgufType, report: GgufReport): string =>
  `${type}: ${megabytes(report.bytes)}, ${report.bitsPerWeight.toFixed(2)} bits per weight, ` +
  (type === "F32"
    ? "weights unchanged"
    : `RMS error ${report.rmsError.toExponential(2)} (${(100 * report.relativeRmsError).toPrecision(3)} % of the weights' RMS)`)

interface Surroundings {
  readonly work: string
  readonly progress: (reading: Progress) => void
  readonly log: (line: string) => void
  readonly warn: (line: string) => void
  readonly stopRequested: () => boolean
}

/** Fills `folder` with model-TYPE.gguf for each of `types`; returns the facts of the GgufModel. */
export const makeGgufFiles = Effect.fn("makeGgufFiles")(function* (
  context: Surroundings,
  folder: string,
  model: {
    readonly source: ArtifactHandle
    readonly content: HfModel
    readonly vocabulary: Vocabulary
    readonly chat: ChatFormat | null
    readonly types: ReadonlyArray<GgufType>
  }
) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const { chat, source, types, vocabulary } = model
  const { shape, tensors } = model.content
  const make = Effect.fnUntraced(function* (type: GgufType, index: number) {
    const name = `model-${type}.gguf`
    const kept = path.join(context.work, name)
    // Never written in place: an artifact that was published may share the file by a link.
    const draft = `${kept}.draft`
    const earlier = yield* finished(kept, source.digest)
    const report =
      earlier ??
      (yield* writeLlamaGguf(draft, {
        name: "tinyllama",
        shape,
        type,
        vocabulary,
        chat,
        weights: (tensor) => tensors.get(tensor)!.toFloat32(),
        beforeTensor: (written, total) =>
          Effect.andThen(
            stopIfRequested(context.stopRequested, `stopped while ${name} was written; the files before it are kept`),
            Effect.sync(() =>
              context.progress({ done: index * total + written, total: types.length * total, unit: "tensors" })
            )
          )
      }))
    if (earlier === undefined) {
      yield* fs.rename(draft, kept)
      yield* fs.writeFileString(`${kept}.json`, yield* encodeReport({ source: source.digest, ...report }))
    }
    context.log(line(type, report) + (earlier === undefined ? "" : " (made by an earlier attempt)"))
    if (report.fallbacks.length > 0) {
      context.warn(
        `${name}: ${report.fallbacks.length} tensors have rows that are no multiple of 32 and stay F16: ${report.fallbacks[0]}, …`
      )
    }
    const target = path.join(folder, name)
    yield* fs.link(kept, target).pipe(Effect.catch(() => fs.copyFile(kept, target)))
    return {
      type,
      path: name,
      bytes: report.bytes,
      bits_per_weight: report.bitsPerWeight,
      rms_error: report.rmsError,
      relative_rms_error: report.relativeRmsError
    }
  })
  const files = yield* Effect.forEach(types, (type, index) =>
    Effect.mapError(make(type, index), (error) => modelFailure(`model-${type}.gguf`, source)(error))
  )
  return { files, chat, context_length: shape.max_position_embeddings }
})
