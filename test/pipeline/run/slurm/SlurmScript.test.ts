/** The batch script, line by line, and as bash reads it. */
import { spawnSync } from "node:child_process"
import { assert, describe, it } from "@effect/vitest"
import { Duration } from "effect"
import { slurmDefaults } from "../../../../src/pipeline/file/ExecutorBlock.ts"
import {
  directives,
  quoted,
  type ScriptInput,
  slurmScript,
  slurmTime
} from "../../../../src/pipeline/run/slurm/SlurmScript.ts"

const input: ScriptInput = {
  name: "tl-base-3f2a9c1b-1-9fd01c",
  run: "2026-01-02-0304-calm-reef",
  stage: "base",
  attempt: 3,
  folder: "/data/it's here/attempts/3",
  resources: { cpus: 32, gpus: 8, ranks: 8, nodes: 2, memory: 512 * 2 ** 30 },
  options: {
    ...slurmDefaults,
    partition: "gpu",
    account: "proj",
    qos: "long",
    constraint: "a100&nvlink",
    extra: ["--exclude=node7"]
  },
  timeout: undefined,
  grace: Duration.minutes(5),
  launcher: "none",
  tasks: 0,
  command: { node: "/opt/node", flags: ["--flag"], worker: "/opt/worker.js" },
  fence: { file: "/data/jobs/k.fence", counter: 4 },
  outputs: ["/data/making/k.state"]
}
const script = (more: Partial<ScriptInput> = {}) => slurmScript({ ...input, ...more })
const parses = (text: string) => {
  const { status, stderr } = spawnSync("bash", ["-n"], { input: text, encoding: "utf8" })
  assert.strictEqual(status, 0, stderr)
}

describe("what is asked of Slurm", () => {
  it("is what the stage asks for, divided over its nodes", () => {
    const asked = directives(input)
    assert.includeMembers(
      [...asked],
      [
        "--job-name=tl-base-3f2a9c1b-1-9fd01c",
        "--partition=gpu",
        "--account=proj",
        "--qos=long",
        "--constraint=a100&nvlink",
        "--nodes=2",
        "--ntasks=8",
        "--ntasks-per-node=4",
        "--cpus-per-task=4",
        "--gpus-per-node=4",
        "--mem=262144M",
        "--signal=B:USR1@330",
        "--requeue",
        "--open-mode=append",
        "--exclude=node7"
      ]
    )
    assert.isFalse(asked.some((line) => line.startsWith("--time")))
  })

  it("is a whole node where the stage takes all cores", () => {
    const asked = directives({ ...input, resources: { cpus: "all", gpus: 0, ranks: 1 } })
    assert.includeMembers([...asked], ["--nodes=1", "--ntasks=1", "--exclusive"])
    assert.isFalse(asked.some((line) => /cpus-per-task|gpus|mem/u.test(line)))
  })

  it("has the executor's time before the stage's timeout, and comes back only where the time is not the stage's own", () => {
    const options = { ...input.options, time: Duration.hours(24) }
    const timeout = Duration.hours(48)
    assert.include(directives({ ...input, options, timeout }), "--time=1-00:00:00")
    assert.include(directives({ ...input, timeout }), "--time=2-00:00:00")
    assert.include(script({ options, timeout }), 'scontrol requeue "$SLURM_JOB_ID"')
    assert.notInclude(script({ timeout }), "scontrol requeue")
    assert.notInclude(script({ options: { ...options, requeue: false } }), "scontrol requeue")
    assert.include(directives({ ...input, options: { ...options, requeue: false } }), "--no-requeue")
  })

  it("is written in Slurm's form of times", () => {
    assert.strictEqual(slurmTime(Duration.seconds(1)), "00:01:00")
    assert.strictEqual(slurmTime(Duration.minutes(61)), "01:01:00")
    assert.strictEqual(slurmTime(Duration.hours(49.5)), "2-01:30:00")
  })
})

describe("the batch script", () => {
  it("is bash, whatever starts its ranks, also with odd letters in its paths", () => {
    for (const launcher of ["none", "pmix", "pmi2", "mpirun"] as const) parses(script({ launcher }))
    parses(script({ tasks: 4, resources: { cpus: 2, gpus: 0, ranks: 1 } }))
    parses(script({ options: { ...input.options, setup: "module load openmpi\nsource env.sh" } }))
    const { stdout } = spawnSync("bash", ["-c", `printf %s ${quoted("it's $HOME")}`], { encoding: "utf8" })
    assert.strictEqual(stdout, "it's $HOME")
  })

  it("tells ranks with a GPU each who they are, and lets MPI tell the others", () => {
    assert.include(script(), "export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID")
    assert.include(script(), "--mpi=none")
    assert.include(script({ launcher: "pmix" }), "--mpi=pmix")
    assert.notInclude(script({ launcher: "pmix" }), "export RANK=")
    assert.include(script({ launcher: "mpirun" }), "mpirun -n 8")
  })

  it("gives each task of an array its own place, and does not fence tasks off from each other", () => {
    const array = script({ tasks: 4, outputs: ["/data/making/k-shares-{task}-of-4.tokens"] })
    assert.include(array, "#SBATCH --array=1-4")
    assert.include(array, `place='/data/it'\\''s here/attempts/3'/shares/"$SLURM_ARRAY_TASK_ID"`)
    assert.include(array, `'/data/making/k-shares-'"$SLURM_ARRAY_TASK_ID"'-of-4.tokens'`)
    assert.include(array, "/shares/%a/stdout.log")
    assert.notInclude(array, '"restart":%d}\' 4')
    assert.include(script(), `printf '{"counter":%d,"restart":%d}' 4`)
  })

  it("ends before it touches anything where a newer attempt has the work folder", () => {
    const text = script()
    assert.isBelow(text.indexOf('"${newest:-0}" -gt 4'), text.indexOf("rm -rf"))
  })
})
