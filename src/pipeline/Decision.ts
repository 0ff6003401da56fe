/** Fresh, reused or to run, and why: the one place that decides it, for `plan` and for `run`. */
import { Effect, Result, type Schema } from "effect"
import { ArtifactStore, type KeyRecord, type StoredArtifact } from "../artifacts/ArtifactStore.ts"
import { canonicalJson } from "../artifacts/CanonicalJson.ts"
import { decodeParams } from "./Parameters.ts"
import type { ResolvedPipeline, ResolvedStage } from "./ResolvedPipeline.ts"
import { Runs, type StageKeyFile } from "./Runs.ts"
import type { Role } from "./Selection.ts"
import { type KeyParts, keyParts, stageKey } from "./StageKey.ts"
import type { StageError } from "./StageType.ts"

export type Reason =
  | { readonly _tag: "NoResult" }
  /** undefined: the parameter or key is not there on that side. */
  | {
      readonly _tag: "ParameterChanged"
      readonly path: string
      readonly before: Schema.Json | undefined
      readonly after: Schema.Json | undefined
    }
  | { readonly _tag: "InputChanged"; readonly port: string; readonly origin: string }
  /** What the stage reads from outside the pipeline is not what it was. */
  | { readonly _tag: "ObservationChanged" }
  | { readonly _tag: "VersionChanged"; readonly before: number; readonly after: number }
  | { readonly _tag: "TypeChanged"; readonly before: string; readonly after: string }
  | { readonly _tag: "Damaged"; readonly detail: string }
  | { readonly _tag: "Forced" }
  /** A stage above runs first; whether this one must run depends on what that gives. */
  | { readonly _tag: "Upstream"; readonly stage: string }

/** A reason in words: "lr.peak: 0.0004 → 0.001". */
export const describeReason = (reason: Reason): string => {
  switch (reason._tag) {
    case "NoResult":
      return "no result yet"
    case "ParameterChanged":
      return `${reason.path}: ${describeValue(reason.before)} → ${describeValue(reason.after)}`
    case "InputChanged":
      return `input ${reason.port} (${reason.origin}) changed`
    case "ObservationChanged":
      return "what it reads from outside changed"
    case "VersionChanged":
      return `stage version: ${reason.before} → ${reason.after}`
    case "TypeChanged":
      return `stage type: ${reason.before} → ${reason.after}`
    case "Damaged":
      return `the stored result is damaged: ${reason.detail}`
    case "Forced":
      return "forced"
    case "Upstream":
      return `${reason.stage} runs first`
  }
}

const describeValue = (value: Schema.Json | undefined): string =>
  value === undefined ? "absent" : canonicalJson(value)

export interface Use {
  readonly _tag: "Use"
  /** fresh: made from just these parameters and inputs; reuse: an older result that the selection keeps. */
  readonly status: "fresh" | "reuse"
  readonly key: string
  readonly parts: KeyParts | undefined
  readonly record: KeyRecord
  readonly artifacts: Readonly<Record<string, StoredArtifact>>
  /** For reuse: what is no longer as it was. */
  readonly reasons: ReadonlyArray<Reason>
}
export interface Run {
  readonly _tag: "Run"
  readonly key: string
  readonly parts: KeyParts
  readonly reasons: ReadonlyArray<Reason>
  readonly resumes: boolean
  readonly lastSeconds: number | undefined
}
export interface Unavailable {
  readonly _tag: "Unavailable"
  readonly message: string
}
export type Decision = Use | Run | Unavailable

export type InputDigests = Readonly<Record<string, ReadonlyArray<string>>>

export interface Question {
  readonly pipeline: ResolvedPipeline
  readonly stage: ResolvedStage
  readonly role: Exclude<Role, "excluded">
  readonly forced: boolean
  /** A forced stage whose result this accepts has done its duty. */
  readonly satisfied?: (record: KeyRecord) => boolean
  /** undefined when a reused stage above has no result: then only an older result of this stage can serve. */
  readonly inputs: InputDigests | undefined
  readonly observed: Result.Result<Schema.Json, StageError>
}

export const decide = Effect.fn("decide")(function* (question: Question) {
  const store = yield* ArtifactStore
  const { forced, inputs, observed, role, stage } = question
  const parts =
    inputs === undefined || Result.isFailure(observed)
      ? undefined
      : keyParts(stage.type, stage.params, inputs, observed.success)
  if (parts === undefined) return yield* older(question, undefined)

  const key = stageKey(parts)
  const found = yield* store.lookup(key)
  const serves =
    found._tag === "Complete" && (role === "reuse" || !forced || question.satisfied?.(found.record) === true)
  if (serves) {
    const { artifacts, record } = found
    const use: Use = { _tag: "Use", status: "fresh", key, parts, record, artifacts, reasons: [] }
    return use satisfies Decision
  }
  if (role === "reuse") return yield* older(question, parts)
  const last = yield* newestComplete(question)
  const reasons: ReadonlyArray<Reason> =
    found._tag === "Complete"
      ? [{ _tag: "Forced" }]
      : found._tag === "Damaged"
        ? [{ _tag: "Damaged", detail: found.detail }]
        : last === undefined
          ? [{ _tag: "NoResult" }]
          : compareParts(last.parts, parts, stage)
  const run: Run = {
    _tag: "Run",
    key,
    parts,
    reasons,
    resumes: yield* store.hasWork(key),
    lastSeconds: last?.record.seconds ?? (found._tag === "Complete" ? found.record.seconds : undefined)
  }
  return run satisfies Decision
})

