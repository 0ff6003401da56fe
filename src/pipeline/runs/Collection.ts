/**
 * What nothing in the store needs any more, found by reachability and removed in an order that a crash may cut anywhere: what refers goes
 * before what it refers to.
 *
 * A run reaches the keys of its journal and those of results that it made, what these were accepted to be the same as, the outputs of their records and
 * what its out/ links point to; while it is not complete, their work folders too. Every run folder counts, tagged, pinned or neither, also one
 * whose run.json is damaged. An acceptance stays while the result that it points to does, so that a decision is not lost before its first run.
 */
import { Effect, FileSystem, Option, Path, type PlatformError, Runtime, Schema } from "effect"
import { journalFile } from "./Journal.ts"
import { journalLines } from "./JournalReader.ts"
import { Manifest } from "../../artifacts/Artifact.ts"
import { ArtifactStore, KeyRecord } from "../../artifacts/ArtifactStore.ts"
import { errorCode, writeFileAtomic } from "../../artifacts/DurableFile.ts"
import { Acceptance, HistoryEntry } from "../plan/KeyLedger.ts"
import { runFolderName, Runs, type StorageError, storageError } from "./Runs.ts"

export type GarbageKind = "acceptance" | "result" | "history" | "artifact" | "work" | "leftover"

export interface Garbage {
  readonly kind: GarbageKind
  /** In words: "tokens (Documents 3f2a…)". */
  readonly what: string
  readonly why: string
  readonly bytes: number
  /** Absolute, in the order of their removal. */
  readonly paths: ReadonlyArray<string>
  /** In place of removal: the file's text from now on. */
  readonly rewrite?: string
}

const unreached = "no run reaches it"
const decodeStatus = Schema.decodeOption(Schema.fromJsonString(Schema.Struct({ status: Schema.String })))
const decodeRecord = Schema.decodeOption(Schema.fromJsonString(KeyRecord))
const decodeAcceptance = Schema.decodeOption(Schema.fromJsonString(Acceptance))
const decodeManifest = Schema.decodeOption(Schema.fromJsonString(Manifest))
const decodeEntry = Schema.decodeOption(Schema.fromJsonString(HistoryEntry))

/** Everything that `collect` would remove, in its order. Reads only; while a runner is at work what it is making may be among it. */
export const findGarbage = Effect.gen(function* () {
  const disk = yield* openDisk
  const roots = yield* findRoots(disk)
  const reached = yield* reach(disk, roots)
  return [
    ...(yield* keyGarbage(disk, reached)),
    ...(yield* historyGarbage(disk, reached)),
    ...(yield* artifactGarbage(disk, reached)),
    ...(yield* workGarbage(disk, reached)),
    ...(yield* leftovers(disk))
  ]
}).pipe(Effect.withSpan("findGarbage"))

/** Removes it; what is gone already is no error. The caller owns the store. */
export const collect = Effect.fn("collect")(function* (garbage: ReadonlyArray<Garbage>) {
  const fs = yield* FileSystem.FileSystem
  for (const { paths, rewrite } of garbage) {
    for (const path of paths) {
      const change =
        rewrite === undefined ? fs.remove(path, { recursive: true, force: true }) : writeFileAtomic(path, rewrite)
      yield* change.pipe(Effect.mapError(storageError(path)))
    }
  }
})

/** A file that says what a run reaches is there and cannot be understood, so nothing is safe to remove. Exit code 7. */
export class ReachUnknown extends Schema.TaggedError<ReachUnknown>()("ReachUnknown", {
  file: Schema.String,
  next: Schema.String
}) {
  override readonly [Runtime.errorExitCode] = 7
  override get message(): string {
    return `${this.file} is damaged, so what is still needed is not known; nothing was removed`
  }
}

/** The store and the runs as files. What is not there is empty; what cannot be read ends the search, because it may hold what must stay. */
interface Disk {
  readonly runs: string
  readonly store: string
  readonly join: (...parts: ReadonlyArray<string>) => string
  readonly names: (folder: string) => Effect.Effect<ReadonlyArray<string>, StorageError>
  readonly text: (file: string) => Effect.Effect<string | undefined, StorageError>
  readonly link: (file: string) => Effect.Effect<string | undefined, StorageError>
  /** Bytes of a file or of all files in a folder. */
  readonly size: (path: string) => Effect.Effect<number, StorageError>
}

