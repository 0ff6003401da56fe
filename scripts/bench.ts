/**
 * Measures the native engine and the runner on this machine.
 *
 *   npm run bench [-- train|overhead|data|tokenize] [--quick] [--threads N] [--no-torch]
 *
 * train: tokens/s, GFLOP/s and share of the machine's fp32 peak (a register-only FMA loop, same run, same threads) of whole training steps and
 * of their matrix products; and tokens/s against eager PyTorch, both measured in turns, when a python3 with torch is there.
 * tokenize: the tokenizer on one core beside SentencePiece and kitoken, with their ids compared.
 * overhead: what the runner itself costs, beside make and snakemake.
 * data: jsonl.zst to packed blocks, the loader, memory; 2 GB of text, with --quick 0.2 GB.
 * The last line is JSON.
 */
import { availableParallelism, loadavg } from "node:os"
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { Console, Effect } from "effect"
import { Argument, Command, Flag } from "effect/cli"
import { load, type Native } from "../src/engine/Native.ts"
import { data } from "./bench/data.ts"
import { overhead } from "./bench/overhead.ts"
import { tokenize } from "./bench/tokenize.ts"
import { findPythonWithTorch, startTorch } from "./bench/TorchPeer.ts"
import {
  cases,
  type Effort,
  flopsWords,
  LOSS_HEAD,
  meanOf,
  measureProducts,
  median,
  parametersOf,
  PRODUCT_ROUNDS,
  speedOf,
  type TrainingCase,
  trainNative
} from "./bench/training.ts"

const number = (value: number, digits = 0): string =>
  value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits })
const percent = (share: number): string => `${number(100 * share, 1)} %`
const describe = (training: TrainingCase): string =>
  `${training.name}: ${number(parametersOf(training) / 1e6, 1)}M parameters, ${training.batch} x ${training.length} tokens`

/** A peer below this share of the peak runs on the reference BLAS, and beating it says nothing. */
const FAIR_SHARE = 0.2

/** Other programs that keep this many cores busy make every figure too low. */
const BUSY_CORES = 0.5

interface Settings {
  readonly native: Native
  readonly threads: number
  readonly effort: Effort
  readonly peak: number
}

const benchSteps = Effect.fn("benchSteps")(function* (settings: Settings, training: TrainingCase) {
  const { native, threads, effort, peak } = settings
  const speed = speedOf(training, yield* trainNative(native, training, threads, effort))
  yield* Console.log(
    `  step: ${number(speed.tokensPerSecond)} tokens/s, ${number(speed.gflops, 1)} GFLOP/s, ${percent(speed.gflops / peak)} of peak`
  )
  return { name: training.name, parameters: parametersOf(training), ...speed, share: speed.gflops / peak }
})

const benchProducts = Effect.fn("benchProducts")(function* (settings: Settings, training: TrainingCase) {
  const { native, threads, effort } = settings
  yield* Console.log(`  products (medians of ${PRODUCT_ROUNDS} rounds; shares of the best peak measured next to each):`)
  const matmuls = yield* measureProducts(native, training, threads, effort.seconds / 20)
  for (const { name, pass, m, n, k, gflops, share } of matmuls) {
    yield* Console.log(
      `  ${name.padEnd(LOSS_HEAD.length)} ${pass.padEnd(15)} ${`${m} x ${n} x ${k}`.padEnd(19)} ${number(gflops, 1).padStart(7)} GFLOP/s  ${percent(share)}`
    )
  }
  const [gflops, share] = [meanOf(matmuls, "gflops"), meanOf(matmuls, "share")]
  yield* Console.log(`  all products of a step: ${number(gflops, 1)} GFLOP/s, ${percent(share)} of peak`)
  return { name: training.name, gflops, share, matmuls }
})

