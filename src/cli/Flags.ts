/** Flags and arguments that several commands share, so that each is said and explained once. */
import { relative } from "node:path"
import { Effect } from "effect"
import { Argument, Flag } from "effect/cli"
import * as Pipeline from "../pipeline/file/Pipeline.ts"

export const runs = Flag.Directory("runs").pipe(
  Flag.withDefault("runs"),
  Flag.withDescription("The folder that holds runs and their store")
)

export const paranoid = Flag.Boolean("paranoid").pipe(
  Flag.withDefault(false),
  Flag.withDescription(
    "Read every byte of inputs and stored results again; without it unchanged sizes and times are trusted"
  )
)

export const json = Flag.Boolean("json").pipe(
  Flag.withDefault(false),
  Flag.withDescription("Print JSON, made for programs")
)

/** The shorter way to say a path: relative to the current folder, or absolute. */
export const asSaid = (path: string): string => {
  const fromHere = relative(process.cwd(), path)
  return fromHere !== "" && fromHere.length < path.length ? fromHere : path
}

export const pipelineFile = Argument.File("file").pipe(
  Argument.map(asSaid),
  Argument.withDefault("pipeline.yaml"),
  Argument.withDescription("The pipeline file (pipeline.yaml where none is given)")
)

export const runName = Argument.String("run").pipe(
  Argument.withDefault("latest"),
  Argument.withDescription("A run's id, the beginning of one, or latest")
)

/** What is laid over the file before it is decoded. */
export const overlays = {
  set: Flag.String("set").pipe(
    Flag.withAlias("S"),
    Flag.withMetavar("path=value"),
    Flag.atLeast(0),
    Flag.withDescription("Replace a value of the file, say vars.budget=1e6 or base.lr.peak=1e-3; may be repeated")
  ),
  profile: Flag.String("profile").pipe(
    Flag.withAlias("p"),
    Flag.atLeast(0),
    Flag.withDescription("Apply one of the file's profiles; may be repeated")
  )
}

export const selection = {
  fromStage: stageFlag("from-stage", "Run this stage and all below; above it, the newest complete artifacts serve"),
  toStage: stageFlag("to-stage", "Run nothing below this stage"),
  only: Flag.String("only").pipe(
    Flag.atLeast(0),
    Flag.withMetavar("stage"),
    Flag.withDescription("Run this stage alone; may be repeated")
  ),
  force: Flag.String("force").pipe(
    Flag.atLeast(0),
    Flag.withMetavar("stage"),
    Flag.withDescription("Run this stage even if it is up to date (all: every stage); may be repeated")
  ),
  reuseStale: Flag.Boolean("reuse-stale").pipe(
    Flag.withDefault(false),
    Flag.withDescription("With --from-stage or --only: reuse results above although the file has changed since")
  )
}

function stageFlag(name: string, description: string) {
  return Flag.String(name).pipe(
    Flag.withMetavar("stage"),
    Flag.withDescription(description),
    Flag.atMost(1),
    Flag.map((values): { readonly stage?: string } => (values[0] === undefined ? {} : { stage: values[0] }))
  )
}

/** "a,b[x=1,y=2]" → a and b[x=1,y=2]: commas between brackets belong to a name. */
export const namesIn = (names: string): ReadonlyArray<string> => names.split(/,(?![^[]*\])/u)

/** The flags' values as the runner's Selection. */
export const toSelection = (flags: {
  readonly fromStage: { readonly stage?: string }
  readonly toStage: { readonly stage?: string }
  readonly only: ReadonlyArray<string>
  readonly force: ReadonlyArray<string>
  readonly reuseStale: boolean
}) => ({
  ...(flags.fromStage.stage === undefined ? {} : { fromStage: flags.fromStage.stage }),
  ...(flags.toStage.stage === undefined ? {} : { toStage: flags.toStage.stage }),
  ...(flags.only.length === 0 ? {} : { only: flags.only.flatMap(namesIn) }),
  ...(flags.force.length === 0 ? {} : { force: flags.force.flatMap(namesIn) }),
  ...(flags.reuseStale ? { reuseStale: true } : {})
})

export const loadPipeline = Effect.fn("loadPipeline")(
  (flags: { readonly file: string; readonly set: ReadonlyArray<string>; readonly profile: ReadonlyArray<string> }) =>
    Pipeline.loadPipeline({
      file: flags.file,
      overrides: flags.set,
      profiles: flags.profile.flatMap((names) => names.split(","))
    })
)
