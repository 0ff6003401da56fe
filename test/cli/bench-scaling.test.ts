/** `bench scaling` and `bench train` as processes, on ranks of this machine and on worlds that are not there. */
import { spawnSync } from "node:child_process"
import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { assert, describe, it } from "@effect/vitest"
import { Result, Schema } from "effect"
import { contentionOf } from "../../src/cli/BenchFlags.ts"
import { findProgram } from "../../src/pipeline/run/RankProcesses.ts"

const program = new URL("../../bin/tinyllama.js", import.meta.url).pathname
const bench = (...words: ReadonlyArray<string>) => {
  const { status, stderr, stdout } = spawnSync(process.execPath, [program, "bench", ...words], {
    encoding: "utf8",
    env: { ...process.env, CUDA_VISIBLE_DEVICES: "" } // what is asked here is asked of a CPU
  })
  return { status, stderr, stdout, last: stdout.trimEnd().split("\n").at(-1) ?? "" }
}
const small = ["--device", "cpu", "--length", "16", "--micro-batch", "1"]
const mpi = findProgram("mpirun") !== undefined
const withMpi = mpi ? it : it.skip

const Report = Schema.fromJsonString(
  Schema.Struct({
    ranks: Schema.Array(
      Schema.Struct({
        ranks: Schema.Int,
        tokensPerSecond: Schema.Finite,
        efficiency: Schema.Finite,
        held: Schema.Int,
        forecast: Schema.Int,
        source: Schema.Literal("measured")
      })
    ),
    world: Schema.Array(
      Schema.Struct({
        world: Schema.Int,
        strategy: Schema.String,
        forecast: Schema.Int,
        held: Schema.optionalKey(Schema.Int),
        source: Schema.Literals(["measured", "modelled"])
      })
    ),
    penalty: Schema.Struct({ value: Schema.Finite, source: Schema.String }),
    microBatchMillis: Schema.Struct({ value: Schema.Finite, source: Schema.String }),
    forecast: Schema.Array(
      Schema.Struct({
        gpus: Schema.Int,
        strategy: Schema.String,
        accumulate: Schema.Int,
        efficiency: Schema.Finite,
        source: Schema.Literal("modelled")
      })
    ),
    notes: Schema.Array(Schema.String)
  })
)
const reportOf = (line: string) => Schema.decodeSync(Report)(line)

