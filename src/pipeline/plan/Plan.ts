/**
 * What a run would do, and why: one entry for each stage, in topological order. Reads much and writes nothing. A run decides with the same
 * functions, so what stands here is what it does.
 */
import { submission } from "./preflight/Slurm.ts"
import { availableParallelism } from "node:os"
import { Effect, Result, type Schema } from "effect"
import type { Facts } from "../../artifacts/Artifact.ts"
import { ArtifactStore } from "../../artifacts/ArtifactStore.ts"
import { FileDigests } from "../../artifacts/DigestCache.ts"
import { failedChecks } from "../file/Checks.ts"
import { decide, type Decision, newestComplete, observe, ownParts, type Reason } from "./Decision.ts"
import { type Estimate, estimate, forecastOf } from "./Estimate.ts"
import { changeOf, type Difference, differences, strongest } from "./KeyDifference.ts"
import { type HistoryEntry, type KeyHistory, KeyLedger } from "./KeyLedger.ts"
import { decodeParams } from "../file/Parameters.ts"
import type { ResolvedPipeline, ResolvedStage } from "../file/ResolvedPipeline.ts"
import { resolveSelection, type Roles, type Selection } from "./Selection.ts"
import type { ChangeClass, Extent, Forecast, StageError } from "../StageType.ts"

export { describeReason, type Reason } from "./Decision.ts"

export type PlanStatus = "fresh" | "accepted" | "reuse" | "stale" | "pending" | "blocked" | "excluded"

export interface StagePlan {
  readonly stage: string
  readonly uses: string
  /**
   * fresh: a complete result serves; accepted: an older one that a person said stands for it; reuse: an older result serves because the selection
   * keeps this stage as it is; stale: will run; pending: runs if what is above changes its inputs; blocked: cannot run, `message` says why;
   * excluded: not selected, not needed.
   */
  readonly status: PlanStatus
  /** undefined while what is above has yet to run. */
  readonly key: string | undefined
  /** The run that made the result, for fresh, accepted and reuse. */
  readonly from: string | undefined
  readonly reasons: ReadonlyArray<Reason>
  /** What all reasons together do to the last result: additive and continuation keep some of it. undefined where there is none. */
  readonly change: ChangeClass | undefined
  /** For stages that run: the work is unfinished or builds on an older result, and goes on from here. */
  readonly resumesAt: Extent | undefined
  /** Of an earlier attempt with this very key (`own`), or an older result that it builds on. */
  readonly resumesFrom: "own" | "previous" | undefined
  readonly estimate: Estimate | undefined
  /** For stages that run: what will come of it, in a phrase and as facts, as far as the type can tell. */
  readonly outlook?: string
  /** For stages that run elsewhere than on this machine: what would be asked for there. */
  readonly submits?: string
  readonly outputs?: StageFacts
  readonly message?: string
}

export interface Plan {
  readonly stages: ReadonlyArray<StagePlan>
  /** Facts of every output, real or forecast, by stage and port. */
  readonly facts: ReadonlyMap<string, StageFacts>
  /** For every stage whose inputs are known. */
  readonly decisions: ReadonlyMap<string, Decision>
  /** What stages read from outside the pipeline, as it was looked at for this plan. */
  readonly observed: ReadonlyMap<string, Result.Result<Schema.Json, StageError>>
}

/** Port → facts. */
export type StageFacts = Readonly<Record<string, Facts>>

/** A run will do this, as far as the plan knows: whether a pending stage runs shows only then. */
export const willRun = ({ status }: StagePlan): boolean => status === "stale" || status === "pending"

interface Planning {
  readonly pipeline: ResolvedPipeline
  readonly roles: Roles
  readonly history: KeyHistory
  readonly observed: ReadonlyMap<string, Result.Result<Schema.Json, StageError>>
  readonly plans: Map<string, StagePlan>
  readonly decisions: Map<string, Decision>
  readonly facts: Map<string, StageFacts>
  /** Cores that stages may take. */
  readonly cpus: number
  readonly estimates: boolean
}

