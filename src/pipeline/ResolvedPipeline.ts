/** The decoded pipeline: every reference resolved, every value with its origin. What keys, plans and runs work on. */
import { Duration, Schema } from "effect"
import { FailureClass, type AnyStageType } from "./StageType.ts"

/** Where a value came from. `place` reads "file:line:column" or "-S base.lr=x". */
export const Origin = Schema.TaggedUnion({
  File: { place: Schema.String },
  Profile: { place: Schema.String, profile: Schema.String },
  Override: { place: Schema.String },
  Default: {}
})
export type Origin = typeof Origin.Type

export interface Edge {
  readonly stage: string
  readonly port: string
}

export interface RetryPolicy {
  /** Tries after the first one. */
  readonly times: number
  readonly backoff: "exponential" | "constant"
  readonly base: Duration.Duration
  readonly max: Duration.Duration
  /** Spreads each delay over 0.8 to 1.2 of itself. */
  readonly jitter: boolean
  readonly for: ReadonlyArray<FailureClass>
}

export interface Resources {
  readonly cpus: "all" | number
  /** Bytes. */
  readonly memory?: number
  readonly gpus: number
}

export interface ResolvedStage {
  readonly name: string
  /** Position in topological order (the file's order among independents), 0-based: the folder is `stages/<nn>-<name>`. */
  readonly index: number
  readonly type: AnyStageType
  /** Every parameter, defaults included, decoded and encoded again: two spellings of one value are equal here. */
  readonly params: Readonly<Record<string, Schema.Json>>
  readonly inputs: Readonly<Record<string, ReadonlyArray<Edge>>>
  readonly after: ReadonlyArray<string>
  /** Names of the stages that must be done before: sources of `inputs` and `after`, without repeats. */
  readonly needs: ReadonlyArray<string>
  readonly resources: Resources
  readonly retry: RetryPolicy
  /** Limit of one attempt. */
  readonly timeout: Duration.Duration | undefined
  /** How long a stopped attempt may take to save, before it is killed. */
  readonly grace: Duration.Duration
  /** Origins of what the stage's block says, by path inside it: "with.lr.peak", "resources.cpus". Absent paths are defaults. */
  readonly origins: Readonly<Record<string, Origin>>
}

export interface ResolvedPipeline {
  readonly name: string
  /** As given on the command line. */
  readonly file: string
  /** Absolute: the folder that relative paths in parameters start from. */
  readonly baseDirectory: string
  /** The file, verbatim. */
  readonly text: string
  readonly profiles: ReadonlyArray<string>
  readonly overrides: ReadonlyArray<string>
  readonly vars: Readonly<Record<string, Schema.Json>>
  /** What an hour of the machine costs. */
  readonly price?: { readonly perHour: number; readonly currency: string }
  /** In topological order. */
  readonly stages: ReadonlyArray<ResolvedStage>
}

/** pipeline.resolved.json: every parameter and setting with its value and where that came from. */
export const describeOrigins = (pipeline: ResolvedPipeline): Schema.Json => ({
  version: 1,
  name: pipeline.name,
  profiles: pipeline.profiles,
  overrides: pipeline.overrides,
  vars: pipeline.vars,
  stages: Object.fromEntries(
    pipeline.stages.map((stage) => [
      stage.name,
      {
        uses: stage.type.name,
        stageVersion: stage.type.version,
        in: Object.fromEntries(
          Object.entries(stage.inputs).map(([port, edges]) => [port, edges.map((edge) => `${edge.stage}.${edge.port}`)])
        ),
        after: stage.after,
        with: withOrigins(stage.params, "with", stage.origins),
        resources: withOrigins({ ...stage.resources }, "resources", stage.origins),
        retry: { ...stage.retry, base: Duration.format(stage.retry.base), max: Duration.format(stage.retry.max) },
        timeout: stage.timeout === undefined ? null : Duration.format(stage.timeout),
        grace: Duration.format(stage.grace)
      }
    ])
  )
})

/** The same structure with every leaf as { value, from }. */
const withOrigins = (value: Schema.Json, path: string, origins: ResolvedStage["origins"]): Schema.Json => {
  if (Array.isArray(value)) return value.map((item, index) => withOrigins(item, `${path}[${index}]`, origins))
  if (typeof value === "object" && value !== null) {
    return Object.fromEntries(
      Object.entries(value).map(([key, inner]) => [key, withOrigins(inner, `${path}.${key}`, origins)])
    )
  }
  return { value, from: describeOrigin(origins[path] ?? { _tag: "Default" }) }
}

const describeOrigin = (origin: Origin): string => {
  switch (origin._tag) {
    case "Default":
      return "default"
    case "Profile":
      return `${origin.place} (profile ${origin.profile})`
    default:
      return origin.place
  }
}