const benchAgainstTorch = Effect.fn("benchAgainstTorch")(function* (
  settings: Settings,
  python: string,
  shapes: ReadonlyArray<TrainingCase>
) {
  const { native, threads, effort, peak } = settings
  const torch = yield* startTorch(python, threads)
  const gemm = yield* torch.gemm(2048)
  yield* Console.log(
    `\nPyTorch ${torch.version} (${python}, eager, ${threads} threads): its 2048³ product runs at ${number(gemm, 1)} GFLOP/s, ${percent(gemm / peak)} of peak`
  )
  if (gemm < FAIR_SHARE * peak) {
    yield* Console.log(
      "  WARNING: that is below 20 % of the peak: torch runs on the reference BLAS, not a fair peer (Debian: apt install libopenblas0)"
    )
  }
  const results = yield* Effect.forEach(
    shapes,
    Effect.fnUntraced(function* (training) {
      const ours: Array<number> = []
      const theirs: Array<number> = []
      for (let round = 0; round < 2; round++) {
        ours.push(yield* trainNative(native, training, threads, effort))
        theirs.push((yield* torch.train(training, effort)).step_seconds)
      }
      const rates = (steps: ReadonlyArray<number>) =>
        steps.map((seconds) => number(speedOf(training, seconds).tokensPerSecond)).join(", ")
      const [mine, peer] = [speedOf(training, median(ours)), speedOf(training, median(theirs))]
      const ratio = mine.tokensPerSecond / peer.tokensPerSecond
      yield* Console.log(
        `  ${training.name}: ${number(mine.tokensPerSecond)} tokens/s (${rates(ours)}), PyTorch ${number(peer.tokensPerSecond)} (${rates(theirs)}): ${number(ratio, 2)}x`
      )
      return {
        name: training.name,
        tokensPerSecond: mine.tokensPerSecond,
        torchTokensPerSecond: peer.tokensPerSecond,
        ratio
      }
    })
  )
  return { version: torch.version, gemmGflops: gemm, gemmShare: gemm / peak, results }
}, Effect.scoped)

const train = Effect.fn("bench.train")(function* (options: {
  readonly quick: boolean
  readonly threads: number
  readonly torch: boolean
}) {
  const native = yield* load
  const { quick, threads } = options
  const effort: Effort = quick ? { seconds: 1, steps: 2 } : { seconds: 6, steps: 3 }
  const busy = loadavg()[0] ?? 0
  if (busy > BUSY_CORES) {
    yield* Console.log(
      `WARNING: the machine is busy (load ${number(busy, 1)} before the start): rates and shares will be too low`
    )
  }
  const measurePeak = Effect.promise(() => native.measurePeak(threads, quick ? 0.5 : 1))
  // The best of three: what other processes take must not lower what shares are taken of.
  const peak = Math.max(yield* measurePeak, yield* measurePeak, yield* measurePeak)
  const settings: Settings = { native, threads, effort, peak }
  yield* Console.log(
    `${native.instructionSet()}, ${threads} threads, fp32 peak ${number(peak, 1)} GFLOP/s (measured: register-only FMA loop)\n` +
      `FLOPs of training: ${flopsWords}`
  )
  const steps = []
  const products = []
  for (const training of [cases.demo, cases.small]) {
    yield* Console.log(`\n${describe(training)}`)
    steps.push(yield* benchSteps(settings, training))
    products.push(yield* benchProducts(settings, training))
  }
  const python = options.torch ? yield* findPythonWithTorch : undefined
  if (python === undefined) {
    yield* Console.log(
      options.torch
        ? "\nNo comparison with PyTorch: neither /usr/bin/python3 nor python3 has torch (Debian: apt install python3-torch libopenblas0)"
        : "\nNo comparison with PyTorch: --no-torch"
    )
  }
  const shapes = quick ? [cases.demo, cases.small] : [cases.demo, cases.small, cases.large]
  const torch = python === undefined ? null : yield* benchAgainstTorch(settings, python, shapes)
  yield* Console.log(
    JSON.stringify({
      instructionSet: native.instructionSet(),
      threads,
      loadBefore: busy,
      peakGflops: peak,
      steps,
      products,
      torch
    })
  )
})

Command.make(
  "bench",
  {
    mode: Argument.Literals("mode", ["train", "overhead", "data", "tokenize"]).pipe(Argument.withDefault("train")),
    quick: Flag.Boolean("quick").pipe(
      Flag.withDescription("A minute at most: short measurements, no large model"),
      Flag.withDefault(false)
    ),
    threads: Flag.Int("threads").pipe(
      Flag.withDescription("Threads of the engine and of PyTorch; all by default"),
      Flag.withDefault(availableParallelism())
    ),
    noTorch: Flag.Boolean("no-torch").pipe(Flag.withDescription("Do not look for PyTorch"), Flag.withDefault(false))
  },
  ({ mode, noTorch, quick, threads }) =>
    Effect.gen(function* () {
      if (mode === "train") return yield* train({ quick, threads, torch: !noTorch })
      const results =
        mode === "data"
          ? yield* data({ quick, threads })
          : mode === "tokenize"
            ? yield* tokenize({ quick })
            : yield* overhead({ quick })
      yield* Console.log(JSON.stringify(results))
    })
).pipe(
  Command.withDescription("Measure the native engine on this machine"),
  Command.run({ version: "0.1.0" }),
  Effect.provide(NodeServices.layer),
  NodeRuntime.runMain
)