/** Not there, not a folder, not a link. */
const absent: ReadonlySet<string> = new Set(["ENOENT", "ENOTDIR", "EINVAL"])

const openDisk = Effect.gen(function* () {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const whereThere = <A>(file: string, empty: A, effect: Effect.Effect<A, PlatformError.PlatformError>) =>
    effect.pipe(
      Effect.catch((error) =>
        absent.has(errorCode(error) ?? "") ? Effect.succeed(empty) : Effect.fail(storageError(file)(error))
      )
    )
  const names = (folder: string) => whereThere<ReadonlyArray<string>>(folder, [], fs.readDirectory(folder))
  const link = (file: string) => whereThere<string | undefined>(file, undefined, fs.readLink(file))
  const size = (target: string): Effect.Effect<number, StorageError> =>
    Effect.gen(function* () {
      // Links are left alone: what they point to is counted where it lies.
      if ((yield* link(target)) !== undefined) return 0
      const info = yield* Effect.option(fs.stat(target))
      if (Option.isNone(info)) return 0
      if (info.value.type !== "Directory") return Number(info.value.size)
      const sizes = yield* Effect.forEach(yield* names(target), (name) => size(path.join(target, name)))
      return sum(sizes)
    })
  const disk: Disk = {
    runs: (yield* Runs).root,
    store: (yield* ArtifactStore).root,
    join: (...parts) => path.join(...parts),
    names,
    text: (file) => whereThere<string | undefined>(file, undefined, fs.readFileString(file)),
    link,
    size
  }
  return disk
})

interface Roots {
  readonly keys: ReadonlySet<string>
  readonly artifacts: ReadonlySet<string>
  /** Keys of runs that may go on: their work folders are wanted. */
  readonly unfinished: ReadonlySet<string>
}

const findRoots = Effect.fnUntraced(function* (disk: Disk) {
  const keys = new Set<string>()
  const artifacts = new Set<string>()
  const unfinished = new Set<string>()
  const visit = Effect.fnUntraced(function* (run: string) {
    const record = decodeStatus((yield* disk.text(disk.join(disk.runs, run, "run.json"))) ?? "")
    const complete = Option.isSome(record) && record.value.status === "complete"
    for (const key of yield* keysOf(disk, run, complete)) {
      keys.add(key)
      if (!complete) unfinished.add(key)
    }
    const stages = disk.join(disk.runs, run, "stages")
    for (const stage of yield* disk.names(stages)) {
      for (const port of yield* disk.names(disk.join(stages, stage, "out"))) {
        const target = yield* disk.link(disk.join(stages, stage, "out", port))
        if (target !== undefined) artifacts.add(lastPart(target))
      }
    }
  })
  const runs = (yield* disk.names(disk.runs)).filter((name) => runFolderName.test(name))
  yield* Effect.forEach(runs, visit, { concurrency: 8, discard: true })
  const known = new Set(runs)
  // What a damaged line of a journal no longer tells of a result, the result's record does.
  for (const [key, { run }] of yield* readAll(disk, "keys", decodeRecord)) if (known.has(run)) keys.add(key)
  const roots: Roots = { keys, artifacts, unfinished }
  return roots
})

/** The keys that a run's journal names. Of a run that may go on none must be missed: its work is recorded nowhere else. */
const keysOf = Effect.fnUntraced(function* (disk: Disk, run: string, complete: boolean) {
  const file = disk.join(disk.runs, run, journalFile)
  const text = (yield* disk.text(file)) ?? ""
  // The last line may be torn: then its event's work had not begun.
  const whole = text.slice(0, text.lastIndexOf("\n") + 1)
  if (!complete && journalLines(whole).some(({ _tag }) => _tag === "Damaged")) {
    const next = `tinyllama verify ${run} names the line: mend it, end the run by its run command, or remove it: tinyllama runs rm ${run}`
    return yield* new ReachUnknown({ file, next })
  }
  return Array.from(text.matchAll(/"key":"([0-9a-f]{64})"/gu), ([, key]) => key ?? "")
})

