/**
 * Kills a small run at random moments and proves that nothing is lost: after SIGKILL of the worker, or of the runner, the same command
 * completes, and the final weights are bit-identical to an undisturbed run's.
 *
 *   node scripts/kill-campaign.ts [--kills 20] [--seed 1] [--target worker|runner|both] [--pipeline FILE] [--weights base.final]
 *
 * Each kill starts from an empty runs folder. Prints one line per kill; exit 1 when a run does not complete or its weights differ.
 */
import { createHash } from "node:crypto"
import { existsSync, mkdtempSync, readFileSync, readdirSync, realpathSync, rmSync, statSync } from "node:fs"
import { spawn } from "node:child_process"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { setTimeout as sleep } from "node:timers/promises"
import { fileURLToPath } from "node:url"
import { parseArgs } from "node:util"

const { values: options } = parseArgs({
  options: {
    kills: { type: "string", default: "20" },
    seed: { type: "string", default: "1" },
    target: { type: "string", default: "both" },
    pipeline: { type: "string", default: "test/fixtures/small/pipeline.yaml" }
  }
})

const root = fileURLToPath(new URL("..", import.meta.url))
const command = [join(root, "bin/tinyllama.js"), "run", join(root, options.pipeline), "--json"]

/** A small generator (mulberry32), so that a campaign can be repeated by its seed. */
const randomFrom = (seed: number) => () => {
  seed = (seed + 0x6d2b79f5) | 0
  let mixed = Math.imul(seed ^ (seed >>> 15), 1 | seed)
  mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
  return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296
}

interface Finished {
  readonly code: number | null
  readonly seconds: number
  readonly output: string
}

const start = (runs: string) => {
  const child = spawn(process.execPath, [...command, "--runs", runs], { cwd: root, stdio: ["ignore", "pipe", "pipe"] })
  let output = ""
  child.stdout.on("data", (chunk) => (output += chunk))
  child.stderr.on("data", (chunk) => (output += chunk))
  const begun = performance.now()
  const finished = new Promise<Finished>((resolve) => {
    child.on("close", (code) => resolve({ code, seconds: (performance.now() - begun) / 1000, output }))
  })
  return { child, finished }
}

/** Process ids of the direct children, from Linux's /proc. */
const childrenOf = (pid: number): ReadonlyArray<number> => {
  try {
    return readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8").split(" ").filter(Boolean).map(Number)
  } catch {
    return []
  }
}

/** sha256 over all weight files that the finished run's stages show, by stage and name. */
const weightsDigest = (runs: string): string => {
  const stages = join(realpathSync(join(runs, "latest")), "stages")
  const hash = createHash("sha256")
  for (const file of filesBelow(stages).filter(
    (path) => /\.(safetensors|gguf)$/u.test(path) && path.includes("/out/")
  )) {
    hash.update(file.slice(stages.length)).update(createHash("sha256").update(readFileSync(file)).digest())
  }
  return hash.digest("hex")
}

const filesBelow = (folder: string): ReadonlyArray<string> =>
  readdirSync(folder)
    .sort()
    .flatMap((name) => {
      const path = join(folder, name)
      return statSync(path).isDirectory() ? filesBelow(path) : [path]
    })

const temporary = (): string => mkdtempSync(join(tmpdir(), "tinyllama-kill-"))

const undisturbed = async (): Promise<{ readonly digest: string; readonly seconds: number }> => {
  const runs = temporary()
  const { code, seconds, output } = await start(runs).finished
  if (code !== 0) throw new Error(`the undisturbed run failed with exit code ${code}:\n${output}`)
  const digest = weightsDigest(runs)
  rmSync(runs, { recursive: true })
  return { digest, seconds }
}

const disturb = async (
  target: "worker" | "runner",
  moment: number
): Promise<{ readonly runs: string; readonly hit: boolean; readonly last: Finished }> => {
  const runs = temporary()
  const { child, finished } = start(runs)
  await Promise.race([sleep(moment * 1000), finished])
  let hit = false
  while (child.exitCode === null && child.signalCode === null && !hit) {
    const victim = target === "runner" ? child.pid : childrenOf(child.pid ?? 0)[0]
    if (victim !== undefined) {
      try {
        process.kill(victim, "SIGKILL")
        hit = true
      } catch {
        hit = false // it ended by itself between the look and the kill
      }
    }
    if (!hit) await sleep(5)
  }
  await finished
  return { runs, hit, last: await start(runs).finished }
}

const expected = await undisturbed()
console.log(`undisturbed: ${expected.seconds.toFixed(1)} s, weights ${expected.digest.slice(0, 16)}`)

let failures = 0
const random = randomFrom(Number(options.seed))
const targets =
  options.target === "both"
    ? (["worker", "runner"] as const)
    : ([options.target === "runner" ? "runner" : "worker"] as const)
for (const target of targets) {
  for (let kill = 1; kill <= Number(options.kills); kill++) {
    const moment = random() * expected.seconds * 0.95
    const { hit, last, runs } = await disturb(target, moment)
    const digest = last.code === 0 && existsSync(join(runs, "latest")) ? weightsDigest(runs) : "none"
    const good = last.code === 0 && digest === expected.digest
    if (!good) failures += 1
    console.log(
      `${target} ${String(kill).padStart(2)}: SIGKILL at ${moment.toFixed(2)} s${hit ? "" : " (had ended)"}, ` +
        `then exit ${last.code} in ${last.seconds.toFixed(1)} s, weights ${digest.slice(0, 16)} ${good ? "identical" : "DIFFERENT"}`
    )
    if (!good) console.log(last.output.split("\n").slice(-15).join("\n"), `\nkept: ${runs}`)
    else rmSync(runs, { recursive: true })
  }
}
console.log(
  `${failures === 0 ? "all identical" : `${failures} failed`}: ${Number(options.kills) * targets.length} kills`
)
process.exit(failures === 0 ? 0 : 1)
