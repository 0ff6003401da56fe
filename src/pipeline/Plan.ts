/** What a run would do, and why: one entry for each stage, in topological order. Reads much and writes nothing. */
import { Effect, Result } from "effect"
import { compareParts, decide, type Decision, newestComplete, observe, type Reason } from "./Decision.ts"
import type { ResolvedPipeline, ResolvedStage } from "./ResolvedPipeline.ts"
import { resolveSelection, type Roles, type Selection } from "./Selection.ts"
import { keyParts } from "./StageKey.ts"

export { describeReason, type Reason } from "./Decision.ts"

export interface StagePlan {
  readonly stage: string
  readonly uses: string
  /**
   * fresh: a complete result serves; reuse: an older result serves because the selection keeps this stage as it is; stale: will run;
   * pending: runs if what is above changes its inputs; blocked: cannot run, `message` says why; excluded: not selected, not needed.
   */
  readonly status: "fresh" | "reuse" | "stale" | "pending" | "blocked" | "excluded"
  readonly key: string | undefined
  /** The run that made the result, for fresh and reuse. */
  readonly from: string | undefined
  readonly reasons: ReadonlyArray<Reason>
  /** Unfinished work with this key exists: the stage goes on from there. */
  readonly resumes: boolean
  /** Seconds that the newest complete result took. */
  readonly lastSeconds: number | undefined
  readonly message?: string
}

export const plan = Effect.fn("plan")(function* (pipeline: ResolvedPipeline, selection: Selection = {}) {
  const roles = yield* Effect.fromResult(resolveSelection(pipeline, selection))
  const plans = new Map<string, StagePlan>()
  const decisions = new Map<string, Decision>()
  for (const stage of pipeline.stages) plans.set(stage.name, yield* planStage(pipeline, stage, roles, plans, decisions))
  return Array.from(plans.values())
})

const planStage = Effect.fnUntraced(function* (
  pipeline: ResolvedPipeline,
  stage: ResolvedStage,
  roles: Roles,
  plans: ReadonlyMap<string, StagePlan>,
  decisions: Map<string, Decision>
) {
  const role = roles.of(stage.name)
  const entry = {
    stage: stage.name,
    uses: stage.type.name,
    key: undefined,
    from: undefined,
    reasons: [],
    resumes: false,
    lastSeconds: undefined
  }
  const blocked = (message: string): StagePlan => ({ ...entry, status: "blocked", message })
  if (role === "excluded") return { ...entry, status: "excluded" } satisfies StagePlan

  const observed = yield* Effect.result(observe(pipeline, stage))
  if (role === "run") {
    if (Result.isFailure(observed)) return blocked(`${observed.failure.message}. Next: ${observed.failure.next}`)
    const above = stage.needs.flatMap((need) => {
      const needed = plans.get(need)
      return needed === undefined ? [] : [needed]
    })
    const missing = above.find((needed) => needed.status === "blocked")
    if (missing !== undefined) return blocked(`waits for ${missing.stage}: ${missing.message ?? ""}`)
    const sources = new Set(Object.values(stage.inputs).flatMap((edges) => edges.map((edge) => edge.stage)))
    const first = above.find(
      ({ stage: name, status }) => sources.has(name) && (status === "stale" || status === "pending")
    )
    if (first !== undefined) return yield* pending(pipeline, stage, roles, first.stage)
  }
  const forced = roles.forced(stage.name)
  const decision = yield* decide({ pipeline, stage, role, forced, inputs: inputsFrom(stage, decisions), observed })
  decisions.set(stage.name, decision)
  switch (decision._tag) {
    case "Unavailable":
      return blocked(decision.message)
    case "Use": {
      const { key, reasons, record, status } = decision
      return { ...entry, status, key, from: record.run, reasons, lastSeconds: record.seconds } satisfies StagePlan
    }
    case "Run": {
      const { key, lastSeconds, reasons, resumes } = decision
      return { ...entry, status: "stale", key, reasons, resumes, lastSeconds } satisfies StagePlan
    }
  }
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

/** Its inputs are not known yet. A changed parameter makes it stale all the same. */
const pending = Effect.fnUntraced(function* (
  pipeline: ResolvedPipeline,
  stage: ResolvedStage,
  roles: Roles,
  above: string
) {
  const last = yield* newestComplete({ pipeline, stage })
  const { inputs: _, observed: __, ...own } = keyParts(stage.type, stage.params, {}, null)
  const changes = last === undefined ? [] : compareParts(last.parts, own, stage)
  const reasons: Array<Reason> = [{ _tag: "Upstream", stage: above }, ...changes]
  if (roles.forced(stage.name)) reasons.unshift({ _tag: "Forced" })
  else if (last === undefined) reasons.unshift({ _tag: "NoResult" })
  const entry: StagePlan = {
    stage: stage.name,
    uses: stage.type.name,
    status: reasons.length > 1 ? "stale" : "pending",
    key: undefined,
    from: undefined,
    reasons,
    resumes: false,
    lastSeconds: last?.record.seconds
  }
  return entry
})
