/**
 * The content-addressed store that all runs share.
 *
 *   artifacts/<digest>/…      the files of an artifact
 *   artifacts/<digest>.json   its manifest, written after the files are durable: an artifact without one does not exist
 *   keys/<stage key>.json     which artifacts a stage key gave, written after all of them: a result without one does not exist
 *   work/<stage key>/         in-stage checkpoints and partial downloads, deleted only after publication
 *   making/<key>.<port>/      what an attempt fills, until it becomes an artifact
 *   locks/                    one writer per stage key
 *   jobs/                     what clusters' jobs are making (pipeline/run/ClusterJob.ts)
 */
import { createHash } from "node:crypto"
import {
  Context,
  Effect,
  FileSystem,
  Layer,
  Option,
  Path,
  type PlatformError,
  Result,
  Schema,
  Semaphore,
  Stream
} from "effect"
import { StageError } from "../pipeline/StageType.ts"
import { type ArtifactHandle, type ArtifactType, type Facts, Manifest } from "./Artifact.ts"
import { digestOf } from "./CanonicalJson.ts"
import { shared } from "./SharedSync.ts"
import {
  createFileAtomic,
  errorCode,
  jsonText,
  storageFailure,
  sync,
  temporaryName,
  writeFileAtomic
} from "./DurableFile.ts"

/** What the store remembers of a stage key: which artifacts it gave, and who made them. */
export const KeyRecord = Schema.Struct({
  version: Schema.Literal(1),
  key: Schema.String,
  /** Output port → digest. */
  outputs: Schema.Record(Schema.String, Schema.String),
  run: Schema.String,
  stage: Schema.String,
  attempt: Schema.Int,
  seconds: Schema.Finite,
  /** Cores it had. */
  cpus: Schema.optionalKey(Schema.Int),
  /** How much work it was, in the stage type's unit: what scales `seconds` to other parameters. */
  amount: Schema.optionalKey(Schema.Finite),
  unit: Schema.optionalKey(Schema.String),
  /** ISO 8601. */
  at: Schema.String
})
export type KeyRecord = typeof KeyRecord.Type

export interface StoredArtifact {
  readonly manifest: Manifest
  readonly folder: string
}

/** A stage key's result: complete, absent, or recorded but with files missing or short. */
export type Lookup =
  | {
      readonly _tag: "Complete"
      readonly record: KeyRecord
      readonly artifacts: Readonly<Record<string, StoredArtifact>>
    }
  | { readonly _tag: "Absent" }
  | { readonly _tag: "Damaged"; readonly record: KeyRecord | undefined; readonly detail: string }

export interface Publication {
  readonly type: ArtifactType
  /** Its files become the artifact; the folder itself is moved. */
  readonly folder: string
  readonly facts: Facts
  readonly madeBy: Manifest["madeBy"]
}

const decodeManifest = Schema.decodeEffect(Schema.fromJsonString(Manifest))
const decodeRecord = Schema.decodeEffect(Schema.fromJsonString(KeyRecord))

export class ArtifactStore extends Context.Service<
  ArtifactStore,
  {
    /** Absolute. */
    readonly root: string
    /** The artifact, if its manifest is there and every file has its size; else undefined. */
    readonly get: (digest: string) => Effect.Effect<StoredArtifact | undefined, StageError>
    /** What is said of the artifact, whatever became of its files. */
    readonly manifest: (digest: string) => Effect.Effect<Manifest | undefined, StageError>
    readonly handle: (digest: string, origin: string) => Effect.Effect<ArtifactHandle | undefined, StageError>
    /** Reads every byte; names the files that differ from the manifest. */
    readonly verify: (digest: string) => Effect.Effect<ReadonlyArray<string>, StageError>
    /** Fails when the disk cannot be read: a result that cannot be read now is not lost, and must not be made again for that. */
    readonly lookup: (key: string) => Effect.Effect<Lookup, StageError>
    /** What is recorded of a key, whatever became of its artifacts. */
    readonly record: (key: string) => Effect.Effect<KeyRecord | undefined, StageError>
    /** Digests, makes durable and moves a filled folder into the store; an artifact that is there already is kept. */
    readonly publish: (
      publication: Publication
    ) => Effect.Effect<StoredArtifact & { readonly reused: boolean }, StageError>
    /** Records a stage key's result. The last step of a stage. */
    readonly commit: (record: KeyRecord) => Effect.Effect<void, StageError>
    /** An empty folder for an attempt to fill. Only for the holder of the key's lock. */
    readonly openOutput: (key: string, port: string) => Effect.Effect<string, StageError>
    /** The same folder, as it is. */
    readonly outputPath: (key: string, port: string) => string
    /** The work folder of a key; the stage makes it when it wants it. */
    readonly workPath: (key: string) => string
    readonly hasWork: (key: string) => Effect.Effect<boolean>
    readonly clearWork: (key: string) => Effect.Effect<void>
    /** Where the key's lock files lie: their common prefix. */
    readonly lockPath: (key: string) => string
  }
