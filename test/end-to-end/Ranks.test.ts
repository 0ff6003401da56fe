/** Training on ranks by the real launcher: any number of them, under any strategy, leaves the same bytes, also when they change on the way. */
import { spawnSync } from "node:child_process"
import { rmSync } from "node:fs"
import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import {
  checkpointsOf,
  isThere,
  journalOf,
  mpi,
  named,
  onRanks,
  type Overrides,
  ranksOf,
  resultOf,
  run,
  startRun,
  steps,
  temporary,
  whileRunning
} from "../fixtures/ranks/rank-runs.ts"
import { root } from "./command-line.ts"

const live = mpi ? it.live : it.live.skip
const runsFolder = Effect.acquireRelease(Effect.sync(temporary), (folder) =>
  Effect.sync(() => rmSync(folder, { recursive: true, force: true }))
)

const completed = Effect.fnUntraced(function* (overrides: Overrides) {
  const runs = yield* runsFolder
  const { code, output } = yield* Effect.promise(() => run(runs, overrides))
  assert.strictEqual(code, 0, output)
  return resultOf(runs)
})

/** Runs until a checkpoint of this attempt is there, then asks one process of the work to stop. */
const preempt = Effect.fnUntraced(function* (runs: string, overrides: Overrides, rank: number) {
  const before = checkpointsOf(runs).at(-1)
  const running = startRun(runs, overrides)
  yield* Effect.promise(() => whileRunning(running, () => (checkpointsOf(runs).at(-1) === before ? undefined : true)))
  const victim = ranksOf(running).find((one) => one.rank === rank)
  if (victim === undefined) running.child.kill("SIGTERM")
  else process.kill(victim.pid, "SIGTERM")
  const { code, output } = yield* Effect.promise(() => running.finished)
  assert.strictEqual(code, 75, output)
  return /the checkpoint of step (\d+) of 200 is saved/u.exec(journalOf(runs))?.[1]
})

/** The rest are the business of `npm run test:ranks`. */
describe("training on ranks", () => {
  live(
    named("leaves the same metrics and weights on 1, 2, 3 and 4 of them, under each strategy"),
    () =>
      Effect.gen(function* () {
        const alone = yield* completed(onRanks(1, "none"))
        for (const [ranks, strategy] of [
          [2, "fsdp"],
          [3, "zero2"],
          [4, "hsdp"]
        ] as const)
          assert.deepStrictEqual(yield* completed(onRanks(ranks, strategy)), alone, `${ranks} ranks, ${strategy}`)
      }).pipe(Effect.scoped),
    120_000
  )

  live(
    named("saves on all when one is asked to stop, and goes on with 3, then 1, then 2 of them to the same bytes"),
    () =>
      Effect.gen(function* () {
        const undisturbed = yield* completed({ ...onRanks(1, "none"), ...steps(200) })
        const runs = yield* runsFolder
        const legs = [onRanks(4, "fsdp"), onRanks(3, "zero2"), onRanks(1, "none")]
        const stops = yield* Effect.forEach(legs, (overrides) => preempt(runs, { ...overrides, ...steps(200) }, 2))
        assert.strictEqual(new Set(stops.filter((step) => step !== undefined)).size, 3, stops.join(", "))
        const { code, output } = yield* Effect.promise(() => run(runs, { ...onRanks(2, "hsdp"), ...steps(200) }))
        assert.strictEqual(code, 0, output)
        assert.match(output, /goes on from the checkpoint of step \d+ of 200/u)
        assert.deepStrictEqual(resultOf(runs), undisturbed)
      }).pipe(Effect.scoped),
    120_000
  )

  live(
    named("goes on with fewer of them where two attempts lost one, though they do not divide the step: the same bytes"),
    () =>
      Effect.gen(function* () {
        // 8 micro-batches a step; so many steps that both ranks are killed before the end, on a busy machine too.
        const settings = { max_tokens: 128 * 300, batch_tokens: 128 }
        const alone = yield* completed({ ...onRanks(1, "none"), ...settings })
        const runs = yield* runsFolder
        const running = startRun(runs, { ...onRanks(4, "hsdp"), ...settings, "resources.elastic": "[3, 4]" })
        for (const attempt of [1, 2]) {
          const before = checkpointsOf(runs).at(-1)
          yield* Effect.promise(() =>
            whileRunning(running, () => (checkpointsOf(runs).at(-1) === before ? undefined : true))
          )
          const victim = ranksOf(running).at(-1)
          assert.isDefined(victim, `attempt ${attempt}`)
          process.kill(victim.pid, "SIGKILL")
          yield* Effect.promise(() => whileRunning(running, () => (isThere(victim.pid) ? undefined : true)))
        }
        const { code, output } = yield* Effect.promise(() => running.finished)
        assert.strictEqual(code, 0, output)
        assert.match(output, /goes on with 3 ranks instead of 4/u)
        assert.match(output, /3 of 4 ranks do the 8 micro-batches of a step; in its last round 1 of them has none/u)
        assert.match(output, /strategy fsdp instead of hsdp/u)
        assert.deepStrictEqual(resultOf(runs), alone)
      }).pipe(Effect.scoped),
    120_000
  )

  live(
    named("on two of them follows what transformers and torch's AdamW recorded"),
    () =>
      Effect.sync(() => {
        const args = ["scripts/oracle.ts", "test/oracle/train/gqa-small", "--ranks", "2", "--threads", "1"]
        const { status, stderr, stdout } = spawnSync(process.execPath, args, { cwd: root, encoding: "utf8" })
        assert.strictEqual(status, 0, stdout + stderr)
        assert.match(stdout, /2 ranks, zero2.*1 of 1 folders within the limits/su)
      }),
    60_000
  )
})
