/**
 * What an artifact was made from, back to what came from outside: for each artifact the stage, its key, the parameters that are not defaults,
 * the run that made it, and the artifacts that went in.
 */
import { Effect, FileSystem, Path, Runtime, Schema } from "effect"
import type { Manifest } from "../../artifacts/Artifact.ts"
import { ArtifactStore, type KeyRecord } from "../../artifacts/ArtifactStore.ts"
import { canonicalJson } from "../../artifacts/CanonicalJson.ts"
import { didYouMean } from "../file/Diagnostics.ts"
import { type Acceptance, KeyLedger } from "../plan/KeyLedger.ts"
import { type RunInfo, type RunOutput, Runs } from "./Runs.ts"
import type { KeyParts } from "../plan/StageKey.ts"
import type { StageError } from "../StageType.ts"
import { StageRegistry } from "../StageRegistry.ts"

/** Nothing of this name. Exit code 2. */
export class ArtifactUnknown extends Schema.TaggedError<ArtifactUnknown>()("ArtifactUnknown", {
  query: Schema.String,
  /** What it fits, when it fits several. */
  candidates: Schema.Array(Schema.String),
  next: Schema.String
}) {
  override readonly [Runtime.errorExitCode] = 2
  override get message(): string {
    return this.candidates.length > 0
      ? `"${this.query}" fits ${this.candidates.length} artifacts: ${this.candidates.join(", ")}`
      : `no artifact "${this.query}"`
  }
}

export interface LineageNode {
  readonly digest: string
  /** The input port of the artifact below that this one fills; undefined at the root. */
  readonly port: string | undefined
  /** undefined when its manifest is no longer there: then what is below is not known either. */
  readonly made: Made | undefined
  readonly from: ReadonlyArray<LineageNode>
}

export interface Made {
  readonly type: Manifest["type"]
  readonly bytes: number
  readonly files: number
  readonly stage: string
  readonly stageType: string
  readonly stageVersion: number
  readonly key: string
  readonly run: string
  /** Of the stage's completion, ISO 8601; undefined when its key record was collected. */
  readonly at: string | undefined
  readonly seconds: number | undefined
  /** Not equal to the stage type's defaults; undefined when the key's parts were collected. */
  readonly parameters: Readonly<Record<string, Schema.Json>> | undefined
  /** What the stage read from outside the pipeline; null where nothing. */
  readonly observed: Schema.Json
  /** Decisions by which other keys share this result. */
  readonly accepted: ReadonlyArray<Acceptance>
}

export const lineage = Effect.fn("lineage")(function* (query: string) {
  const { acceptances } = yield* KeyLedger
  const context: Context = { acceptances: yield* acceptances, nodes: new Map() }
  return yield* trace(yield* findArtifact(query), undefined, context)
})

interface Context {
  readonly acceptances: ReadonlyArray<Acceptance>
  /** By digest: an artifact that went into several is traced once. */
  readonly nodes: Map<string, Omit<LineageNode, "port">>
}

type Traced = Effect.Effect<
  LineageNode,
  StageError,
  ArtifactStore | KeyLedger | StageRegistry | FileSystem.FileSystem | Path.Path
>

const trace = (digest: string, port: string | undefined, context: Context): Traced =>
  Effect.gen(function* () {
    const known = context.nodes.get(digest)
    if (known !== undefined) return { ...known, port }
    const store = yield* ArtifactStore
    // Also of an artifact whose files are damaged: its past is known all the same.
    const manifest = yield* store.manifest(digest)
    if (manifest === undefined) return { digest, port, made: undefined, from: [] }
    const ledger = yield* KeyLedger
    const { stageKey } = manifest.madeBy
    const parts = yield* ledger.parts(stageKey)
    const inputs = Object.entries(parts?.inputs ?? {}).flatMap(([name, digests]) =>
      digests.map((input) => [name, input] as const)
    )
    const from = yield* Effect.forEach(inputs, ([name, input]) => trace(input, name, context))
    const accepted = context.acceptances.filter(({ sameAs }) => sameAs === stageKey)
    const made = yield* describe(manifest, parts, yield* store.record(stageKey), accepted)
    const node = { digest, made, from }
    context.nodes.set(digest, node)
    return { ...node, port }
  })

