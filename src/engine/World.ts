/** The ranks that train one model together: how they speak, how they share out its parameters, and what must be alike on all of them before step 0. */
import { createHash } from "node:crypto"
import { availableParallelism } from "node:os"
import { join } from "node:path"
import { Effect, Schema } from "effect"
import { parameter, type Ranks, StageError } from "../pipeline/StageType.ts"
import type { TrainingRanks } from "./TrainingRanks.ts"
import type { ModelOptions, Native, NativeModel, NativeWorld } from "./Native.ts"

export const Strategy = Schema.Literals(["none", "zero2", "fsdp", "hsdp"])
export const GradientSum = Schema.Literals(["fast", "fixed-order"])
export const CommunicatorWish = Schema.Literals(["auto", "nccl", "mpi", "host-staged"])
const AtLeastOne = Schema.Int.check(Schema.isGreaterThanOrEqualTo(1))

export const strategy = parameter(Strategy, {
  change: "operational",
  default: "zero2",
  describe:
    "How several ranks share out a model. none: each holds all; zero2: master weights and optimizer are shared out; fsdp: all weights are; hsdp: fsdp within groups of shard_size ranks."
})

/** Parameters of stages whose work several ranks can do. */
export const worldParameters = {
  gradient_sum: parameter(GradientSum, {
    change: "identity",
    default: "fast",
    describe:
      "How gradients of micro-batches are summed. fast: on each rank, then over all. fixed-order: one by one in their global order: the same bits on any number of ranks, with more traffic."
  }),
  communicator: parameter(CommunicatorWish, {
    change: "operational",
    default: "auto",
    describe:
      "What joins several ranks: auto takes NCCL between GPUs and MPI between CPUs. host-staged: MPI for ranks that share a GPU, for checks alone."
  }),
  watchdog_seconds: parameter(Schema.Finite.check(Schema.isGreaterThan(0)), {
    change: "operational",
    default: 45,
    describe:
      "How long ranks may wait for each other in one collective before all end and say for whom; training then goes on from the last checkpoint."
  })
}

export const shard_size = parameter(AtLeastOne, {
  change: "operational",
  default: 8,
  describe: "Of hsdp: how many ranks share one copy, best those of one machine."
})

export const share_gradients = parameter(Schema.Boolean, {
  change: "operational",
  default: false,
  describe:
    "Sum gradients over ranks after every micro-batch instead of once a step: each rank then keeps its share of them alone, 4 bytes a parameter less, for more traffic. fixed-order does so always."
})

export interface WorldWish {
  readonly share_gradients?: boolean
  readonly strategy: typeof Strategy.Type
  readonly shard_size?: number
  readonly gradient_sum: typeof GradientSum.Type
  readonly communicator: typeof CommunicatorWish.Type
  readonly watchdog_seconds: number
}

/** What must be alike on all ranks: a name, and its value or a digest of it. */
export type Agreement = Readonly<Record<string, string>>

export const digestOf = (value: unknown): string =>
  createHash("sha256").update(JSON.stringify(value)).digest("hex").slice(0, 16)

const refusal = (message: string, next: string) =>
  Effect.fail(new StageError({ failure: "invalid-input", message, next }))

/** How the ranks share out the model, for forecasts made before they are joined. */
export const sharedOut = (
  wish: Pick<WorldWish, "strategy" | "shard_size" | "share_gradients" | "gradient_sum" | "communicator">,
  { rank, size }: Pick<Ranks, "rank" | "size">,
  compute: ModelOptions
): ModelOptions => ({
  ...compute,
  ...sharingOf(wish),
  ...(size === 1 ? {} : { world: { rank, size, communicator: communicatorOf(wish.communicator, size, compute) } })
})

const sharingOf = (wish: Pick<WorldWish, "strategy" | "shard_size" | "share_gradients" | "gradient_sum">) => ({
  strategy: wish.strategy,
  ...(wish.shard_size === undefined ? {} : { shardSize: wish.shard_size }),
  shareGradients: wish.share_gradients ?? false,
  gradientSum: wish.gradient_sum
})

/** What divides `count`, in rising order. */
export const divisorsOf = (count: number): ReadonlyArray<number> =>
  Array.from({ length: count }, (_, index) => index + 1).filter((size) => count % size === 0)

