/** What `bench scaling` found, each figure with where it comes from, as text. */
import type { Links, ScalingForecast, Strategy } from "../engine/ScalingModel.ts"
import * as Format from "./Format.ts"

/** measured: in this call, on this machine. modelled: by arithmetic. given: by a flag. */
export type Source = "measured" | "modelled" | "given"

export interface Figure {
  readonly value: number
  readonly source: Source
  /** From what, in words. */
  readonly of: string
}

export interface RanksRow {
  readonly ranks: number
  readonly threads: number
  readonly tokensPerSecond: number
  /** Of one rank: with as many devices, or on the CPU with the same cores. */
  readonly efficiency: number
  readonly stepMillis: number
  readonly held: number
  readonly forecast: number
  readonly source: "measured"
}

export interface WorldRow {
  readonly world: number
  readonly strategy: Strategy
  readonly forecast: number
  readonly held?: number
  readonly microBatchMillis?: number
  readonly source: Source
}

export interface SweepRow {
  readonly multiprocessors: number
  readonly gigabytesPerSecond: number
  readonly microBatchMillis: number
  readonly penalty: number
  readonly source: "measured"
}

export interface ForecastRow extends ScalingForecast {
  readonly gpus: number
  readonly strategy: Strategy
  readonly accumulate: number
  readonly source: "modelled"
}

export interface ScalingReport {
  readonly version: 1
  readonly model: string
  readonly device: string
  readonly microBatch: number
  readonly length: number
  readonly recompute: string
  readonly strategy: Strategy
  readonly ranks: ReadonlyArray<RanksRow>
  readonly world: ReadonlyArray<WorldRow>
  readonly sweep: ReadonlyArray<SweepRow>
  readonly microBatchMillis: Figure
  readonly penalty: Figure
  readonly links: Links
  readonly forecast: ReadonlyArray<ForecastRow>
  /** What was left out, and why. */
  readonly notes: ReadonlyArray<string>
}

const percent = (share: number): string => `${(100 * share).toFixed(1)} %`
const gibibytes = (bytes: number): string => (bytes / 2 ** 30).toFixed(3)
const millis = (seconds: number): string => (1000 * seconds).toFixed(1)

const ranksTable = ({ device, ranks, strategy }: ScalingReport): ReadonlyArray<string> =>
  ranks.length === 0
    ? []
    : [
        `ranks on this machine (${device}), strategy ${strategy}`,
        Format.table(
          ["ranks", "threads each", "tokens/s", "efficiency", "step ms", "held GiB", "forecast GiB", ""],
          ranks.map((row) => [
            String(row.ranks),
            String(row.threads),
            String(Math.round(row.tokensPerSecond)),
            percent(row.efficiency),
            row.stepMillis.toFixed(1),
            gibibytes(row.held),
            gibibytes(row.forecast),
            row.source
          ])
        ),
        ""
      ]

const worldTable = ({ world }: ScalingReport): ReadonlyArray<string> => [
  "one rank of W, alone: its memory without the driver's and NCCL's own, and its compute",
  Format.table(
    ["W", "strategy", "held GiB", "forecast GiB", "ratio", "micro-batch ms", ""],
    world.map((row) => [
      String(row.world),
      row.strategy,
      row.held === undefined ? "" : gibibytes(row.held),
      gibibytes(row.forecast),
      row.held === undefined ? "" : (row.held / row.forecast).toFixed(3),
      row.microBatchMillis?.toFixed(1) ?? "",
      row.source
    ])
  ),
  ""
]

const sweepTable = ({ sweep }: ScalingReport): ReadonlyArray<string> =>
  sweep.length === 0
    ? []
    : [
        "a micro-batch beside contention",
        Format.table(
          ["multiprocessors", "GB/s", "micro-batch ms", "c", ""],
          sweep.map((row) => [
            String(row.multiprocessors),
            row.gigabytesPerSecond.toFixed(0),
            row.microBatchMillis.toFixed(1),
            row.penalty.toFixed(3),
            row.source
          ])
        ),
        ""
      ]

/** One line for a number of GPUs and a strategy, a column for each accumulation. */
const forecastTable = ({ forecast, links, microBatchMillis, penalty }: ScalingReport): ReadonlyArray<string> => {
  const accumulations = Array.from(new Set(forecast.map(({ accumulate }) => accumulate)))
  const [first] = accumulations
  const rows = forecast
    .filter(({ accumulate }) => accumulate === first)
    .map((row) => [
      String(row.gpus),
      row.strategy,
      millis(row.reduceSeconds),
      millis(row.gatherSeconds),
      ...accumulations.map((accumulate) =>
        percent(
          forecast.find(
            (other) => other.gpus === row.gpus && other.strategy === row.strategy && other.accumulate === accumulate
          )?.efficiency ?? Number.NaN
        )
      ),
      row.source
    ])
  return [
    "weak scaling, as tokens/s of a GPU over those of one alone: A·t / (A·t + exposed + c·overlapped)",
    `t = ${microBatchMillis.value.toPrecision(4)} ms a micro-batch, ${microBatchMillis.source}: ${microBatchMillis.of}`,
    `c = ${penalty.value.toFixed(3)}, ${penalty.source}: ${penalty.of}`,
    `${(links.nvlink / 1e9).toFixed(0)} GB/s of NVLink's bus and ${(links.network / 1e9).toFixed(0)} GB/s of network for each GPU, ${links.gpusPerNode} GPUs a node`,
    Format.table(
      ["GPUs", "strategy", "reduce ms", "gather ms", ...accumulations.map((count) => `A = ${count}`), ""],
      rows
    )
  ]
}

export const reportText = (report: ScalingReport): string =>
  [
    `${report.model}, micro-batches of ${report.microBatch} × ${report.length} tokens, recompute ${report.recompute}`,
    "",
    ...ranksTable(report),
    ...worldTable(report),
    ...sweepTable(report),
    ...forecastTable(report),
    ...report.notes.map((note) => `note: ${note}`),
    JSON.stringify(report)
  ].join("\n")
