/**
 * Every file-system call of a run in turn is the last one of its process, or fails; then the same command runs again. Stages run in this
 * process, so that hundreds of points take seconds; scripts/crash-campaign.ts does it with real processes. Death is tried at each point in each
 * test run, the other disturbances at a sample that the day draws; CRASH_POINTS=all tries all.
 */
import { existsSync, readFileSync, renameSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { assert, describe, it } from "@effect/vitest"
import { Cause, Effect, Exit, Fiber } from "effect"
import type { RunSummary } from "../../../src/pipeline/run/Runner.ts"
import { type Fault, faultyDisk, filesBelow } from "../fixtures/faulty-disk.ts"
import { type Workplace, workplace } from "../fixtures/harness.ts"
import { newRecord, runHere } from "../fixtures/in-process.ts"
import { seedOfTheDay, takesPart } from "../fixtures/sample.ts"
import { completeResults, faultsOf, namesBelow, type StoreContent, storeContent } from "../fixtures/soundness.ts"

/** left and same give the same artifact from different keys, at the same time; counted resumes. */
const pipeline = `version: 1
name: crash
stages:
  left: { uses: write, with: { text: left } }
  same: { uses: write, with: { text: left, steps: 11 } }
  many: { uses: files, with: { count: 3 } }
  counted: { uses: count, with: { steps: 2 }, in: { after: left.documents } }
`

interface Undisturbed {
  readonly content: StoreContent
  readonly points: Readonly<Record<Fault["calls"], number>>
}

const undisturbed = Effect.gen(function* () {
  const points = { changes: 0, reads: 0 }
  let content: StoreContent | undefined
  for (const calls of ["changes", "reads"] as const) {
    const place = yield* workplace
    place.write(pipeline)
    const disk = faultyDisk(undefined, calls)
    yield* runHere(place, {}, newRecord(), disk.layer)
    content = storeContent(place.runs)
    assert.deepStrictEqual(faultsOf(place.runs, content), [])
    points[calls] = disk.calls.length
  }
  return { content: content ?? { files: {}, results: {} }, points } satisfies Undisturbed
}).pipe(Effect.scoped)

/** The dead process's claims and temporaries name a process that is gone; here they name this one, which is not. */
const bury = (place: Workplace): void => {
  if (!existsSync(place.runs)) return
  for (const file of filesBelow(place.runs).filter((name) => name.endsWith(".lock"))) {
    const text = readFileSync(file, "utf8")
    if (text !== "") writeFileSync(file, JSON.stringify({ ...JSON.parse(text), start: "1" }))
  }
  // The inner ones first: a half-made run folder is a temporary that may hold others.
  for (const name of namesBelow(place.runs)
    .filter((one) => one.endsWith(".tmp"))
    .toReversed()) {
    const gone = name.replace(/\.(\d+)-\w+-(\w{8}-\w+\.tmp)$/u, ".$1-1-$2")
    renameSync(join(place.runs, name), join(place.runs, gone))
  }
}

interface Disturbance extends Omit<Fault, "at"> {
  /** After the death, what no fsync made durable is gone too. */
  readonly powerCut?: boolean
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

/** An error names the cause and a next step, and is never called a defect. */
const silence = (ended: Exit.Exit<RunSummary, unknown>, code: string): ReadonlyArray<string> => {
  if (Exit.isFailure(ended)) {
    const error = Cause.squash(ended.cause)
    const message = error instanceof Error ? error.message : String(error)
    const told = typeof error === "object" && error !== null && "next" in error && message.includes(code)
    return told ? [] : [`says only: ${Cause.pretty(ended.cause)}`]
  }
  return ended.value.stages.flatMap(({ failure }) =>
    failure === undefined ||
    (failure.message.includes(code) && failure.next !== "" && !failure.message.includes("defect"))
      ? []
      : [`says only: ${failure.message} / ${failure.next}`]
  )
}

const checkPoint = Effect.fnUntraced(function* (content: StoreContent, fault: Fault, powerCut: boolean) {
  const place = yield* workplace
  place.write(pipeline)
  const { call, ended } = yield* disturb(place, fault, powerCut)
  const before = completeResults(place.runs)
  const again = yield* Effect.exit(runHere(place))
  const said = [
    ...(ended === undefined ? [] : silence(ended, fault.effect)),
    ...(Exit.isFailure(again)
      ? [`the next run: ${Cause.pretty(again.cause)}`]
      : again.value.status === "complete"
        ? faultsOf(place.runs, content, before)
        : [`the next run is ${again.value.status}: ${JSON.stringify(again.value.stages)}`])
  ]
  return said.map((line) => `${fault.at} ${call.replaceAll(place.folder, "")}: ${line}`)
}, Effect.scoped)

const campaign = (disturbance: Disturbance, share: number) =>
  Effect.gen(function* () {
    const { content, points } = yield* undisturbed
    const all = Array.from({ length: points[disturbance.calls] }, (_, index) => index + 1)
    const chosen = all.filter((at) => takesPart(seedOfTheDay, at, share))
    const said = yield* Effect.forEach(
      chosen,
      (at) => checkPoint(content, { ...disturbance, at }, disturbance.powerCut ?? false),
      { concurrency: 4 }
    )
    assert.isAbove(chosen.length, 10)
    assert.deepStrictEqual(said.flat(), [], `seed ${seedOfTheDay}, ${chosen.length} of ${all.length} points`)
  })

const minutes = { timeout: 300_000 }

describe("a run whose file-system calls fail, each in turn", () => {
  it.live("death at each", () => campaign({ calls: "changes", effect: "death" }, 1), minutes)
  it.live("a power cut", () => campaign({ calls: "changes", effect: "death", powerCut: true }, 0.2), minutes)
  it.live("a full disk, for one call", () => campaign({ calls: "changes", effect: "ENOSPC" }, 0.15), minutes)
  it.live(
    "a full disk, from then on",
    () => campaign({ calls: "changes", effect: "ENOSPC", lasting: true }, 0.15),
    minutes
  )
  it.live(
    "a disk that turns read-only",
    () => campaign({ calls: "changes", effect: "EROFS", lasting: true }, 0.1),
    minutes
  )
  it.live("an I/O error in a change", () => campaign({ calls: "changes", effect: "EIO" }, 0.15), minutes)
  it.live("an I/O error in a read", () => campaign({ calls: "reads", effect: "EIO" }, 0.2), minutes)
})
