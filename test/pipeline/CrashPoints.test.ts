/**
 * Every file-system call of a run in turn is the last one of its process, or fails; then the same command runs again. Stages run in this
 * process, so that all points can be covered in seconds; Faults.test.ts does it with real processes.
 */
import { existsSync, readFileSync, renameSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { assert, describe, it } from "@effect/vitest"
import { Cause, Effect, Exit, Fiber } from "effect"
import { type Fault, faultyDisk, filesBelow } from "./fixtures/faulty-disk.ts"
import { type Workplace, workplace } from "./fixtures/harness.ts"
import { newRecord, runHere } from "./fixtures/in-process.ts"
import { completeResults, faultsOf, namesBelow, storeContent } from "./fixtures/soundness.ts"

/** left and same give the same artifact from different keys; counted resumes. */
const pipeline = `version: 1
name: crash
stages:
  left: { uses: write, with: { text: left } }
  many: { uses: files, with: { count: 6 } }
  both: { uses: join, in: { documents: [left.documents, many.documents] } }
  same: { uses: write, with: { text: left, steps: 11 } }
  counted: { uses: count, with: { steps: 3 }, in: { after: left.documents } }
`

const undisturbed = Effect.gen(function* () {
  const place = yield* workplace
  place.write(pipeline)
  const changes = faultyDisk(undefined, "changes")
  yield* runHere(place, {}, newRecord(), changes.layer)
  const content = storeContent(place.runs)
  assert.deepStrictEqual(faultsOf(place.runs, content), [])
  const again = yield* workplace
  again.write(pipeline)
  const reads = faultyDisk(undefined, "reads")
  yield* runHere(again, {}, newRecord(), reads.layer)
  return { content, changes: changes.calls.length, reads: reads.calls.length }
})

/** The dead process's claims name a process that is gone: here they name this one, which is not. */
const bury = (place: Workplace): void => {
  if (!existsSync(place.runs)) return
  for (const file of filesBelow(place.runs).filter((name) => name.endsWith(".lock"))) {
    const text = readFileSync(file, "utf8")
    if (text !== "") writeFileSync(file, JSON.stringify({ ...JSON.parse(text), start: "1" }))
  }
  // The inner ones first: a half-made run folder is a temporary that may hold others.
  for (const name of namesBelow(place.runs).filter((one) => one.endsWith(".tmp")).toReversed())
    renameSync(join(place.runs, name), join(place.runs, name.replace(/\.(\d+)-\w+-(\w{8}-\w+\.tmp)$/u, ".$1-1-$2")))
}

const disturb = Effect.fnUntraced(function* (place: Workplace, fault: Fault, powerCut: boolean) {
  const disk = faultyDisk(fault)
  const fiber = yield* Effect.forkDetach(Effect.exit(runHere(place, {}, newRecord(), disk.layer)))
  const ended = yield* Effect.raceFirst(Effect.as(disk.died, undefined), Fiber.join(fiber))
  fiber.interruptUnsafe()
  if (powerCut) disk.loseUnsynced(place.runs)
  bury(place)
  return { ended, call: disk.calls[fault.at - 1] ?? "none" }
})

const checkPoint = Effect.fnUntraced(function* (
  content: ReturnType<typeof storeContent>,
  fault: Fault,
  powerCut: boolean
) {
  const place = yield* workplace
  place.write(pipeline)
  const { call, ended } = yield* disturb(place, fault, powerCut)
  const said: Array<string> = []
  if (ended !== undefined && Exit.isFailure(ended)) {
    const error = Cause.squash(ended.cause)
    const text = error instanceof Error ? error.message : String(error)
    if (Cause.hasDies(ended.cause)) said.push(`a defect: ${Cause.pretty(ended.cause)}`)
    if (!text.includes(fault.effect) && !("next" in Object(error))) said.push(`says only: ${text}`)
  }
  if (ended !== undefined && Exit.isSuccess(ended)) {
    for (const { failure } of ended.value.stages)
      if (failure !== undefined && (!failure.message.includes(fault.effect) || failure.next === "" || /defect/u.test(failure.message)))
        said.push(`says only: ${failure.message} / ${failure.next}`)
  }
  const before = completeResults(place.runs)
  const again = yield* Effect.exit(runHere(place))
  if (Exit.isFailure(again)) said.push(`rerun: ${Cause.pretty(again.cause)}`)
  else if (again.value.status !== "complete")
    said.push(`rerun is ${again.value.status}: ${JSON.stringify(again.value.stages.map((stage) => stage.failure))}`)
  else said.push(...faultsOf(place.runs, content, before))
  return said.map((line) => `${fault.at} ${call.replaceAll(place.folder, "")}: ${line}`)
}, Effect.scoped)

const campaign = (calls: Fault["calls"], effect: Fault["effect"],
  more: { lasting?: boolean; powerCut?: boolean } = {}) =>
  Effect.gen(function* () {
    const { [calls]: points, content } = yield* Effect.scoped(undisturbed)
    const began = performance.now()
    const said: Array<string> = []
    for (let at = 1; at <= points; at++)
      if (process.env["ONLY"] === undefined || process.env["ONLY"] === String(at)) said.push(...(yield* checkPoint(content, { at, calls, effect, lasting: more.lasting ?? false }, more.powerCut ?? false)))
    console.log(calls, effect, more, points, "points", Math.round(performance.now() - began), "ms")
    assert.deepStrictEqual(said, [])
  })

describe("at every file-system call of a run", () => {
  it.live("death", () => campaign("changes", "death"))
  it.live("a power cut", () => campaign("changes", "death", { powerCut: true }))
  it.live("a full disk, once", () => campaign("changes", "ENOSPC"))
  it.live("a full disk, from then on", () => campaign("changes", "ENOSPC", { lasting: true }))
  it.live("an I/O error", () => campaign("changes", "EIO"))
  it.live("an I/O error in a read", () => campaign("reads", "EIO"))
})
