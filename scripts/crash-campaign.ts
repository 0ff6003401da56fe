/**
 * Kills or fails a small run at every one of its file-system calls in turn, with real processes, and proves that nothing is lost: the same
 * command completes, the store holds byte for byte what an undisturbed run gives, and nothing is left to clean up by hand.
 *
 *   node scripts/crash-campaign.ts [--effects kill,ENOSPC,EIO,EIO-read,EROFS] [--every 1] [--jobs 2] [--from 1]
 *
 * `--every 10` tries each tenth call. Prints a table of calls and outcomes, then one line of JSON; exit 1 when anything was wrong. Linux only.
 */
import { parseArgs } from "node:util"
import { reference, type Reference, tryPoint, type Verdict } from "../test/pipeline/fixtures/crash-point.ts"
import type { RealFault } from "../test/pipeline/fixtures/faults.ts"

const { values: options } = parseArgs({
  options: {
    effects: { type: "string", default: "kill,ENOSPC,EIO,EIO-read,EROFS" },
    every: { type: "string", default: "1" },
    from: { type: "string", default: "1" },
    jobs: { type: "string", default: "2" }
  }
})

const faults: Readonly<Record<string, Omit<RealFault, "at"> & { readonly every: number }>> = {
  kill: { effect: "tear", calls: "changes", every: 1 },
  ENOSPC: { effect: "ENOSPC", calls: "changes", every: 1 },
  EIO: { effect: "EIO", calls: "changes", every: 1 },
  "EIO-read": { effect: "EIO", calls: "reads", every: 4 },
  EROFS: { effect: "EROFS", calls: "changes", lasting: true, every: 10 }
}

interface Tried extends Verdict {
  readonly effect: string
  readonly at: number
}

const campaign = async (name: string, expected: Reference): Promise<ReadonlyArray<Tried>> => {
  const { every, ...fault } = faults[name] ?? { effect: "kill", calls: "changes", every: 1 }
  const step = every * Number(options.every)
  const first = Number(options.from)
  const points = Array.from(
    { length: Math.max(0, Math.ceil((expected.trace.length - first + 1) / step)) },
    (_, index) => first + index * step
  )
  const tried: Array<Tried> = []
  const worker = async (): Promise<void> => {
    for (let at = points.shift(); at !== undefined; at = points.shift()) {
      const verdict = await tryPoint(expected, { ...fault, at })
      tried.push({ ...verdict, effect: name, at })
      for (const said of verdict.faults) console.log(`${name} at ${at}, ${verdict.point ?? "not reached"}: ${said}`)
    }
  }
  await Promise.all(Array.from({ length: Number(options.jobs) }, worker))
  return tried
}

const tableOf = (tried: ReadonlyArray<Tried>): string => {
  const columns = Array.from(new Set(tried.map(({ effect, ended }) => `${effect}: ${ended}`))).sort()
  const rows = Map.groupBy(tried, ({ point }) => point?.split(" ")[0] ?? "(not reached)")
  const lines = Array.from(rows, ([call, all]) => {
    const cells = columns.map((column) => all.filter(({ effect, ended }) => `${effect}: ${ended}` === column).length)
    return [call, ...cells.map((count) => (count === 0 ? "" : String(count)))]
  })
  const table = [["call", ...columns], ...lines.sort(([a = ""], [b = ""]) => (a < b ? -1 : 1))]
  const widths = columns.map((_, index) => Math.max(...table.map((row) => row[index + 1]?.length ?? 0)))
  return table
    .map(([call = "", ...cells]) => [call.padEnd(14), ...cells.map((cell, index) => cell.padStart(widths[index] ?? 0))])
    .map((row) => row.join("  "))
    .join("\n")
}

const began = performance.now()
const references = { changes: await reference("changes"), reads: await reference("reads") }
console.log(
  `undisturbed: ${references.changes.trace.length} calls that change something, ${references.reads.trace.length} that read`
)
const tried: Array<Tried> = []
for (const name of options.effects.split(",")) {
  const fault = faults[name]
  if (fault === undefined) throw new Error(`--effects ${name}: there are ${Object.keys(faults).join(", ")}`)
  tried.push(...(await campaign(name, references[fault.calls])))
}
console.log(tableOf(tried))
const wrong = tried.filter(({ faults: said }) => said.length > 0).length
const reached = tried.filter(({ point }) => point !== undefined)
console.log(
  JSON.stringify({
    tried: tried.length,
    reached: Object.fromEntries(
      Array.from(
        Map.groupBy(reached, ({ effect }) => effect),
        ([effect, all]) => [effect, all.length]
      )
    ),
    killedAt: new Set(reached.filter(({ ended }) => ended === "killed").map(({ at }) => at)).size,
    names: new Set(reached.map(({ point }) => point)).size,
    mostReruns: Math.max(...tried.map(({ reruns }) => reruns)),
    wrong,
    seconds: Math.round((performance.now() - began) / 1000)
  })
)
process.exit(wrong === 0 ? 0 : 1)
