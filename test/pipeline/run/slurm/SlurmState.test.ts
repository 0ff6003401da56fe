/** Every state that Slurm has words for, as the project's failures; the queue here is a table. */
import { assert, describe, it } from "@effect/vitest"
import type { WorkerEvent } from "../../../../src/pipeline/run/Executor.ts"
import {
  describeState,
  type Ended,
  hasEnded,
  type JobState,
  stateName,
  verdictOf
} from "../../../../src/pipeline/run/slurm/SlurmState.ts"

const job = (state: string, more: Partial<JobState> = {}): JobState => ({
  id: "12",
  task: null,
  state,
  reason: "None",
  nodes: "node7",
  ...more
})
const verdict = (ended: Partial<Ended>) =>
  verdictOf({ job: undefined, word: undefined, record: undefined, timeoutIsLimit: false, ...ended })
/** "failure class: message" or the verdict's name. */
const said = (ended: Partial<Ended>): string => {
  const found = verdict(ended)
  if (found._tag !== "Failure") return found._tag
  const { error } = found
  return error._tag === "StageError" ? `${error.failure}: ${error.message}` : `${error._tag}: ${error.message}`
}
const preempted: WorkerEvent = { _tag: "Preempted", message: "saved at step 3" }

describe("a Slurm job that has ended", () => {
  it("counts by its worker's own word, whatever Slurm calls its end", () => {
    const completed: WorkerEvent = { _tag: "Completed", facts: {} }
    assert.deepStrictEqual(verdict({ job: job("TIMEOUT"), word: completed }), { _tag: "Completed", word: completed })
    const failed: WorkerEvent = { _tag: "Failed", failure: "diverged", message: "loss is nan", next: "lower lr" }
    assert.strictEqual(said({ job: job("FAILED"), word: failed }), "diverged: loss is nan")
    assert.strictEqual(said({ job: job("FAILED"), word: { ...failed, failure: "odd" } }), "internal: loss is nan")
    assert.match(said({ word: { _tag: "Shared", done: 1, total: 3, unit: "parts" } }), /ShareDone: 1 of 3 parts/u)
  })

  it("that saved when its time was nearly over has timed out only where the time was the stage's own", () => {
    const record = { code: 75, notice: "time", restart: 0 } as const
    const ended = { job: job("FAILED", { exit: "75:0" }), word: preempted, record }
    assert.strictEqual(said({ ...ended, timeoutIsLimit: true }), "Timeout")
    assert.strictEqual(said(ended), "Preempted: saved at step 3")
    assert.match(said({ ...ended, job: job("PREEMPTED") }), /^preempted: Slurm job 12 was preempted: saved at step 3/u)
  })

  it.each([
    ["OUT_OF_MEMORY", /^out-of-memory: Slurm job 12 took more memory/u],
    ["TIMEOUT", /^Timeout$/u],
    ["DEADLINE", /^Timeout$/u],
    ["NODE_FAIL", /^worker-lost: Slurm job 12 lost its node node7/u],
    ["BOOT_FAIL", /^worker-lost/u],
    ["LAUNCH_FAILED", /^worker-lost/u],
    ["PREEMPTED", /^preempted: .*before it could save/u],
    ["CANCELLED", /^Preempted: Slurm job 12 was cancelled/u],
    ["COMPLETED", /^Lost$/u],
    ["FAILED", /^Lost$/u],
    ["VANISHED", /^Lost$/u]
  ])("without a word: %s", (state, expected) => {
    assert.isTrue(hasEnded({ state }))
    assert.match(said({ job: job(state) }), expected)
  })

  it("tells which signal ended it", () => {
    const exit = (ended: Partial<Ended>) => {
      const found = verdict(ended)
      return found._tag === "Lost" ? found.exit : undefined
    }
    assert.deepStrictEqual(exit({ job: job("FAILED", { exit: "0:9" }) }), { code: null, signal: "SIGKILL" })
    assert.deepStrictEqual(exit({ job: job("FAILED", { exit: "1:0" }) }), { code: 1, signal: null })
    const record = { code: 137, notice: "none", restart: 0 } as const
    assert.deepStrictEqual(exit({ job: job("FAILED"), record }), { code: null, signal: "SIGKILL" })
    assert.deepStrictEqual(exit({ job: job("FAILED", { exit: "135:0" }) }), { code: null, signal: "SIGBUS" })
    assert.deepStrictEqual(exit({ record: { ...record, code: 3 } }), { code: 3, signal: null })
  })

  it("names a file system that is not shared, whether the job could say so or not even open its log", () => {
    assert.match(said({ job: job("FAILED", { exit: "66:0" }) }), /^invalid-input: .*does not see .*not shared/u)
    assert.match(said({ job: job("FAILED", { exit: "0:53" }) }), /^invalid-input: .*could not open its log/u)
  })
})

describe("a Slurm job that has not ended", () => {
  it("is never taken for one that has, unknown states included", () => {
    for (const state of [
      "PENDING",
      "CONFIGURING",
      "RUNNING",
      "COMPLETING",
      "SUSPENDED",
      "REQUEUED",
      "REQUEUE_HOLD",
      "NEW_IN_SLURM_30"
    ])
      assert.isFalse(hasEnded({ state }), state)
  })

  it("is described with what Slurm's reasons mean", () => {
    assert.strictEqual(describeState(job("RUNNING")), "running on node7")
    assert.strictEqual(describeState(job("PENDING", { reason: "Resources" })), "pending (Resources)")
    assert.strictEqual(describeState(job("PENDING")), "pending (just submitted)")
    assert.match(describeState(job("PENDING", { reason: "PartitionTimeLimit" })), /it will not start/u)
    assert.strictEqual(describeState(job("REQUEUE_HOLD", { reason: "JobHeldAdmin" })), "requeue hold (JobHeldAdmin)")
  })

  it("is read from squeue's words and sacct's", () => {
    assert.strictEqual(stateName("CANCELLED by 1000"), "CANCELLED")
    assert.strictEqual(stateName("COMPLETED+"), "COMPLETED")
    assert.strictEqual(stateName(" running "), "RUNNING")
  })
})
