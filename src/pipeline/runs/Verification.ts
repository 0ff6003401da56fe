/**
 * Reads every byte of a run's results, or of the whole store, and names what is not as it was written. Digests prove content: of files by the
 * manifest, of the manifest by its name, of a key's parts by the key. Damaged journal lines are warnings: a crash may tear one, and the rest is
 * used.
 */
import { Effect, FileSystem, Option, Path, Schema } from "effect"
import { ArtifactStore, KeyRecord } from "../../artifacts/ArtifactStore.ts"
import { short } from "./Collection.ts"
import { Acceptance, HistoryEntry } from "../plan/KeyLedger.ts"
import { readContents } from "./JournalReader.ts"
import { journalFile } from "./Journal.ts"
import { runFolderName, type RunInfo, RunRecord, Runs, storageError } from "./Runs.ts"
import { KeyParts, stageKey } from "../plan/StageKey.ts"

export interface Fault {
  /** Absolute. */
  readonly file: string
  readonly what: string
  readonly next: string
  /** The file whose absence makes the runner do the work anew; undefined where it does so already. */
  readonly aside?: string
}

export interface Verified {
  readonly artifacts: number
  readonly bytes: number
  readonly keys: number
  readonly runs: number
  readonly faults: ReadonlyArray<Fault>
  /** "file:line: what", of journals and histories. */
  readonly warnings: ReadonlyArray<string>
}

const remake = "tinyllama verify --set-aside, then the run command makes it again"
const again = "the run command makes and records it again"

/** One run with all it reaches, or without a run everything that is there. */
export const verify = Effect.fn("verify")(function* (run: RunInfo | undefined) {
  const place = yield* openPlace
  const runs =
    run === undefined ? (yield* place.names(place.runs)).filter((name) => runFolderName.test(name)) : [run.id]
  const tally = new Tally()
  for (const name of runs) yield* verifyRun(place, name, tally)
  if (run === undefined) {
    for (const name of yield* place.ids("artifacts")) tally.artifacts.add(name)
    for (const folder of ["keys", "parts"]) for (const key of yield* place.ids(folder)) tally.keys.add(key)
    for (const key of yield* place.ids("accepted")) yield* verifyAcceptance(place, key, tally)
    for (const name of yield* place.names(place.join(place.store, "history"))) yield* verifyHistory(place, name, tally)
  }
  for (const key of tally.keys) yield* verifyKey(place, key, tally)
  let bytes = 0
  for (const digest of tally.artifacts) bytes += yield* verifyArtifact(place, digest, tally)
  const verified: Verified = {
    artifacts: tally.artifacts.size,
    bytes,
    keys: tally.keys.size,
    runs: runs.length,
    faults: tally.faults,
    warnings: tally.warnings
  }
  return verified
})

/** Takes what is damaged out of use, so that the next run makes it again; the files stay until they are collected. */
export const setAside = Effect.fn("setAside")(function* (faults: ReadonlyArray<Fault>) {
  const fs = yield* FileSystem.FileSystem
  const files = new Set(faults.flatMap(({ aside }) => (aside === undefined ? [] : [aside])))
  for (const file of files) {
    yield* fs.rename(file, `${file}.damaged-${process.pid}`).pipe(Effect.mapError(storageError(file)))
  }
  return files.size
})

/** What is to be checked, and what was found. */
class Tally {
  readonly artifacts = new Set<string>()
  readonly keys = new Set<string>()
  readonly faults: Array<Fault> = []
  readonly warnings: Array<string> = []
}

interface Place {
  readonly runs: string
  readonly store: string
  readonly join: (...parts: ReadonlyArray<string>) => string
  /** Empty where there is no such folder. */
  readonly names: (folder: string) => Effect.Effect<ReadonlyArray<string>>
  /** Of the store folder's <id>.json files. */
  readonly ids: (folder: string) => Effect.Effect<ReadonlyArray<string>>
}

const openPlace = Effect.gen(function* () {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const { root: store } = yield* ArtifactStore
  const names = (folder: string) =>
    Effect.map(
      Effect.orElseSucceed(fs.readDirectory(folder), (): ReadonlyArray<string> => []),
      (found) => Array.from(found).sort()
    )
  const place: Place = {
    runs: (yield* Runs).root,
    store,
    join: (...parts) => path.join(...parts),
    names,
    ids: (folder) =>
      Effect.map(names(path.join(store, folder)), (found) =>
        found.flatMap((name) => (/^[^.]+\.json$/u.test(name) ? [name.slice(0, -".json".length)] : []))
      )
  }
  return place
})