>()("tinyllama/artifacts/ArtifactStore") {
  static readonly layer = (root: string) => Layer.effect(ArtifactStore, make(root))
}

const make = Effect.fn("ArtifactStore.make")(function* (root: string) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const services = yield* Effect.context<FileSystem.FileSystem | Path.Path>()
  const artifacts = path.join(root, "artifacts")
  const folderOf = (digest: string) => path.join(artifacts, digest)
  const manifestOf = (digest: string) => path.join(artifacts, `${digest}.json`)
  const recordOf = (key: string) => path.join(root, "keys", `${key}.json`)
  const turns = new Map<string, Semaphore.Semaphore>()
  /** Of one artifact, one publication at a time in this process. */
  const publishing = (digest: string) => {
    const turn = turns.get(digest) ?? Semaphore.makeUnsafe(1)
    turns.set(digest, turn)
    return turn
  }
  const syncArtifacts = shared(sync(artifacts))
  const syncKeys = shared(sync(path.join(root, "keys")))
  const workOf = (key: string) => path.join(root, "work", key)

  /** undefined when there is no such file. */
  const readText = (file: string) => ifThere(file, fs.readFileString(file))
  const ifThere = <A>(file: string, reading: Effect.Effect<A, PlatformError.PlatformError>) =>
    reading.pipe(
      Effect.catchIf(
        (error) => ["ENOENT", "ENOTDIR"].includes(errorCode(error) ?? ""),
        () => Effect.undefined
      ),
      Effect.mapError(storageFailure(file))
    )

  /** The manifest of that digest, or what is wrong with it. */
  const read = Effect.fnUntraced(function* (digest: string) {
    const text = yield* readText(manifestOf(digest))
    if (text === undefined) return "its manifest is missing"
    const manifest = yield* Effect.option(decodeManifest(text))
    if (Option.isNone(manifest)) return "its manifest is damaged"
    const { facts, files, type } = manifest.value
    return artifactDigest(type, files, facts) === digest ? manifest.value : "its manifest was altered"
  })

  /** The first file that is missing or has another size. */
  const firstDamage = Effect.fnUntraced(function* (manifest: Manifest, folder: string) {
    for (const file of manifest.files) {
      const full = path.join(folder, file.path)
      const info = yield* ifThere(full, fs.stat(full))
      if (info === undefined) return `${file.path} is missing`
      const size = Number(info.size)
      if (size !== file.bytes) return `${file.path} has ${size} bytes, not ${file.bytes}`
    }
    return undefined
  })

  /** The artifact with all its files in their sizes, or what is wrong with it. */
  const inspect = Effect.fnUntraced(function* (digest: string) {
    const manifest = yield* read(digest)
    if (typeof manifest === "string") return manifest
    const folder = folderOf(digest)
    const found: StoredArtifact = { manifest, folder }
    return (yield* firstDamage(manifest, folder)) ?? found
  })

  const get = Effect.fnUntraced(function* (digest: string) {
    const found = yield* inspect(digest)
    return typeof found === "string" ? undefined : found
  })

  const handle = (digest: string, origin: string) =>
    Effect.map(get(digest), (found) => (found === undefined ? undefined : handleOf(found, origin)))

  const verify = Effect.fnUntraced(function* (digest: string) {
    const manifest = yield* read(digest)
    if (typeof manifest === "string") return [manifest.replace(/^its/u, "the")]
    const faults: Array<string> = []
    for (const file of manifest.files) {
      const actual = yield* Effect.result(hashFile(fs, path.join(folderOf(digest), file.path), file.bytes))
      if (Result.isFailure(actual)) {
        const code = errorCode(actual.failure)
        faults.push(code === "ENOENT" ? `${file.path} is missing` : `${file.path} cannot be read (${code})`)
      } else if (actual.success.sha256 !== file.sha256) faults.push(`${file.path} does not have its sha256`)
    }
    return faults
  })

  const decodeOptional = (text: string | undefined) =>
    text === undefined ? Effect.undefined : Effect.map(Effect.option(decodeRecord(text)), Option.getOrUndefined)

  const record = (key: string) => Effect.flatMap(readText(recordOf(key)), decodeOptional)

  const lookup = Effect.fnUntraced(function* (key: string) {
    const text = yield* readText(recordOf(key))
    if (text === undefined) return { _tag: "Absent" } satisfies Lookup
    const known = yield* decodeOptional(text)
    if (known?.key !== key) {
      const detail = `the record ${recordOf(key)} is damaged`
      return { _tag: "Damaged", record: undefined, detail } satisfies Lookup
    }
    const found: Record<string, StoredArtifact> = {}
    for (const [port, digest] of Object.entries(known.outputs)) {
      const artifact = yield* inspect(digest)
      if (typeof artifact === "string") {
        const detail = `${port} (${folderOf(digest)}): ${artifact}`
        return { _tag: "Damaged", record: known, detail } satisfies Lookup
      }
      found[port] = artifact
    }
    return { _tag: "Complete", record: known, artifacts: found } satisfies Lookup
  })

  const publish = Effect.fnUntraced(function* (publication: Publication) {
    const { facts, folder, madeBy, type } = publication
    const files = yield* digestFiles(folder)
    if (files.length === 0) {
      return yield* new StageError({
        failure: "internal",
        message: `stage type ${madeBy.stageType} left its ${type} output empty`,
        next: "report this: a stage must fill every output"
      })
    }
    const digest = artifactDigest(type, files, facts)
    const target = folderOf(digest)
    const manifest: Manifest = { type, digest, files, facts, madeBy }
    // Two stages that repair the same at once would move each other's folder aside.
    return yield* Effect.gen(function* () {
      // A manifest without its files: then this is a repair, and a publication of its own.
      const known = yield* read(digest)
      const { aside, moved } = yield* settle(folder, target, files)
      const before = typeof known === "string" ? yield* introduce(manifest) : known
      // Only now is there a successor of what was damaged.
      yield* Effect.forEach(aside, (old) => Effect.ignore(fs.remove(old, { recursive: true, force: true })))
      const repaired = typeof known !== "string" && moved
      return { manifest: before ?? manifest, folder: target, reused: before !== undefined && !repaired }
    }).pipe(
      (effect) => publishing(digest).withPermit(effect),
      Effect.mapError((error) => (error._tag === "StageError" ? error : storageFailure(target)(error)))
    )
  }, Effect.provideContext(services))

  /**
   * Leaves a folder with just these files at `target`, and tells which damaged ones stood in the way. A folder that holds them is kept, with a
   * manifest or (after a crash) without: others may be reading it.
   */
  const settle = Effect.fnUntraced(function* (folder: string, target: string, files: Manifest["files"]) {
    const aside: Array<string> = []
    for (;;) {
      if (yield* moveInto(folder, target)) {
        yield* syncArtifacts
        return { aside, moved: true }
      }
      // Something is there. Another process may move it aside at this moment: then the way is free.
      const same = yield* ifThere(target, holds(target, files))
      if (same === undefined) continue
      if (same) {
        yield* Effect.ignore(fs.remove(folder, { recursive: true }))
        return { aside, moved: false }
      }
      const damaged = temporaryName(`${target}.damaged`)
      const gone = yield* ifThere(target, fs.rename(target, damaged).pipe(Effect.as(true)))
      if (gone === true) aside.push(damaged)
    }
  })

  /** Gives a folder its place among the artifacts; false when the place is taken. */
  const moveInto = (folder: string, target: string) =>
    fs.rename(folder, target).pipe(
      Effect.catchIf(
        (error) => errorCode(error) === "ENOENT",
        () => Effect.andThen(fs.makeDirectory(artifacts, { recursive: true }), fs.rename(folder, target))
      ),
      Effect.as(true),
      Effect.catchIf(
        (error) => ["ENOTEMPTY", "EEXIST", "ENOTDIR"].includes(errorCode(error) ?? ""),
        () => Effect.succeed(false)
      )
    )

  /** Writes the manifest, or returns the one that says the same and was there first. */
  const introduce = Effect.fnUntraced(function* (manifest: Manifest) {
    const file = manifestOf(manifest.digest)
    if (yield* createFileAtomic(file, jsonText(manifest), syncArtifacts)) return undefined
    const other = yield* read(manifest.digest)
    if (typeof other !== "string") return other
    yield* writeFileAtomic(file, jsonText(manifest))
    return undefined
  })

  /** Whether a folder holds these files, byte for byte, and no other. Fails where the disk cannot be read: others may be reading it in peace. */
  const holds = Effect.fnUntraced(function* (folder: string, files: Manifest["files"]) {
    const expected = new Map(files.map((file) => [file.path, file]))
    for (const name of yield* fs.readDirectory(folder, { recursive: true })) {
      const full = path.join(folder, name)
      const info = yield* fs.stat(full)
      if (info.type === "Directory") continue
      const file = expected.get(name.split(path.sep).join("/"))
      if (file === undefined || Number(info.size) !== file.bytes) return false
      if ((yield* hashFile(fs, full)).sha256 !== file.sha256) return false
      expected.delete(file.path)
    }
    return expected.size === 0
  })

  /** Files and folders below `folder`, by their relative paths; anything else is no part of an artifact. */
  const namesBelow = Effect.fnUntraced(function* (folder: string) {
    const files: Array<{ readonly path: string; readonly size: number }> = []
    const folders = [""]
    // Grows while it is gone through.
    for (const next of folders) {
      for (const name of yield* fs.readDirectory(path.join(folder, next))) {
        const relative = next === "" ? name : `${next}/${name}`
        const info = yield* fs.stat(path.join(folder, relative))
        if (info.type === "Directory") folders.push(relative)
        if (info.type === "File") files.push({ path: relative, size: Number(info.size) })
      }
    }
    return { files, folders }
  })

  /** Every file below `folder` with size and digest, each made durable, in code-unit order of the paths. */
  const digestFiles = Effect.fnUntraced(
    function* (folder: string) {
      const found = yield* namesBelow(folder)
      const seal = Effect.fnUntraced(function* (file: { readonly path: string; readonly size: number }) {
        const full = path.join(folder, file.path)
        const { bytes, sha256 } = yield* hashFile(fs, full, file.size)
        yield* sync(full)
        return { path: file.path, bytes, sha256 }
      })
      // At once, because disks make many files durable in about the time of one.
      const files = yield* Effect.forEach(found.files, seal, { concurrency: 16 })
      yield* Effect.forEach(found.folders, (name) => sync(path.join(folder, name)), { concurrency: 16, discard: true })
      return files.sort((a, b) => (a.path < b.path ? -1 : 1))
    },
    (effect, folder) => Effect.mapError(effect, storageFailure(folder)),
    Effect.provideContext(services)
  )

  const commit = (record: KeyRecord) =>
    writeFileAtomic(recordOf(record.key), jsonText(record), syncKeys).pipe(
      Effect.mapError(storageFailure(recordOf(record.key))),
      Effect.provideContext(services)
    )

  const outputPath = (key: string, port: string) => path.join(root, "making", `${key}.${port}`)

  /** What a killed attempt left there is taken away first. */
  const openOutput = Effect.fnUntraced(function* (key: string, port: string) {
    const folder = outputPath(key, port)
    yield* fs
      .remove(folder, { recursive: true, force: true })
      .pipe(Effect.andThen(fs.makeDirectory(folder, { recursive: true })), Effect.mapError(storageFailure(folder)))
    return folder
  })

  const hasWork = (key: string) =>
    fs.exists(workOf(key)).pipe(
      Effect.andThen((there) => (there ? fs.readDirectory(workOf(key)) : Effect.succeed([]))),
      Effect.map((names) => names.length > 0),
      Effect.orElseSucceed(() => false)
    )

  const clearWork = (key: string) => Effect.ignore(fs.remove(workOf(key), { recursive: true, force: true }))

  return ArtifactStore.of({
    root,
    get,
    manifest: (digest) => Effect.map(read(digest), (found) => (typeof found === "string" ? undefined : found)),
    handle,
    verify,
    lookup,
    record,
    publish,
    commit,
    openOutput,
    outputPath,
    workPath: workOf,
    hasWork,
    clearWork,
    lockPath: (key) => path.join(root, "locks", key)
  })
})

