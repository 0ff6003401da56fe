/** What the fault campaign does to runs. Each fault starts a run, disturbs it, and waits for the end of that command; the trial then runs it again. */
import { closeSync, openSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync, writeSync } from "node:fs"
import { basename, join } from "node:path"
import { setTimeout as sleep } from "node:timers/promises"
import {
  checkpointsOf,
  launcherOf,
  type RankProcess,
  type Running,
  whileRunning
} from "../../test/fixtures/ranks/rank-runs.ts"
import { jobsNamed, slurm, slurmEnvironment, slurmRuns } from "../../test/fixtures/slurm-cluster.ts"
import { mounted } from "./SmallDisk.ts"
import type { Trial } from "./Trial.ts"

export interface Kind {
  readonly disturb: (trial: Trial) => Promise<void>
  /** Why it cannot be done here. */
  readonly missing?: string | undefined
  /** Runs on a small disk of its own. */
  readonly smallDisk?: true
}

/** Signals a rank at some moment. */
const toRank =
  (name: NodeJS.Signals, then?: (trial: Trial, rank: RankProcess, running: Running) => Promise<void>) =>
  async (trial: Trial): Promise<void> => {
    const running = trial.start()
    const moment = await trial.moment(running)
    const rank = await trial.someRank(running)
    const hit = trial.signal(rank?.pid, name)
    trial.hit ||= hit
    trial.deeds.push(`${name} to rank ${rank?.rank ?? "?"} of ${trial.ranks} at ${moment}${hit ? "" : " (had ended)"}`)
    if (hit && rank !== undefined) await then?.(trial, rank, running)
    await trial.end(running)
  }

const killLauncher = async (trial: Trial): Promise<void> => {
  const running = trial.start()
  const moment = await trial.moment(running)
  const pid = await whileRunning(running, () => launcherOf(running))
  const hit = trial.signal(pid, "SIGKILL")
  trial.hit ||= hit
  trial.deeds.push(`SIGKILL to mpirun of ${trial.ranks} ranks at ${moment}${hit ? "" : " (had ended)"}`)
  await trial.end(running)
}

const killRunner = async (trial: Trial): Promise<void> => {
  const running = trial.start()
  const moment = await trial.moment(running)
  const hit = !running.ended() && running.child.kill("SIGKILL")
  trial.hit ||= hit
  trial.deeds.push(`SIGKILL to the runner of ${trial.ranks} ranks at ${moment}${hit ? "" : " (had ended)"}`)
  await trial.end(running)
}

/** Whoever is stopped cannot see that the runner is gone. */
const stopAndKillRunner = async (trial: Trial): Promise<void> => {
  const running = trial.start()
  const moment = await trial.moment(running)
  const rank = await trial.someRank(running)
  const gap = trial.draw(2000)
  trial.signal(rank?.pid, "SIGSTOP")
  await Promise.race([sleep(gap), running.finished])
  const hit = !running.ended() && running.child.kill("SIGKILL")
  trial.hit ||= hit
  trial.deeds.push(
    `SIGSTOP to rank ${rank?.rank ?? "?"} of ${trial.ranks} at ${moment}, SIGKILL to the runner ${gap} ms later${hit ? "" : " (had ended)"}`
  )
  await trial.end(running)
}

const doubleSignal = async (trial: Trial): Promise<void> => {
  const running = trial.start()
  const moment = await trial.moment(running)
  const names = [0, 1].map(() => trial.pick(["SIGINT", "SIGTERM"] as const) ?? "SIGINT")
  const gap = trial.draw(400)
  const hit = !running.ended() && running.child.kill(names[0])
  trial.hit ||= hit
  await Promise.race([sleep(gap), running.finished])
  if (!running.ended()) running.child.kill(names[1])
  trial.deeds.push(`${names.join(` and ${gap} ms later `)} to the runner at ${moment}${hit ? "" : " (had ended)"}`)
  await trial.end(running)
}

/** Kills a run that has saved, does something to its newest checkpoint, and leaves the rest to the next run. */
const damaged =
  (damage: (trial: Trial, checkpoint: string) => string) =>
  async (trial: Trial): Promise<void> => {
    const running = trial.start()
    const before = checkpointsOf(trial.runs).length
    await whileRunning(running, () => (checkpointsOf(trial.runs).length > before ? true : undefined))
    await Promise.race([sleep(trial.random() * 150 * trial.campaign.seconds), running.finished])
    const hit = !running.ended() && running.child.kill("SIGKILL")
    await trial.end(running)
    await trial.checkNothingLeft()
    const newest = checkpointsOf(trial.runs).at(-1)
    if (!hit || newest === undefined) return void trial.deeds.push("had ended")
    trial.hit = true
    trial.deeds.push(`killed on ${trial.ranks} ranks; ${damage(trial, newest)} of ${basename(newest)}`)
  }

const shardsOf = (checkpoint: string): ReadonlyArray<string> =>
  readdirSync(checkpoint).filter((name) => name.endsWith(".safetensors"))