const describe = Effect.fnUntraced(function* (
  manifest: Manifest,
  parts: KeyParts | undefined,
  record: KeyRecord | undefined,
  accepted: ReadonlyArray<Acceptance>
) {
  const { run, stage, stageKey, stageType, stageVersion } = manifest.madeBy
  const made: Made = {
    type: manifest.type,
    bytes: manifest.files.reduce((sum, file) => sum + file.bytes, 0),
    files: manifest.files.length,
    stage,
    stageType,
    stageVersion,
    key: stageKey,
    run,
    at: record?.at,
    seconds: record?.seconds,
    parameters: parts === undefined ? undefined : yield* notDefaults(stageType, parts.params),
    observed: parts?.observed ?? null,
    accepted
  }
  return made
})

/** All of them where the stage type cannot be loaded, say a plugin that is gone. */
const notDefaults = Effect.fnUntraced(function* (stageType: string, params: KeyParts["params"]) {
  const registry = yield* StageRegistry
  const type = registry.names.includes(stageType)
    ? yield* Effect.orElseSucceed(registry.load(stageType, process.cwd()), () => undefined)
    : undefined
  return Object.fromEntries(
    Object.entries(params).filter(([name, value]) => {
      const standard: unknown = type?.params[name]?.default
      return standard === undefined || canonicalJson(asJson(standard)) !== canonicalJson(value)
    })
  )
})

const asJson = Schema.decodeUnknownSync(Schema.Json)

/** By digest or the beginning of one, "RUN/stage.port", or "stage.port" of the latest run. */
export const findArtifact = Effect.fn("findArtifact")(function* (query: string) {
  if (/^[0-9a-f]{4,64}$/u.test(query)) {
    const digest = yield* byDigest(query)
    if (digest !== undefined) return digest
  }
  const slash = query.indexOf("/")
  const runs = yield* Runs
  const run = yield* runs.find(slash < 0 ? "latest" : query.slice(0, slash))
  return yield* ofRun(run, yield* runs.outputs(run), query.slice(slash + 1))
})

const byDigest = Effect.fnUntraced(function* (prefix: string) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const folder = path.join((yield* ArtifactStore).root, "artifacts")
  const names = yield* Effect.orElseSucceed(fs.readDirectory(folder), () => [])
  const found = names.filter((name) => name.startsWith(prefix) && /^[0-9a-f]{64}\.json$/u.test(name))
  const [only] = found
  if (found.length <= 1) return only?.slice(0, 64)
  const next = "write more of the digest"
  return yield* new ArtifactUnknown({ query: prefix, candidates: found.map((name) => name.slice(0, 64)), next })
})

/** "stage.port"; the stage alone where it has one output. */
const ofRun = Effect.fnUntraced(function* (run: RunInfo, outputs: ReadonlyArray<RunOutput>, query: string) {
  const name = ({ port, stage }: RunOutput) => `${stage}.${port}`
  const found = outputs.filter((output) => name(output) === query || output.stage === query)
  const [only] = found
  if (only !== undefined && found.length === 1) return only.digest
  if (found.length > 1) {
    const next = "write which port"
    return yield* new ArtifactUnknown({ query, candidates: found.map(name), next })
  }
  const names = outputs.map(name)
  const meant = didYouMean(query, [...names, ...outputs.map(({ stage }) => stage)])
  const list = names.length === 0 ? `run ${run.id} has no outputs` : `run ${run.id} has ${names.join(", ")}`
  const next = meant === undefined ? list : `did you mean "${meant}"? ${list}`
  return yield* new ArtifactUnknown({ query, candidates: [], next })
})
