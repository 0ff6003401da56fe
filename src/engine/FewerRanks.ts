/**
 * Training that goes on with fewer ranks than the file asks for, since some were lost. The step keeps its micro-batches, whose number the ranks need not
 * divide any more: in the last round some have none.
 */
import type { Ranks } from "../pipeline/StageType.ts"
import type { WorldWish } from "./World.ts"

/** The wish as these ranks can fulfil it, and what a user should know of it: nothing where the ranks are those that the file asks for. */
export const withFewerRanks = <W extends WorldWish>(
  wish: W,
  { size, wanted }: Pick<Ranks, "size" | "wanted">,
  microBatches: number
): { readonly wish: W; readonly said: ReadonlyArray<string> } => {
  if (wanted === undefined || wanted === size) return { wish, said: [] }
  const uneven = size - (microBatches % size)
  const whole = wish.strategy !== "hsdp" || size % (wish.shard_size ?? size) === 0
  const { strategy } = whole ? wish : { strategy: "fsdp" as const }
  return {
    wish: { ...wish, strategy },
    said: [
      `${size} of ${wanted} ranks do the ${microBatches} micro-batches of a step` +
        (uneven < size ? `; in its last round ${uneven} of them ${uneven === 1 ? "has" : "have"} none` : ""),
      ...(whole ? [] : [`strategy fsdp instead of hsdp: groups of ${wish.shard_size} do not divide ${size} ranks`]),
      ...(wish.gradient_sum === "fast"
        ? [
            `gradient_sum is fast: sums on ${size} ranks are rounded otherwise than on ${wanted}; fixed-order is the same`
          ]
        : [])
    ]
  }
}