/** The file's value; undefined where there is none; a fault where it is damaged. */
const decodeFile = Effect.fnUntraced(function* <A>(
  file: string,
  schema: Schema.Codec<A, unknown>,
  tally: Tally,
  fault: Omit<Fault, "file" | "what">
) {
  const fs = yield* FileSystem.FileSystem
  if (!(yield* Effect.orElseSucceed(fs.exists(file), () => true))) return undefined
  const text = yield* Effect.result(fs.readFileString(file))
  if (text._tag === "Failure") {
    tally.faults.push({ file, what: `cannot be read: ${text.failure.message}`, ...fault })
    return undefined
  }
  const value = Schema.decodeUnknownOption(Schema.fromJsonString(schema))(text.success)
  if (Option.isSome(value)) return value.value
  tally.faults.push({ file, what: "is damaged", ...fault })
  return undefined
})

const verifyRun = Effect.fnUntraced(function* (place: Place, run: string, tally: Tally) {
  const fs = yield* FileSystem.FileSystem
  const folder = place.join(place.runs, run)
  const record = place.join(folder, "run.json")
  const forgotten = "restore it, or remove the run's folder: its results stay in the store until gc"
  const found = yield* decodeFile(record, RunRecord, tally, { next: forgotten })
  if (found !== undefined && found.id !== run) {
    tally.faults.push({ file: record, what: `is of run ${found.id}`, next: forgotten })
  }
  const stages = place.join(folder, "stages")
  for (const stage of yield* place.names(stages)) {
    for (const port of yield* place.names(place.join(stages, stage, "out"))) {
      const link = place.join(stages, stage, "out", port)
      const target = yield* Effect.option(fs.readLink(link))
      if (Option.isSome(target)) tally.artifacts.add(target.value.slice(target.value.lastIndexOf("/") + 1))
      else if (!port.startsWith(".")) tally.faults.push({ file: link, what: "is no link into the store", next: again })
    }
  }
  const journal = place.join(folder, journalFile)
  const contents = yield* readContents(journal).pipe(Effect.mapError(storageError(journal)))
  for (const event of contents.events) if ("key" in event) tally.keys.add(event.key)
  for (const { line, reason } of contents.damaged) tally.warnings.push(`${journal}:${line}: damaged: ${reason}`)
})

const verifyKey = Effect.fnUntraced(function* (place: Place, key: string, tally: Tally) {
  const file = place.join(place.store, "keys", `${key}.json`)
  const record = yield* decodeFile(file, KeyRecord, tally, { next: again })
  if (record !== undefined && record.key !== key) {
    tally.faults.push({ file, what: `is of key ${short(record.key)}`, next: remake, aside: file })
  }
  for (const digest of Object.values(record?.outputs ?? {})) tally.artifacts.add(digest)
  const partsFile = place.join(place.store, "parts", `${key}.json`)
  const next = "tinyllama verify --set-aside, then the run command writes it again"
  const parts = yield* decodeFile(partsFile, KeyParts, tally, { next, aside: partsFile })
  if (parts !== undefined && stageKey(parts) !== key) {
    tally.faults.push({ file: partsFile, what: "was altered: its digest is not its name", next, aside: partsFile })
  }
})

const verifyAcceptance = Effect.fnUntraced(function* (place: Place, key: string, tally: Tally) {
  const file = place.join(place.store, "accepted", `${key}.json`)
  const next = "tinyllama verify --set-aside, then accept again what still holds"
  const acceptance = yield* decodeFile(file, Acceptance, tally, { next, aside: file })
  if (acceptance !== undefined && acceptance.key !== key) {
    tally.faults.push({ file, what: `is of key ${short(acceptance.key)}`, next, aside: file })
  }
})

const decodeEntry = Schema.decodeUnknownOption(Schema.fromJsonString(HistoryEntry))

const verifyHistory = Effect.fnUntraced(function* (place: Place, name: string, tally: Tally) {
  const fs = yield* FileSystem.FileSystem
  const file = place.join(place.store, "history", name)
  const text = yield* fs.readFileString(file).pipe(Effect.mapError(storageError(file)))
  for (const [index, line] of text.split("\n").entries()) {
    if (line !== "" && Option.isNone(decodeEntry(line))) tally.warnings.push(`${file}:${index + 1}: damaged`)
  }
})

/** Returns its bytes. */
const verifyArtifact = Effect.fnUntraced(function* (place: Place, digest: string, tally: Tally) {
  const store = yield* ArtifactStore
  const folder = place.join(place.store, "artifacts", digest)
  const manifestFile = `${folder}.json`
  const manifest = yield* store.manifest(digest)
  const faults = yield* store.verify(digest).pipe(Effect.catch((error) => Effect.succeed([error.message])))
  if (manifest === undefined) {
    // A result without a manifest that holds is made again without being told to.
    for (const what of faults) tally.faults.push({ file: manifestFile, what, next: again })
    return 0
  }
  const { run, stage } = manifest.madeBy
  for (const what of faults) {
    const of = `${what} (${manifest.type} of ${stage} in run ${run})`
    tally.faults.push({ file: folder, what: of, next: remake, aside: manifestFile })
  }
  return manifest.files.reduce((sum, { bytes }) => sum + bytes, 0)
})
