/** The decoded pipeline: every reference resolved, every value with its origin. What keys, plans and runs work on. */
import { Duration, Schema } from "effect"
import type { Check } from "./Checks.ts"
import { describeExecutor, type ExecutorChoice } from "./ExecutorBlock.ts"
import type { GpuKind } from "./Gpu.ts"
import type { StopRule } from "./StopRules.ts"
import { FailureClass, type AnyStageType } from "../StageType.ts"

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
  /** Bytes that the stage's work and outputs may take. */
  readonly disk?: number
  readonly gpus: number
  /** Processes that do the work together, in step. */
  readonly ranks: number
  /** Fewest and most of them that an attempt may have; undefined: always `ranks`. */
  readonly elastic?: { readonly min: number; readonly max: number }
  /** Machines of a cluster that ranks and GPUs are spread over evenly; undefined: one. */
  readonly nodes?: number
  /** Of which kind they are, for estimates. */
  readonly gpu?: GpuKind
}

/** What the machine costs, for forecasts. */
export interface Price {
  readonly perHour: number
  /** As it is printed: "$", "EUR". */
  readonly currency: string
}

/** Which instance of a fanned-out stage this is. */
export interface MatrixInstance {
  /** The name that the file gives to all of them. */
  readonly group: string
  /** Axis → this instance's value, in the file's order. */
  readonly values: Readonly<Record<string, string | number | boolean | null>>
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
  /** Where its attempts run. */
  readonly executor: ExecutorChoice
  readonly retry: RetryPolicy
  /** Limit of one attempt. */
  readonly timeout: Duration.Duration | undefined
  /** How long a stopped attempt may take to save, before it is killed. */
  readonly grace: Duration.Duration
  /** undefined for a stage without `matrix`. */
  readonly matrix: MatrixInstance | undefined
  /** How many instances of the group may run at the same time; undefined: as many as resources allow. */
  readonly maxParallel: number | undefined
  /** Conditions on the facts of the outputs, without which nothing is published. */
  readonly checks: ReadonlyArray<Check>
  /** Conditions on live metrics that end the attempt as diverged. */
  readonly stopIf: ReadonlyArray<StopRule>
  /** Environment variables that the stage's worker gets though they are secret: the stage's own and the pipeline's. */
  readonly secrets: ReadonlyArray<string>
  /**
   * Origins of what the stage's block says and of what it takes from `defaults`, by path inside the block: "with.lr.peak", "retry.times". Absent
   * paths are the program's defaults.
   */
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
  /** Secrets that every stage gets. Those of single stages stand with them. */
  readonly secrets: ReadonlyArray<string>
  readonly price: Price | undefined
  /** Origins outside of stages, by path: "vars.budget", "defaults.retry.times", "price", "secrets[0]". */
  readonly origins: Readonly<Record<string, Origin>>
  /** In topological order. */
  readonly stages: ReadonlyArray<ResolvedStage>
}

/** pipeline.resolved.json: every parameter and setting with its value and where that came from. */
export const describeOrigins = (pipeline: ResolvedPipeline): Schema.Json => ({
  version: 1,
  name: pipeline.name,
  profiles: pipeline.profiles,
  overrides: pipeline.overrides,
  vars: withOrigins(pipeline.vars, "vars", pipeline.origins),
  ...(pipeline.price === undefined
    ? {}
    : {
        price: withOrigins(
          { per_hour: pipeline.price.perHour, currency: pipeline.price.currency },
          "price",
          pipeline.origins
        )
      }),
  ...(pipeline.secrets.length === 0 ? {} : { secrets: withOrigins(pipeline.secrets, "secrets", pipeline.origins) }),
  stages: Object.fromEntries(pipeline.stages.map((stage) => [stage.name, describeStage(stage)]))
})

const describeStage = (stage: ResolvedStage): Schema.Json => {
  const { origins } = stage
  const own = (key: string, value: Schema.Json) => ({ [key]: withOrigins(value, key, origins) })
  return {
    uses: stage.type.plugin?.uses ?? stage.type.name,
    stageVersion: stage.type.version,
    ...(stage.matrix === undefined
      ? {}
      : { matrix: { group: stage.matrix.group, values: withOrigins(stage.matrix.values, "matrix", origins) } }),
    ...(stage.maxParallel === undefined ? {} : own("max_parallel", stage.maxParallel)),
    in: Object.fromEntries(
      Object.entries(stage.inputs).map(([port, edges]) => [port, edges.map((edge) => `${edge.stage}.${edge.port}`)])
    ),
    after: stage.after,
    ...own("with", stage.params),
    ...own("resources", { ...stage.resources }),
    ...(stage.executor.kind === "local" ? {} : own("executor", describeExecutor(stage.executor))),
    ...own("retry", {
      ...stage.retry,
      base: Duration.format(stage.retry.base),
      max: Duration.format(stage.retry.max)
    }),
    ...own("timeout", stage.timeout === undefined ? null : Duration.format(stage.timeout)),
    ...own("grace", Duration.format(stage.grace)),
    ...(stage.checks.length === 0
      ? {}
      : own(
          "checks",
          stage.checks.map(({ text }) => text)
        )),
    ...(stage.stopIf.length === 0
      ? {}
      : own(
          "stop_if",
          stage.stopIf.map(({ text }) => text)
        )),
    ...(stage.secrets.length === 0 ? {} : own("secrets", stage.secrets))
  }
}

/** The same structure with every leaf as { value, from }. What a block gives as one text, its parts have their origin from. */
const withOrigins = (
  value: Schema.Json,
  path: string,
  origins: Readonly<Record<string, Origin>>,
  outer: Origin = { _tag: "Default" }
): Schema.Json => {
  const origin = origins[path] ?? outer
  if (Array.isArray(value)) {
    return value.map((item, index) => withOrigins(item, `${path}[${index}]`, origins, origin))
  }
  if (typeof value === "object" && value !== null) {
    return Object.fromEntries(
      Object.entries(value).map(([key, inner]) => [key, withOrigins(inner, `${path}.${key}`, origins, origin)])
    )
  }
  return { value, from: describeOrigin(origin) }
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
