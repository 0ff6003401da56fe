import { assert, describe, it } from "@effect/vitest"
import type { Resources } from "../../../src/pipeline/file/ResolvedPipeline.ts"
import { afterFailed, fullStrength, withRanks } from "../../../src/pipeline/run/Elastic.ts"
import type { FailureClass } from "../../../src/pipeline/StageType.ts"

const resources: Resources = { cpus: 8, gpus: 4, ranks: 4, elastic: { min: 2, max: 4 } }

/** Ranks of the attempts that follow these failures. */
const ranksAfter = (asked: Resources, failures: ReadonlyArray<FailureClass>): ReadonlyArray<number> => {
  let strength = fullStrength(asked)
  return failures.map((failure) => (strength = afterFailed(asked, strength, failure)).ranks)
}
const lost = (times: number): ReadonlyArray<FailureClass> => Array.from({ length: times }, () => "worker-lost")

describe("ranks of the next attempt", () => {
  it("are as many once more, then one less, never below the fewest", () => {
    assert.deepStrictEqual(ranksAfter(resources, lost(6)), [4, 3, 3, 2, 2, 2])
  })

  it("stay as many after other failures, and where the stage is not elastic", () => {
    assert.deepStrictEqual(
      ranksAfter(resources, ["worker-lost", "network", "worker-lost", "worker-lost"]),
      [4, 4, 4, 3]
    )
    assert.deepStrictEqual(ranksAfter({ cpus: 8, gpus: 0, ranks: 4 }, lost(4)), [4, 4, 4, 4])
  })

  it("go by whole machines where the stage names them", () => {
    const machines: Resources = { cpus: 8, gpus: 8, ranks: 8, nodes: 4, elastic: { min: 3, max: 8 } }
    assert.deepStrictEqual(ranksAfter(machines, lost(5)), [8, 6, 6, 4, 4])
    assert.deepInclude(withRanks(machines, 6), { ranks: 6, gpus: 6, nodes: 3 })
  })

  it("take GPUs in proportion", () => {
    assert.deepInclude(withRanks(resources, 3), { ranks: 3, gpus: 3 })
    assert.deepInclude(withRanks({ ...resources, gpus: 1 }, 2), { ranks: 2, gpus: 1 })
    assert.strictEqual(withRanks(resources, 4), resources)
  })
})
