/**
 * Which of the processes that train together this one is, from the environment. The one place that knows how launchers say it:
 *
 *   RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE      torchrun's convention; ours, Kubeflow's and SkyPilot's too
 *   OMPI_COMM_WORLD_RANK, …_SIZE, …_LOCAL_RANK, …       mpirun of Open MPI
 *   PMI_RANK, PMI_SIZE, MPI_LOCALRANKID, …              mpiexec of MPICH and Intel MPI
 *   SLURM_PROCID, SLURM_STEP_NUM_TASKS, SLURM_LOCALID   srun
 *
 * The first one that is there counts: mpirun inside a Slurm job leaves the batch script's SLURM_PROCID in all of its processes. MASTER_ADDR and
 * MASTER_PORT say where rank 0 listens, whoever starts the ranks. Without any of them a process is alone.
 */
import { Result } from "effect"
import { type Ranks, StageError } from "../StageType.ts"

export const alone: Ranks = {
  rank: 0,
  size: 1,
  localRank: 0,
  localSize: 1,
  master: undefined,
  launcher: "none",
  mpi: false
}

type Environment = Readonly<Record<string, string | undefined>>

interface Convention {
  readonly launcher: Exclude<Ranks["launcher"], "none">
  readonly rank: string
  readonly size: string
  readonly localRank: ReadonlyArray<string>
  readonly localSize: ReadonlyArray<string>
}

const conventions: ReadonlyArray<Convention> = [
  {
    launcher: "environment",
    rank: "RANK",
    size: "WORLD_SIZE",
    localRank: ["LOCAL_RANK"],
    localSize: ["LOCAL_WORLD_SIZE"]
  },
  {
    launcher: "mpirun",
    rank: "OMPI_COMM_WORLD_RANK",
    size: "OMPI_COMM_WORLD_SIZE",
    localRank: ["OMPI_COMM_WORLD_LOCAL_RANK"],
    localSize: ["OMPI_COMM_WORLD_LOCAL_SIZE"]
  },
  {
    launcher: "mpiexec",
    rank: "PMI_RANK",
    size: "PMI_SIZE",
    localRank: ["MPI_LOCALRANKID", "PMI_LOCAL_RANK"],
    localSize: ["MPI_LOCALNRANKS", "PMI_LOCAL_SIZE"]
  },
  {
    launcher: "srun",
    rank: "SLURM_PROCID",
    // Of the step: a batch script has a SLURM_PROCID of 0 and the whole job's SLURM_NTASKS, and is no rank.
    size: "SLURM_STEP_NUM_TASKS",
    localRank: ["SLURM_LOCALID"],
    localSize: []
  }
]

/** Set where a launcher speaks MPI's start-up protocol. */
const pmi = ["OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK"]

/** This process's place among its ranks; fails with what is wrong with a half-set or impossible environment. */
export const ranksOf = (environment: Environment): Result.Result<Ranks, StageError> => {
  for (const convention of conventions) {
    if (convention.launcher === "environment" && isHalf(environment)) {
      const [set, missing] = environment["RANK"] === undefined ? ["WORLD_SIZE", "RANK"] : ["RANK", "WORLD_SIZE"]
      return unfit(`${set} is ${environment[set]}, but ${missing} is not set`, `set ${missing} too, or neither of them`)
    }
    if (environment[convention.rank] !== undefined && environment[convention.size] !== undefined)
      return decode(environment, convention)
  }
  return Result.succeed(alone)
}

const isHalf = ({ RANK, WORLD_SIZE }: Environment): boolean => (RANK === undefined) !== (WORLD_SIZE === undefined)

const decode = (environment: Environment, convention: Convention): Result.Result<Ranks, StageError> =>
  Result.gen(function* () {
    const { launcher } = convention
    const size = yield* integer(environment, convention.size, 1, undefined)
    const rank = yield* integer(environment, convention.rank, 0, { name: convention.size, value: size })
    const localSize = yield* firstInteger(environment, convention.localSize, 1, undefined)
    const [localName = ""] = convention.localSize
    const bound =
      localSize === undefined ? { name: convention.size, value: size } : { name: localName, value: localSize }
    // Where nobody says, each process has a machine of its own, as in Kubernetes.
    const localRank = (yield* firstInteger(environment, convention.localRank, 0, bound)) ?? 0
    const master = yield* masterOf(environment)
    return {
      rank,
      size,
      localRank,
      localSize: localSize ?? srunLocalSize(environment, launcher) ?? Math.max(1, localRank + 1),
      master,
      launcher,
      mpi: pmi.some((name) => environment[name] !== undefined)
    }
  })

