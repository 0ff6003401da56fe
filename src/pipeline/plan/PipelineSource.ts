/** A pipeline from wherever its text is: a file, a git revision of one, or a past run. */
import { execFile } from "node:child_process"
import { promisify } from "node:util"
import { Effect, FileSystem, Path, Runtime, Schema } from "effect"
import { loadPipeline, loadPipelineText } from "../file/Pipeline.ts"
import { Runs } from "../runs/Runs.ts"

/** What was named is no file, no git revision and no run. Exit code 2. */
export class UnknownSource extends Schema.TaggedError<UnknownSource>()("UnknownSource", {
  source: Schema.String,
  message: Schema.String,
  next: Schema.String
}) {
  override readonly [Runtime.errorExitCode] = 2
}

export interface SourceOptions {
  /** A file, "revision:file", a revision of `file`, or a run's id. */
  readonly source: string
  /** The file that a bare revision is one of. */
  readonly file: string
  readonly profiles: ReadonlyArray<string>
  readonly overrides: ReadonlyArray<string>
}

/** A run keeps the profiles and overrides that it was made with. */
export const loadSource = Effect.fn("loadSource")(function* (options: SourceOptions) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const { file, overrides, profiles, source } = options
  if (yield* fs.exists(source).pipe(Effect.orElseSucceed(() => false))) {
    return yield* loadPipeline({ file: source, profiles, overrides })
  }
  const run = yield* (yield* Runs).find(source).pipe(Effect.catchTag("RunNotFound", () => Effect.undefined))
  if (run !== undefined) {
    const kept = path.join(run.folder, "pipeline.yaml")
    const text = yield* fs.readFileString(kept).pipe(Effect.mapError(() => unreadable(source, kept)))
    const { overrides, profiles } = run
    return yield* loadPipelineText({
      label: `${run.id}:pipeline.yaml`,
      text,
      baseDirectory: path.dirname(run.file),
      profiles,
      overrides
    })
  }
  const colon = source.indexOf(":")
  const [revision, name] = colon < 0 ? [source, file] : [source.slice(0, colon), source.slice(colon + 1)]
  // "../" makes git take the path from the current folder, as every other command does.
  const fromHere = `./${path.relative(process.cwd(), path.resolve(name))}`
  const text = yield* gitShow(`${revision}:${fromHere}`, source)
  const baseDirectory = path.dirname(path.resolve(name))
  return yield* loadPipelineText({ label: `${revision}:${name}`, text, baseDirectory, profiles, overrides })
})

const unreadable = (source: string, file: string) =>
  new UnknownSource({ source, message: `${source}: ${file} cannot be read`, next: "tinyllama runs ls lists the runs" })

const execute = promisify(execFile)

const gitShow = (object: string, source: string) =>
  Effect.tryPromise({
    try: async () => {
      const shown = await execute("git", ["show", object], { maxBuffer: 2 ** 26 })
      return shown.stdout
    },
    catch: (error) => {
      const said = error instanceof Error && "stderr" in error ? String(error.stderr).trim().split("\n")[0] : ""
      return new UnknownSource({
        source,
        message: `${source} is no file, no run, and git does not know it${said === "" || said === undefined ? "" : ` (${said})`}`,
        next: "name a pipeline file, a git revision such as main:pipeline.yaml, or a run of tinyllama runs ls"
      })
    }
  })
