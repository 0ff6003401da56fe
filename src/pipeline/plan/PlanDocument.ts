/**
 * A plan as JSON: what `plan --json` prints and `plan --out` saves. A saved plan is a promise: `run plan.json` does just what stands there, or
 * refuses and says what is no longer so.
 */
import { Effect, FileSystem, Path, Result, Runtime, Schema } from "effect"
import { storageFailure, writeJsonAtomic } from "../../artifacts/DurableFile.ts"
import { describeReason, type StagePlan } from "./Plan.ts"
import type { PlanTotals } from "./PlanTotals.ts"
import type { ResolvedPipeline } from "../file/ResolvedPipeline.ts"
import type { Selection } from "./Selection.ts"
import { settingsDigest } from "../file/Settings.ts"
import { ChangeClass } from "../StageType.ts"

const Names = Schema.Array(Schema.String)
const Extent = Schema.Struct({ done: Schema.Finite, total: Schema.Finite, unit: Schema.String })

export const PlannedStage = Schema.Struct({
  stage: Schema.String,
  uses: Schema.String,
  status: Schema.Literals(["fresh", "accepted", "reuse", "stale", "pending", "blocked", "excluded"]),
  /** null while what is above has yet to run. */
  key: Schema.NullOr(Schema.String),
  /** The run whose result serves. */
  from: Schema.NullOr(Schema.String),
  reasons: Schema.Array(
    Schema.Struct({
      kind: Schema.String,
      text: Schema.String,
      path: Schema.optionalKey(Schema.String),
      before: Schema.optionalKey(Schema.Json),
      after: Schema.optionalKey(Schema.Json),
      change: Schema.optionalKey(ChangeClass)
    })
  ),
  change: Schema.NullOr(ChangeClass),
  resumes_at: Schema.NullOr(Extent),
  resumes_from: Schema.NullOr(Schema.Literals(["own", "previous"])),
  estimate: Schema.NullOr(
    Schema.Struct({
      seconds: Schema.NullOr(Schema.Finite),
      basis: Schema.NullOr(Schema.String),
      bytes: Schema.NullOr(Schema.Finite),
      memory: Schema.NullOr(Schema.Finite)
    })
  ),
  /** What will come of a stage that runs, in a phrase. */
  outlook: Schema.optionalKey(Schema.String),
  /** What a stage that runs elsewhere asks for there: "slurm: --partition=gpu --nodes=2 …". */
  submits: Schema.optionalKey(Schema.String),
  /** The same as facts by output port; each port's `estimated` names those that rest on ratios. */
  outputs: Schema.optionalKey(Schema.Record(Schema.String, Schema.Record(Schema.String, Schema.Json))),
  message: Schema.optionalKey(Schema.String)
})

export const PlanDocument = Schema.Struct({
  format: Schema.Literal("tinyllama-plan"),
  version: Schema.Literal(1),
  pipeline: Schema.String,
  file: Schema.String,
  profiles: Names,
  overrides: Names,
  selection: Schema.Struct({
    fromStage: Schema.optionalKey(Schema.String),
    toStage: Schema.optionalKey(Schema.String),
    only: Schema.optionalKey(Names),
    force: Schema.optionalKey(Names),
    reuseStale: Schema.optionalKey(Schema.Boolean)
  }),
  /** Of every decoded value: comments and spelling do not change it. */
  pipeline_digest: Schema.String,
  stages: Schema.Array(PlannedStage),
  totals: Schema.Struct({
    stages: Schema.Int,
    seconds: Schema.NullOr(Schema.Finite),
    unknown: Names,
    bytes: Schema.Finite,
    money: Schema.NullOr(Schema.Struct({ amount: Schema.Finite, currency: Schema.String }))
  })
})
export type PlanDocument = typeof PlanDocument.Type

export const planDocument = (
  pipeline: ResolvedPipeline,
  selection: Selection,
  plans: ReadonlyArray<StagePlan>,
  whole: PlanTotals
): PlanDocument => ({
  format: "tinyllama-plan",
  version: 1,
  pipeline: pipeline.name,
  file: pipeline.file,
  profiles: pipeline.profiles,
  overrides: pipeline.overrides,
  selection,
  pipeline_digest: settingsDigest(pipeline),
  stages: plans.map(stageDocument),
  totals: whole
})