const masterOf = (environment: Environment): Result.Result<Ranks["master"], StageError> => {
  const { MASTER_ADDR: address, MASTER_PORT: port } = environment
  if (address === undefined && port === undefined) return Result.succeed(undefined)
  if (address === undefined || address === "" || port === undefined)
    return unfit(
      address === undefined || address === ""
        ? "MASTER_PORT is set without MASTER_ADDR"
        : "MASTER_ADDR is set without MASTER_PORT",
      "set both: the name and a free port of the machine with rank 0"
    )
  return Result.map(integer(environment, "MASTER_PORT", 1, { name: "65536", value: 65_536 }), (port) => ({
    address,
    port
  }))
}

/** "2(x3),1": two tasks on each of three nodes, one on the fourth. */
const srunLocalSize = (environment: Environment, launcher: Ranks["launcher"]): number | undefined => {
  if (launcher !== "srun") return undefined
  const node = Number(environment["SLURM_NODEID"] ?? "0")
  const counts = (environment["SLURM_STEP_TASKS_PER_NODE"] ?? "").split(",").flatMap((part) => {
    const [, tasks, nodes = "1"] = /^(\d+)(?:\(x(\d+)\))?$/u.exec(part) ?? []
    return tasks === undefined ? [] : Array.from({ length: Number(nodes) }, () => Number(tasks))
  })
  return counts[node]
}

interface Bound {
  readonly name: string
  /** Exclusive. */
  readonly value: number
}

const firstInteger = (
  environment: Environment,
  names: ReadonlyArray<string>,
  minimum: number,
  below: Bound | undefined
): Result.Result<number | undefined, StageError> => {
  const name = names.find((one) => environment[one] !== undefined)
  return name === undefined ? Result.succeed(undefined) : integer(environment, name, minimum, below)
}

const integer = (
  environment: Environment,
  name: string,
  minimum: number,
  below: Bound | undefined
): Result.Result<number, StageError> => {
  const text = environment[name] ?? ""
  const value = /^\d+$/u.test(text) ? Number(text) : Number.NaN
  if (!(value >= minimum)) return unfit(`${name} is "${text}"`, `set it to a whole number of at least ${minimum}`)
  if (below !== undefined && value >= below.value)
    return unfit(
      `${name} is ${value}, which is not below ${below.name} (${below.value})`,
      "start ranks 0 to size - 1, each once"
    )
  return Result.succeed(value)
}

const unfit = (cause: string, next: string) =>
  Result.fail(new StageError({ failure: "invalid-input", message: `the ranks' environment: ${cause}`, next }))

const launchers =
  /^(?:RANK|WORLD_SIZE|LOCAL_RANK|LOCAL_WORLD_SIZE|GROUP_RANK|MASTER_ADDR|MASTER_PORT)$|^(?:OMPI_COMM_WORLD_|PMIX_|PMI_|MPI_LOCAL|SLURM_(?!CONF$))/u

/** Without what launchers say: for processes of a runner that itself runs inside a Slurm job, say, and is no rank of anything. */
export const withoutRanks = (environment: NodeJS.ProcessEnv): NodeJS.ProcessEnv =>
  Object.fromEntries(Object.entries(environment).filter(([name]) => !launchers.test(name)))

/** What the `rank`-th of `size` processes on this machine is told. */
export const rankEnvironment = (rank: number, size: number, port: number): Readonly<Record<string, string>> => ({
  RANK: String(rank),
  WORLD_SIZE: String(size),
  LOCAL_RANK: String(rank),
  LOCAL_WORLD_SIZE: String(size),
  MASTER_ADDR: "127.0.0.1",
  MASTER_PORT: String(port)
})
