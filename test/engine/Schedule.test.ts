import { assert, describe, it } from "@effect/vitest"
import { type LearningRateSchedule, learningRateAt } from "../../src/engine/Schedule.ts"

const near = (actual: number, expected: number) => assert.closeTo(actual, expected, 1e-12)
const base: LearningRateSchedule = {
  kind: "cosine",
  peak: 1e-3,
  minimum: 1e-4,
  warmupSteps: 4,
  totalSteps: 20,
  decayFraction: 0.2
}

describe("learningRateAt", () => {
  // The rates that a torch AdamW run with the same schedule was made with (test/oracle/train/*/trajectory.json; gqa-small).
  it("cosine equals the oracle's trajectory", () => {
    const rates = [
      0.00025, 0.0005, 0.00075, 0.001, 0.0009913533761814538, 0.000965745789630079, 0.0009241613255361454,
      0.0008681980515339464, 0.000800006604858821
    ]
    rates.forEach((rate, index) => near(learningRateAt(base, index + 1), rate))
  })

  it("cosine passes the mean of its ends half-way and ends at the minimum", () => {
    near(learningRateAt(base, 12), 5.5e-4)
    near(learningRateAt(base, 20), 1e-4)
    near(learningRateAt(base, 21), 1e-4)
  })

  it("TinyLlama's published schedule: 4e-4 to 4e-5 over 1,430,512 steps with 2,000 of warmup", () => {
    const tinyllama = { ...base, peak: 4e-4, minimum: 4e-5, warmupSteps: 2000, totalSteps: 1_430_512 }
    assert.closeTo(learningRateAt(tinyllama, 240_000), 3.759e-4, 5e-8)
    assert.closeTo(learningRateAt(tinyllama, 715_256), 2.204e-4, 5e-8)
    assert.closeTo(learningRateAt(tinyllama, 1_195_000), 6.36e-5, 5e-8)
  })

  it("linear falls along a line from the end of warmup", () => {
    const linear = { ...base, kind: "linear" } as const
    near(learningRateAt(linear, 2), 5e-4)
    near(learningRateAt(linear, 4), 1e-3)
    near(learningRateAt(linear, 8), 7.75e-4)
    near(learningRateAt(linear, 20), 1e-4)
  })

  it("constant stays at the peak after warmup, whatever the total", () => {
    const constant = { ...base, kind: "constant" } as const
    near(learningRateAt(constant, 1), 2.5e-4)
    near(learningRateAt(constant, 4), 1e-3)
    near(learningRateAt(constant, 20), 1e-3)
    near(learningRateAt({ ...constant, warmupSteps: 0 }, 1), 1e-3)
  })

  it("wsd is stable until the last fraction, then falls linearly to the minimum", () => {
    const wsd = { ...base, kind: "wsd" } as const
    near(learningRateAt(wsd, 5), 1e-3)
    near(learningRateAt(wsd, 16), 1e-3)
    near(learningRateAt(wsd, 18), 5.5e-4)
    near(learningRateAt(wsd, 20), 1e-4)
  })

  it("a warmup that never ends never divides by zero", () => {
    near(learningRateAt({ ...base, warmupSteps: 20 }, 20), 1e-3)
    near(learningRateAt({ ...base, warmupSteps: 40 }, 20), 5e-4)
  })
})
