/**
 * Looks at a planned pipeline before hour 0, for what would stop it later: rules that know any pipeline, and those that `PreflightRules` brings, which
 * know what its stages do. A rule reads; it changes nothing and starts nothing.
 */
import { Context, Effect, type FileSystem, type Path } from "effect"
import type { HttpClient } from "effect/http"
import * as FetchHttpClient from "effect/http/FetchHttpClient"
import type { Facts } from "../../artifacts/Artifact.ts"
import { type Machine, thisMachine } from "../run/Capacity.ts"
import { forecastOf } from "./Estimate.ts"
import { decodeParams } from "../file/Parameters.ts"
import { type Plan, willRun } from "./Plan.ts"
import * as Inputs from "./preflight/Inputs.ts"
import * as Room from "./preflight/Room.ts"
import * as Slurm from "./preflight/Slurm.ts"
import type { ResolvedPipeline, ResolvedStage } from "../file/ResolvedPipeline.ts"
import { Runs } from "../runs/Runs.ts"
import { PreflightFailed } from "../file/Secrets.ts"
import type { Decoded, Forecast, Parameters } from "../StageType.ts"

export interface Finding {
  /** What was looked at, in two or three words: "vocabulary". */
  readonly subject: string
  /** missing: it would not work; warning: it would, though perhaps not as meant. */
  readonly state: "ok" | "warning" | "missing"
  readonly stage?: string
  readonly detail: string
  /** The step that helps, for all but ok. */
  readonly next?: string
}

/** A stage that is looked at, with what is known of it before it runs. */
export interface Examined {
  readonly stage: ResolvedStage
  readonly params: Decoded<Parameters>
  /** Port → facts of its artifacts in order: real, or as far as they can be told before; nothing is certain to be there. */
  readonly inputs: Readonly<Record<string, ReadonlyArray<Facts>>>
  /** Every input is there already, so that no fact is a forecast. */
  readonly inputsMade: boolean
  readonly willRun: boolean
  /** For stages that will run and whose type can tell. */
  readonly forecast: Forecast | undefined
}

export interface Surroundings extends Omit<Machine, "freeDisk"> {
  /** Bytes of memory that can be had now. */
  readonly freeMemory: number
  /** Bytes free on the disk of the runs folder; infinite where the system does not tell. */
  readonly freeDisk: number
  /** Absolute. */
  readonly runs: string
}

export interface PreflightContext {
  readonly pipeline: ResolvedPipeline
  readonly plan: Plan
  readonly stages: ReadonlyArray<Examined>
  readonly machine: Surroundings
}

export interface Rule {
  /** cheap: milliseconds and this machine alone, so that every run can afford it; thorough: asks others over the network. */
  readonly cost: "cheap" | "thorough"
  readonly check: (
    context: PreflightContext
  ) => Effect.Effect<ReadonlyArray<Finding>, never, FileSystem.FileSystem | Path.Path | HttpClient.HttpClient>
}

/** The rules that know what stages do, loaded when a preflight begins. src/stages/preflight/rules.ts has the program's. */
export const PreflightRules = Context.Reference<Effect.Effect<ReadonlyArray<Rule>>>(
  "tinyllama/pipeline/PreflightRules",
  { defaultValue: () => Effect.succeed([]) }
)

const generic: ReadonlyArray<Rule> = [
  { cost: "cheap", check: Inputs.observations },
  { cost: "cheap", check: Inputs.secrets },
  { cost: "cheap", check: Room.resources },
  { cost: "cheap", check: Room.memory },
  { cost: "cheap", check: Room.disk },
  { cost: "cheap", check: Room.ranks },
  { cost: "cheap", check: Slurm.slurm }
]

export interface PreflightOptions {
  /** Thorough rules too. */
  readonly thorough: boolean
  /** Stages whose results are there already too. */
  readonly all: boolean
  /** Cores to share among stages; all of the machine's by default. */
  readonly cpus?: number
}

/** All findings, generic ones first. */
export const preflight = Effect.fn("preflight")(function* (
  pipeline: ResolvedPipeline,
  plan: Plan,
  options: PreflightOptions
) {
  const stages = yield* examine(pipeline, plan, options.all)
  if (stages.length === 0) return []
  const context: PreflightContext = { pipeline, plan, stages, machine: yield* surroundings(options.cpus) }
  const rules = [...generic, ...(yield* yield* PreflightRules)]
  const findings = yield* Effect.forEach(
    rules.filter(({ cost }) => options.thorough || cost === "cheap"),
    ({ check }) => check(context),
    { concurrency: 4 }
  )
  return findings.flat()
})

/** Fails with all that is missing, before anything has begun. */
export const requirePreflight = Effect.fn("requirePreflight")(function* (
  pipeline: ResolvedPipeline,
  plan: Plan,
  cpus?: number
) {
  const options = { thorough: false, all: false, ...(cpus === undefined ? {} : { cpus }) }
  const findings = yield* Effect.provide(preflight(pipeline, plan, options), FetchHttpClient.layer)
  const problems = findings.flatMap((finding) => (finding.state === "missing" ? [describeFinding(finding)] : []))
  if (problems.length > 0) return yield* new PreflightFailed({ problems })
})

/** "base: vocabulary: … Next: …" */
export const describeFinding = ({ detail, next, stage, subject }: Finding): string =>
  `${stage === undefined ? "" : `${stage}: `}${subject}: ${detail}${next === undefined ? "" : `. Next: ${next}`}`

const examine = Effect.fnUntraced(function* (pipeline: ResolvedPipeline, plan: Plan, all: boolean) {
  const examined: Array<Examined> = []
  const plans = new Map(plan.stages.map((entry) => [entry.stage, entry]))
  for (const stage of pipeline.stages) {
    const entry = plans.get(stage.name)
    if (entry === undefined || entry.status === "excluded" || entry.status === "reuse") continue
    const runs = willRun(entry) || entry.status === "blocked"
    if (!runs && !all) continue
    const inputs = Object.fromEntries(
      Object.entries(stage.inputs).map(([port, edges]) => [
        port,
        edges.map((edge) => plan.facts.get(edge.stage)?.[edge.port] ?? {})
      ])
    )
    examined.push({
      stage,
      params: yield* Effect.orDie(decodeParams(stage.type, stage.params)),
      inputs,
      inputsMade: Object.values(stage.inputs).every((edges) =>
        edges.every((edge) => plan.decisions.get(edge.stage)?._tag === "Use")
      ),
      willRun: runs,
      forecast: runs ? yield* forecastOf(stage, plan.facts, undefined, plan.observed.get(stage.name)) : undefined
    })
  }
  return examined
})

const surroundings = Effect.fnUntraced(function* (cpus: number | undefined) {
  const { root } = yield* Runs
  const machine = thisMachine(root, cpus)
  const found: Surroundings = {
    ...machine,
    freeMemory: process.availableMemory(),
    freeDisk: yield* machine.freeDisk,
    runs: root
  }
  return found
})
