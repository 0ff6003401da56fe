import { assert, describe, it } from "@effect/vitest"
import { Result } from "effect"
import { alone, ranksOf, withoutRanks } from "../../../src/pipeline/run/Ranks.ts"

const ranks = (environment: Readonly<Record<string, string>>) => Result.getOrThrow(ranksOf(environment))
const fault = (environment: Readonly<Record<string, string>>) => {
  const found = ranksOf(environment)
  return Result.isFailure(found) ? `${found.failure.message}; next: ${found.failure.next}` : "none"
}

describe("which rank a process is", () => {
  it("is the only one where no launcher says anything", () => {
    assert.deepStrictEqual(ranks({ PATH: "/bin" }), alone)
    // A batch script of Slurm is no rank.
    assert.deepStrictEqual(ranks({ SLURM_PROCID: "0", SLURM_NTASKS: "4", SLURM_JOB_ID: "7" }), alone)
  })

  it("comes from torchrun's convention", () => {
    const environment = {
      RANK: "5",
      WORLD_SIZE: "8",
      LOCAL_RANK: "1",
      LOCAL_WORLD_SIZE: "4",
      MASTER_ADDR: "node-a",
      MASTER_PORT: "29500"
    }
    assert.deepStrictEqual(ranks(environment), {
      rank: 5,
      size: 8,
      localRank: 1,
      localSize: 4,
      master: { address: "node-a", port: 29500 },
      launcher: "environment",
      mpi: false
    })
    // One process a pod, as Kubeflow starts them.
    assert.strictEqual(ranks({ RANK: "5", WORLD_SIZE: "8" }).localRank, 0)
  })

  it("comes from mpirun, also inside a Slurm job", () => {
    const mpirun = {
      OMPI_COMM_WORLD_RANK: "3",
      OMPI_COMM_WORLD_SIZE: "4",
      OMPI_COMM_WORLD_LOCAL_RANK: "1",
      OMPI_COMM_WORLD_LOCAL_SIZE: "2"
    }
    const found = ranks({ ...mpirun, SLURM_PROCID: "0", SLURM_STEP_NUM_TASKS: "1" })
    assert.deepStrictEqual(
      [found.launcher, found.rank, found.size, found.localRank, found.localSize],
      ["mpirun", 3, 4, 1, 2]
    )
    assert.deepStrictEqual(ranks({ PMI_RANK: "1", PMI_SIZE: "2", MPI_LOCALRANKID: "1" }).launcher, "mpiexec")
    assert.isTrue(found.mpi)
  })

  it("comes from srun, with the number of tasks on its node", () => {
    const srun = {
      SLURM_PROCID: "6",
      SLURM_STEP_NUM_TASKS: "7",
      SLURM_LOCALID: "0",
      SLURM_NODEID: "3",
      SLURM_STEP_TASKS_PER_NODE: "2(x3),1"
    }
    const found = ranks(srun)
    assert.deepStrictEqual(
      [found.launcher, found.rank, found.size, found.localRank, found.localSize],
      ["srun", 6, 7, 0, 1]
    )
    assert.strictEqual(ranks({ ...srun, SLURM_NODEID: "2" }).localSize, 2)
  })

  it("is told to be wrong where it cannot be", () => {
    assert.match(fault({ RANK: "1" }), /RANK is 1, but WORLD_SIZE is not set; next: set WORLD_SIZE too/u)
    assert.match(fault({ WORLD_SIZE: "4" }), /WORLD_SIZE is 4, but RANK is not set/u)
    assert.match(fault({ RANK: "4", WORLD_SIZE: "4" }), /RANK is 4, which is not below WORLD_SIZE \(4\)/u)
    assert.match(fault({ RANK: "-1", WORLD_SIZE: "4" }), /RANK is "-1"; next: set it to a whole number of at least 0/u)
    assert.match(fault({ RANK: "0", WORLD_SIZE: "0" }), /WORLD_SIZE is "0"/u)
    assert.match(fault({ RANK: "0", WORLD_SIZE: "2", LOCAL_RANK: "x" }), /LOCAL_RANK is "x"/u)
    assert.match(
      fault({ RANK: "0", WORLD_SIZE: "2", LOCAL_RANK: "2", LOCAL_WORLD_SIZE: "2" }),
      /not below LOCAL_WORLD_SIZE/u
    )
    assert.match(fault({ RANK: "0", WORLD_SIZE: "2", MASTER_PORT: "1" }), /MASTER_PORT is set without MASTER_ADDR/u)
    assert.match(fault({ RANK: "0", WORLD_SIZE: "2", MASTER_ADDR: "a" }), /MASTER_ADDR is set without MASTER_PORT/u)
    assert.match(
      fault({ RANK: "0", WORLD_SIZE: "2", MASTER_ADDR: "a", MASTER_PORT: "70000" }),
      /MASTER_PORT is 70000, which is not below 65536/u
    )
  })

  it("is not inherited by processes that are no ranks", () => {
    const environment = {
      HOME: "/h",
      SLURM_CONF: "/c",
      RANK: "1",
      SLURM_PROCID: "0",
      OMPI_COMM_WORLD_RANK: "1",
      PMIX_RANK: "1"
    }
    assert.deepStrictEqual(withoutRanks(environment), { HOME: "/h", SLURM_CONF: "/c" })
  })
})
