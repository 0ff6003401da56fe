/** The whole life of a model on little text, through the real command line, with real worker processes. */
import { rmSync } from "node:fs"
import { join } from "node:path"
import { afterAll, assert, beforeAll, describe, it } from "@effect/vitest"
import { outputDigests, type Outcome, smallPipeline, start, temporaryFolder, tinyllama } from "./command-line.ts"

const runs = temporaryFolder()
let first: Outcome
beforeAll(async () => {
  first = await tinyllama(["run", smallPipeline, "--runs", runs])
}, 120_000)
afterAll(() => rmSync(runs, { recursive: true }))

describe("a small run from text to a quantized chat model", () => {
  it("completes, and ends with a table and the next step", () => {
    assert.strictEqual(first.code, 0, first.stdout + first.stderr)
    assert.match(first.stdout, /stage +outcome +time +result/u)
    assert.match(first.stdout, /Next: npx tinyllama chat /u)
  })

  it("left what it promised", () => {
    const files = Object.keys(outputDigests(runs))
    for (const name of [
      "documents.jsonl",
      "shard-00000.arrow",
      "train.arrow",
      "validation.arrow",
      "COMPLETE.json",
      "model.safetensors",
      "tokenizer.model",
      "tokenizer.json",
      "generation_config.json",
      "model-F16.gguf",
      "model-Q8_0.gguf",
      "report.json"
    ]) {
      assert.isTrue(
        files.some((path) => path.endsWith(`/${name}`)),
        `${name} is missing from\n${files.join("\n")}`
      )
    }
  })

  it("does nothing the second time", async () => {
    const second = await tinyllama(["run", smallPipeline, "--runs", runs])
    assert.strictEqual(second.code, 0, second.stdout + second.stderr)
    assert.notMatch(second.stdout, /started/u)
    const plan = await tinyllama(["plan", smallPipeline, "--runs", runs])
    assert.match(plan.stdout, /Everything is up to date/u)
  })

  it("tells by plan which stages a changed parameter makes stale", async () => {
    const plan = await tinyllama(["plan", smallPipeline, "--runs", runs, "-S", "chat.epochs=4", "--json"])
    const { stages } = JSON.parse(plan.stdout) as {
      readonly stages: ReadonlyArray<{ readonly stage: string; readonly status: string }>
    }
    const status = Object.fromEntries(stages.map((stage) => [stage.stage, stage.status]))
    assert.strictEqual(status["base"], "fresh")
    assert.strictEqual(status["chat"], "stale")
    assert.strictEqual(status["gguf"], "pending")
  })

  it("is shown by status, runs ls and runs show", async () => {
    assert.match((await tinyllama(["status", "--runs", runs])).stdout, /base +.*(done|up to date)/u)
    assert.match((await tinyllama(["runs", "ls", "--runs", runs])).stdout, /small +complete/u)
    assert.match((await tinyllama(["runs", "show", "--runs", runs])).stdout, /base\.state +TrainingState/u)
  })

  it("can be talked to", async () => {
    const answer = await tinyllama(["chat", "--runs", runs, "--once", "What is a stage?", "--max-tokens", "8"])
    assert.strictEqual(answer.code, 0, answer.stderr)
  }, 60_000)

  it("SIGTERM saves a checkpoint and exits 75; the same command goes on and the result is identical", async () => {
    const other = temporaryFolder()
    const running = start(["run", smallPipeline, "--runs", other, "--json"])
    await running.seen(/"_tag":"Progress"[^\n]*"stage":"base"|"stage":"base"[^\n]*"_tag":"Progress"/u)
    running.signal("SIGTERM")
    const stopped = await running.outcome
    assert.strictEqual(stopped.code, 75, stopped.stdout + stopped.stderr)
    const resumed = await tinyllama(["run", smallPipeline, "--runs", other])
    assert.strictEqual(resumed.code, 0, resumed.stdout + resumed.stderr)
    assert.match(resumed.stdout, /base: started.*resuming/u)
    assert.deepStrictEqual(outputDigests(other), outputDigests(runs))
    rmSync(other, { recursive: true })
  }, 120_000)

  it("two runners on one run: the second is told who holds it, exit 5", async () => {
    const other = temporaryFolder()
    const running = start(["run", smallPipeline, "--runs", other, "--json"])
    await running.seen(/RunStarted/u)
    const second = await tinyllama(["run", smallPipeline, "--runs", other])
    running.signal("SIGTERM")
    await running.outcome
    assert.strictEqual(second.code, 5, second.stdout + second.stderr)
    assert.match(second.stderr, /process \d+/u)
    rmSync(other, { recursive: true })
  }, 60_000)
})

describe("the command line itself", () => {
  it("has a version, help and completions", async () => {
    assert.match((await tinyllama(["--version"])).stdout, /\d+\.\d+\.\d+/u)
    assert.match((await tinyllama(["run", "--help"])).stdout, /--from-stage/u)
    assert.match((await tinyllama(["--completions", "bash"])).stdout, /tinyllama/u)
  })
  it("a mistyped flag is one line on stderr and exit 2", async () => {
    const mistyped = await tinyllama(["run", join("x.yaml"), "--form-stage", "eval"])
    assert.strictEqual(mistyped.code, 2)
    assert.match(mistyped.stderr, /form-stage/u)
  })
  it("stage ls and describe read the definitions", async () => {
    assert.match((await tinyllama(["stage", "ls"])).stdout, /pretrain +data: PackedDataset +state: TrainingState/u)
    assert.match((await tinyllama(["stage", "describe", "pretrain"])).stdout, /max_tokens/u)
    assert.strictEqual((await tinyllama(["stage", "describe", "pretrian"])).code, 2)
  })
  it("doctor finds this machine ready", async () => {
    const doctor = await tinyllama(["doctor"])
    assert.strictEqual(doctor.code, 0, doctor.stdout)
  })
})
