/**
 * Runs a stage in this process, in a temporary folder, as a worker would: parameters are decoded through the stage's own schemas with their
 * defaults, outputs become artifact handles that the next stage takes. Not a mock of the runner: no keys, no store, no retries.
 * Use it with `it.live`: stages that wait (retries of a download) would stand still on a virtual clock.
 */
import { createHash } from "node:crypto"
import { readdirSync, readFileSync } from "node:fs"
import { availableParallelism } from "node:os"
import { join, relative, sep } from "node:path"
import * as NodeHttpClient from "@effect/platform-node/NodeHttpClient"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { Effect, FileSystem, Layer, Schema } from "effect"
import { type ArtifactHandle, type ArtifactType, Facts } from "../../src/artifacts/Artifact.ts"
import { alone } from "../../src/pipeline/run/Ranks.ts"
import type {
  AnyStageType,
  Decoded,
  InputHandles,
  InputPort,
  OutputPort,
  Parameters,
  Previous,
  Progress,
  Share,
  StageContext,
  StageType
} from "../../src/pipeline/StageType.ts"

export interface RunOptions {
  /** As written in the pipeline file: encoded, defaults left out. */
  readonly params?: Readonly<Record<string, unknown>>
  readonly inputs?: Readonly<Record<string, ArtifactHandle | ReadonlyArray<ArtifactHandle>>>
  /** Default: a fresh temporary folder. */
  readonly baseDirectory?: string
  /** Pass the `work` of an earlier result to resume as a second attempt would. Default: a fresh temporary folder. */
  readonly work?: string
  /** An older result to build on; its parameters as written in the file. */
  readonly previous?: Previous<Readonly<Record<string, unknown>>>
  /** `stopRequested()` answers false this many times, then true. Default: never true. */
  readonly stopAfterPolls?: number
  readonly threads?: number
  readonly share?: Share
}

export interface StageResult<O extends string = string> {
  readonly outputs: Readonly<Record<O, ArtifactHandle>>
  readonly logs: ReadonlyArray<string>
  readonly warnings: ReadonlyArray<string>
  readonly progress: ReadonlyArray<Progress>
  readonly work: string
}

/** A folder of its own, removed with the test's scope. */
export const temporaryFolder = Effect.gen(function* () {
  return yield* (yield* FileSystem.FileSystem).makeTempDirectoryScoped({ prefix: "tinyllama-test-" })
}).pipe(Effect.provide(NodeServices.layer), Effect.orDie)

const canonical = (value: unknown): string =>
  Array.isArray(value)
    ? `[${value.map(canonical).join(",")}]`
    : typeof value === "object" && value !== null
      ? `{${Object.entries(value)
          .sort(([a], [b]) => (a < b ? -1 : 1))
          .map(([key, item]) => `${JSON.stringify(key)}:${canonical(item)}`)
          .join(",")}}`
      : JSON.stringify(value)

/** Relative paths (forward slashes) and digests of all files below `folder`, sorted: equal lists mean byte-identical artifacts. */
export const filesOf = (folder: string): ReadonlyArray<{ readonly path: string; readonly sha256: string }> =>
  readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name))
    .map((file) => ({
      path: relative(folder, file).replaceAll(sep, "/"),
      sha256: createHash("sha256").update(readFileSync(file)).digest("hex")
    }))
    .sort((a, b) => (a.path < b.path ? -1 : 1))

/** The handle of a folder that a test filled by hand. */
export const artifactOf = (type: ArtifactType, folder: string, facts: Facts, origin: string): ArtifactHandle => ({
  type,
  digest: createHash("sha256")
    .update(canonical([type, filesOf(folder), facts]))
    .digest("hex"),
  folder,
  facts,
  origin
})