const stageDocument = (plan: StagePlan): typeof PlannedStage.Type => ({
  stage: plan.stage,
  uses: plan.uses,
  status: plan.status,
  key: plan.key ?? null,
  from: plan.from ?? null,
  reasons: plan.reasons.map((reason) => ({
    kind: reason._tag,
    text: describeReason(reason),
    ...("path" in reason ? { path: reason.path } : {}),
    ...("before" in reason && reason.before !== undefined ? { before: reason.before } : {}),
    ...("after" in reason && reason.after !== undefined ? { after: reason.after } : {}),
    ...("change" in reason ? { change: reason.change } : {})
  })),
  change: plan.change ?? null,
  resumes_at: plan.resumesAt ?? null,
  resumes_from: plan.resumesFrom ?? null,
  estimate:
    plan.estimate === undefined
      ? null
      : {
          seconds: plan.estimate.seconds ?? null,
          basis: basisText(plan.estimate.basis),
          bytes: plan.estimate.bytes ?? null,
          memory: plan.estimate.memory ?? null
        },
  ...(plan.outlook === undefined ? {} : { outlook: plan.outlook }),
  ...(plan.submits === undefined ? {} : { submits: plan.submits }),
  ...(plan.outputs === undefined ? {} : { outputs: plan.outputs }),
  ...(plan.message === undefined ? {} : { message: plan.message })
})

const basisText = (basis: NonNullable<StagePlan["estimate"]>["basis"]): string | null =>
  basis === undefined ? null : basis._tag === "Model" ? "model" : `past runs: ${basis.runs}`

export const savePlan = (file: string, document: PlanDocument) =>
  writeJsonAtomic(file, document).pipe(Effect.mapError(storageFailure(file)))

/** A file that should be a saved plan is none, or one of another version. Exit code 3. */
export class PlanInvalid extends Schema.TaggedError<PlanInvalid>()("PlanInvalid", {
  file: Schema.String,
  message: Schema.String,
  next: Schema.String
}) {
  override readonly [Runtime.errorExitCode] = 3
}

/** What the saved plan promised no longer holds. Exit code 6. */
export class PlanOutdated extends Schema.TaggedError<PlanOutdated>()("PlanOutdated", {
  file: Schema.String,
  changes: Schema.Array(Schema.String),
  next: Schema.String
}) {
  override readonly [Runtime.errorExitCode] = 6
  override get message(): string {
    return `${this.file}: what this plan promised no longer holds:\n${this.changes.map((line) => `  ${line}`).join("\n")}`
  }
}

const decodeDocument = Schema.decodeUnknownResult(Schema.fromJsonString(PlanDocument))

/** A plan file is JSON; a pipeline file is not called .json. */
export const isPlanFile = (file: string): boolean => file.endsWith(".json")

export const readPlan = Effect.fn("readPlan")(function* (file: string) {
  const fs = yield* FileSystem.FileSystem
  const next = "make it with: tinyllama plan --out plan.json"
  const text = yield* fs
    .readFileString(file)
    .pipe(Effect.mapError((error) => new PlanInvalid({ file, message: `${file}: ${error.message}`, next })))
  const decoded = decodeDocument(text)
  if (Result.isSuccess(decoded)) return decoded.success
  return yield* new PlanInvalid({ file, message: `${file} is no saved plan of this version`, next })
})

/** The plan file's pipeline file, as seen from here: it was saved relative to the folder that `plan` ran in. */
export const checkPromise = Effect.fn("checkPromise")(function* (
  file: string,
  promised: PlanDocument,
  now: PlanDocument
) {
  const changes = promiseDifferences(promised, now)
  if (changes.length === 0) return
  const path = yield* Path.Path
  return yield* new PlanOutdated({
    file,
    changes,
    next: `see what would happen now: tinyllama plan ${now.file} --out ${path.basename(file)}`
  })
})

const promiseDifferences = (promised: PlanDocument, now: PlanDocument): ReadonlyArray<string> => {
  const before = new Map(promised.stages.map((stage) => [stage.stage, stage]))
  const after = new Map(now.stages.map((stage) => [stage.stage, stage]))
  const changes = Array.from(new Set([...before.keys(), ...after.keys()])).flatMap((name): ReadonlyArray<string> => {
    const [old, current] = [before.get(name), after.get(name)]
    if (old === undefined) return [`${name}: a new stage, ${current?.status ?? ""}`]
    if (current === undefined) return [`${name}: the stage is gone`]
    if (old.status !== current.status) return [`${name}: ${sentence(old)} then, ${sentence(current)} now`]
    if (old.key !== current.key) return [`${name}: another key (${short(old.key)} then, ${short(current.key)} now)`]
    const [was, is] = [sentence(old), sentence(current)]
    return was === is ? [] : [`${name}: ${was} then, ${is} now`]
  })
  if (changes.length === 0 && promised.pipeline_digest !== now.pipeline_digest) {
    return [`${now.file}: a setting that changes no result was edited`]
  }
  return changes
}

const sentence = ({ reasons, status }: typeof PlannedStage.Type): string =>
  reasons.length === 0 ? status : `${status} (${reasons.map(({ text }) => text).join("; ")})`

const short = (key: string | null): string => key?.slice(0, 12) ?? "unknown"
