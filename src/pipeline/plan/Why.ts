/** Why a stage is as `plan` says: the two keys it lies between, field by field, up to the stages whose own fields began it. */
import { Effect } from "effect"
import { ArtifactStore, type KeyRecord } from "../../artifacts/ArtifactStore.ts"
import { stageNamed } from "./Accept.ts"
import { newestComplete } from "./Decision.ts"
import { KeyLedger } from "./KeyLedger.ts"
import { plan, type StagePlan, willRun } from "./Plan.ts"
import type { ResolvedPipeline } from "../file/ResolvedPipeline.ts"
import type { StageError } from "../StageType.ts"

export interface Explanation {
  readonly plan: StagePlan
  /** The newest complete result, which the reasons compare with. */
  readonly last: { readonly key: string; readonly record: KeyRecord } | undefined
  /** The stages above that have to do with it, each with its own explanation, nearest first. */
  readonly above: ReadonlyArray<Explanation>
}

export const why = Effect.fn("why")(function* (pipeline: ResolvedPipeline, name: string) {
  yield* stageNamed(pipeline, name)
  const planned = yield* plan(pipeline, {}, { estimates: false })
  const history = yield* (yield* KeyLedger).history(pipeline.name)
  const store = yield* ArtifactStore
  const plans = new Map(planned.stages.map((entry) => [entry.stage, entry]))
  const told = new Set<string>()

  const explain = (entry: StagePlan): Effect.Effect<Explanation, StageError, ArtifactStore | KeyLedger> =>
    Effect.gen(function* () {
      told.add(entry.stage)
      const last = yield* newestComplete(history.get(entry.stage) ?? [])
      const needs = pipeline.stages.find((stage) => stage.name === entry.stage)?.needs ?? []
      const above: Array<Explanation> = []
      for (const need of needs) {
        const upper = plans.get(need)
        const matters = upper !== undefined && (willRun(upper) || changedInput(entry, need))
        if (upper !== undefined && matters && !told.has(need)) above.push(yield* explain(upper))
      }
      const found: Explanation = {
        plan: entry,
        last: last === undefined ? undefined : { key: last.key, record: last.record },
        above
      }
      return found
    }).pipe(Effect.provideService(ArtifactStore, store))

  const entry = plans.get(name)
  return entry === undefined ? undefined : yield* explain(entry)
})

/** An input that changed because the stage above was run, or accepted, since. */
const changedInput = ({ reasons }: StagePlan, above: string): boolean =>
  reasons.some(
    (reason) => reason._tag === "InputChanged" && reason.origin.split(", ").some((edge) => edge.startsWith(`${above}.`))
  )
