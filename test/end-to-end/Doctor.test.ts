/** `doctor FILE` and the look that `run` takes before it begins. */
import { existsSync } from "node:fs"
import { join } from "node:path"
import { assert, describe, it } from "@effect/vitest"
import { folderWith, smallPipeline, temporaryFolder, tinyllama } from "./command-line.ts"

const broken = [
  "version: 1",
  "name: broken",
  "stages:",
  "  text: { uses: download, with: { sources: [{ path: nowhere.txt }] } }",
  "  more: { uses: download, with: { sources: [{ path: conversations.jsonl }] }, resources: { gpus: 2 }, secrets: [NOT_SET_HERE] }",
  ""
].join("\n")

interface Report {
  readonly findings: ReadonlyArray<{ readonly subject: string; readonly state: string; readonly stage?: string }>
}

describe("doctor", () => {
  it("finds a sound pipeline ready, and says so of the machine and of every stage", async () => {
    const runs = join(temporaryFolder(), "runs")
    const outcome = await tinyllama(["doctor", smallPipeline, "--runs", runs])
    assert.strictEqual(outcome.code, 0, outcome.stdout)
    assert.match(outcome.stdout, /native engine +ok/u)
    assert.match(outcome.stdout, /GPU +ok/u)
    assert.match(outcome.stdout, /files +text +ok/u)
    assert.match(outcome.stdout, /vocabulary +base +ok/u)
    assert.match(outcome.stdout, /Next: npx tinyllama run test\/fixtures\/small\/pipeline\.yaml/u)
    assert.isFalse(existsSync(join(runs, "latest")))
  })

  it("names all that is missing with its stage and the next step, and exits 6; so does run, before anything begins", async () => {
    const folder = folderWith({ "pipeline.yaml": broken })
    const json = await tinyllama(["doctor", "pipeline.yaml", "--json"], { cwd: folder })
    assert.strictEqual(json.code, 6)
    const { findings } = JSON.parse(json.stdout) as Report
    const missing = findings.flatMap(({ stage, state, subject }) => (state === "missing" ? [[subject, stage]] : []))
    assert.deepStrictEqual(missing, [
      ["files", "text"],
      ["secrets", undefined],
      ["GPUs", "more"]
    ])

    const ran = await tinyllama(["run"], { cwd: folder })
    assert.strictEqual(ran.code, 6)
    assert.match(ran.stderr, /text: files: .*nowhere\.txt.*Next: /u)
    assert.match(ran.stderr, /NOT_SET_HERE of stage more is not set\. Next: export NOT_SET_HERE/u)
    assert.match(ran.stderr, /more: GPUs: asks for 2; 0 can be used here\. Next: lower resources\.gpus/u)
    assert.isFalse(existsSync(join(folder, "runs/latest")))
  })

  it("is skipped with --no-preflight: then each stage meets its own obstacle", async () => {
    const folder = folderWith({ "pipeline.yaml": broken.replace(", secrets: [NOT_SET_HERE]", "") })
    const ran = await tinyllama(["run", "--no-preflight"], { cwd: folder })
    assert.strictEqual(ran.code, 1)
    assert.match(ran.stdout + ran.stderr, /nowhere\.txt/u)
  })

  it("reports an invalid file as every command does: exit code 3", async () => {
    const folder = folderWith({ "pipeline.yaml": "version: 1\nname: x\nstages:\n  a: { uses: pakc }\n" })
    const outcome = await tinyllama(["doctor", "pipeline.yaml"], { cwd: folder })
    assert.strictEqual(outcome.code, 3)
    assert.match(outcome.stderr, /pipeline\.yaml:4:\d+: .*did you mean "pack"/u)
  })
})
