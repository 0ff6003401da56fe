/**
 * What stage keys stand for: of which parts each was made, which stages of which pipelines had it, and which keys someone accepted as
 * equivalent. Beside the store's results, in files:
 *
 *   parts/<stage key>.json        the parts; their digest is the key
 *   history/<pipeline>.jsonl      one line for each key that a stage of the pipeline came to have, oldest first
 *   accepted/<stage key>.json     a decision of a person: this key's result is that of another key
 */
import { Clock, Context, Effect, FileSystem, Layer, Option, Path, Schema } from "effect"
import { ArtifactStore } from "../../artifacts/ArtifactStore.ts"
import { canonicalJson } from "../../artifacts/CanonicalJson.ts"
import { replaceFile, storageFailure, writeJsonAtomic } from "../../artifacts/DurableFile.ts"
import { KeyParts, stageKey } from "./StageKey.ts"
import type { StageError } from "../StageType.ts"

export const HistoryEntry = Schema.Struct({
  /** ISO 8601. */
  at: Schema.String,
  run: Schema.String,
  stage: Schema.String,
  key: Schema.String
})
export type HistoryEntry = typeof HistoryEntry.Type

/** Stage → the keys it had, newest first, each once. */
export type KeyHistory = ReadonlyMap<string, ReadonlyArray<HistoryEntry>>

/** An audited equivalence: whoever asks for `key` gets the result of `sameAs`. */
export const Acceptance = Schema.Struct({
  version: Schema.Literal(1),
  key: Schema.String,
  sameAs: Schema.String,
  pipeline: Schema.String,
  stage: Schema.String,
  because: Schema.String,
  /** user@host */
  by: Schema.String,
  /** ISO 8601. */
  at: Schema.String,
  /** What differs between the two keys, in words. */
  changes: Schema.Array(Schema.String)
})
export type Acceptance = typeof Acceptance.Type

export class KeyLedger extends Context.Service<
  KeyLedger,
  {
    /** Remembers a key's parts, and that the stage has it now. */
    readonly record: (
      entry: Omit<HistoryEntry, "at"> & { readonly pipeline: string; readonly parts: KeyParts }
    ) => Effect.Effect<void, StageError>
    /** undefined when nobody recorded them, or when the file is no longer what its name says. */
    readonly parts: (key: string) => Effect.Effect<KeyParts | undefined>
    /** Empty for a pipeline that never ran; fails where the disk does not tell. */
    readonly history: (pipeline: string) => Effect.Effect<KeyHistory, StageError>
    readonly accept: (acceptance: Acceptance) => Effect.Effect<void, StageError>
    readonly revoke: (key: string) => Effect.Effect<void, StageError>
    readonly accepted: (key: string) => Effect.Effect<Acceptance | undefined>
    /** Of all pipelines, in the order of keys. */
    readonly acceptances: Effect.Effect<ReadonlyArray<Acceptance>>
  }
>()("tinyllama/pipeline/KeyLedger") {
  static readonly layer = Layer.effect(
    KeyLedger,
    Effect.suspend(() => make)
  )
}

const decodeParts = Schema.decodeEffect(Schema.fromJsonString(KeyParts))
const decodeEntry = Schema.decodeUnknownOption(Schema.fromJsonString(HistoryEntry))
const decodeAcceptance = Schema.decodeEffect(Schema.fromJsonString(Acceptance))

