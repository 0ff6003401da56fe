/** Delays between tries, and retries on virtual time with an executor that never starts a process. */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import { Duration, Effect, Fiber, Layer, Ref } from "effect"
import { TestClock } from "effect/testing"
import { ArtifactStore } from "../../../src/artifacts/ArtifactStore.ts"
import { KeyLedger } from "../../../src/pipeline/plan/KeyLedger.ts"
import { Executor } from "../../../src/pipeline/run/Executor.ts"
import { loadPipeline } from "../../../src/pipeline/file/Pipeline.ts"
import { retryDelay } from "../../../src/pipeline/run/Retry.ts"
import { RunEvents } from "../../../src/pipeline/runs/RunEvent.ts"
import { run } from "../../../src/pipeline/run/Runner.ts"
import { Runs } from "../../../src/pipeline/runs/Runs.ts"
import { defaultRetry } from "../../../src/pipeline/file/StageBlock.ts"
import { type FailureClass, StageError } from "../../../src/pipeline/StageType.ts"
import { outcomes, workplace } from "../fixtures/harness.ts"
import { testRegistry } from "../fixtures/stages.ts"

const exact = { ...defaultRetry, jitter: false, times: 6, base: Duration.seconds(10), max: Duration.minutes(1) }

describe("retryDelay", () => {
  const seconds = (policy: typeof exact, failure: FailureClass, failures: number) =>
    Effect.map(retryDelay(policy, failure, failures), (delay) => delay && Duration.toSeconds(delay))

  it.effect("doubles up to its maximum, then ends", () =>
    Effect.gen(function* () {
      const delays = yield* Effect.forEach([1, 2, 3, 4, 5, 6, 7], (failures) => seconds(exact, "network", failures))
      assert.deepStrictEqual(delays, [10, 20, 40, 60, 60, 60, undefined])
      const constant = { ...exact, backoff: "constant" as const }
      assert.strictEqual(yield* seconds(constant, "worker-lost", 5), 10)
    })
  )

  it.effect("is for the named classes only", () =>
    Effect.gen(function* () {
      for (const failure of ["corrupt", "diverged", "disk-full", "out-of-memory", "timeout"] as const) {
        assert.isUndefined(yield* seconds(exact, failure, 1))
      }
    })
  )

  it.effect("jitter stays within a fifth", () =>
    Effect.gen(function* () {
      for (let n = 0; n < 50; n++) {
        const delay = (yield* seconds({ ...exact, jitter: true }, "network", 1)) ?? 0
        assert.isTrue(delay >= 8 && delay <= 12, String(delay))
      }
    })
  )
})

describe("retries of a stage", () => {
  /** Fails the first `failures` attempts with `failure`. */
  const flaky = (failures: number, failure: FailureClass) =>
    Effect.gen(function* () {
      const tries = yield* Ref.make(0)
      const executor = Executor.of({
        execute: () =>
          Effect.flatMap(
            Ref.updateAndGet(tries, (n) => n + 1),
            (n) =>
              Effect.fail(
                new StageError({ failure: n <= failures ? failure : "corrupt", message: `try ${n}`, next: "" })
              )
          )
      })
      return { tries, executor }
    })

  const services = (root: string, executor: Executor["Service"]) =>
    Layer.mergeAll(
      Runs.layer(root),
      KeyLedger.layer.pipe(Layer.provideMerge(ArtifactStore.layer(`${root}/store`))),
      RunEvents.layer,
      Layer.succeed(Executor, executor)
    ).pipe(Layer.provideMerge(Layer.merge(NodeServices.layer, testRegistry)))

  it.effect("wait on virtual time: the network comes back after three failures", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      const file = place.write(
        "version: 1\nname: t\nstages:\n  a: { uses: write, with: { text: x }, retry: { times: 5, base: 1h, max: 10h, jitter: false } }\n"
      )
      const { executor, tries } = yield* flaky(3, "network")
      const fiber = yield* Effect.flatMap(loadPipeline({ file }), (pipeline) => run(pipeline)).pipe(
        Effect.provide(services(place.runs, executor)),
        Effect.forkChild
      )
      // Real file operations lie between the virtual waits, so the clock is moved until the run is over.
      while (fiber.pollUnsafe() === undefined) {
        yield* TestClock.adjust("30 minutes")
        yield* Effect.promise(() => new Promise((resolve) => setImmediate(resolve)))
      }
      const summary = yield* Fiber.join(fiber)
      assert.strictEqual(yield* Ref.get(tries), 4)
      assert.deepStrictEqual(outcomes(summary), { a: "failed" })
      assert.strictEqual(summary.stages[0]?.failure?.failure, "corrupt")
      assert.strictEqual(summary.stages[0]?.attempts, 4)
    }).pipe(Effect.scoped)
  )

  it.effect("a class that is not named ends at once", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      const file = place.write("version: 1\nname: t\nstages:\n  a: { uses: write, with: { text: x } }\n")
      const { executor, tries } = yield* flaky(9, "diverged")
      const summary = yield* Effect.flatMap(loadPipeline({ file }), (pipeline) => run(pipeline)).pipe(
        Effect.provide(services(place.runs, executor))
      )
      assert.strictEqual(yield* Ref.get(tries), 1)
      assert.strictEqual(summary.stages[0]?.failure?.failure, "diverged")
    }).pipe(Effect.scoped)
  )
})