/** The options of this rank's model, and which GPU is its own. Fails where the ranks cannot speak in this way here. */
export const openWorld = Effect.fn("openWorld")(function* (
  wish: WorldWish,
  ranks: Ranks,
  compute: ModelOptions,
  native: Pick<Native, "gpus">,
  { agreement, work }: { readonly agreement: Agreement; readonly work: string }
) {
  const shared = sharingOf(wish)
  if (wish.strategy === "hsdp" && wish.shard_size !== undefined && ranks.size % wish.shard_size !== 0)
    return yield* refusal(
      `hsdp: shard_size (${wish.shard_size}) must divide the number of ranks (${ranks.size})`,
      "set shard_size to a number that divides the ranks, or strategy to fsdp"
    )
  const communicator = communicatorOf(wish.communicator, ranks.size, compute)
  if (communicator === "single") return { ...compute, ...shared }
  if (communicator === "nccl" && compute.device !== "cuda")
    return yield* refusal(
      "communicator: nccl joins GPUs, and this stage computes on the CPU",
      "set communicator to auto"
    )
  if (communicator === "mpi" && compute.device === "cuda")
    return yield* refusal(
      "communicator: mpi joins CPUs, and this stage computes on a GPU",
      "set communicator to auto, or to host-staged for ranks that share a GPU"
    )
  if (communicator !== "nccl" && !ranks.mpi)
    return yield* refusal(
      `${ranks.size} ranks were started without MPI (by ${ranks.launcher}), by which ranks on CPUs speak`,
      "start them by mpirun, or by srun with a PMI plugin; tinyllama run does so by itself: resources.ranks"
    )
  if (communicator === "nccl" && ranks.size > 1 && ranks.master === undefined)
    return yield* refusal(
      "MASTER_ADDR and MASTER_PORT are not set: where rank 0 awaits the others",
      "set them to the name and a free port of rank 0's machine"
    )
  if (communicator !== "nccl") shareCores(ranks)
  const { SLURM_JOB_ID = "", SLURM_RESTART_COUNT = "" } = process.env
  const world: NativeWorld = {
    rank: ranks.rank,
    size: ranks.size,
    communicator,
    ...(ranks.master === undefined
      ? {}
      : {
          masterAddress: ranks.master.address,
          masterPort: ranks.master.port,
          nonce: digestOf([work, SLURM_JOB_ID, SLURM_RESTART_COUNT])
        }),
    agreement: Object.entries({ ...agreement, ...shared, "number of ranks": String(ranks.size) }).map(
      ([name, value]) => [name, String(value)]
    ),
    logFolder: join(work, "ranks"),
    collectiveSeconds: wish.watchdog_seconds
  }
  return { ...compute, ...shared, ...gpuOf(communicator, ranks, native), world }
})

/**
 * Open MPI waits in a loop. Ranks that share a core take it from each other so, a time slice at a collective: a step of milliseconds lasts seconds. mpirun
 * tells its ranks to yield when it sees that; srun does not.
 */
const shareCores = ({ localSize }: Ranks): void => {
  if (localSize > availableParallelism()) process.env["OMPI_MCA_mpi_yield_when_idle"] ??= "1"
}

const communicatorOf = (
  wish: WorldWish["communicator"],
  size: number,
  { device }: ModelOptions
): NativeWorld["communicator"] => {
  if (wish !== "auto" && (size > 1 || wish === "nccl")) return wish
  if (size === 1) return "single"
  return device === "cuda" ? "nccl" : "mpi"
}

/** A launcher may show each rank its own GPU alone. */
const gpuOf = (communicator: NativeWorld["communicator"], { localRank }: Ranks, native: Pick<Native, "gpus">) => {
  if (communicator === "mpi") return {}
  const { length } = native.gpus().gpus
  return { gpu: length <= 1 ? 0 : communicator === "host-staged" ? localRank % length : localRank }
}

/** How the ranks of an open model agree on what they do. */
export const ranksOfModel = (model: Pick<NativeModel, "exchange">, { rank, size }: Ranks): TrainingRanks => ({
  rank,
  worldSize: size,
  agree: size === 1 ? (values) => Promise.resolve(values) : (values) => model.exchange(values)
})