const make = Effect.gen(function* () {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const { root } = yield* ArtifactStore
  const services = yield* Effect.context<FileSystem.FileSystem | Path.Path>()
  const partsOf = (key: string) => path.join(root, "parts", `${key}.json`)
  const historyOf = (pipeline: string) => path.join(root, "history", `${encodeURIComponent(pipeline)}.jsonl`)
  const acceptedFolder = path.join(root, "accepted")
  const acceptanceOf = (key: string) => path.join(acceptedFolder, `${key}.json`)
  /** The key that each stage had last, as far as this process knows: it need not be written again. */
  const last = new Map<string, string>()
  const written = new Set<string>()

  const parts = Effect.fnUntraced(function* (key: string) {
    const found = yield* fs.readFileString(partsOf(key)).pipe(Effect.flatMap(decodeParts), Effect.option)
    return Option.isSome(found) && stageKey(found.value) === key ? found.value : undefined
  })

  const history = Effect.fn("KeyLedger.history")(function* (pipeline: string) {
    const file = historyOf(pipeline)
    const text = yield* fs.readFileString(file).pipe(
      Effect.catchIf(
        (error) => error.reason._tag === "NotFound",
        () => Effect.succeed("")
      ),
      Effect.mapError(storageFailure(file))
    )
    const stages = new Map<string, Map<string, HistoryEntry>>()
    for (const line of text.split("\n").toReversed()) {
      // A crash tears the last line at most; what does not decode is no entry.
      const entry = line === "" ? Option.none() : decodeEntry(line)
      if (Option.isNone(entry)) continue
      const { key, stage } = entry.value
      const keys = stages.get(stage) ?? new Map<string, HistoryEntry>()
      if (!keys.has(key)) keys.set(key, entry.value)
      stages.set(stage, keys)
    }
    for (const [stage, keys] of stages) {
      const [newest] = keys.keys()
      if (newest !== undefined) last.set(`${pipeline} ${stage}`, newest)
    }
    return new Map(Array.from(stages, ([stage, keys]) => [stage, Array.from(keys.values())] as const))
  })

  const record = Effect.fnUntraced(
    function* (entry: Omit<HistoryEntry, "at"> & { readonly pipeline: string; readonly parts: KeyParts }) {
      const { key, pipeline, run, stage } = entry
      const slot = `${pipeline} ${stage}`
      if (last.get(slot) === key) return
      const file = partsOf(key)
      // Not synced, nor written aside first: a file that lost bytes is not its digest's, and is written again.
      if (!written.has(key) && (yield* parts(key)) === undefined)
        yield* replaceFile(file, `${canonicalJson(entry.parts)}\n`)
      written.add(key)
      const at = new Date(yield* Clock.currentTimeMillis).toISOString()
      // One write of a short line: appends of several runners do not mix. A leading newline ends what a crash may have torn.
      const line = `\n${JSON.stringify({ at, run, stage, key })}\n`
      const append = fs.writeFileString(historyOf(pipeline), line, { flag: "a" })
      yield* Effect.catchIf(
        append,
        (error) => error.reason._tag === "NotFound",
        () => Effect.andThen(fs.makeDirectory(path.join(root, "history"), { recursive: true }), append)
      )
      last.set(slot, key)
    },
    (effect, { key }) => Effect.mapError(effect, storageFailure(partsOf(key))),
    Effect.provideContext(services)
  )

  const acceptedKeys = Effect.gen(function* () {
    const names = yield* Effect.orElseSucceed(fs.readDirectory(acceptedFolder), () => [])
    return new Set(names.filter((name) => name.endsWith(".json")).map((name) => name.slice(0, -".json".length)))
  })
  /** What was accepted when this process first asked: few keys are, and most questions need no file then. */
  const known = yield* Effect.cached(acceptedKeys)
  const readAcceptance = (key: string) =>
    fs
      .readFileString(acceptanceOf(key))
      .pipe(Effect.flatMap(decodeAcceptance), Effect.option, Effect.map(Option.getOrUndefined))
  const accepted = (key: string) =>
    Effect.flatMap(known, (keys) => (keys.has(key) ? readAcceptance(key) : Effect.undefined))

  const acceptances = Effect.gen(function* () {
    const all = yield* Effect.forEach(Array.from(yield* acceptedKeys).sort(), readAcceptance)
    return all.filter((acceptance) => acceptance !== undefined)
  })

  return KeyLedger.of({
    record,
    parts,
    history,
    accept: (acceptance) =>
      writeJsonAtomic(acceptanceOf(acceptance.key), acceptance).pipe(
        Effect.andThen(Effect.map(known, (keys) => keys.add(acceptance.key))),
        Effect.asVoid,
        Effect.mapError(storageFailure(acceptedFolder)),
        Effect.provideContext(services)
      ),
    revoke: (key) =>
      fs.remove(acceptanceOf(key), { force: true }).pipe(Effect.mapError(storageFailure(acceptedFolder))),
    accepted,
    acceptances
  })
})
