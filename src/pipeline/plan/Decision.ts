/** Fresh, reused or to run, and why: the one place that decides it, for `plan` and for `run`. */
import { Effect, Result, type Schema } from "effect"
import { ArtifactStore, type KeyRecord, type Lookup, type StoredArtifact } from "../../artifacts/ArtifactStore.ts"
import { changeOf, describeDifference, differences, type Difference, strongest } from "./KeyDifference.ts"
import { type Acceptance, type HistoryEntry, KeyLedger } from "./KeyLedger.ts"
import { decodeParams } from "../file/Parameters.ts"
import type { ResolvedPipeline, ResolvedStage } from "../file/ResolvedPipeline.ts"
import type { Role } from "./Selection.ts"
import { type KeyParts, keyParts, stageKey } from "./StageKey.ts"
import type { ChangeClass, StageError } from "../StageType.ts"

export type Reason =
  | { readonly _tag: "NoResult" }
  | Difference
  | { readonly _tag: "Damaged"; readonly detail: string }
  | { readonly _tag: "Forced" }
  /** A stage above runs first; whether this one must run depends on what that gives. */
  | { readonly _tag: "Upstream"; readonly stage: string }
  /** Another stage of the pipeline has the very same key: one of the two makes the result for both. */
  | { readonly _tag: "Shared"; readonly stage: string }

/** A reason in words: "lr.peak: 0.0004 → 0.001". */
export const describeReason = (reason: Reason): string => {
  switch (reason._tag) {
    case "NoResult":
      return "no result yet"
    case "Damaged":
      return `the stored result is damaged: ${reason.detail}`
    case "Forced":
      return "forced"
    case "Upstream":
      return `${reason.stage} runs first`
    case "Shared":
      return `the same as ${reason.stage}, made once`
    default:
      return describeDifference(reason)
  }
}

export interface Use {
  readonly _tag: "Use"
  /**
   * fresh: made from just these parameters and inputs; accepted: a person said that this older result stands for them; reuse: an older result
   * that the selection keeps.
   */
  readonly status: "fresh" | "accepted" | "reuse"
  readonly key: string
  readonly parts: KeyParts | undefined
  readonly record: KeyRecord
  readonly artifacts: Readonly<Record<string, StoredArtifact>>
  /** For reuse: what is no longer as it was. */
  readonly reasons: ReadonlyArray<Reason>
  readonly acceptance?: Acceptance
}
export interface Run {
  readonly _tag: "Run"
  readonly key: string
  readonly parts: KeyParts
  readonly reasons: ReadonlyArray<Reason>
  /** Unfinished work with this very key exists. */
  readonly resumes: boolean
  /** What differs from this in continuation and additive fields only, and is taken along. */
  readonly previous: PreviousResult | undefined
}
export interface Unavailable {
  readonly _tag: "Unavailable"
  readonly message: string
}
export type Decision = Use | Run | Unavailable

/** An older result, or unfinished work, that a run builds on. */
export interface PreviousResult {
  readonly key: string
  readonly parts: KeyParts
  readonly change: ChangeClass
  readonly run: string
  readonly artifacts: Readonly<Record<string, StoredArtifact>> | undefined
  /** The work folder of a key without result. */
  readonly work: string | undefined
}

export type InputDigests = Readonly<Record<string, ReadonlyArray<string>>>

export interface Question {
  readonly pipeline: ResolvedPipeline
  readonly stage: ResolvedStage
  readonly role: Exclude<Role, "excluded">
  readonly forced: boolean
  /** Keys that the stage had, newest first. */
  readonly past: ReadonlyArray<HistoryEntry>
  /** A forced stage whose result this accepts has done its duty. */
  readonly satisfied?: (record: KeyRecord) => boolean
  /** undefined when a reused stage above has no result: then only an older result of this stage can serve. */
  readonly inputs: InputDigests | undefined
  readonly observed: Result.Result<Schema.Json, StageError>
}

export const decide = Effect.fnUntraced(function* (question: Question) {
  const { forced, inputs, observed, role, stage } = question
  const parts =
    inputs === undefined || Result.isFailure(observed)
      ? undefined
      : keyParts(stage.type, stage.params, inputs, observed.success)
  if (parts === undefined) return yield* older(question, undefined)

  const key = stageKey(parts)
  const { acceptance, found } = yield* lookupAccepted(key)
  const serves =
    found._tag === "Complete" && (role === "reuse" || !forced || question.satisfied?.(found.record) === true)
  if (serves) {
    const { artifacts, record } = found
    const use: Use =
      acceptance === undefined
        ? { _tag: "Use", status: "fresh", key, parts, record, artifacts, reasons: [] }
        : { _tag: "Use", status: "accepted", key, parts, record, artifacts, reasons: [], acceptance }
    return use satisfies Decision
  }
  if (role === "reuse") return yield* older(question, parts)
  return yield* toRun(question, key, parts, found)
})

