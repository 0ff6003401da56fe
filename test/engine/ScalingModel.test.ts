import { assert, describe, it } from "@effect/vitest"
import { forecastScaling, overlapPenalty, type ScalingInputs, usualLinks } from "../../src/engine/ScalingModel.ts"
import { embeddingParameters, parameterCount, presets } from "../../src/model/Architecture.ts"

const shape = presets["tinyllama-1.1b"]
const inputs = (change: Partial<ScalingInputs>): ScalingInputs => ({
  strategy: "zero2",
  shardSize: 8,
  gpus: 8,
  accumulate: 1,
  microBatchSeconds: 0.195,
  parameters: parameterCount(shape),
  embeddingParameters: embeddingParameters(shape),
  weightBytes: 2,
  gradientBytes: 4,
  penalty: 0.1,
  links: usualLinks,
  ...change
})
const near = (value: number, wanted: number, tolerance: number) =>
  assert.isBelow(Math.abs(value - wanted), tolerance, `${value} is not ${wanted}`)

describe("the model of scaling", () => {
  it("takes the milliseconds of rings: bytes (n - 1) / n over the bandwidth", () => {
    const node = forecastScaling(inputs({}))
    near(1e3 * node.reduceSeconds, 10.4, 0.05)
    near(1e3 * node.gatherSeconds, 5.2, 0.05)
    const flat = forecastScaling(inputs({ gpus: 16 }))
    near(1e3 * flat.reduceSeconds, 91.7, 0.1)
    near(1e3 * flat.gatherSeconds, 45.8, 0.1)
    const hybrid = forecastScaling(inputs({ gpus: 64, strategy: "hsdp" }))
    near(1e3 * hybrid.reduceSeconds, 10.4 + 21.4, 0.1)
    near(1e3 * hybrid.gatherSeconds, 5.2, 0.05)
  })

  it("gives efficiencies of one node, of a flat network, and of copies in nodes", () => {
    near(forecastScaling(inputs({})).efficiency, 0.986, 0.003)
    near(forecastScaling(inputs({ gpus: 16 })).efficiency, 0.89, 0.01)
    near(forecastScaling(inputs({ gpus: 16, strategy: "hsdp" })).efficiency, 0.975, 0.005)
    near(forecastScaling(inputs({ gpus: 16, accumulate: 8 })).efficiency, 0.985, 0.003)
  })

  it("shows what does not fit beside compute", () => {
    const slow = forecastScaling(inputs({ gpus: 16, microBatchSeconds: 0.03 }))
    assert.isAbove(slow.exposedSeconds, 0.0917 - 0.02 + 0.0458 - 0.01)
    assert.isBelow(slow.efficiency, 0.25)
  })

  it("is 1 for one GPU, and falls with a larger penalty and more gathers", () => {
    for (const strategy of ["none", "zero2", "fsdp"] as const)
      assert.strictEqual(forecastScaling(inputs({ gpus: 1, strategy })).efficiency, 1)
    assert.isBelow(forecastScaling(inputs({ penalty: 0.3 })).efficiency, forecastScaling(inputs({})).efficiency)
    const of = (strategy: "zero2" | "fsdp") => forecastScaling(inputs({ strategy, accumulate: 8 })).efficiency
    assert.isBelow(of("fsdp"), of("zero2"))
    const shared = forecastScaling(inputs({ accumulate: 8, shareGradients: true })).efficiency
    assert.isBelow(shared, of("zero2"))
  })

  it("takes the penalty from a micro-batch alone and beside contention", () => {
    near(overlapPenalty(200, 250), 0.2, 1e-12)
    assert.strictEqual(overlapPenalty(200, 199), 0)
  })
})
