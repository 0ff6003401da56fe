/** The recipes of full size: each loads under each of its profiles, tells without the network what it takes, and runs on its small samples. */
import { existsSync, globSync, readFileSync, rmSync } from "node:fs"
import { join } from "node:path"
import { pathToFileURL } from "node:url"
import { afterAll, assert, beforeAll, describe, it } from "@effect/vitest"
import { Effect, Layer, Schema } from "effect"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { load } from "js-yaml"
import { loadPipeline } from "../../src/pipeline/file/Pipeline.ts"
import { PlanDocument } from "../../src/pipeline/plan/PlanDocument.ts"
import * as registry from "../../src/stages/registry.ts"
import { root, temporaryFolder, tinyllama } from "../end-to-end/command-line.ts"

const recipe = join(root, "pipelines/tinyllama-1.1b.yaml")
const folder = temporaryFolder()
const tries = join(folder, "network-tries")
afterAll(() => rmSync(folder, { recursive: true }))

/** No process of the program gets out: the hub is a closed port, names are not resolved, sockets do not connect. */
const offline = {
  HF_ENDPOINT: "http://127.0.0.1:9",
  NETWORK_TRIES: tries,
  NODE_OPTIONS: `--import=${pathToFileURL(join(root, "test/fixtures/network/unusable.mjs")).href}`
}
const triesOfNetwork = () => (existsSync(tries) ? readFileSync(tries, "utf8") : "")

const decodePlan = Schema.decodeUnknownSync(Schema.fromJsonString(PlanDocument))

const planOf = async (...args: ReadonlyArray<string>) => {
  const told = await tinyllama(["plan", recipe, "--runs", join(folder, "none"), "--json", ...args], { env: offline })
  assert.strictEqual(told.code, 0, told.stderr)
  const plan = decodePlan(told.stdout)
  return new Map(plan.stages.map((stage) => [stage.stage, stage]))
}

const WithProfiles = Schema.Struct({ profiles: Schema.Record(Schema.String, Schema.Unknown) })

describe("pipelines/", () => {
  for (const file of globSync("pipelines/*.yaml", { cwd: root }))
    it.live(`${file} loads as it is, and under each of its profiles`, () =>
      Effect.gen(function* () {
        const path = join(root, file)
        const { profiles } = yield* Schema.decodeUnknownEffect(WithProfiles)(load(readFileSync(path, "utf8")))
        assert.include(Object.keys(profiles), "smoke")
        yield* loadPipeline({ file: path })
        for (const profile of Object.keys(profiles)) {
          const { stages } = yield* loadPipeline({ file: path, profiles: [profile] })
          assert.isAbove(stages.length, 9, profile)
        }
      }).pipe(Effect.provide(registry.layer.pipe(Layer.provideMerge(NodeServices.layer))))
    )
})

describe("tinyllama-1.1b.yaml without a network", () => {
  it("plan prints bytes, tokens, shards, the mixture and hours", async () => {
    const told = await tinyllama(["plan", recipe, "-p", "two-nodes", "--runs", join(folder, "none")], { env: offline })
    assert.strictEqual(told.code, 0, told.stderr)
    for (const says of [
      /slimpajama +~59\.2k files, ~893 GB, ~659B tokens/u,
      /starcoder +~290 GB, ~291B tokens/u,
      /slim +~659B tokens, ~[\d.]+k shards/u,
      /packed +~464M blocks of 2048 tokens .*slim\.tokens ~69\.4 %, star\.tokens ~30\.6 %/u,
      /base +1\.1B parameters, 3T tokens in 1\.43M steps of 2\.1M, ~3\.16 epochs/u,
      /base +pretrain .*2,1\d\d h \(9\d d\) \(model\)/u,
      /13 of 13 stages to run: at most about 2,\d\d\d h/u
    ])
      assert.match(told.stdout, says)
    assert.strictEqual(triesOfNetwork(), "")
  })

  it("each number is a fact, and estimates are named as such", async () => {
    const plan = await planOf("-p", "two-nodes")
    const facts = (stage: string, port: string) => plan.get(stage)?.outputs?.[port] ?? {}
    assert.deepInclude(facts("slimpajama", "documents"), { bytes: 893e9, files: 59_166 })
    assert.deepStrictEqual(facts("slimpajama", "documents")["estimated"], ["files", "bytes", "expected_tokens"])
    const tokens = ["slim", "star"].map((stage) => Number(facts(stage, "tokens")["tokens"]))
    assert.approximately((tokens[0] ?? 0) + (tokens[1] ?? 0), 950e9, 1e6)
    assert.deepStrictEqual(facts("slim", "tokens")["estimated"], ["bytes", "tokens"])
    const packed = facts("packed", "dataset")
    assert.approximately(Number(packed["train_blocks"]) * 2049, 950e9, 1e9)
    assert.isAtLeast(Number(packed["validation_blocks"]), 12_800)
    assert.deepStrictEqual(packed["estimated"], ["train_blocks", "validation_blocks", "mixture"])
    assert.deepInclude(facts("base", "state"), {
      steps: 1_430_512,
      tokens: 3_000_001_101_824,
      parameters: 1_100_048_384
    })
    // 24,000 tokens/s on each of 16 A100, as TinyLlama's authors state it: 90.4 days
    const seconds = plan.get("base")?.estimate?.seconds ?? 0
    assert.approximately(seconds / 86_400, 90.4, 0.5)
    assert.strictEqual(triesOfNetwork(), "")
  })

  it("the profile of one GPU takes as much data as its tokens need", async () => {
    const plan = await planOf("-p", "one-gpu")
    const state = plan.get("base")?.outputs?.["state"] ?? {}
    const dataset = plan.get("packed")?.outputs?.["dataset"] ?? {}
    const epochs = Number(state["tokens"]) / (Number(dataset["train_blocks"]) * 2048)
    assert.isTrue(epochs > 0.95 && epochs <= 1, `${epochs} epochs`)
    assert.strictEqual(triesOfNetwork(), "")
  })
})

describe("tinyllama-1.1b.yaml -p smoke", () => {
  const runs = join(folder, "runs")
  let said: { readonly code: number | null; readonly stdout: string; readonly stderr: string }
  beforeAll(async () => {
    said = await tinyllama(["run", recipe, "-p", "smoke", "--runs", runs], { env: { ...offline, HF_TOKEN: undefined } })
  }, 240_000)

  it("runs every stage to the end, and never asks the network", () => {
    assert.strictEqual(said.code, 0, said.stdout + said.stderr)
    assert.match(said.stdout, /gguf +done .*Q8_0/u)
    assert.strictEqual(triesOfNetwork(), "")
  })

  it("drops GitHub's rows, reads the parquet, and mixes 7 to 3", () => {
    assert.match(said.stdout, /slim: dropped by where: 9 documents/u)
    assert.match(said.stdout, /star +done .*tokens of 20 documents/u)
    assert.match(said.stdout, /mixture: slim\.tokens 69\.\d % \(asked 69\.4 %\)/u)
    assert.match(said.stdout, /mixture: star\.tokens 30\.\d % \(asked 30\.6 %\)/u)
  })
})
