/** `tinyllama stage test STAGE`: one stage on a tiny fixture, twice, killed and stopped in between: a test of what every run relies on. */
import { existsSync } from "node:fs"
import { basename, dirname, extname, join, resolve } from "node:path"
import { fileURLToPath } from "node:url"
import { Console, Duration, Effect, FileSystem, Option } from "effect"
import { Argument, Command, Flag } from "effect/cli"
import { didYouMean } from "../../pipeline/file/Diagnostics.ts"
import * as LocalRunner from "../../pipeline/run/LocalRunner.ts"
import { loadPipeline } from "../../pipeline/file/Pipeline.ts"
import { isFileReference, parseReference } from "../../pipeline/plugin/PluginModule.ts"
import { parseDuration } from "../../pipeline/file/Quantity.ts"
import type { Edge, ResolvedPipeline, ResolvedStage } from "../../pipeline/file/ResolvedPipeline.ts"
import { readSecrets } from "../../pipeline/file/Secrets.ts"
import { UsageError } from "../../pipeline/plan/Selection.ts"
import { StageRegistry } from "../../pipeline/StageRegistry.ts"
import type { AnyStageType, EncodedParams } from "../../pipeline/StageType.ts"
import { executor, type Law, type Subject, trial, type Verdict } from "../../pipeline/plugin/trial/Trial.ts"
import { edgesByType, makeInputs, stageOfType } from "../../pipeline/plugin/trial/TrialInputs.ts"
import { Ended } from "../Ending.ts"
import * as Flags from "../Flags.ts"
import * as Format from "../Format.ts"

/** Ships with the package: makes every artifact type of the program within seconds. */
const tiny = fileURLToPath(new URL("../../../examples/tiny", import.meta.url))

export const testCommand = Command.make(
  "test",
  {
    stage: Argument.String("stage").pipe(
      Argument.withDescription("A stage type (pretrain), a plugin (./my-stage.ts), or with --file a stage of that file")
    ),
    fixture: Flag.String("fixture").pipe(
      Flag.withMetavar("folder|tiny"),
      Flag.optional,
      Flag.withDescription(
        "A folder whose pipeline.yaml makes the inputs; by default MODULE.fixture beside a plugin, else tiny, which comes with the program"
      )
    ),
    file: Flag.File("file").pipe(
      Flag.optional,
      Flag.withDescription("The pipeline file whose stage is tested, with its parameters")
    ),
    ...Flags.overlays,
    timeout: Flag.String("timeout").pipe(
      Flag.withDefault("10m"),
      Flag.withDescription("Limit of each attempt; there are up to six")
    ),
    runs: Flags.runs,
    json: Flags.json
  },
  Effect.fn(function* (flags) {
    const timeout = parseDuration(flags.timeout)
    if (timeout === undefined)
      return yield* new UsageError({ message: `--timeout ${flags.timeout}: write a duration such as 30s or 10m` })
    const say = (line: string) => (flags.json ? Effect.void : Console.log(line))
    const target = yield* findTarget(flags)
    const fixture = yield* loadFixture(flags.fixture, target)
    const own = target.stage ?? stageOfType(fixture, target.type)
    const params = own?.params ?? (yield* defaultParams(target.type, fixture))
    yield* say(`${flags.stage} on ${fixture.file}`)

    const inputs = yield* Effect.gen(function* () {
      const edges: Readonly<Record<string, ReadonlyArray<Edge>>> =
        own !== undefined && target.stage === undefined ? own.inputs : yield* edgesByType(fixture, target.type)
      return yield* makeInputs(fixture, edges, (stages) => say(`  making ${stages.join(", ")} …`))
    }).pipe(Effect.provide(LocalRunner.layer({ runs: join(flags.runs, "fixtures") })), Effect.scoped)

    const pipeline = target.pipeline ?? fixture
    const secrets = yield* readSecrets(pipeline, own === undefined ? [] : [own])
    const subject: Subject = {
      stage: own?.name ?? target.type.name,
      type: own?.type ?? target.type,
      params,
      inputs,
      baseDirectory: own === undefined ? process.cwd() : pipeline.baseDirectory,
      secrets: own === undefined ? { granted: new Map(), withheld: [], scrub: (text) => text } : secrets.of(own),
      grace: own?.grace ?? Duration.seconds(60),
      timeout
    }
    const verdict = yield* onTrial(subject, (law) => say(lawLine(law)))
    if (flags.json) yield* Console.log(JSON.stringify(asJson(flags.stage, subject, fixture, verdict)))
    else yield* Console.log(report(subject, verdict))
    if (verdict.laws.some(({ state }) => state === "broken")) return yield* new Ended({ code: 1 })
  })
).pipe(
  Command.withDescription(
    "Run one stage on a tiny fixture: twice, killed and stopped in the middle; are the bytes equal?"
  ),
  Command.withExamples([
    { command: "tinyllama stage test ./my-stage.ts" },
    { command: "tinyllama stage test pretrain" },
    { command: "tinyllama stage test base --file pipeline.yaml -p smoke" }
  ])
)

interface Target {
  readonly type: AnyStageType
  /** The stage of --file that is tested, in its pipeline. */
  readonly stage: ResolvedStage | undefined
  readonly pipeline: ResolvedPipeline | undefined
}