const flipByte = (trial: Trial, checkpoint: string): string => {
  const name = trial.pick(shardsOf(checkpoint)) ?? ""
  const file = join(checkpoint, name)
  const position = trial.draw(statSync(file).size)
  const flipped = readFileSync(file)
    .subarray(position, position + 1)
    .map((byte) => byte ^ (1 << trial.draw(8)))
  const descriptor = openSync(file, "r+")
  writeSync(descriptor, flipped, 0, 1, position)
  closeSync(descriptor)
  return `byte ${position} flipped in ${name}`
}

const deleteShard = (trial: Trial, checkpoint: string): string => {
  const name = trial.pick(shardsOf(checkpoint)) ?? ""
  rmSync(join(checkpoint, name))
  return `${name} deleted`
}

const corruptManifest = (trial: Trial, checkpoint: string): string => {
  const file = join(checkpoint, "COMPLETE.json")
  const text = readFileSync(file, "utf8")
  const digit = Array.from(text.matchAll(/[0-9a-f]/gu)).at(trial.draw(text.length) % 500)?.index ?? 0
  const [how, spoilt] = trial.pick([
    ["cut short", text.slice(0, trial.draw(text.length))],
    ["emptied", ""],
    ["without a file", JSON.stringify({ ...JSON.parse(text), files: JSON.parse(text).files.slice(1) })],
    [
      "of another number of ranks",
      JSON.stringify({ ...JSON.parse(text), world_size: JSON.parse(text).world_size + 1 })
    ],
    ["with another digit", `${text.slice(0, digit)}${text[digit] === "7" ? "8" : "7"}${text.slice(digit + 1)}`]
  ] as const) ?? ["", ""]
  writeFileSync(file, spoilt)
  return `COMPLETE.json ${how}`
}

/** The disk has no room from some moment on, until the command has ended. */
const fillDisk = async (trial: Trial): Promise<void> => {
  if (!mounted) return limitFiles(trial)
  const running = trial.start()
  const moment = await trial.moment(running)
  const room = 1024 * trial.draw(40)
  const filler = join(trial.runs, "..", "filler")
  const bytes = fill(filler, room)
  trial.deeds.push(`disk filled by ${bytes} bytes at ${moment}, ${room} left`)
  trial.hit ||= (await trial.end(running)).code !== 0
  rmSync(filler, { force: true })
}

/** Writes until the disk is full, then gives `room` bytes back. */
const fill = (file: string, room: number): number => {
  const descriptor = openSync(file, "w")
  const block = Buffer.alloc(4096)
  let bytes = 0
  try {
    for (;;) bytes += writeSync(descriptor, block)
  } catch {
    // Full.
  }
  closeSync(descriptor)
  const left = Math.max(0, bytes - room)
  const shorter = openSync(file, "r+")
  try {
    writeFileSync(file, Buffer.alloc(0))
    for (let at = 0; at < left; at += block.length) writeSync(shorter, block, 0, Math.min(block.length, left - at), at)
  } catch {
    // Whoever runs has taken the room meanwhile.
  }
  closeSync(shorter)
  return left
}

/** Without a disk of one's own: files cannot grow beyond a size below that of some shard. */
const limitFiles = async (trial: Trial): Promise<void> => {
  const kibibytes = 8 + trial.draw(56)
  trial.deeds.push(`no file beyond ${kibibytes} KiB`)
  trial.hit ||= (await trial.end(trial.start({}, kibibytes))).code !== 0
}

const requeue = async (trial: Trial): Promise<void> => {
  trial.environment = slurmEnvironment
  const running = trial.start({ executor: "{kind: slurm, poll: 1s}" })
  const known = new Set(jobsNamed("tl-base-").map(({ id }) => id))
  const job = await whileRunning(running, () =>
    jobsNamed("tl-base-").find(({ id, state }) => !known.has(id) && state === "RUNNING")
  )
  const moment = await trial.moment(running)
  if (job !== undefined && !running.ended()) {
    slurm("scontrol", "requeue", job.id)
    trial.hit = true
  }
  trial.deeds.push(`job ${job?.id ?? "?"} of ${trial.ranks} ranks requeued ${moment} after it began`)
  await trial.end(running)
}

export const kinds: Readonly<Record<string, Kind>> = {
  "kill-rank": { disturb: toRank("SIGKILL") },
  "kill-launcher": { disturb: killLauncher },
  "kill-runner": { disturb: killRunner },
  "stop-rank": { disturb: toRank("SIGSTOP", (trial, rank, running) => trial.untilGone(rank.pid, running)) },
  "preempt-rank": { disturb: toRank("SIGTERM") },
  "disk-full": { disturb: fillDisk, smallDisk: true },
  "flip-byte": { disturb: damaged(flipByte) },
  "delete-shard": { disturb: damaged(deleteShard) },
  "corrupt-manifest": { disturb: damaged(corruptManifest) },
  "double-signal": { disturb: doubleSignal },
  "stop-kill-runner": { disturb: stopAndKillRunner },
  "slurm-requeue": {
    disturb: requeue,
    missing: slurmRuns ? undefined : "no Slurm; apt install slurm-wlm munge, scripts/slurm-test-cluster.sh start"
  }
}
