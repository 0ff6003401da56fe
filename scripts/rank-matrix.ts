/**
 * Trains the same small model on 1 to 4 ranks under each strategy, by the real launcher, then saves at 4 ranks and resumes at 3, 1 and 2, again under
 * each strategy: the metrics of every step and the gathered weights must be the same bytes every time.
 *
 *   node scripts/rank-matrix.ts [--steps 50]
 *
 * Prints a line a run, then one line of JSON; exit 1 when one differs. Needs mpirun. Linux only.
 */
import { rmSync } from "node:fs"
import { parseArgs } from "node:util"
import {
  checkpointsOf,
  mpi,
  onRanks,
  ranksOf,
  resultOf,
  run,
  startRun,
  steps,
  strategies,
  temporary,
  whileRunning
} from "../test/fixtures/ranks/rank-runs.ts"

const { values: options } = parseArgs({ options: { steps: { type: "string", default: "50" } } })
if (!mpi) throw new Error("no mpirun here. Next: apt install openmpi-bin libopenmpi-dev, then npm run build:native")

const began = performance.now()
let [runsMade, wrong] = [0, 0]

/** The bytes that a finished run left, in short. */
const bytesOf = (folder: string): string => {
  const { metrics, weights } = resultOf(folder)
  return `metrics ${metrics.slice(0, 16)} weights ${weights.slice(0, 16)}`
}

const say = (what: string, bytes: string, expected: string): void => {
  runsMade++
  if (bytes !== expected) wrong++
  console.log(`${what.padEnd(34)} ${bytes} ${bytes === expected ? "identical" : "DIFFERENT"}`)
}

const undisturbed = async (ranks: number, strategy: (typeof strategies)[number], count: number): Promise<string> => {
  const runs = temporary()
  const { code, output } = await run(runs, { ...onRanks(ranks, strategy), ...steps(count) })
  if (code !== 0) return `exit ${code}: ${output}; kept: ${runs}`
  const bytes = bytesOf(runs)
  rmSync(runs, { recursive: true })
  return bytes
}

/** Ranks of each leg; all but the last are preempted by a SIGTERM to one of the ranks once they have saved. */
const resumed = async (legs: ReadonlyArray<number>, strategy: (typeof strategies)[number], count: number) => {
  const runs = temporary()
  for (const [leg, ranks] of legs.entries()) {
    const before = checkpointsOf(runs).at(-1)
    const running = startRun(runs, { ...onRanks(ranks, strategy), ...steps(count) })
    const last = leg + 1 === legs.length
    if (!last) {
      await whileRunning(running, () => (checkpointsOf(runs).at(-1) === before ? undefined : true))
      const victim = ranksOf(running).at(-1)?.pid
      if (victim === undefined) running.child.kill("SIGTERM")
      else process.kill(victim, "SIGTERM")
    }
    const { code, output } = await running.finished
    if (code !== (last ? 0 : 75)) return `exit ${code} on ${ranks} ranks: ${output}; kept: ${runs}`
  }
  const bytes = bytesOf(runs)
  rmSync(runs, { recursive: true })
  return bytes
}

const count = Number(options.steps)
const expected = await undisturbed(1, "none", count)
console.log(`${`1 rank, ${count} steps`.padEnd(34)} ${expected}`)
for (const strategy of strategies)
  for (const ranks of [1, 2, 3, 4])
    if (strategy !== "hsdp" || ranks % 2 === 0)
      say(
        `${ranks === 1 ? "1 rank" : `${ranks} ranks`}, ${strategy}`,
        await undisturbed(ranks, strategy, count),
        expected
      )
const longer = await undisturbed(1, "none", 4 * count)
console.log(`${`1 rank, ${4 * count} steps`.padEnd(34)} ${longer}`)
for (const strategy of strategies)
  say(`4, then 3, 1, 2 ranks, ${strategy}`, await resumed([4, 3, 1, 2], strategy, 4 * count), longer)
console.log(JSON.stringify({ runs: runsMade, wrong, seconds: Math.round((performance.now() - began) / 1000) }))
process.exit(wrong === 0 ? 0 : 1)
