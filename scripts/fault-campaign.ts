/**
 * Does to training on CPU ranks what happens on machines, and proves that nothing is lost: a rank, mpirun or the runner is killed, a rank is stopped, the
 * disk fills up, checkpoints are damaged, signals come twice, a Slurm job is requeued. After one fault, at times two, the same command on some number of
 * ranks must complete with the weights of the undisturbed run, byte for byte, leave no process behind, and nothing may hang longer than the watchdog.
 *
 *   node scripts/fault-campaign.ts [--runs 220] [--only kill-rank,flip-byte] [--seed 1] [--from 1] [--steps 200] [--watchdog 6] [--limit 180]
 *
 * A fault that came after the run had ended is not counted. Kinds take turns; a trial depends on the seed and its number alone: --from 57 --runs 1 repeats the 57th. Prints a line a trial, a table, and one line
 * of JSON; exit 1 when anything was wrong or hung. Linux, with mpirun.
 */
import { rmSync } from "node:fs"
import { parseArgs } from "node:util"
import { mpi, onRanks, resultOf, run, steps, temporary } from "../test/fixtures/ranks/rank-runs.ts"
import { kinds } from "./faults/kinds.ts"
import { mounted, smallDisk } from "./faults/SmallDisk.ts"
import { type Campaign, randomFrom, Trial } from "./faults/Trial.ts"

const { values: options } = parseArgs({
  options: {
    runs: { type: "string", default: "220" },
    only: { type: "string", default: Object.keys(kinds).join(",") },
    seed: { type: "string", default: "1" },
    from: { type: "string", default: "1" },
    steps: { type: "string", default: "200" },
    watchdog: { type: "string", default: "6" },
    limit: { type: "string", default: "180" }
  }
})

interface Tried {
  readonly kind: string
  readonly seconds: number
  readonly reruns: number
  /** Whether the fault met a run that was under way; else it does not count. */
  readonly hit: boolean
  readonly wrong: boolean
  readonly hung: boolean
}

const undisturbed = async (): Promise<{ readonly weights: string; readonly seconds: number }> => {
  const runs = temporary()
  const { code, output, seconds } = await run(runs, { ...onRanks(4, "fsdp"), ...steps(Number(options.steps)) })
  if (code !== 0) throw new Error(`the undisturbed run failed with exit code ${code}:\n${output}`)
  const { weights } = resultOf(runs)
  rmSync(runs, { recursive: true })
  return { weights, seconds }
}

const attempt = async (number: number, kind: string, campaign: Campaign, expected: string): Promise<Tried> => {
  const fault = kinds[kind]!
  const disk = fault.smallDisk === true ? smallDisk() : undefined
  const trial = new Trial(campaign, randomFrom(1000 * Number(options.seed) + number), disk?.runs ?? temporary())
  const began = performance.now()
  const faults = trial.random() < 0.3 ? 2 : 1
  for (let fault_ = 0; fault_ < faults && trial.last?.code !== 0 && !trial.hung; fault_++) await fault.disturb(trial)
  const reruns = await trial.rerun()
  await trial.checkNothingLeft()
  const weights = trial.last?.code === 0 ? resultOf(trial.runs).weights : "none"
  if (weights !== expected) trial.faults.push(`other weights than undisturbed: ${weights.slice(0, 16)}`)
  const seconds = (performance.now() - began) / 1000
  const verdict = trial.faults.length === 0 ? "identical" : "WRONG"
  console.log(
    `${String(number).padStart(3)} ${kind}: ${trial.deeds.join("; ")}; ${reruns} reruns, ${seconds.toFixed(1)} s, ${trial.hit ? verdict : `${verdict}, missed`}`
  )
  for (const said of trial.faults) console.log(`    ${said}`)
  if (trial.faults.length === 0) {
    trial.remove()
    disk?.release()
  } else console.log(`    kept: ${trial.runs}`)
  return { kind, seconds, reruns, hit: trial.hit, wrong: trial.faults.length > 0, hung: trial.hung }
}

const table = (tried: ReadonlyArray<Tried>): string =>
  Array.from(
    Map.groupBy(tried, ({ kind }) => kind),
    ([kind, all]) => {
      const count = (is: (one: Tried) => boolean) => String(all.filter(is).length).padStart(5)
      const longest = Math.max(...all.map(({ seconds }) => seconds))
        .toFixed(0)
        .padStart(7)
      return `${kind.padEnd(17)}${count(() => true)}${count(({ wrong }) => wrong)}${count(({ hung }) => hung)}${longest} s`
    }
  ).join("\n")

if (!mpi) throw new Error("no mpirun here. Next: apt install openmpi-bin libopenmpi-dev, then npm run build:native")
const chosen = options.only.split(",").filter((name) => {
  const kind = kinds[name]
  if (kind === undefined) throw new Error(`--only ${name}: there are ${Object.keys(kinds).join(", ")}`)
  if (kind.missing !== undefined) console.log(`${name} is left out: ${kind.missing}`)
  return kind.missing === undefined
})
if (!mounted) console.log("disk-full: no tmpfs can be mounted here, files are kept from growing instead")

const began = performance.now()
const { seconds, weights } = await undisturbed()
console.log(`undisturbed on 4 ranks: ${seconds.toFixed(1)} s, weights ${weights.slice(0, 16)}`)
const campaign: Campaign = {
  steps: Number(options.steps),
  seconds,
  watchdog: Number(options.watchdog),
  limit: Number(options.limit)
}
const tried: Array<Tried> = []
let missed = 0
for (let number = Number(options.from); tried.length < Number(options.runs); number++) {
  const kind = chosen[(number - 1) % chosen.length]!
  const one = await attempt(number, kind, campaign, weights)
  if (one.hit || one.wrong) tried.push(one)
  else missed++
}
console.log(`\n${"kind".padEnd(17)} runs wrong hung longest`)
console.log(table(tried))
const wrong = tried.filter((one) => one.wrong).length
const hung = tried.filter((one) => one.hung).length
console.log(
  JSON.stringify({
    runs: tried.length,
    wrong,
    hung,
    missed,
    byKind: Object.fromEntries(
      Array.from(
        Map.groupBy(tried, ({ kind }) => kind),
        ([kind, all]) => [kind, all.length]
      )
    ),
    seconds: Math.round((performance.now() - began) / 1000)
  })
)
process.exit(wrong + hung === 0 ? 0 : 1)
