/** The commands over runs, as a user meets them: what they print and how they exit. */
import { mkdirSync, rmSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { afterAll, assert, beforeAll, describe, it } from "@effect/vitest"
import { temporaryFolder, tinyllama } from "../end-to-end/command-line.ts"

const runs = temporaryFolder()
const id = "2026-01-02-1000-warm-fox"
const journal = join(runs, id, "events.jsonl")
const at = "2026-01-02T10:00:00.000Z"

beforeAll(() => {
  for (const name of ["2026-01-01-1000-calm-owl", id]) {
    mkdirSync(join(runs, name), { recursive: true })
    const record = { version: 1, id: name, pipeline: "t", file: "/x/pipeline.yaml", profiles: [], overrides: [] }
    writeFileSync(
      join(runs, name, "run.json"),
      JSON.stringify({ ...record, createdAt: `${name.slice(0, 10)}T10:00:00.000Z`, status: "complete" })
    )
  }
  const events = [
    {
      _tag: "RunStarted",
      at,
      run: id,
      pipeline: "t",
      file: "f",
      host: "h",
      pid: 1,
      continued: false,
      stages: ["a", "b"]
    },
    { _tag: "Log", at, stage: "a", attempt: 1, line: "of a" },
    { _tag: "Log", at, stage: "b", attempt: 1, line: "of b" },
    { _tag: "RunFinished", at, run: id, status: "complete", seconds: 2 }
  ].map((event) => JSON.stringify(event))
  writeFileSync(journal, `${[...events.slice(0, 2), "{torn", ...events.slice(2)].join("\n")}\n`)
})
afterAll(() => rmSync(runs, { recursive: true }))

const command = (...args: ReadonlyArray<string>) => tinyllama([...args, "--runs", runs])

describe("the commands over runs", () => {
  it("logs shows the run or one stage, and warns of a damaged line with file and line", async () => {
    const whole = await command("logs")
    assert.strictEqual(whole.code, 0)
    assert.include(whole.stdout, `${at}    a: of a\n${at}    b: of b\n`)
    assert.include(whole.stderr, `! ${journal}:3: damaged, left out: it is not JSON`)
    const stage = await command("logs", "fox/b", "-f")
    assert.strictEqual(stage.stdout, `${at}    b: of b\n`)
    const unknown = await command("logs", "fox/evaluation")
    assert.deepStrictEqual([unknown.code, unknown.stdout], [2, ""])
    assert.include(unknown.stderr, 'has no stage "evaluation"; its stages are a, b')
    assert.include((await command("runs", "show", "--events")).stderr, `${journal}:3: damaged`)
  }, 60_000)

  it("tag, pin and rm", async () => {
    assert.strictEqual((await command("runs", "tag", "owl", "best")).code, 0)
    assert.strictEqual((await command("runs", "pin", "best")).code, 0)
    assert.match((await command("runs", "ls")).stdout, /2026-01-01-1000-calm-owl .* best \(pinned\)/u)
    const pinned = await command("runs", "rm", "fox", "best")
    assert.strictEqual(pinned.code, 2)
    assert.include(pinned.stderr, "is pinned. Next: tinyllama runs pin 2026-01-01-1000-calm-owl --remove")
    assert.match((await command("runs", "ls")).stdout, /warm-fox/u, "nothing is removed when one of them cannot be")
  }, 60_000)

  it("what cannot be done says why, and exits 2", async () => {
    const cases: ReadonlyArray<readonly [ReadonlyArray<string>, RegExp]> = [
      [["runs", "compare", "owl", "fox", "--assert", "val_loss near 3"], /must be like "val_loss within 0\.5%"/u],
      [["runs", "compare", "owl", "fox", "--assert", "val_loss <="], /no run has a metric "val_loss"/u],
      [["stop", "fox", "--grace", "soon"], /--grace soon: must be a duration/u],
      [["stop", "fox", "--grace", "5m", "--now"], /leave --grace out/u],
      [["lineage", "a.documents"], /no artifact "a\.documents"/u],
      [["verify", "fox", "--all"], /leave the run's name out/u]
    ]
    for (const [args, message] of cases) {
      const outcome = await command(...args)
      assert.strictEqual(outcome.code, 2, `${args.join(" ")}: ${outcome.stderr}`)
      assert.match(outcome.stderr, message)
    }
  }, 60_000)

  it("stop tells that a run is not running; gc and verify that there is nothing to do", async () => {
    assert.include((await command("stop", "fox")).stdout, `run ${id} is not running: complete`)
    assert.include((await command("stop")).stdout, "No run is going on.")
    assert.include((await command("gc", "--dry-run")).stdout, "Nothing to remove")
    assert.include((await command("verify")).stdout, "0 artifacts")
  }, 60_000)
})