interface Reached extends Roots {
  readonly acceptances: ReadonlySet<string>
}

/** Follows acceptances both ways and records to their artifacts. */
const reach = Effect.fnUntraced(function* (disk: Disk, roots: Roots) {
  const keys = new Set(roots.keys)
  const artifacts = new Set(roots.artifacts)
  const acceptances = new Set<string>()
  const known = yield* readAll(disk, "accepted", decodeAcceptance)
  // Each round follows one step of the chains A → B → C; a round that adds nothing is the last.
  for (let size = -1; size !== keys.size;) {
    size = keys.size
    for (const [key, { sameAs }] of known) {
      if (keys.has(key)) keys.add(sameAs)
      if (keys.has(sameAs)) acceptances.add(key)
    }
  }
  for (const key of keys) {
    const file = disk.join(disk.store, "keys", `${key}.json`)
    const text = yield* disk.text(file)
    if (text === undefined) continue
    const record = decodeRecord(text)
    if (Option.isNone(record)) {
      return yield* new ReachUnknown({
        file,
        next: "run the pipeline again: the stage of this key is made and recorded anew"
      })
    }
    for (const digest of Object.values(record.value.outputs)) artifacts.add(digest)
  }
  const reached: Reached = { keys, artifacts, unfinished: roots.unfinished, acceptances }
  return reached
})

/** The files of a store folder by the name before ".json". */
const readAll = Effect.fnUntraced(function* <A>(
  disk: Disk,
  folder: string,
  decode: (text: string) => Option.Option<A>
) {
  const found = new Map<string, A>()
  for (const key of yield* jsonNames(disk, folder)) {
    const value = decode((yield* disk.text(disk.join(disk.store, folder, `${key}.json`))) ?? "")
    if (Option.isSome(value)) found.set(key, value.value)
  }
  return found
})

const jsonNames = (disk: Disk, folder: string) =>
  Effect.map(disk.names(disk.join(disk.store, folder)), (names) =>
    names.filter((name) => name.endsWith(".json")).map((name) => name.slice(0, -".json".length))
  )

/** Acceptances, then results, each with its parts: the record goes first, so that no record ever misses its artifacts. */
const keyGarbage = Effect.fnUntraced(function* (disk: Disk, { acceptances, keys }: Reached) {
  const file = (folder: string, key: string) => disk.join(disk.store, folder, `${key}.json`)
  const found: Array<Garbage> = []
  for (const key of yield* jsonNames(disk, "accepted")) {
    if (acceptances.has(key) || keys.has(key)) continue
    const path = file("accepted", key)
    found.push({
      kind: "acceptance",
      what: `acceptance of key ${short(key)}`,
      why: "the result that it points to goes",
      bytes: yield* disk.size(path),
      paths: [path]
    })
  }
  const results = new Set([...(yield* jsonNames(disk, "keys")), ...(yield* jsonNames(disk, "parts"))])
  for (const key of Array.from(results).sort()) {
    if (keys.has(key) || acceptances.has(key)) continue
    const record = decodeRecord((yield* disk.text(file("keys", key))) ?? "")
    const of = Option.isSome(record) ? `${record.value.stage} in run ${record.value.run}` : "a stage without result"
    const paths = [file("keys", key), file("parts", key)]
    found.push({
      kind: "result",
      what: `key ${short(key)} (${of})`,
      why: unreached,
      bytes: sum(yield* Effect.forEach(paths, disk.size)),
      paths
    })
  }
  return found
})

/** Lines of keys that go. The file is replaced as a whole. */
const historyGarbage = Effect.fnUntraced(function* (disk: Disk, { acceptances, keys }: Reached) {
  const found: Array<Garbage> = []
  const folder = disk.join(disk.store, "history")
  for (const name of yield* disk.names(folder)) {
    if (!name.endsWith(".jsonl")) continue
    const path = disk.join(folder, name)
    const text = (yield* disk.text(path)) ?? ""
    const lines = text.split("\n").filter((line) => line !== "")
    const kept = lines.filter((line) => {
      const entry = decodeEntry(line)
      return Option.isSome(entry) && (keys.has(entry.value.key) || acceptances.has(entry.value.key))
    })
    if (kept.length === lines.length) continue
    const rewrite = kept.map((line) => `${line}\n`).join("")
    found.push({
      kind: "history",
      what: `${lines.length - kept.length} of ${lines.length} lines of history/${name}`,
      why: "their keys go",
      bytes: Buffer.byteLength(text) - Buffer.byteLength(rewrite),
      paths: [path],
      rewrite
    })
  }
  return found
})

