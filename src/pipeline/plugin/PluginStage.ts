/** Loads a stage definition from a plugin's module and checks its shape. */
import { Effect, Result, Schema } from "effect"
import { ArtifactType } from "../../artifacts/Artifact.ts"
import * as PluginModule from "./PluginModule.ts"
import { faultsOf } from "../file/Parameters.ts"
import { PluginInvalid } from "../StageRegistry.ts"
import { type AnyStageType, ChangeClass } from "../StageType.ts"

const Named = (what: string) =>
  Schema.String.check(
    Schema.isPattern(/^[A-Za-z][\w-]*$/u, { message: `${what} is letters, digits, - and _, and starts with a letter` })
  )
const Function_ = Schema.declare(
  (value: unknown): value is (...args: Array<never>) => unknown => typeof value === "function",
  {
    expected: "a function"
  }
)
const SchemaValue = Schema.declare((value: unknown): value is Schema.Top => Schema.isSchema(value), {
  expected: "a Schema"
})

const Parameter = Schema.Struct({
  schema: SchemaValue,
  change: Schema.Union([ChangeClass, Function_]),
  describe: Schema.String,
  default: Schema.optionalKey(Schema.Unknown)
})
const OutputPort = Schema.Struct({ type: ArtifactType, describe: Schema.String })
const InputPort = Schema.Struct({
  ...OutputPort.fields,
  many: Schema.optionalKey(Schema.Boolean),
  optional: Schema.optionalKey(Schema.Boolean),
  change: Schema.optionalKey(Schema.Literals(["identity", "additive"]))
})
const portName = Named("a port's name")

/** The shape of StageType, as far as a value can be asked; the compiler sees to it that no field is forgotten. */
const fields = {
  name: Named("a stage type's name"),
  version: Schema.Int.check(Schema.isGreaterThan(0)),
  describe: Schema.String,
  params: Schema.Record(Schema.String, Parameter),
  inputs: Schema.Record(portName, InputPort),
  outputs: Schema.Record(portName, OutputPort).check(
    Schema.makeFilter((ports) => Object.keys(ports).length > 0 || "a stage has at least one output")
  ),
  cpus: Schema.optionalKey(Schema.Union([Schema.Literal("all"), Schema.Int.check(Schema.isGreaterThan(0))])),
  shares: Schema.optionalKey(Schema.Literal(true)),
  ranks: Schema.optionalKey(Schema.Literal(true)),
  runsIn: Schema.optionalKey(Schema.Literals(["worker", "runner"])),
  observationChange: Schema.optionalKey(Schema.Literals(["identity", "additive"])),
  observe: Schema.optionalKey(Function_),
  resumePoint: Schema.optionalKey(Function_),
  forecast: Schema.optionalKey(Function_),
  modelSeconds: Schema.optionalKey(Function_),
  patience: Schema.optionalKey(Function_),
  headline: Schema.optionalKey(Function_),
  run: Function_
} satisfies Record<Exclude<keyof AnyStageType, "plugin">, Schema.Top>
const Definition = Schema.Struct(fields)
const checkDefinition = Schema.decodeUnknownResult(Definition, { errors: "all", onExcessProperty: "error" })

interface Loaded {
  readonly code: PluginModule.Code
  readonly exports: Readonly<Record<string, unknown>>
  /** Definitions that have been checked, by what `uses` says. */
  readonly types: Map<string, AnyStageType>
}

/** Loading that takes longer than this hangs. */
const loadLimit = "60 seconds"