const findTarget = Effect.fnUntraced(function* (flags: {
  readonly stage: string
  readonly file: Option.Option<string>
  readonly set: ReadonlyArray<string>
  readonly profile: ReadonlyArray<string>
}) {
  const file = Option.getOrUndefined(flags.file)
  if (file !== undefined) {
    const pipeline = yield* Flags.loadPipeline({ ...flags, file: Flags.asSaid(file) })
    const stage = pipeline.stages.find(({ name }) => name === flags.stage)
    if (stage === undefined)
      return yield* unknown(
        flags.stage,
        `in ${file}`,
        pipeline.stages.map(({ name }) => name)
      )
    const target: Target = { type: stage.type, stage, pipeline }
    return target
  }
  if (flags.set.length + flags.profile.length > 0)
    return yield* new UsageError({ message: "--set and --profile change a pipeline file: name it with --file" })
  const registry = yield* StageRegistry
  const type = yield* registry.load(flags.stage, process.cwd())
  if (type === undefined) return yield* unknown(flags.stage, "here", registry.names)
  const target: Target = { type, stage: undefined, pipeline: undefined }
  return target
})

const unknown = (name: string, where: string, names: ReadonlyArray<string>) => {
  const meant = didYouMean(name, names)
  const hint = meant === undefined ? `there are ${names.join(", ")}` : `did you mean "${meant}"?`
  return new UsageError({ message: `no stage "${name}" ${where}; ${hint}` })
}

const loadFixture = Effect.fnUntraced(function* (asked: Option.Option<string>, { type }: Target) {
  const folder = Option.getOrElse(asked, () => besidePlugin(type) ?? "tiny")
  const file = join(folder === "tiny" ? tiny : folder, "pipeline.yaml")
  return yield* loadPipeline({ file: Flags.asSaid(resolve(file)) })
})

/** MODULE.fixture of a plugin that is a file. */
const besidePlugin = ({ plugin }: AnyStageType): string | undefined => {
  if (plugin === undefined) return undefined
  const { module } = parseReference(plugin.uses)
  if (!isFileReference(module)) return undefined
  const folder = join(dirname(module), `${basename(module, extname(module))}.fixture`)
  return existsSync(join(folder, "pipeline.yaml")) ? folder : undefined
}

const defaultParams = Effect.fnUntraced(function* (type: AnyStageType, fixture: ResolvedPipeline) {
  const required = Object.entries(type.params).flatMap(([name, parameter]) => ("default" in parameter ? [] : [name]))
  if (required.length > 0)
    return yield* new UsageError({
      message: `${type.name} needs ${required.join(", ")}, and ${fixture.file} has no stage of this type to take them from: add one, or name a pipeline file with --file`
    })
  const defaults: EncodedParams = Object.fromEntries(
    // A default is in the file's own form, which is JSON.
    Object.entries(type.params).map(([name, parameter]) => [name, parameter.default as EncodedParams[string]])
  )
  return defaults
})

/** In a temporary folder, which stays when a law is broken. */
const onTrial = Effect.fnUntraced(function* (subject: Subject, onLaw: (law: Law) => Effect.Effect<void>) {
  const fs = yield* FileSystem.FileSystem
  const folder = yield* Effect.orDie(fs.makeTempDirectory({ prefix: "tinyllama-stage-test-" }))
  const verdict = yield* trial(subject, folder, onLaw).pipe(Effect.provide(executor))
  const broken = verdict.laws.some(({ state }) => state === "broken")
  if (!broken) yield* Effect.ignore(fs.remove(folder, { recursive: true }))
  return { ...verdict, folder: broken ? folder : undefined }
})

type Outcome = Verdict & { readonly folder: string | undefined }

const marks = { kept: "+", broken: "x", unproven: "?" } as const

const lawLine = ({ detail, law, state }: Law): string => `${marks[state]} ${law}: ${detail}`

const report = ({ type }: Subject, { folder, laws, made }: Outcome): string => {
  const rows = made.map(({ facts, files, port }) => [
    port,
    type.outputs[port]?.type ?? "",
    String(files.size),
    Format.bytes(sizeOf(files)),
    shortList(Object.keys(facts))
  ])
  const broken = laws.filter(({ state }) => state === "broken").length
  const unproven = laws.filter(({ state }) => state === "unproven").length
  return [
    ...(rows.length === 0 ? [] : ["", Format.table(["output", "type", "files", "size", "facts"], rows)]),
    "",
    broken > 0
      ? `${broken} of ${laws.length} laws broken. What each attempt left is in ${folder}`
      : `${type.name} keeps ${laws.length - unproven} of ${laws.length} laws${unproven > 0 ? `; ${unproven} could not be seen` : ""}.`
  ].join("\n")
}

const mostNames = 5
const shortList = (names: ReadonlyArray<string>): string =>
  names.length <= mostNames ? names.join(", ") : `${names.slice(0, mostNames).join(", ")}, … ${names.length} in all`

const sizeOf = (files: Verdict["made"][number]["files"]): number =>
  Array.from(files.values()).reduce((sum, { bytes }) => sum + bytes, 0)

const asJson = (asked: string, { params, stage, type }: Subject, fixture: ResolvedPipeline, outcome: Outcome) => ({
  version: 1,
  asked,
  stage,
  type: type.name,
  fixture: fixture.file,
  params,
  ok: outcome.laws.every(({ state }) => state !== "broken"),
  laws: outcome.laws,
  made: outcome.made.map(({ facts, files, port }) => ({
    port,
    type: type.outputs[port]?.type,
    facts,
    files: Array.from(files, ([path, file]) => ({ path, ...file }))
  })),
  ...(outcome.folder === undefined ? {} : { folder: outcome.folder })
})