/** The manifest goes first: an artifact without one does not exist. */
const artifactGarbage = Effect.fnUntraced(function* (disk: Disk, reached: Reached) {
  const folder = disk.join(disk.store, "artifacts")
  const names = yield* disk.names(folder)
  const found: Array<Garbage> = []
  const digests = new Set(
    names.filter((name) => /^[0-9a-f]{64}(\.json)?$/u.test(name)).map((name) => name.slice(0, 64))
  )
  for (const digest of Array.from(digests).sort()) {
    if (reached.artifacts.has(digest)) continue
    const paths = [disk.join(folder, `${digest}.json`), disk.join(folder, digest)]
    const manifest = decodeManifest((yield* disk.text(paths[0] ?? "")) ?? "")
    const bytes = sum(yield* Effect.forEach(paths, disk.size))
    found.push(
      Option.isSome(manifest)
        ? {
            kind: "artifact",
            what: `${manifest.value.type} ${short(digest)} (${manifest.value.madeBy.stage} in run ${manifest.value.madeBy.run})`,
            why: unreached,
            bytes,
            paths
          }
        : { kind: "leftover", what: `artifact ${short(digest)}`, why: "it has no readable manifest", bytes, paths }
    )
  }
  return found
})

const workGarbage = Effect.fnUntraced(function* (disk: Disk, { unfinished }: Reached) {
  const folder = disk.join(disk.store, "work")
  const found: Array<Garbage> = []
  for (const key of yield* disk.names(folder)) {
    if (unfinished.has(key)) continue
    const path = disk.join(folder, key)
    found.push({
      kind: "work",
      what: `unfinished work of key ${short(key)}`,
      why: "no run that could go on reaches it",
      bytes: yield* disk.size(path),
      paths: [path]
    })
  }
  return found
})

/** What crashes leave: temporary files, artifacts set aside, outputs of attempts that were killed, run folders half removed. */
const leftovers = Effect.fnUntraced(function* (disk: Disk) {
  const found: Array<Garbage> = []
  const add = Effect.fnUntraced(function* (path: string, what: string, why: string) {
    found.push({ kind: "leftover", what, why, bytes: yield* disk.size(path), paths: [path] })
  })
  for (const folder of ["artifacts", "keys", "parts", "accepted", "history"]) {
    for (const name of yield* disk.names(disk.join(disk.store, folder))) {
      const path = disk.join(disk.store, folder, name)
      if (name.endsWith(".tmp")) yield* add(path, `${folder}/${name}`, "a write that was cut off")
      else if (/\.damaged\b/u.test(name)) yield* add(path, `${folder}/${name}`, "damaged, and set aside")
    }
  }
  const jobs = new Set(yield* disk.names(disk.join(disk.store, "jobs")))
  // Nobody runs, so what still lies there was never published.
  for (const name of yield* disk.names(disk.join(disk.store, "making"))) {
    const [key = "", port = ""] = name.split(".")
    // A cluster's job fills it without a runner (run/ClusterJob.ts).
    if (jobs.has(`${key.split("-")[0]}.json`)) continue
    yield* add(disk.join(disk.store, "making", name), `output ${port} of key ${short(key)}`, "the attempt was cut off")
  }
  for (const name of yield* disk.names(disk.runs)) {
    const path = disk.join(disk.runs, name)
    if (name.startsWith(".removed-")) yield* add(path, `runs/${name}`, "a run whose removal was cut off")
    if (name.endsWith(".tmp")) yield* add(path, `runs/${name}`, "a run or a link that was cut off")
  }
  return found
})

export const short = (digest: string): string => digest.slice(0, 12)

const lastPart = (path: string): string => path.slice(path.lastIndexOf("/") + 1)

const sum = (values: ReadonlyArray<number>): number => values.reduce((total, value) => total + value, 0)
