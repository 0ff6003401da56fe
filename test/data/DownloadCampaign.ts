/** A download from a hostile server by a process that is killed again and again, at random places of the transfer; then what it cost. */
import { spawn } from "node:child_process"
import { createHash } from "node:crypto"
import { mkdtempSync, readFileSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { type HostileOptions, noise, randomFrom, serveHostile } from "./HostileServer.ts"

export interface CampaignOptions extends Pick<HostileOptions, "seed" | "rate" | "damage"> {
  readonly kills: number
  readonly bytes: number
  readonly log: (line: string) => void
}

export interface CampaignResult {
  readonly kills: number
  /** Processes that it took: one after each kill, and one after each that gave up. */
  readonly processes: number
  readonly bytes: number
  readonly served: number
  readonly ratio: number
  /** The file is there, and is what it should be. */
  readonly whole: boolean
  readonly seconds: number
  readonly tricks: Readonly<Record<string, number>>
}

const worker = fileURLToPath(new URL("download-worker.ts", import.meta.url))

export const runCampaign = async (options: CampaignOptions): Promise<CampaignResult> => {
  const { bytes, damage, kills, log, rate, seed } = options
  const body = noise(bytes, seed)
  const sha256 = createHash("sha256").update(body).digest("hex")
  const random = randomFrom(seed + 1)
  const folder = mkdtempSync(join(tmpdir(), "tinyllama-download-"))
  const target = join(folder, "file.bin")
  const hostile = await serveHostile(body, { seed, rate, damage, damagedAfter: random() * bytes * 0.9 })
  // Where in the transfer it is killed, by bytes served so far.
  const moments = Array.from({ length: kills }, () => random() * bytes * 0.98).toSorted((a, b) => a - b)
  const begun = performance.now()
  let killed = 0
  let processes = 0
  const attempt = (): Promise<number | null> => {
    processes++
    const child = spawn(process.execPath, [worker, hostile.url, target, sha256], {
      stdio: ["ignore", "pipe", "inherit"]
    })
    child.stdout.setEncoding("utf8").on("data", (text: string) => log(text.trimEnd()))
    hostile.onServed = () => {
      if (child.exitCode !== null || child.signalCode !== null || child.killed) return
      if (hostile.served() < (moments[killed] ?? Infinity)) return
      if (child.kill("SIGKILL")) killed++
    }
    return new Promise((resolve) => child.on("close", resolve))
  }
  try {
    for (let gaveUp = 0; ;) {
      const code = await attempt()
      if (code === 0 || (code !== null && ++gaveUp > 3)) break
    }
    const arrived = createHash("sha256")
      .update(readFileSync(target, { flag: "a+" }))
      .digest("hex")
    const served = hostile.served()
    return {
      kills: killed,
      processes,
      bytes,
      served,
      ratio: Math.round((served / bytes) * 1000) / 1000,
      whole: arrived === sha256,
      seconds: Math.round((performance.now() - begun) / 100) / 10,
      tricks: hostile.tricks()
    }
  } finally {
    hostile.close()
    rmSync(folder, { recursive: true, force: true })
  }
}
