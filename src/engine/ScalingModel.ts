/**
 * How well training scales to many GPUs, by a model of one step: what is computed is measured on one GPU, what is sent is arithmetic over given
 * bandwidths. Pure. The formulas are docs/distributed.md's.
 *
 *   T = A·t + exposed + c·overlapped        efficiency = A·t / T
 *
 * t is the time of a micro-batch alone, A how many a rank makes in a step, c the share of its speed that compute loses beside communication. Collectives
 * take bytes·(n − 1)/n over the bus bandwidth of the slowest link on their ring; an all-reduce twice that. Start-up times of collectives, the update
 * (each rank's share of it is the smaller the more ranks there are), and stragglers are left out.
 */
export type Strategy = "none" | "zero2" | "fsdp" | "hsdp"

export interface Links {
  /** GPUs that NVLink joins. */
  readonly gpusPerNode: number
  /** Bytes a second of each GPU on a ring within a node, as NCCL's bus bandwidth. */
  readonly nvlink: number
  /** Bytes a second of each GPU on a ring across nodes. */
  readonly network: number
}

/** 8 GPUs of an HGX H100 or H200 with one 400 Gb/s adapter each: bus bandwidths as they are commonly reached, not the datasheets'. */
export const usualLinks: Links = { gpusPerNode: 8, nvlink: 370e9, network: 45e9 }

/** Until it is measured on the GPU itself: docs/distributed.md, "Communication's cost to compute". */
export const USUAL_PENALTY = 0.1

export interface ScalingInputs {
  readonly strategy: Strategy
  /** Ranks that share one copy; of hsdp alone. */
  readonly shardSize: number
  /** Gradients are summed over ranks after every micro-batch, not after a step's last alone. */
  readonly shareGradients?: boolean
  readonly gpus: number
  /** A: micro-batches that each rank makes in a step. */
  readonly accumulate: number
  /** t: seconds of one micro-batch's forward and backward pass. */
  readonly microBatchSeconds: number
  readonly parameters: number
  /** Of the group that is gathered first and reduced last: the embedding. */
  readonly embeddingParameters: number
  readonly weightBytes: number
  readonly gradientBytes: number
  /** c */
  readonly penalty: number
  readonly links: Links
}

export interface ScalingForecast {
  /** Seconds of one reduction of all gradients, and of one gather of all weights. */
  readonly reduceSeconds: number
  readonly gatherSeconds: number
  /** Of a step: what nothing is computed beside, and what the rest costs. */
  readonly exposedSeconds: number
  readonly penaltySeconds: number
  readonly stepSeconds: number
  readonly efficiency: number
}

/** A forward pass is a third of both. */
const FORWARD_SHARE = 1 / 3

const ring = (bytes: number, ranks: number, bandwidth: number): number =>
  ranks === 1 ? 0 : (bytes * (ranks - 1)) / ranks / bandwidth

/** Seconds to reduce and to gather `parameters`, as the strategy does. */
const collectives = (
  { gpus, gradientBytes, links, shardSize, strategy, weightBytes }: ScalingInputs,
  parameters: number
) => {
  const linkOf = (ranks: number) => (ranks <= links.gpusPerNode ? links.nvlink : links.network)
  const gradients = parameters * gradientBytes
  if (strategy === "none") return { reduce: 2 * ring(gradients, gpus, linkOf(gpus)), gather: 0 }
  const shards = strategy === "hsdp" ? Math.min(shardSize, gpus) : gpus
  const copies = gpus / shards
  // Ranks with the same share lie one to a node, where copies fill nodes.
  const between = shards >= links.gpusPerNode || gpus > links.gpusPerNode ? links.network : links.nvlink
  return {
    reduce: ring(gradients, shards, linkOf(shards)) + 2 * ring(gradients / shards, copies, between),
    gather: ring(parameters * weightBytes, shards, linkOf(shards))
  }
}

export const forecastScaling = (inputs: ScalingInputs): ScalingForecast => {
  const { accumulate, microBatchSeconds: micro, penalty, shareGradients = false, strategy } = inputs
  const whole = collectives(inputs, inputs.parameters)
  const first = collectives(inputs, inputs.embeddingParameters)
  const [forward, backward] = [FORWARD_SHARE * micro, (1 - FORWARD_SHARE) * micro]
  const onDemand = strategy === "fsdp" || strategy === "hsdp"
  let exposedSeconds = 0
  let beside = 0
  for (let round = 0; round < accumulate; round++) {
    // zero2 gathers once a step, beside its first forward pass; fsdp for every pass, beside the compute of the group before.
    const gathers = onDemand || round === 0
    const reduces = shareGradients || round === accumulate - 1
    const before = gathers ? whole.gather : 0
    const after = (onDemand ? whole.gather : 0) + (reduces ? whole.reduce : 0)
    exposedSeconds += Math.max(0, before - forward) + Math.max(0, after - backward)
    // Nothing can be computed beside the first group's gather, nor beside the last reduction, which is the same group's.
    exposedSeconds += (gathers ? first.gather : 0) + (reduces ? first.reduce : 0)
    beside += Math.min(before + after, micro)
  }
  const penaltySeconds = penalty * beside
  const stepSeconds = accumulate * micro + exposedSeconds + penaltySeconds
  return {
    reduceSeconds: whole.reduce,
    gatherSeconds: whole.gather,
    exposedSeconds,
    penaltySeconds,
    stepSeconds,
    efficiency: (accumulate * micro) / stepSeconds
  }
}

/** c, from a micro-batch alone and beside contention: while compute has 1 − c of its speed, a second of it costs c of what it would have done. */
export const overlapPenalty = (aloneMillis: number, besideMillis: number): number =>
  Math.max(0, 1 - aloneMillis / besideMillis)