/** A loader with a memory: a module is read and imported once, and again only when its code changed. `registered` are names that plugins may not bear. */
export const makeLoader = (registered: ReadonlyArray<string>) => {
  const loaded = new Map<string, Loaded>()

  const loadModule = Effect.fnUntraced(function* (uses: string, file: string) {
    const known = loaded.get(file)
    if (known !== undefined && PluginModule.isCurrent(known.code)) return known
    const code = yield* Effect.try({
      try: () => PluginModule.fingerprint(file),
      catch: (error) => invalid(uses, `cannot be read: ${said(error)}`, "check the file and its permissions")
    })
    if (code.files.size === 0)
      return yield* invalid(
        uses,
        `is not there: no file ${file}`,
        "relative paths start at the pipeline file's folder; tinyllama stage new NAME writes a stage to start from"
      )
    const exports = yield* Effect.tryPromise({
      try: () => PluginModule.importModule(file, code),
      catch: (error) => loadFailure(uses, file, error)
    }).pipe(
      Effect.timeoutOrElse({
        duration: loadLimit,
        orElse: () =>
          Effect.fail(
            invalid(uses, `was still loading after ${loadLimit}`, "move the work into the definition's run function")
          )
      })
    )
    const now: Loaded = { code, exports, types: new Map() }
    loaded.set(file, now)
    return now
  })

  return Effect.fn("loadPlugin")(function* (uses: string, baseDirectory: string) {
    const { exported, module } = PluginModule.parseReference(uses)
    const isFile = PluginModule.isFileReference(module)
    if (!isFile && !PluginModule.isPackageReference(module)) return undefined
    if (isFile && !/\.m?[jt]s$/u.test(module))
      return yield* invalid(uses, "is no module: stages are .ts, .mts, .js or .mjs files", "name such a file")
    const file = yield* Effect.try({
      try: () => PluginModule.locate(module, baseDirectory),
      catch: (error) => invalid(uses, `cannot be entered: ${said(error)}`, "check the package's exports")
    })
    if (file === undefined) return undefined
    const { code, exports, types } = yield* loadModule(uses, file)
    const known = types.get(uses)
    if (known !== undefined) return known
    const definition = yield* Effect.fromResult(definitionIn(uses, exports, exported))
    if (registered.includes(definition.name))
      return yield* invalid(
        uses,
        `is named "${definition.name}", as a stage type of the program is`,
        "give its definition another name"
      )
    const type: AnyStageType = { ...definition, plugin: { uses, code: code.digest } }
    types.set(uses, type)
    return type
  })
}

const invalid = (uses: string, message: string, next: string) =>
  new PluginInvalid({ uses, message: `the plugin ${uses} ${message}`, next })

const said = (error: unknown): string => (error instanceof Error ? error.message : String(error))

const loadFailure = (uses: string, file: string, error: unknown) => {
  if (error instanceof Error && "code" in error && error.code === "ERR_UNSUPPORTED_NODE_MODULES_TYPE_STRIPPING")
    return invalid(
      uses,
      "is TypeScript inside node_modules, which Node does not run",
      "install a build of it in JavaScript"
    )
  const place = error instanceof Error ? PluginModule.placeOf(error, file) : undefined
  const kind = error instanceof Error && error.name !== "Error" ? `${error.name}: ` : ""
  const at = place === undefined ? "" : ` (${place})`
  return invalid(uses, `failed while loading: ${kind}${said(error)}${at}`, "correct the module, or what it imports")
}

const definitionIn = (
  uses: string,
  exports: Readonly<Record<string, unknown>>,
  exported: string | undefined
): Result.Result<AnyStageType, PluginInvalid> => {
  const name = exported ?? "default"
  const found = exports[name]
  if (found === undefined) {
    const others = Object.keys(exports).filter((other) => looksLikeStage(exports[other]))
    const what = exported === undefined ? "has no default export" : `exports no "${exported}"`
    const { module } = PluginModule.parseReference(uses)
    const next =
      others.length === 0
        ? "export default defineStage({ … }) from it"
        : `it defines ${others.join(", ")}: write ${others.map((other) => (other === "default" ? module : `${module}#${other}`)).join(" or ")}`
    return Result.fail(invalid(uses, what, next))
  }
  const next = "compare it with docs/plugins.md"
  if (!looksLikeStage(found)) return Result.fail(invalid(uses, `exports as ${name} what is no stage definition`, next))
  const checked = checkDefinition(found)
  if (Result.isFailure(checked)) {
    const faults = faultsOf(checked.failure.issue).map(
      ({ message, path }) => `${path.length === 0 ? "" : `${path.map(String).join(".")}: `}${message}`
    )
    return Result.fail(invalid(uses, `exports as ${name} what is no stage: ${faults.join("; ")}`, next))
  }
  // The Schema saw every field but not the types inside its functions: those are TypeScript's to check.
  return Result.succeed(found as AnyStageType)
}

const looksLikeStage = (value: unknown): boolean =>
  typeof value === "object" &&
  value !== null &&
  ["params", "inputs", "outputs", "run"].filter((key) => key in value).length > 1