export const handleOf = (artifact: StoredArtifact, origin: string): ArtifactHandle => ({
  type: artifact.manifest.type,
  digest: artifact.manifest.digest,
  folder: artifact.folder,
  facts: artifact.manifest.facts,
  origin
})

const artifactDigest = (type: ArtifactType, files: Manifest["files"], facts: Facts): string =>
  digestOf({ type, files: files.map(({ bytes, path, sha256 }) => ({ path, bytes, sha256 })), facts })

/** Files up to this size are read at once. */
const smallBytes = 1 << 20

const hashFile = (
  fs: FileSystem.FileSystem,
  file: string,
  size?: number
): Effect.Effect<{ readonly bytes: number; readonly sha256: string }, PlatformError.PlatformError> =>
  Effect.suspend(() => {
    const hash = createHash("sha256")
    if (size !== undefined && size <= smallBytes) {
      return Effect.map(fs.readFile(file), (content) => ({
        bytes: content.length,
        sha256: hash.update(content).digest("hex")
      }))
    }
    let bytes = 0
    return fs.stream(file, { chunkSize: 1 << 20 }).pipe(
      Stream.runForEach((chunk) =>
        Effect.sync(() => {
          hash.update(chunk)
          bytes += chunk.length
        })
      ),
      Effect.map(() => ({ bytes, sha256: hash.digest("hex") }))
    )
  })