describe("bench scaling", () => {
  it("models GPUs where there are none: memory of each world, efficiency of 8 to 64, each figure labelled", () => {
    const { last, status, stdout } = bench(
      "scaling",
      "tinyllama-1.1b",
      "--micro-batch",
      "8",
      "--penalty",
      "0.2",
      "--micro-ms",
      "195"
    )
    assert.strictEqual(status, 0)
    const { forecast, microBatchMillis, penalty, world } = reportOf(last)
    assert.isTrue(world.every(({ source }) => source === "modelled"))
    assert.strictEqual(world.length, 12)
    const of = (size: number, strategy: string) =>
      world.find((row) => row.world === size && row.strategy === strategy)?.forecast ?? Number.NaN
    assert.isBelow(of(64, "zero2"), of(8, "zero2"))
    assert.isBelow(of(64, "fsdp"), of(64, "zero2"))
    assert.strictEqual(of(64, "hsdp"), of(8, "hsdp"))
    assert.deepStrictEqual([penalty.source, microBatchMillis.source], ["given", "given"])
    assert.deepStrictEqual(Array.from(new Set(forecast.map(({ gpus }) => gpus))), [8, 16, 32, 64])
    for (const { efficiency } of forecast) assert.isTrue(efficiency > 0.5 && efficiency < 1)
    assert.include(stdout, "c = 0.200, given: --penalty")
    assert.match(stdout, /370 GB\/s of NVLink's bus and 45 GB\/s of network/u)
  })

  withMpi(
    `measures ranks that it starts and one rank of larger worlds, to the byte${mpi ? "" : " (skipped: no mpirun here)"}`,
    () => {
      const ran = bench(
        "scaling",
        "tinyllama-demo",
        ...small,
        "--ranks",
        "1,2",
        "--world",
        "8,16",
        "--strategy",
        "fsdp,hsdp",
        "--steps",
        "2"
      )
      assert.strictEqual(ran.status, 0, ran.stderr)
      const { ranks, world } = reportOf(ran.last)
      assert.deepStrictEqual(
        ranks.map((row) => row.ranks),
        [1, 2],
        ran.stdout
      )
      for (const { forecast, held } of ranks) assert.strictEqual(held, forecast)
      assert.strictEqual(world.length, 4)
      for (const { forecast, held, source } of world) assert.deepStrictEqual([held, source], [forecast, "measured"])
    },
    120_000
  )

  it("refuses what it cannot mean with exit code 2, and says what it could", () => {
    const refused = (...words: ReadonlyArray<string>) => {
      const { status, stderr } = bench("scaling", ...words)
      assert.strictEqual(status, 2, stderr)
      return stderr
    }
    assert.match(refused("tinylama-1.1b"), /neither a file nor a model's name.*Did you mean tinyllama-1.1b\?/u)
    assert.match(refused("--ranks", "1,x"), /--ranks is whole numbers of at least 1/u)
    assert.match(refused("--world", "0"), /--world is whole numbers of at least 1/u)
    assert.match(refused("--strategy", "zero3"), /--strategy is of zero2, fsdp, hsdp, none; not zero3/u)
    const folder = mkdtempSync(join(tmpdir(), "tinyllama-bench-"))
    const file = join(folder, "p.yaml")
    writeFileSync(
      file,
      'version: 1\nname: p\nstages:\n  a: { uses: download, with: { sources: [{ url: "https://example.org/a.txt" }] } }\n'
    )
    assert.match(refused(file), /has no pretrain stage/u)
    rmSync(folder, { recursive: true })
  })

  it("takes the model and its strategy from a pipeline file", () => {
    const { last, status, stdout } = bench(
      "scaling",
      new URL("../../pipelines/tinyllama-1.1b.yaml", import.meta.url).pathname
    )
    assert.strictEqual(status, 0)
    assert.match(stdout, /tinyllama-1\.1b\.yaml: \w+, micro-batches of \d+ × 2048 tokens/u)
    assert.strictEqual(reportOf(last).forecast[0]?.strategy, "zero2")
  })
})

describe("bench train", () => {
  it("is rank r of a world that is not there: its memory as planned, and fewer bytes than alone", () => {
    const Line = Schema.fromJsonString(
      Schema.Struct({ ranks: Schema.Int, memory: Schema.Struct({ held: Schema.Int, forecast: Schema.Int }) })
    )
    const heldBy = (...words: ReadonlyArray<string>) => {
      const { last, status, stderr } = bench("train", "--model", "tinyllama-demo", ...small, "--steps", "1", ...words)
      assert.strictEqual(status, 0, stderr)
      const { memory } = Schema.decodeSync(Line)(last)
      assert.strictEqual(memory.held, memory.forecast)
      return memory.held
    }
    const alone = heldBy()
    assert.isBelow(heldBy("--communicator", "fake", "--world", "16", "--rank", "3", "--strategy", "fsdp"), alone)
    assert.isBelow(
      heldBy("--communicator", "fake", "--world", "16", "--strategy", "fsdp", "--share-gradients"),
      heldBy("--communicator", "fake", "--world", "16", "--strategy", "fsdp")
    )
  })

  it("refuses a rank outside of its world, and contention on a CPU", () => {
    const outside = bench(
      "train",
      "--model",
      "tinyllama-demo",
      ...small,
      "--communicator",
      "fake",
      "--world",
      "4",
      "--rank",
      "4"
    )
    assert.deepStrictEqual([outside.status, outside.stderr.split("\n")[0]], [2, "--rank 4 is not below --world 4"])
    const contended = bench("train", "--model", "tinyllama-demo", ...small, "--steps", "1", "--contention", "8:300")
    assert.strictEqual(contended.status, 1)
    assert.include(contended.stderr, "contention is of a GPU, and this model computes on the CPU")
  })

  it("reads contention as multiprocessors and GB/s", () => {
    assert.deepStrictEqual(contentionOf("16:600"), Result.succeed({ multiprocessors: 16, gigabytesPerSecond: 600 }))
    assert.deepStrictEqual(contentionOf("8"), Result.succeed({ multiprocessors: 8, gigabytesPerSecond: 300 }))
    assert.isTrue(Result.isFailure(contentionOf("8/300")))
  })
})
