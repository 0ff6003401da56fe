/**
 * Accepting an older result for what the file asks now: an audited record in place of a rerun. It names who, when and why, and is told wherever
 * the result is used; it can be revoked.
 */
import { hostname, userInfo } from "node:os"
import { Effect, Runtime, Schema } from "effect"
import { describeReason, newestComplete } from "./Decision.ts"
import { didYouMean } from "../file/Diagnostics.ts"
import { timestamp } from "../runs/Journal.ts"
import { type Acceptance, KeyLedger } from "./KeyLedger.ts"
import { describeDifference, differences } from "./KeyDifference.ts"
import { plan } from "./Plan.ts"
import type { ResolvedPipeline, ResolvedStage } from "../file/ResolvedPipeline.ts"
import { UsageError } from "./Selection.ts"

/** There is nothing to accept, or not yet. Exit code 2. */
export class CannotAccept extends Schema.TaggedError<CannotAccept>()("CannotAccept", {
  stage: Schema.String,
  message: Schema.String,
  next: Schema.String
}) {
  override readonly [Runtime.errorExitCode] = 2
}

/** Records that the stage's newest complete result stands for its present parameters and inputs. */
export const accept = Effect.fn("accept")(function* (pipeline: ResolvedPipeline, name: string, because: string) {
  if (because.trim() === "") {
    return yield* new UsageError({ message: "--because needs a reason: it is what the next reader will see" })
  }
  const stage = yield* stageNamed(pipeline, name)
  const planned = yield* plan(pipeline, {}, { estimates: false })
  const decision = planned.decisions.get(name)
  const { file } = pipeline
  if (decision === undefined || decision._tag === "Unavailable") {
    const entry = planned.stages.find((one) => one.stage === name)
    const above = entry?.reasons.find((reason) => reason._tag === "Upstream")?.stage
    return yield* new CannotAccept({
      stage: name,
      message:
        entry?.message ?? `${name}: its inputs are not known while ${above ?? "a stage above"} is not up to date`,
      next: `run or accept ${above ?? "what is above"} first`
    })
  }
  if (decision._tag === "Use") {
    const message = `${name} is up to date (result of ${decision.record.run}): there is nothing to accept`
    return yield* new CannotAccept({ stage: name, message, next: `tinyllama plan ${file}` })
  }
  const ledger = yield* KeyLedger
  const past = (yield* ledger.history(pipeline.name)).get(name) ?? []
  const last = yield* newestComplete(past.filter(({ key }) => key !== decision.key))
  if (last === undefined) {
    const message = `${name} has no complete result that could be accepted (${decision.reasons.map(describeReason).join("; ")})`
    return yield* new CannotAccept({ stage: name, message, next: `tinyllama run ${file} --to-stage ${name}` })
  }
  const acceptance: Acceptance = {
    version: 1,
    key: decision.key,
    sameAs: last.key,
    pipeline: pipeline.name,
    stage: name,
    because,
    by: `${userInfo().username}@${hostname()}`,
    at: yield* timestamp,
    changes: differences(stage.type, last.parts, decision.parts, stage.inputs).map(describeDifference)
  }
  yield* ledger.accept(acceptance)
  return { acceptance, from: last.record.run }
})

/** Takes back the acceptance that the stage's present key has. */
export const revoke = Effect.fn("revoke")(function* (pipeline: ResolvedPipeline, name: string) {
  yield* stageNamed(pipeline, name)
  const decision = (yield* plan(pipeline, {}, { estimates: false })).decisions.get(name)
  if (decision?._tag === "Use" && decision.acceptance !== undefined) {
    yield* (yield* KeyLedger).revoke(decision.acceptance.key)
    return decision.acceptance
  }
  return yield* new CannotAccept({
    stage: name,
    message: `${name}: nothing is accepted for its present parameters and inputs`,
    next: "tinyllama accept --list shows what is"
  })
})

export const stageNamed = (pipeline: ResolvedPipeline, name: string): Effect.Effect<ResolvedStage, UsageError> => {
  const stage = pipeline.stages.find((one) => one.name === name)
  if (stage !== undefined) return Effect.succeed(stage)
  const names = pipeline.stages.map((one) => one.name)
  const meant = didYouMean(name, names)
  const hint = meant === undefined ? `stages are ${names.join(", ")}` : `did you mean "${meant}"?`
  return Effect.fail(new UsageError({ message: `no stage "${name}" in ${pipeline.file}; ${hint}` }))
}