/** Parameters as a stage sees them, from what a file would write. */
export const decodeParameters = Effect.fnUntraced(function* (
  stage: AnyStageType,
  params: Readonly<Record<string, unknown>>
): Effect.fn.Return<Record<string, unknown>, Schema.SchemaError> {
  const unknown = Object.keys(params).filter((name) => !(name in stage.params))
  if (unknown.length > 0) return yield* Effect.die(new Error(`${stage.name} has no parameter ${unknown.join(", ")}`))
  const decoded: Record<string, unknown> = {}
  for (const [name, parameter] of Object.entries(stage.params)) {
    if (params[name] === undefined && !("default" in parameter))
      return yield* Effect.die(new Error(`${stage.name} needs the parameter ${name}`))
    decoded[name] = yield* Schema.decodeUnknownEffect(parameter.schema)(params[name] ?? parameter.default)
  }
  return decoded
})

/** Runs `stage` once; fails as the stage does (StageError, Preempted), or with a SchemaError for parameters that do not decode. */
export const runStage = Effect.fnUntraced(
  function* <
    P extends Parameters,
    I extends Readonly<Record<string, InputPort>>,
    O extends Readonly<Record<string, OutputPort>>
  >(stage: StageType<P, I, O>, options: RunOptions = {}) {
    const fs = yield* FileSystem.FileSystem
    const folder = yield* temporaryFolder
    const work = options.work ?? (yield* temporaryFolder)
    const baseDirectory = options.baseDirectory ?? (yield* temporaryFolder)
    for (const port of Object.keys(stage.outputs)) yield* Effect.orDie(fs.makeDirectory(join(folder, port)))
    const inputs: Record<string, unknown> = { ...options.inputs }
    for (const [name, port] of Object.entries(stage.inputs)) {
      if (inputs[name] === undefined && port.many && port.optional) inputs[name] = []
      if (inputs[name] === undefined && !port.optional)
        return yield* Effect.die(new Error(`${stage.name} needs the input ${name}`))
    }
    const logs: Array<string> = []
    const warnings: Array<string> = []
    const progress: Array<Progress> = []
    let polls = 0
    const context: StageContext<Decoded<P>, InputHandles<I>> = {
      stage: stage.name,
      params: (yield* decodeParameters(stage, options.params ?? {})) as Decoded<P>,
      inputs: inputs as InputHandles<I>,
      output: (port) => join(folder, port),
      work,
      previous:
        options.previous === undefined
          ? undefined
          : {
              ...options.previous,
              params: (yield* decodeParameters(stage, options.previous.params)) as Decoded<P>
            },
      baseDirectory,
      threads: options.threads ?? Math.min(2, availableParallelism()),
      share: options.share,
      ranks: alone,
      progress: (reading) => void progress.push(reading),
      log: (line) => void logs.push(line),
      warn: (line) => void warnings.push(line),
      stopRequested: () => polls++ >= (options.stopAfterPolls ?? Infinity)
    }
    const facts = yield* stage.run(context)
    const outputs: Record<string, ArtifactHandle> = {}
    for (const [port, { type }] of Object.entries(stage.outputs)) {
      const checked = yield* Schema.decodeUnknownEffect(Facts)(facts[port])
      outputs[port] = artifactOf(type, join(folder, port), checked, `${stage.name}.${port}`)
    }
    const result: StageResult<keyof O & string> = {
      outputs: outputs as Record<keyof O & string, ArtifactHandle>,
      logs,
      warnings,
      progress,
      work
    }
    return result
  },
  Effect.provide(Layer.merge(NodeServices.layer, NodeHttpClient.layerUndici))
)

/** What `stage.observe` sees, with parameters decoded as in `runStage`. */
export const observeStage = Effect.fnUntraced(function* (
  stage: AnyStageType,
  params: Readonly<Record<string, unknown>>,
  baseDirectory: string
) {
  if (stage.observe === undefined) return yield* Effect.die(new Error(`${stage.name} observes nothing`))
  return yield* stage.observe(yield* decodeParameters(stage, params), baseDirectory)
}, Effect.provide(NodeServices.layer))
