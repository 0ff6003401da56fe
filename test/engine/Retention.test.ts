import { assert, describe, it } from "@effect/vitest"
import { isScheduled, retainedSteps, type RetentionPlan } from "../../src/engine/Retention.ts"
import {
  agreedSteps,
  branchStep,
  decayStart,
  learningRateAt,
  type LearningRateSchedule
} from "../../src/engine/Schedule.ts"

const schedule = (changed: Partial<LearningRateSchedule> = {}): LearningRateSchedule => ({
  kind: "cosine",
  peak: 1e-2,
  minimum: 1e-3,
  warmupSteps: 3,
  totalSteps: 20,
  decayFraction: 0.25,
  ...changed
})
const plan = (changed: Partial<RetentionPlan> = {}, kind: LearningRateSchedule["kind"] = "cosine"): RetentionPlan => {
  const totalSteps = changed.totalSteps ?? 20
  return { totalSteps, schedule: schedule({ kind, totalSteps }), saveEvery: 6, validateEvery: 4, keep: 2, ...changed }
}
/** Losses after the steps that are named. */
const losses = (values: Readonly<Record<number, number>>) =>
  Object.entries(values).map(([step, loss]) => ({ step: Number(step), loss }))

describe("retainedSteps", () => {
  it("the newest scheduled ones and the best; the loss before the first step is none of a checkpoint", () => {
    assert.deepStrictEqual(retainedSteps(plan(), 20, losses({ 0: 1, 4: 3, 8: 2, 12: 4, 20: 5 })), [8, 18, 20])
    assert.deepStrictEqual(retainedSteps(plan(), 13, losses({ 0: 9, 4: 3, 8: 3, 12: 4 })), [4, 6, 12])
    assert.deepStrictEqual(retainedSteps(plan({ saveEvery: 0 }), 20, []), [20])
    assert.deepStrictEqual(retainedSteps(plan({ saveEvery: 5, keep: 9 }), 20, []), [5, 10, 15, 20])
    assert.deepStrictEqual(retainedSteps(plan(), 0, losses({ 0: 1 })), [])
  })

  it("milestones: the first step at or past each multiple of so many tokens", () => {
    const every = (tokens: number, step: number, perStep = 64) =>
      retainedSteps(plan({ saveEvery: 0, milestones: { tokens, perStep } }), step, []).filter((kept) => kept < 20)
    assert.deepStrictEqual(every(200, 20), [4, 7, 10, 13, 16, 19])
    assert.deepStrictEqual(every(200, 12), [4, 7, 10])
    assert.deepStrictEqual(every(640, 20), [10])
    assert.deepStrictEqual(every(640, 9), [])
    // Fewer than a step's: every step, and no more than these.
    assert.deepStrictEqual(every(1, 5), [1, 2, 3, 4, 5])
    const milestones = { tokens: 1e9, perStep: 2_097_152 }
    for (const step of [476, 477, 478, 1_430_000])
      assert.strictEqual(
        isScheduled(plan({ saveEvery: 0, totalSteps: 2_000_000, milestones }), step),
        retainedSteps(plan({ saveEvery: 0, totalSteps: 2_000_000, milestones }), step, []).includes(step)
      )
    // A multiple's are among them: a run with it is a continuation.
    assert.includeMembers([...every(200, 20)], [...every(600, 20)])
  })

  it("wsd keeps the decay's start, and the best that a longer run has too, besides", () => {
    const measured = losses({ 0: 9, 4: 3, 8: 4, 16: 2, 20: 1 })
    assert.deepStrictEqual(retainedSteps(plan({}, "wsd"), 20, measured), [4, 15, 18, 20])
    assert.deepStrictEqual(retainedSteps(plan({ saveEvery: 0 }, "wsd"), 14, losses({ 4: 3 })), [4])
  })

  it("constant keeps the best of those validations that are due in a longer run", () => {
    const measured = losses({ 0: 9, 4: 5, 8: 4, 12: 6, 18: 1 })
    assert.deepStrictEqual(retainedSteps(plan({ totalSteps: 18 }, "constant"), 18, measured), [8, 12, 18])
    assert.deepStrictEqual(retainedSteps(plan({ totalSteps: 18 }, "cosine"), 18, measured), [12, 18])
  })

  it("what a longer run may still need of the steps before is what the shorter one kept", () => {
    for (const kind of ["constant", "wsd"] as const)
      for (const keep of [1, 2, 3, 5])
        for (const saveEvery of [0, 1, 3, 7])
          for (let total = 1; total < 24; total++) {
            const short = plan({ totalSteps: total, keep, saveEvery }, kind)
            // Any losses will do; these rise and fall.
            const loss = (step: number) => ({ step, loss: Math.abs(Math.sin(step * 1.7)) })
            const due = (last: number, end: number) =>
              Array.from({ length: last + 1 }, (_, step) => step)
                .filter((step) => step % 4 === 0 || step === end)
                .map(loss)
            const kept = retainedSteps(short, total, due(total, total))
            const from = branchStep(short.schedule)
            assert.include(kept, from)
            for (let longer = total + 1; longer < 40; longer++) {
              const next = plan({ totalSteps: longer, keep, saveEvery }, kind)
              const needed = retainedSteps(next, longer, due(from, longer)).filter((step) => step < from)
              assert.includeMembers([...kept], [...needed], `${kind} ${keep} ${saveEvery}: ${total} → ${longer}`)
            }
          }
  })
})

describe("agreedSteps", () => {
  it("never promises more than there is", () => {
    const all = (["cosine", "linear", "constant", "wsd"] as const).flatMap((kind) =>
      [0, 3, 6].flatMap((warmupSteps) =>
        [12, 20, 31].flatMap((totalSteps) =>
          [0.1, 0.5].flatMap((decayFraction) =>
            [0, 1e-3].map((minimum) => schedule({ kind, warmupSteps, totalSteps, decayFraction, minimum }))
          )
        )
      )
    )
    for (const a of all)
      for (const b of all) {
        const agreed = Math.min(agreedSteps(a, b), a.totalSteps, b.totalSteps)
        for (let step = 1; step <= agreed; step++) assert.strictEqual(learningRateAt(a, step), learningRateAt(b, step))
      }
  })

  it("more steps: all of a constant run, a wsd run's up to its decay, a cosine's warmup", () => {
    const agreed = (kind: LearningRateSchedule["kind"]) =>
      agreedSteps(schedule({ kind }), schedule({ kind, totalSteps: 40 }))
    assert.strictEqual(agreed("constant"), Infinity)
    assert.strictEqual(agreed("wsd"), 15)
    assert.strictEqual(decayStart(schedule({ kind: "wsd" })), 15)
    assert.strictEqual(agreed("cosine"), 3)
    assert.strictEqual(agreedSteps(schedule(), schedule()), Infinity)
    assert.strictEqual(agreedSteps(schedule(), schedule({ peak: 1 })), 0)
  })
})
