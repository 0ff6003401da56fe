/**
 * One GGUF file per type from one model, for convert and quantize. A finished file and its report stay in the work folder, so an attempt that was
 * stopped makes only what is missing; an earlier result with another list gives the files that both have.
 */
import { createHash } from "node:crypto"
import { Effect, FileSystem, Option, Path, Schema, Stream } from "effect"
import type { ArtifactHandle } from "../artifacts/Artifact.ts"
import type { ChatFormat } from "../model/ChatTemplate.ts"
import { type GgufType, ggufTypes, writeLlamaGguf } from "../model/Gguf.ts"
import type { HfModel } from "../model/HuggingFace.ts"
import type { Vocabulary } from "../model/Vocabulary.ts"
import type { Progress } from "../pipeline/StageType.ts"
import { modelFailure, stopIfRequested } from "./ModelArtifact.ts"
import { namesIn } from "./WorkExtent.ts"

/** Bytes a second, read and written, of turning a model's weights into another form: measured on runs of some 10 MB. */
export const REWRITE_RATE = 80e6

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
    /** Tensors that stay F16 because their rows are no whole blocks. */
    fallbacks: Schema.Int
  })
)
const decodeReport = Schema.decodeUnknownEffect(Report)
const encodeReport = Schema.encodeEffect(Report)
type Report = typeof Report.Type

/** A file in the facts of a GgufModel. */
const FileFacts = Schema.Struct({
  type: Schema.Literals(ggufTypes),
  path: Schema.String,
  bytes: Schema.Int,
  sha256: Schema.String,
  bits_per_weight: Schema.Finite,
  rms_error: Schema.Finite,
  relative_rms_error: Schema.Finite,
  f16_tensors: Schema.Int
})
const decodeFiles = Schema.decodeUnknownOption(Schema.Array(FileFacts))

const fileName = (type: GgufType): string => `model-${type}.gguf`

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

/** Files of `types` that an earlier attempt finished, of them and `others` that are made each time; their content is not looked at. */
export const ggufResumePoint = Effect.fn("ggufResumePoint")(function* (
  work: string,
  types: ReadonlyArray<GgufType>,
  others: number
) {
  const names = yield* namesIn(work)
  const done = types.filter((type) => names.includes(fileName(type)) && names.includes(`${fileName(type)}.json`)).length
  return done === 0 ? undefined : { done, total: types.length + others, unit: "files" }
})

/** What another list of types left: a result, or the work folder of an unfinished run. */
export interface EarlierGguf {
  readonly result: ArtifactHandle | undefined
  readonly work: string | undefined
}

/** A file of an earlier result of the same model with its report, if it is what the result's facts say. */
const published = Effect.fnUntraced(function* (type: GgufType, source: string, result: ArtifactHandle) {
  const file = (yield* Path.Path).join(result.folder, fileName(type))
  const files = Option.getOrElse(decodeFiles(result.facts["files"]), () => [])
  const facts = files.find((listed) => listed.type === type)
  if (facts === undefined) return undefined
  const report: Report = {
    source,
    bytes: facts.bytes,
    sha256: facts.sha256,
    bitsPerWeight: facts.bits_per_weight,
    rmsError: facts.rms_error,
    relativeRmsError: facts.relative_rms_error,
    fallbacks: facts.f16_tensors
  }
  return yield* Effect.filterOrFail(sha256Of(file), (sha256) => sha256 === report.sha256).pipe(
    Effect.as({ file, report }),
    Effect.orElseSucceed(() => undefined)
  )
})

/** Links the file of an earlier run to `kept`; returns its report, or undefined where there is none to take. */
const takenOver = Effect.fnUntraced(function* (type: GgufType, kept: string, source: string, earlier: EarlierGguf) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const unfinished = Effect.fnUntraced(function* (work: string) {
    const file = path.join(work, fileName(type))
    const report = yield* finished(file, source)
    return report === undefined ? undefined : { file, report }
  })
  const found =
    earlier.result !== undefined
      ? yield* published(type, source, earlier.result)
      : earlier.work !== undefined
        ? yield* unfinished(earlier.work)
        : undefined
  if (found === undefined) return undefined
  yield* fs.remove(kept, { force: true })
  yield* fs.link(found.file, kept).pipe(Effect.catch(() => fs.copyFile(found.file, kept)))
  return found.report
})

const megabytes = (bytes: number): string => `${(bytes / 1e6).toFixed(bytes < 1e8 ? 2 : 0)} MB`

/** "Q8_0 4.51 MB, Q4_0 2.41 MB", from the facts of a GgufModel. */
export const ggufHeadline = (facts: { readonly [key: string]: Schema.Json }): string =>
  Array.isArray(facts["files"])
    ? (facts["files"] as ReadonlyArray<{ readonly type: string; readonly bytes: number }>)
        .map(({ bytes, type }) => `${type} ${megabytes(bytes)}`)
        .join(", ")
    : ""

const line = (type: GgufType, report: Report): string =>
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
    readonly earlier: EarlierGguf
  }
) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const { chat, earlier, source, types, vocabulary } = model
  const { shape, tensors } = model.content
  const write = Effect.fnUntraced(function* (draft: string, type: GgufType, index: number, name: string) {
    const { fallbacks, ...report } = yield* writeLlamaGguf(draft, {
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
    })
    const made: Report = { source: source.digest, ...report, fallbacks: fallbacks.length }
    return made
  })
  const make = Effect.fnUntraced(function* (type: GgufType, index: number) {
    const name = fileName(type)
    const kept = path.join(context.work, name)
    // Never written in place: an artifact that was published may share the file by a link.
    const draft = `${kept}.draft`
    const own = yield* finished(kept, source.digest)
    const taken = own === undefined ? yield* takenOver(type, kept, source.digest, earlier) : undefined
    const report = own ?? taken ?? (yield* write(draft, type, index, name))
    if (own === undefined) {
      if (taken === undefined) yield* fs.rename(draft, kept)
      yield* fs.writeFileString(`${kept}.json`, yield* encodeReport(report))
    }
    context.log(
      line(type, report) +
        (own !== undefined ? " (made by an earlier attempt)" : taken !== undefined ? " (from an earlier result)" : "")
    )
    if (report.fallbacks > 0) {
      context.warn(`${name}: ${report.fallbacks} tensors have rows that are no multiple of 32 and stay F16`)
    }
    const target = path.join(folder, name)
    yield* fs.link(kept, target).pipe(Effect.catch(() => fs.copyFile(kept, target)))
    const facts: typeof FileFacts.Type = {
      type,
      path: name,
      bytes: report.bytes,
      sha256: report.sha256,
      bits_per_weight: report.bitsPerWeight,
      rms_error: report.rmsError,
      relative_rms_error: report.relativeRmsError,
      f16_tensors: report.fallbacks
    }
    return facts
  })
  const files = yield* Effect.forEach(types, (type, index) =>
    Effect.mapError(make(type, index), (error) => modelFailure(fileName(type), source)(error))
  )
  return { files, chat, context_length: shape.max_position_embeddings }
})
