/**
 * What two pipelines differ in, and what that does to results that exist: semantics, not text. Comments, order, spelling of numbers and variables
 * that come to the same value are no difference. Whether results exist is not asked: a diff says what would become of them.
 */
import type { Schema } from "effect"
import { changedLeaves, changeOf, type Difference, differences, strongest, unionOfKeys } from "./KeyDifference.ts"
import type { Edge, ResolvedPipeline, ResolvedStage } from "../file/ResolvedPipeline.ts"
import { isObject, settingsOf } from "../file/Settings.ts"
import { type KeyParts, keyParts, stageKey } from "./StageKey.ts"
import type { ChangeClass } from "../StageType.ts"

export interface FieldChange {
  /** "base.with.lr.peak", "base.resources.cpus", "price.per_hour". */
  readonly path: string
  /** undefined for what belongs to no stage. */
  readonly stage: string | undefined
  readonly before: Schema.Json | undefined
  readonly after: Schema.Json | undefined
  readonly change: ChangeClass
}

export type Consequence = "kept" | "renamed" | "stale" | "continues" | "additive" | "added" | "removed"

export interface StageEffect {
  readonly stage: string
  readonly uses: string
  readonly effect: Consequence
  /** The stages above that pass their change on; empty where the stage's own fields did it. */
  readonly through: ReadonlyArray<string>
  /** For renamed: its name on the other side. */
  readonly from?: string
}

export interface PipelineDiff {
  readonly fields: ReadonlyArray<FieldChange>
  /** Those of the second pipeline in topological order, then those that are gone. */
  readonly stages: ReadonlyArray<StageEffect>
}

export const diffPipelines = (before: ResolvedPipeline, after: ResolvedPipeline): PipelineDiff => {
  const old = symbolicKeys(before)
  const now = symbolicKeys(after)
  const stages = stageEffects(before, after, old, now)
  const renamed = new Map(stages.flatMap(({ from, stage }) => (from === undefined ? [] : [[stage, from] as const])))
  return { fields: fieldChanges(before, after, renamed), stages }
}

/** What happens when nothing that ran is to be done again: nothing. */
export const isWork = ({ effect }: StageEffect): boolean =>
  effect === "stale" || effect === "continues" || effect === "additive" || effect === "added"

interface Symbolic {
  readonly parts: KeyParts
  readonly key: string
}

/** Keys with the keys of the stages above in place of their outputs' digests: equal ones mean equal results, whatever the stages are called. */
const symbolicKeys = (pipeline: ResolvedPipeline): ReadonlyMap<string, Symbolic> => {
  const keys = new Map<string, Symbolic>()
  const nameOf = ({ port, stage }: Edge) => `${keys.get(stage)?.key ?? stage}.${port}`
  for (const { inputs, name, params, type } of pipeline.stages) {
    const edges = Object.fromEntries(Object.entries(inputs).map(([port, list]) => [port, list.map(nameOf)]))
    const parts = keyParts(type, params, edges, null)
    keys.set(name, { parts, key: stageKey(parts) })
  }
  return keys
}

const stageEffects = (
  before: ResolvedPipeline,
  after: ResolvedPipeline,
  old: ReadonlyMap<string, Symbolic>,
  now: ReadonlyMap<string, Symbolic>
): ReadonlyArray<StageEffect> => {
  const namesByKey = new Map(Array.from(old, ([name, { key }]) => [key, name] as const))
  const effects = new Map<string, StageEffect>()
  for (const stage of after.stages) {
    const mine = now.get(stage.name)
    const theirs = old.get(stage.name)
    const twin = mine === undefined ? undefined : namesByKey.get(mine.key)
    const base = { stage: stage.name, uses: stage.type.name, through: [] }
    if (mine === undefined) continue
    if (theirs?.key === mine.key) effects.set(stage.name, { ...base, effect: "kept" })
    else if (twin !== undefined) effects.set(stage.name, { ...base, effect: "renamed", from: twin })
    else if (theirs === undefined) effects.set(stage.name, { ...base, effect: "added" })
    else effects.set(stage.name, changedStage(stage, theirs.parts, mine.parts, effects))
  }
  const renamed = new Set(Array.from(effects.values(), ({ from }) => from))
  const gone = before.stages.filter(({ name }) => !now.has(name) && !renamed.has(name))
  return [
    ...effects.values(),
    ...gone.map(({ name, type }): StageEffect => ({ stage: name, uses: type.name, effect: "removed", through: [] }))
  ]
}

