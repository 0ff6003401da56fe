/** One trial of the fault campaign: what it draws by chance, the commands that it starts, and what it finds wrong. */
import { rmSync } from "node:fs"
import { setTimeout as sleep } from "node:timers/promises"
import {
  checkpointsOf,
  describeProcess,
  type Finished,
  isThere,
  onRanks,
  type Overrides,
  processesOf,
  ranksOf,
  type RankProcess,
  type Running,
  startRun,
  steps,
  strategies,
  whileRunning
} from "../../test/fixtures/ranks/rank-runs.ts"

/** A small generator (mulberry32), so that a trial can be repeated by its seed. */
export const randomFrom = (seed: number) => () => {
  seed = (seed + 0x6d2b79f5) | 0
  let mixed = Math.imul(seed ^ (seed >>> 15), 1 | seed)
  mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
  return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296
}

/** What all trials share. */
export interface Campaign {
  readonly steps: number
  /** Of an undisturbed run on four ranks, in seconds. */
  readonly seconds: number
  /** watchdog_seconds of the runs. */
  readonly watchdog: number
  /** No command may take longer than this. */
  readonly limit: number
}

/** Of the newest checkpoint; 0 where there is none. */
const savedStep = (runs: string): number => Number(checkpointsOf(runs).at(-1)?.slice(-8) ?? 0)

/** Seconds that may pass beyond the watchdog's until a stuck rank is gone: the runner's own look, and the end of the others. */
const slack = 10

export class Trial {
  readonly random: () => number
  readonly runs: string
  readonly campaign: Campaign
  /** Said in the trial's line: what was done when. */
  readonly deeds: Array<string> = []
  readonly faults: Array<string> = []
  hung = false
  /** Whether the fault met a run that was under way. */
  hit = false
  ranks = 0
  settings: Overrides = {}
  environment: NodeJS.ProcessEnv = {}
  last: Finished | undefined

  constructor(campaign: Campaign, random: () => number, runs: string) {
    this.campaign = campaign
    this.random = random
    this.runs = runs
  }

  /** 0 to `below` - 1. */
  draw(below: number): number {
    return Math.floor(this.random() * below)
  }

  pick<A>(values: ReadonlyArray<A>): A | undefined {
    return values[this.draw(values.length)]
  }

  /** Starts the run, or goes on with it, on 2 to 4 ranks under some strategy. */
  start(settings: Overrides = {}, fileLimit?: number): Running {
    this.ranks = 2 + this.draw(3)
    const strategy = this.pick(strategies) ?? "none"
    this.settings = {
      ...onRanks(this.ranks, strategy),
      ...steps(this.campaign.steps),
      watchdog_seconds: this.campaign.watchdog,
      ...settings
    }
    return startRun(this.runs, this.settings, this.environment, fileLimit)
  }

  /** Waits for a moment of the run that chance decides: a third of them while it starts, the others by how far it has saved. Returns it in words. */
  async moment(running: Running): Promise<string> {
    const early = this.random() < 0.35
    const seconds = this.random() * (early ? 0.5 * this.campaign.seconds : 0.1)
    const step = early ? 0 : this.draw(this.campaign.steps)
    await whileRunning(running, () => (savedStep(this.runs) >= step ? true : undefined))
    await Promise.race([sleep(1000 * seconds), running.finished])
    return early ? `${seconds.toFixed(2)} s` : `step ${savedStep(this.runs)} or later`
  }

  /** One of the ranks, once they are there; undefined when the run ends before. */
  async someRank(running: Running): Promise<RankProcess | undefined> {
    for (;;) {
      const found = this.pick(ranksOf(running))
      if (found !== undefined || running.ended()) return found
      await sleep(5)
    }
  }

  /** Sends a signal; false where the process had ended. */
  signal(pid: number | undefined, name: NodeJS.Signals): boolean {
    if (pid === undefined) return false
    try {
      return process.kill(pid, name)
    } catch {
      return false
    }
  }

  /** Waits for the end of a command, and ends it where it hangs. */
  async end(running: Running): Promise<Finished> {
    const overdue = sleep(1000 * this.campaign.limit, undefined, { ref: false })
    const finished = await Promise.race([running.finished, overdue])
    this.last = finished ?? (await this.endHung(running))
    return this.last
  }

  private async endHung(running: Running): Promise<Finished> {
    this.hung = true
    this.faults.push(`a command did not end within ${this.campaign.limit} s`)
    for (const pid of processesOf(this.runs)) this.signal(pid, "SIGKILL")
    return running.finished
  }

  /** Waits until a process that was stopped is gone; longer than the watchdog allows is a fault. */
  async untilGone(pid: number, running: Running): Promise<void> {
    const since = performance.now()
    const allowed = 1.1 * this.campaign.watchdog + 2 + slack
    while (isThere(pid)) {
      const seconds = (performance.now() - since) / 1000
      if (seconds > allowed) {
        this.hung = true
        this.faults.push(`a stopped rank was still there after ${seconds.toFixed(0)} s`)
        this.signal(pid, "SIGKILL")
        return
      }
      if (running.ended()) return
      await sleep(50)
    }
  }

  /** The same command again until it is done, each time on another number of ranks. Returns how often. */
  async rerun(): Promise<number> {
    for (let reruns = 0; ; reruns++) {
      if (this.last?.code === 0 || this.hung) return reruns
      if (reruns === 3) {
        this.faults.push(`not done after ${reruns} more runs: exit ${this.last?.code}\n${this.last?.output}`)
        return reruns
      }
      await this.end(this.start())
    }
  }

  /** Nothing of the run may be left. */
  async checkNothingLeft(): Promise<void> {
    for (let look = 0; look < 200 && processesOf(this.runs).length > 0; look++) await sleep(50)
    const left = processesOf(this.runs)
    if (left.length > 0) this.faults.push(`processes are left: ${left.map(describeProcess).join("; ")}`)
    for (const pid of left) this.signal(pid, "SIGKILL")
  }

  remove(): void {
    rmSync(this.runs, { recursive: true, force: true })
  }
}
