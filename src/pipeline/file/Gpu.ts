/** Kinds of GPUs that a file may name: for estimates of a machine that the plan is not made on. */

/** Peak of dense products in bf16 with fp32 sums, FLOP/s, as the makers state it. */
const peaks = {
  a100: 312e12,
  h100: 989.5e12,
  h200: 989.5e12,
  "rtx-3090": 71.2e12,
  "rtx-4090": 165.2e12
} as const
export type GpuKind = keyof typeof peaks

export const isGpuKind = (name: string): name is GpuKind => Object.hasOwn(peaks, name)

export const gpuKinds: ReadonlyArray<GpuKind> = Object.keys(peaks).filter(isGpuKind)

export const peakOf = (kind: GpuKind): number => peaks[kind]