/** The newest complete result of the stage, whatever made it stale. */
const older = Effect.fnUntraced(function* (question: Question, parts: KeyParts | undefined) {
  const { pipeline, stage } = question
  const last = yield* newestComplete(question)
  if (last === undefined) {
    const message = `${stage.name} has no complete result to reuse. Next: tinyllama run ${pipeline.file} --to-stage ${stage.name}`
    return { _tag: "Unavailable", message } satisfies Decision
  }
  return {
    _tag: "Use",
    status: "reuse",
    key: last.key,
    parts: last.parts,
    record: last.record,
    artifacts: last.artifacts,
    reasons: parts === undefined ? [] : compareParts(last.parts, parts, stage)
  } satisfies Decision
})

export interface PastResult extends StageKeyFile {
  readonly record: KeyRecord
  readonly artifacts: Readonly<Record<string, StoredArtifact>>
}

export const newestComplete = Effect.fnUntraced(function* (question: {
  readonly pipeline: ResolvedPipeline
  readonly stage: ResolvedStage
}) {
  const store = yield* ArtifactStore
  const runs = yield* Runs
  const seen = new Set<string>()
  for (const past of yield* runs.keyHistory(question.pipeline.name, question.stage.name)) {
    if (seen.has(past.key)) continue
    seen.add(past.key)
    const found = yield* store.lookup(past.key)
    if (found._tag !== "Complete") continue
    const result: PastResult = { ...past, record: found.record, artifacts: found.artifacts }
    return result
  }
  return undefined
})

/** What differs between two keys, field by field. `inputs` and `observed` are compared only where both are known. */
export const compareParts = (
  before: KeyParts,
  after: Pick<KeyParts, "stageType" | "stageVersion" | "params"> & Partial<KeyParts>,
  stage: ResolvedStage
): ReadonlyArray<Reason> => {
  if (before.stageType !== after.stageType) {
    return [{ _tag: "TypeChanged", before: before.stageType, after: after.stageType }]
  }
  const reasons: Array<Reason> = []
  if (before.stageVersion !== after.stageVersion) {
    reasons.push({ _tag: "VersionChanged", before: before.stageVersion, after: after.stageVersion })
  }
  reasons.push(...compareValues(before.params, after.params, ""))
  if (after.observed !== undefined && canonicalJson(before.observed) !== canonicalJson(after.observed)) {
    reasons.push({ _tag: "ObservationChanged" })
  }
  if (after.inputs !== undefined) {
    for (const port of unionOfKeys(before.inputs, after.inputs)) {
      if (canonicalJson(before.inputs[port] ?? []) === canonicalJson(after.inputs[port] ?? [])) continue
      const origin = (stage.inputs[port] ?? []).map((edge) => `${edge.stage}.${edge.port}`).join(", ")
      reasons.push({ _tag: "InputChanged", port, origin })
    }
  }
  return reasons
}

/** Leaves that differ; lists are leaves. */
const compareValues = (
  before: Schema.Json | undefined,
  after: Schema.Json | undefined,
  path: string
): ReadonlyArray<Reason> => {
  if (isObject(before) && isObject(after)) {
    return unionOfKeys(before, after).flatMap((key) =>
      compareValues(before[key], after[key], path === "" ? key : `${path}.${key}`)
    )
  }
  const same =
    before === undefined || after === undefined ? before === after : canonicalJson(before) === canonicalJson(after)
  return same ? [] : [{ _tag: "ParameterChanged", path, before, after }]
}

const unionOfKeys = (a: object, b: object): ReadonlyArray<string> =>
  Array.from(new Set([...Object.keys(a), ...Object.keys(b)]))

const isObject = (value: Schema.Json | undefined): value is { readonly [key: string]: Schema.Json } =>
  typeof value === "object" && value !== null && !Array.isArray(value)

/** What the stage reads from outside the pipeline; null where its type observes nothing. */
export const observe = Effect.fnUntraced(function* (pipeline: ResolvedPipeline, stage: ResolvedStage) {
  if (stage.type.observe === undefined) return null
  const params = yield* Effect.orDie(decodeParams(stage.type, stage.params))
  return yield* stage.type.observe(params, pipeline.baseDirectory)
})
