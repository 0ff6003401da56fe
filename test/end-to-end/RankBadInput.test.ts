/** Ranks that cannot train together say so before step 0, each with its place, its cause and the next step. Real workers, started by hand under mpirun. */
import { spawnSync } from "node:child_process"
import { cpSync, mkdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { assert, describe, it } from "@effect/vitest"
import { openMpi } from "../../src/pipeline/run/RankProcesses.ts"
import { withoutRanks } from "../../src/pipeline/run/Ranks.ts"
import { mpi, named, onRanks, run, steps, temporary } from "../fixtures/ranks/rank-runs.ts"
import { root } from "./command-line.ts"
import { afterAll, beforeAll } from "vitest"

const withMpi = mpi ? it : it.skip
const worker = join(root, "src/worker.ts")
const folder = temporary()
afterAll(() => rmSync(folder, { recursive: true, force: true }))

/** The job of a stage that has run, to be started by hand. */
let job: Record<string, unknown> = {}
/** The same, with other data. */
let elsewhere: Record<string, unknown> = {}

const jobOf = async (name: string, settings: Readonly<Record<string, number>>) => {
  const runs = join(folder, name)
  const { code, output } = await run(runs, { ...onRanks(1, "none"), ...steps(1), ...settings })
  assert.strictEqual(code, 0, output)
  return JSON.parse(readFileSync(join(runs, "latest/stages/02-base/attempts/1/job.json"), "utf8"))
}
beforeAll(async () => {
  job = await jobOf("one", {})
  elsewhere = await jobOf("other", { "data.blocks": 150 })
}, 60_000)

let files = 0
const fileOf = (content: Record<string, unknown>): string => {
  const file = join(folder, `job-${files++}.json`)
  writeFileSync(file, JSON.stringify(content))
  return file
}
const withParams = (params: Record<string, unknown>) => ({
  ...job,
  params: { ...(job["params"] as Record<string, unknown>), ...params }
})

/** Two ranks under one mpirun, each on a job of its own; what both of them say. */
const together = (first: ReadonlyArray<string>, second: ReadonlyArray<string>, environment: NodeJS.ProcessEnv = {}) => {
  const args = ["-n", "1", process.execPath, ...first, ":", "-n", "1", process.execPath, ...second]
  const { status, stderr, stdout } = spawnSync("mpirun", args, {
    encoding: "utf8",
    env: { ...withoutRanks(process.env), ...openMpi, ...environment },
    timeout: 60_000
  })
  return { status, said: stdout + stderr }
}

const refused = ({ said, status }: ReturnType<typeof together>, why: RegExp, next: RegExp) => {
  assert.strictEqual(status, 1, said)
  const failures = said
    .split("\n")
    .filter((line) => line.startsWith('{"_tag":"Failed"'))
    .map((line) => JSON.parse(line))
  assert.isNotEmpty(failures, said)
  for (const { failure, message, next: step } of failures) {
    assert.strictEqual(failure, "invalid-input")
    assert.match(message, why, message)
    assert.match(step, next, step)
  }
  assert.notMatch(said, /"Progress"|step 1\//u)
}

/** A work folder that all ranks share. */
const shared = (): { readonly work: string } => {
  const work = join(folder, `work-${files++}`)
  mkdirSync(work)
  return { work }
}

/** One process by hand, in an environment of its own. */
const alone = (content: Record<string, unknown>, environment: NodeJS.ProcessEnv) => {
  const { status, stdout } = spawnSync(process.execPath, [worker, fileOf(content)], {
    encoding: "utf8",
    env: { ...withoutRanks(process.env), ...environment }
  })
  return { status, said: stdout }
}

describe("ranks that do not fit together", () => {
  withMpi(named("with different seeds"), () => {
    const place = shared()
    refused(
      together([worker, fileOf({ ...job, ...place })], [worker, fileOf({ ...withParams({ seed: 3408 }), ...place })]),
      /^the ranks cannot begin: the ranks differ in parameters of the stage: .*; in seed: rank 0 has 3407, rank 1 has 3408$/u,
      /^start all ranks with the same version, files and parameters$/u
    )
  })

  withMpi(named("with different files"), () => {
    const place = shared()
    refused(
      together([worker, fileOf({ ...job, ...place })], [worker, fileOf({ ...elsewhere, ...place })]),
      /^the ranks cannot begin: the ranks differ in packed data: rank [01] has [0-9a-f]{16}, rank [01] has [0-9a-f]{16}$/u,
      /^start all ranks with the same version/u
    )
  })

  withMpi(named("of different versions"), () => {
    const other = join(folder, "installation")
    cpSync(join(root, "src"), join(other, "src"), { recursive: true })
    for (const name of ["node_modules", "build"]) symlinkSync(join(root, name), join(other, name))
    const described = JSON.parse(readFileSync(join(root, "package.json"), "utf8"))
    writeFileSync(join(other, "package.json"), JSON.stringify({ ...described, version: "9.9.9" }))
    const file = fileOf({ ...job, ...shared() })
    refused(
      together([worker, file], [join(other, "src/worker.ts"), file]),
      /the ranks differ in version of tinyllama: .*rank 1 has 9\.9\.9/u,
      /^start all ranks with the same version/u
    )
  })

  it("started without MPI", () => {
    const environment = { RANK: "0", WORLD_SIZE: "2", MASTER_ADDR: "127.0.0.1", MASTER_PORT: "29500" }
    refused(
      alone({ ...job, ...shared() }, environment),
      /^2 ranks were started without MPI \(by environment\), by which ranks on CPUs speak$/u,
      /^start them by mpirun, or by srun with a PMI plugin; tinyllama run does so by itself: resources\.ranks$/u
    )
  })

  withMpi(named("told another number than MPI has"), () => {
    const file = fileOf({ ...job, ...shared() })
    refused(
      together([worker, file], [worker, file], { RANK: "0", WORLD_SIZE: "3" }),
      /^the ranks cannot begin: WORLD_SIZE is 3, and MPI's world has 2: the ranks must be started together by this MPI's own launcher/u,
      /^mend that, then run again$/u
    )
  })

  it("of CPUs that shall speak NCCL", () => {
    refused(
      alone({ ...withParams({ communicator: "nccl" }), ...shared() }, { RANK: "0", WORLD_SIZE: "2" }),
      /^communicator: nccl joins GPUs, and this stage computes on the CPU$/u,
      /^set communicator to auto$/u
    )
  })

  it("in a number that does not divide the step's micro-batches", () => {
    refused(
      alone({ ...job, ...shared() }, { RANK: "0", WORLD_SIZE: "5" }),
      /^a step has 12 micro-batches of 1 sequences, which 5 ranks cannot share evenly$/u,
      /^start 1, 2, 3, 4, 6, 12 ranks, or choose batch_tokens and micro_batch so that 5 divides them$/u
    )
  })

  it("in a number that hsdp cannot share copies among", () => {
    refused(
      alone({ ...withParams({ strategy: "hsdp", shard_size: 2 }), ...shared() }, { RANK: "0", WORLD_SIZE: "3" }),
      /^hsdp: shard_size \(2\) must divide the number of ranks \(3\)$/u,
      /^set shard_size to a number that divides the ranks, or strategy to fsdp$/u
    )
  })
})

describe("a work folder with the checkpoint of another model", () => {
  it("is named before step 0; damage alone is passed over", () => {
    const { work } = shared()
    const saved = join(folder, "one/latest/stages/02-base/out/state/checkpoints/step-00000001")
    const checkpoint = join(work, "checkpoints/step-00000001")
    cpSync(saved, checkpoint, { recursive: true, dereference: true })
    const model = { ...(withParams({}).params as { model: object }).model, hidden_size: 16 }
    const { said, status } = alone({ ...withParams({ model }), work }, {})
    assert.strictEqual(status, 0, "one rank ends with 0 and says how")
    refused(
      { said, status: 1 },
      /^the checkpoint \S+step-00000001 is of another model: weights\.safetensors: model\.embed_tokens\.weight is \[96, 32\], the model's is \[96, 16\]$/u,
      /^move that folder away: .*then run again$/u
    )
    const weights = join(checkpoint, "weights.safetensors")
    const bytes = readFileSync(weights)
    bytes[bytes.length - 1]! ^= 1
    writeFileSync(weights, bytes)
    const damaged = alone({ ...withParams({ model }), work }, {})
    assert.match(damaged.said, /the checkpoint of step 1 is damaged and is passed over/u)
    assert.match(damaged.said, /"_tag":"Completed"/u)
  })
})
