/** stop_if: which readings end an attempt, and what becomes of the stage. */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import type { Diagnostic } from "../../../src/pipeline/file/Diagnostics.ts"
import { readJournal } from "../../../src/pipeline/runs/Journal.ts"
import { decodeStopRules, type Reading, stopFailure } from "../../../src/pipeline/file/StopRules.ts"
import { parseYaml, Source } from "../../../src/pipeline/file/YamlSource.ts"
import { outcomes, runFile, workplace } from "../fixtures/harness.ts"

const rules = (text: string) => {
  const report: Array<Diagnostic> = []
  const decoded = decodeStopRules(parseYaml(new Source("file", "p.yaml", text)).root, "stop_if", report)
  assert.deepStrictEqual(report, [])
  return decoded
}
const reading = (done: number, metrics: Reading["metrics"]): Reading => ({ done, total: 1000, unit: "tokens", metrics })

describe("stop rules", () => {
  it("hold for NaN, which arrives as null", () => {
    const stop = rules('["loss is nan", "loss > 10"]')
    assert.isUndefined(stopFailure(stop, reading(5, { loss: 3, step: 1 })))
    const failure = stopFailure(stop, reading(5, { loss: null, step: 1 }))
    assert.strictEqual(failure?.failure, "diverged")
    assert.strictEqual(
      failure?.message,
      'stopped by stop_if "loss is nan" (p.yaml:1:2): loss is nan at step 1, 5 of 1000 tokens'
    )
    assert.match(stopFailure(stop, reading(5, { loss: 12 }))?.message ?? "", /"loss > 10".*loss is 12 at 5 of 1000/u)
  })

  it("count from a point on: of the progress, or of a metric", () => {
    const tokens = rules('"loss > 10 after 100 tokens"')
    assert.isUndefined(stopFailure(tokens, reading(99, { loss: 11 })))
    assert.isDefined(stopFailure(tokens, reading(100, { loss: 11 })))
    // `steps` is how many there will be; step is where the attempt is.
    const steps = rules('"loss > 10 after 20 steps"')
    assert.isUndefined(stopFailure(steps, reading(500, { loss: 11, step: 19, steps: 400 })))
    assert.isDefined(stopFailure(steps, reading(500, { loss: 11, step: 20, steps: 400 })))
  })

  it("about what is not reported do not hold", () => {
    assert.isUndefined(stopFailure(rules('["los > 1", "loss > 1 after 5 epochs"]'), reading(9, { loss: 3 })))
  })

  it.live("end the attempt as diverged, once, with its work kept", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      const text = (rule: string) =>
        `version: 1\nname: t\nstages:\n  c: { uses: count, with: { steps: 60, step_ms: 50 }, stop_if: ["${rule}"], retry: { times: 3 } }\n`
      place.write(text("steps >= 5"))
      const summary = yield* runFile(place)
      assert.deepStrictEqual(outcomes(summary), { c: "failed" })
      const [stage] = summary.stages
      assert.strictEqual(stage?.attempts, 1)
      assert.strictEqual(stage?.failure?.failure, "diverged")
      assert.match(stage?.failure?.message ?? "", /stop_if "steps >= 5" \(.*:4:\d+\): steps is \d+ at \d+ of 60 steps/u)
      // A corrected rule: the stage goes on from where it stopped, and is done.
      place.write(text("steps > 100"))
      const again = yield* runFile(place)
      assert.deepStrictEqual(outcomes(again), { c: "done" })
      const events = yield* readJournal(`${again.folder}/events.jsonl`).pipe(Effect.provide(NodeServices.layer))
      assert.isTrue(events.some((event) => event._tag === "AttemptStarted" && event.resumes))
    }).pipe(Effect.scoped)
  )
})
