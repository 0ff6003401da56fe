/**
 * How many ranks the next attempt of an elastic stage has. One that lost a rank is tried once more with as many; lost again, one rank less goes on (one
 * machine less, where the stage names `nodes`), and so on down to the smallest number that the file allows. A new run begins with all of them.
 */
import type { Resources } from "../file/ResolvedPipeline.ts"
import type { FailureClass } from "../StageType.ts"

export interface Strength {
  readonly ranks: number
  /** Attempts in a row with so many ranks that lost one. */
  readonly lost: number
}

export const fullStrength = ({ ranks }: Resources): Strength => ({ ranks, lost: 0 })

export const afterFailed = (resources: Resources, { lost, ranks }: Strength, failure: FailureClass): Strength => {
  const { elastic, nodes = 1 } = resources
  if (failure !== "worker-lost" || elastic === undefined) return { ranks, lost: 0 }
  const fewer = ranks - (nodes > 1 ? resources.ranks / nodes : 1)
  return lost === 0 || fewer < elastic.min ? { ranks, lost: lost + 1 } : { ranks: fewer, lost: 0 }
}

/** What the stage takes with so many ranks: GPUs and machines in proportion. */
export const withRanks = (resources: Resources, ranks: number): Resources => {
  if (ranks === resources.ranks) return resources
  const share = ranks / resources.ranks
  return {
    ...resources,
    ranks,
    gpus: Math.ceil(resources.gpus * share),
    ...(resources.nodes === undefined ? {} : { nodes: Math.max(1, Math.round(resources.nodes * share)) })
  }
}