/** How many acceptances may follow each other: A stands for B, B for C. */
const longestChain = 16

/** The key's own result, else the one that it was accepted to share. */
const lookupAccepted = Effect.fnUntraced(function* (key: string) {
  const store = yield* ArtifactStore
  const ledger = yield* KeyLedger
  const own = yield* store.lookup(key)
  let acceptance: Acceptance | undefined
  let found: Lookup = own
  for (let steps = 0, at = key; found._tag === "Absent" && steps < longestChain; steps++) {
    const next = yield* ledger.accepted(at)
    if (next === undefined) break
    acceptance ??= next
    at = next.sameAs
    found = yield* store.lookup(at)
  }
  return found._tag === "Complete" ? { found, acceptance } : { found: own, acceptance: undefined }
})

const toRun = Effect.fnUntraced(function* (question: Question, key: string, parts: KeyParts, found: Lookup) {
  const store = yield* ArtifactStore
  const last = yield* newestComplete(question.past)
  const reasons: ReadonlyArray<Reason> =
    found._tag === "Complete"
      ? [{ _tag: "Forced" }]
      : found._tag === "Damaged"
        ? [{ _tag: "Damaged", detail: found.detail }]
        : last === undefined
          ? [{ _tag: "NoResult" }]
          : differences(question.stage.type, last.parts, parts, question.stage.inputs)
  const run: Run = {
    _tag: "Run",
    key,
    parts,
    reasons,
    resumes: yield* store.hasWork(key),
    previous: question.forced ? undefined : yield* previousOf(question, key, parts)
  }
  return run
})

/** The newest result or unfinished work of the stage that this one may build on. */
const previousOf = Effect.fnUntraced(function* (question: Question, key: string, parts: KeyParts) {
  const store = yield* ArtifactStore
  const ledger = yield* KeyLedger
  const { past, stage } = question
  for (const entry of past) {
    if (entry.key === key) continue
    const before = yield* ledger.parts(entry.key)
    if (before === undefined) continue
    const change = strongest(differences(stage.type, before, parts, stage.inputs).map(changeOf))
    if (change === "identity") continue
    const found = yield* store.lookup(entry.key)
    const base = { key: entry.key, parts: before, change, run: entry.run }
    if (found._tag === "Complete") {
      const previous: PreviousResult = { ...base, artifacts: found.artifacts, work: undefined }
      return previous
    }
    if (yield* store.hasWork(entry.key)) {
      const previous: PreviousResult = { ...base, artifacts: undefined, work: store.workPath(entry.key) }
      return previous
    }
  }
  return undefined
})

/** The newest complete result of the stage, whatever made it stale. */
const older = Effect.fnUntraced(function* (question: Question, parts: KeyParts | undefined) {
  const { pipeline, stage } = question
  const last = yield* newestComplete(question.past)
  if (last === undefined) {
    const message = `${stage.name} has no complete result to reuse. Next: tinyllama run ${pipeline.file} --to-stage ${stage.name}`
    return { _tag: "Unavailable", message } satisfies Decision
  }
  const current = parts ?? ownParts(stage)
  const use: Use = {
    _tag: "Use",
    status: "reuse",
    key: last.key,
    parts: last.parts,
    record: last.record,
    artifacts: last.artifacts,
    reasons: differences(stage.type, last.parts, current, stage.inputs)
  }
  return use satisfies Decision
})

export interface PastResult {
  readonly key: string
  readonly parts: KeyParts
  readonly record: KeyRecord
  readonly artifacts: Readonly<Record<string, StoredArtifact>>
}

export const newestComplete = Effect.fnUntraced(function* (past: ReadonlyArray<HistoryEntry>) {
  const store = yield* ArtifactStore
  const ledger = yield* KeyLedger
  for (const { key } of past) {
    const found = yield* store.lookup(key)
    if (found._tag !== "Complete") continue
    const parts = yield* ledger.parts(key)
    if (parts === undefined) continue
    const result: PastResult = { key, parts, record: found.record, artifacts: found.artifacts }
    return result
  }
  return undefined
})

/** What of a key is known before the inputs are. */
export const ownParts = (stage: ResolvedStage): Pick<KeyParts, "stageType" | "stageVersion" | "params" | "code"> => {
  const { inputs: _, observed: __, ...own } = keyParts(stage.type, stage.params, {}, null)
  return own
}

/** What the stage reads from outside the pipeline; null where its type observes nothing. */
export const observe = Effect.fnUntraced(function* (pipeline: ResolvedPipeline, stage: ResolvedStage) {
  if (stage.type.observe === undefined) return null
  const params = yield* Effect.orDie(decodeParams(stage.type, stage.params))
  return yield* stage.type.observe(params, pipeline.baseDirectory)
})