const changedStage = (
  stage: ResolvedStage,
  before: KeyParts,
  after: KeyParts,
  above: ReadonlyMap<string, StageEffect>
): StageEffect => {
  const found = differences(stage.type, before, after, stage.inputs)
  const own = found.filter(({ _tag }) => _tag !== "InputChanged")
  const change = strongest(found.map(changeOf))
  const sources = new Set(Object.values(stage.inputs).flatMap((edges) => edges.map((edge) => edge.stage)))
  const through = Array.from(sources).filter((name) => {
    const effect = above.get(name)
    return effect !== undefined && isWork(effect)
  })
  return {
    stage: stage.name,
    uses: stage.type.name,
    effect: effectOf(change),
    through: own.length === 0 ? through : []
  }
}

const effectOf = (change: ChangeClass): Consequence =>
  change === "additive"
    ? "additive"
    : change === "continuation"
      ? "continues"
      : change === "operational"
        ? "kept"
        : "stale"

/** Every field that differs, with its class. A stage that is only there on one side is one change. */
const fieldChanges = (
  before: ResolvedPipeline,
  after: ResolvedPipeline,
  renamed: ReadonlyMap<string, string>
): ReadonlyArray<FieldChange> => {
  const { stages: _, ...old } = settingsOf(before)
  const { stages: __, ...now } = settingsOf(after)
  const outside = changedLeaves(old, now, "").map((leaf): FieldChange => ({
    ...leaf,
    stage: undefined,
    change: "operational"
  }))
  const oldStages = new Map(before.stages.map((stage) => [stage.name, stage]))
  const newStages = new Map(after.stages.map((stage) => [stage.name, stage]))
  const inside = unionOfKeys(Object.fromEntries(newStages), Object.fromEntries(oldStages)).flatMap((name) => {
    const [mine, theirs] = [newStages.get(name), oldStages.get(renamed.get(name) ?? name)]
    if (mine === undefined || theirs === undefined) {
      const isRenamed = mine === undefined && Array.from(renamed.values()).includes(name)
      return isRenamed ? [] : [presence(name, theirs, mine)]
    }
    return stageFields(before, after, theirs, mine)
  })
  return [...outside, ...inside]
}

const presence = (name: string, before: ResolvedStage | undefined, after: ResolvedStage | undefined): FieldChange => ({
  path: name,
  stage: name,
  before: before === undefined ? undefined : `uses ${before.type.name}`,
  after: after === undefined ? undefined : `uses ${after.type.name}`,
  change: "identity"
})

const stageFields = (
  before: ResolvedPipeline,
  after: ResolvedPipeline,
  theirs: ResolvedStage,
  mine: ResolvedStage
): ReadonlyArray<FieldChange> => {
  const field = (path: string, change: ChangeClass, old: Schema.Json | undefined, now: Schema.Json | undefined) => ({
    path: `${mine.name}.${path}`,
    stage: mine.name,
    before: old,
    after: now,
    change
  })
  const all = (parts: ResolvedStage): KeyParts => ({
    ...keyParts(parts.type, parts.params, edgesOf(parts), null),
    params: parts.params
  })
  const fromKeys = differences(mine.type, all(theirs), all(mine), mine.inputs).flatMap((difference) =>
    fieldsOf(difference, theirs, mine, field)
  )
  const [old, now] = [settingsOfStage(before, theirs.name), settingsOfStage(after, mine.name)]
  const operational = changedLeaves(old, now, "").map(({ after: value, before: was, path }) =>
    field(path, "operational", was, value)
  )
  return [...fromKeys, ...operational]
}

const fieldsOf = (
  difference: Difference,
  theirs: ResolvedStage,
  mine: ResolvedStage,
  field: (path: string, change: ChangeClass, old: Schema.Json | undefined, now: Schema.Json | undefined) => FieldChange
): ReadonlyArray<FieldChange> => {
  switch (difference._tag) {
    case "ParameterChanged":
      return [field(`with.${difference.path}`, difference.change, difference.before, difference.after)]
    case "InputChanged": {
      const { change, port } = difference
      return [field(`in.${port}`, change, edgesOf(theirs)[port] ?? [], edgesOf(mine)[port] ?? [])]
    }
    case "TypeChanged":
      return [field("uses", "identity", difference.before, difference.after)]
    case "VersionChanged":
      return [field("stageVersion", "identity", difference.before, difference.after)]
    default:
      return []
  }
}

const edgesOf = (stage: ResolvedStage): Readonly<Record<string, ReadonlyArray<string>>> =>
  Object.fromEntries(
    Object.entries(stage.inputs).map(([port, edges]) => [port, edges.map((edge) => `${edge.stage}.${edge.port}`)])
  )

/** A stage's settings that are in no key: resources, retries, limits, checks. */
const settingsOfStage = (pipeline: ResolvedPipeline, name: string): Schema.Json => {
  const { stages } = settingsOf(pipeline)
  const stage = isObject(stages) ? stages[name] : undefined
  if (!isObject(stage)) return {}
  const { in: _, stageVersion: __, uses: ___, with: ____, ...rest } = stage
  return rest
}
