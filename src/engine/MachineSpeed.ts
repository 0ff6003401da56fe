/** How long arithmetic and passing bytes take on this machine, for forecasts where no past run can tell. Shares and rates are measured ones. */
import { Effect } from "effect"

/** The training loop's share of the peak: docs/performance.md, 57 to 67 %, less saving, validation and the start. */
const SHARE_OF_PEAK = 0.55
/** Seconds that a worker takes to start: docs/performance.md. */
export const START_SECONDS = 0.4
/** Long enough for a stable reading, short enough for a plan. */
const MEASURE_SECONDS = 0.05

const measured = new Map<number, number>()

/** FLOP/s of the engine's multiply-add loop on `threads` threads, measured once a process; undefined without the engine. */
const peak = Effect.fn("MachineSpeed.peak")(
  function* (threads: number) {
    const known = measured.get(threads)
    if (known !== undefined) return known
    const { load } = yield* Effect.promise(() => import("./Native.ts"))
    const native = yield* load
    const gigaflops = yield* Effect.tryPromise(() => native.measurePeak(threads, MEASURE_SECONDS))
    measured.set(threads, 1e9 * gigaflops)
    return 1e9 * gigaflops
  },
  Effect.orElseSucceed(() => undefined)
)

/** Of TinyLlama's own run on 16 A100: 24,000 tokens/s each. What the engine reaches on GPUs is measured where it runs on them. */
const SHARE_OF_GPU_PEAK = 0.52

/** Seconds for `flop` floating-point operations of training or scoring, on `gpus` (FLOP/s of each at its peak) where they are given. */
export const secondsOfArithmetic = Effect.fn("MachineSpeed.secondsOfArithmetic")(function* (
  flop: number | undefined,
  threads: number,
  gpus?: { readonly count: number; readonly peak: number }
) {
  if (flop === undefined) return undefined
  if (gpus !== undefined) return START_SECONDS + flop / (SHARE_OF_GPU_PEAK * gpus.peak * gpus.count)
  const rate = yield* peak(threads)
  return rate === undefined ? undefined : START_SECONDS + flop / (SHARE_OF_PEAK * rate)
})

/** Seconds for `bytes` at `rate` bytes a second. */
export const secondsOfBytes = (bytes: number | undefined, rate: number): Effect.Effect<number | undefined> =>
  Effect.succeed(bytes === undefined ? undefined : START_SECONDS + bytes / rate)