export interface PlanOptions {
  /** Cores to share among stages; all of the machine's by default. */
  readonly cpus?: number
  /** Whether to estimate time and disk; true by default. */
  readonly estimates?: boolean
}

export const plan = Effect.fn("plan")(function* (
  pipeline: ResolvedPipeline,
  selection: Selection = {},
  options: PlanOptions = {}
) {
  const roles = yield* Effect.fromResult(resolveSelection(pipeline, selection))
  const ledger = yield* KeyLedger
  const planning: Planning = {
    pipeline,
    roles,
    history: yield* ledger.history(pipeline.name),
    observed: yield* observeAll(
      pipeline,
      pipeline.stages.filter((stage) => roles.of(stage.name) !== "excluded")
    ),
    plans: new Map(),
    decisions: new Map(),
    facts: new Map(),
    cpus: options.cpus ?? availableParallelism(),
    estimates: options.estimates ?? true
  }
  yield* planInWaves(planning)
  const { decisions, facts, observed, plans } = planning
  const stages = pipeline.stages.flatMap(({ name }) => plans.get(name) ?? [])
  const result: Plan = { stages, facts, decisions, observed }
  return result
})

/** Look-ups that wait for the disk at a time. */
const lookUps = 32

/** All stages whose needs are planned, together: looking a stage up is mostly waiting for the disk. */
const planInWaves = Effect.fnUntraced(function* (planning: Planning) {
  const { pipeline, plans } = planning
  const runningByKey = new Map<string, string>()
  let waiting = pipeline.stages
  while (waiting.length > 0) {
    const ready = waiting.filter(({ needs }) => needs.every((need) => plans.has(need)))
    const planned = yield* Effect.forEach(ready, (stage) => planStage(planning, stage), { concurrency: lookUps })
    for (const entry of planned) {
      const twin = entry.key !== undefined && willRun(entry) ? runningByKey.get(entry.key) : undefined
      plans.set(entry.stage, twin === undefined ? entry : sharedWith(entry, twin))
      if (twin === undefined && entry.key !== undefined && willRun(entry)) runningByKey.set(entry.key, entry.stage)
    }
    waiting = waiting.filter(({ name }) => !plans.has(name))
  }
})

/** Two stages of one key: whichever comes first makes the result. */
const sharedWith = (entry: StagePlan, twin: string): StagePlan => ({
  ...entry,
  status: "pending",
  reasons: [{ _tag: "Shared", stage: twin }],
  change: undefined,
  resumesAt: undefined,
  resumesFrom: undefined,
  estimate: undefined
})

/** What stages read from outside, before anything runs: a missing file is known at once. */
export const observeAll = Effect.fnUntraced(function* (
  pipeline: ResolvedPipeline,
  stages: ReadonlyArray<ResolvedStage>
) {
  const results = yield* Effect.forEach(
    stages,
    (stage) => Effect.map(Effect.result(observe(pipeline, stage)), (result) => [stage.name, result] as const),
    { concurrency: 4 }
  )
  yield* (yield* FileDigests).save
  return new Map<string, Result.Result<Schema.Json, StageError>>(results)
})

const emptyEntry = (stage: ResolvedStage) => ({
  stage: stage.name,
  uses: stage.type.name,
  key: undefined,
  from: undefined,
  reasons: [],
  change: undefined,
  resumesAt: undefined,
  resumesFrom: undefined,
  estimate: undefined
})

const planStage = Effect.fnUntraced(function* (planning: Planning, stage: ResolvedStage) {
  const { roles } = planning
  const role = roles.of(stage.name)
  const entry = emptyEntry(stage)
  const blocked = (message: string): StagePlan => ({ ...entry, status: "blocked", message })
  if (role === "excluded") return { ...entry, status: "excluded" } satisfies StagePlan

  const observed = planning.observed.get(stage.name) ?? Result.succeed(null)
  if (role === "run") {
    if (Result.isFailure(observed)) return blocked(`${observed.failure.message}. Next: ${observed.failure.next}`)
    const above = stage.needs.flatMap((need) => planning.plans.get(need) ?? [])
    const missing = above.find((needed) => needed.status === "blocked")
    if (missing !== undefined) return blocked(`waits for ${missing.stage}: ${missing.message ?? ""}`)
    const sources = new Set(Object.values(stage.inputs).flatMap((edges) => edges.map((edge) => edge.stage)))
    const first = above.find((needed) => sources.has(needed.stage) && willRun(needed))
    if (first !== undefined) return yield* pending(planning, stage, first.stage)
  }
  const decision = yield* decide({
    pipeline: planning.pipeline,
    stage,
    role,
    forced: roles.forced(stage.name),
    past: planning.history.get(stage.name) ?? [],
    inputs: inputsFrom(stage, planning.decisions),
    observed
  })
  planning.decisions.set(stage.name, decision)
  return yield* planDecided(planning, stage, decision)
})

const planDecided = Effect.fnUntraced(function* (planning: Planning, stage: ResolvedStage, decision: Decision) {
  const entry = emptyEntry(stage)
  switch (decision._tag) {
    case "Unavailable":
      return { ...entry, status: "blocked", message: decision.message } satisfies StagePlan
    case "Use": {
      const { acceptance, artifacts, key, reasons, record, status } = decision
      const facts = Object.fromEntries(Object.entries(artifacts).map(([port, { manifest }]) => [port, manifest.facts]))
      planning.facts.set(stage.name, facts)
      const refused = failedChecks(stage, facts)
      if (refused.length > 0) {
        planning.decisions.delete(stage.name)
        const message = `its result does not meet ${refused.map((check) => check.message).join("; ")}. Next: correct the check, or what the stage is made from`
        return { ...entry, status: "blocked", key, from: record.run, message } satisfies StagePlan
      }
      const used: StagePlan = { ...entry, status, key, from: record.run, reasons }
      return acceptance === undefined
        ? used
        : { ...used, message: `accepted by ${acceptance.by}: ${acceptance.because}` }
    }
    case "Run": {
      const { key, previous, reasons } = decision
      const own = decision.resumes ? yield* resumePoint(stage, key) : undefined
      const base: StagePlan = {
        ...entry,
        status: "stale",
        key,
        reasons,
        change: reasons.some(({ _tag }) => _tag === "NoResult" || _tag === "Damaged" || _tag === "Forced")
          ? undefined
          : changeOfReasons(reasons),
        resumesFrom: decision.resumes ? "own" : previous === undefined ? undefined : "previous",
        resumesAt: own
      }
      return yield* withForecast(planning, stage, base, previous)
    }
  }
})

const changeOfReasons = (reasons: ReadonlyArray<Reason>): ChangeClass =>
  strongest(reasons.map((reason) => (isDifference(reason) ? changeOf(reason) : "identity")))

const others: ReadonlySet<Reason["_tag"]> = new Set(["NoResult", "Damaged", "Forced", "Upstream", "Shared"])
const isDifference = (reason: Reason): reason is Difference => !others.has(reason._tag)

/** Where the work folder of a key says that it goes on. */
const resumePoint = Effect.fnUntraced(function* (stage: ResolvedStage, key: string) {
  const store = yield* ArtifactStore
  if (stage.type.resumePoint === undefined) return undefined
  const params = yield* Effect.orDie(decodeParams(stage.type, stage.params))
  return yield* stage.type.resumePoint(store.workPath(key), params)
})

/** Adds what the stage's type forecasts, and what past runs say of the time. */
const withForecast = Effect.fnUntraced(function* (
  planning: Planning,
  stage: ResolvedStage,
  base: StagePlan,
  previous: Parameters<typeof forecastOf>[2]
) {
  const forecast = yield* forecastOf(stage, planning.facts, previous, planning.observed.get(stage.name))
  if (forecast !== undefined) planning.facts.set(stage.name, forecast.outputs)
  const resumesAt = base.resumesAt ?? (previous === undefined ? undefined : forecast?.resumesAt)
  const planned: StagePlan = { ...base, resumesAt }
  if (!planning.estimates) return planned
  return {
    ...planned,
    ...(forecast === undefined ? {} : { outputs: forecast.outputs }),
    ...(forecast?.outlook === undefined ? {} : { outlook: forecast.outlook }),
    ...submitsOf(stage),
    estimate: yield* estimateOf(planning, stage, forecast, resumesAt)
  }
})

const estimateOf = (
  planning: Planning,
  stage: ResolvedStage,
  forecast: Forecast | undefined,
  resumesAt: Extent | undefined
) =>
  estimate({
    stage,
    past: planning.history.get(stage.name) ?? [],
    forecast,
    resumesAt,
    cpus: stage.resources.cpus === "all" ? planning.cpus : Math.min(stage.resources.cpus, planning.cpus)
  })

/** The digests that the stages above give; undefined when one of them has no result. */
const inputsFrom = (stage: ResolvedStage, decisions: ReadonlyMap<string, Decision>) => {
  const inputs: Record<string, ReadonlyArray<string>> = {}
  for (const [port, edges] of Object.entries(stage.inputs)) {
    const digests: Array<string> = []
    for (const edge of edges) {
      const decision = decisions.get(edge.stage)
      const artifact = decision?._tag === "Use" ? decision.artifacts[edge.port] : undefined
      if (artifact === undefined) return undefined
      digests.push(artifact.manifest.digest)
    }
    inputs[port] = digests
  }
  return inputs
}

/**
 * Its inputs are not known yet. A changed parameter makes it stale all the same, unless an older result may turn out to be just what the new
 * inputs give.
 */
const pending = Effect.fnUntraced(function* (planning: Planning, stage: ResolvedStage, above: string) {
  const past = planning.history.get(stage.name) ?? []
  const last = yield* newestComplete(past)
  const own = { ...ownParts(stage), ...observedOf(planning, stage) }
  const changes = last === undefined ? [] : differences(stage.type, last.parts, own, stage.inputs)
  const mayBeKnown = changes.length > 0 && (yield* hasResultOf(stage, past, own))
  const forced = planning.roles.forced(stage.name)
  const reasons: Array<Reason> = [{ _tag: "Upstream", stage: above }, ...changes]
  if (forced) reasons.unshift({ _tag: "Forced" })
  else if (last === undefined) reasons.unshift({ _tag: "NoResult" })
  const base: StagePlan = {
    ...emptyEntry(stage),
    status: reasons.length > 1 && !mayBeKnown ? "stale" : "pending",
    reasons,
    change: last === undefined || forced ? undefined : changes.length === 0 ? undefined : changeOfReasons(changes)
  }
  return yield* withForecast(planning, stage, base, undefined)
})

/** Whether an older result has all that is known of the new key. */
const hasResultOf = Effect.fnUntraced(function* (
  stage: ResolvedStage,
  past: ReadonlyArray<HistoryEntry>,
  own: Parameters<typeof differences>[2]
) {
  const ledger = yield* KeyLedger
  const store = yield* ArtifactStore
  for (const { key } of past) {
    const parts = yield* ledger.parts(key)
    if (parts === undefined || differences(stage.type, parts, own, stage.inputs).length > 0) continue
    if ((yield* store.lookup(key))._tag === "Complete") return true
  }
  return false
})

const observedOf = (planning: Planning, stage: ResolvedStage) => {
  const observed = planning.observed.get(stage.name)
  return observed !== undefined && Result.isSuccess(observed) ? { observed: observed.success } : {}
}

const submitsOf = (stage: ResolvedStage): { readonly submits?: string } => {
  const submits = submission(stage)
  return submits === undefined ? {} : { submits }
}
