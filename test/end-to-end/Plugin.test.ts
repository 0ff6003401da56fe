/** Plugin stages as a user has them: in a plain folder with nothing installed, or as a package in the folder's node_modules. */
import { cpSync, mkdirSync, readFileSync, realpathSync, rmSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { afterAll, assert, beforeAll, describe, it } from "@effect/vitest"
import { root, temporaryFolder, tinyllama } from "./command-line.ts"

const shout = join(root, "test/fixtures/plugin")
const folder = realpathSync(temporaryFolder())
const write = (name: string, text: string) => {
  mkdirSync(join(folder, name, ".."), { recursive: true })
  writeFileSync(join(folder, name), text)
}
const inFolder = (...args: ReadonlyArray<string>) => tinyllama(args, { cwd: folder })
const stage = (name: string, uses: string) => `  ${name}: { uses: ${JSON.stringify(uses)} }\n`

beforeAll(() => {
  cpSync(shout, folder, { recursive: true })
  // Without "type": Node would guess the module's format, aloud.
  write("package.json", "{}")
  write(
    "pipeline.yaml",
    [
      "version: 1",
      "name: plugins",
      "stages:",
      "  loud: { uses: ./shout.ts, with: { text: hello } }",
      '  again: { uses: "./shout.ts#echo", in: { noise: loud.noise } }',
      ""
    ].join("\n")
  )
})
afterAll(() => rmSync(folder, { recursive: true, force: true }))

describe("plugin stages", () => {
  it("run, in a worker and in the runner's process; edited code makes them stale, with the reason", async () => {
    const first = await inFolder("run", "--json")
    assert.strictEqual(first.code, 0, first.stderr)
    assert.strictEqual(first.stderr, "")
    const noise = join(folder, "runs/latest/stages/01-loud/out/noise/noise.txt")
    assert.strictEqual(readFileSync(noise, "utf8"), "HELLO!")

    const fresh = JSON.parse((await inFolder("plan", "--json")).stdout) as PlanShape
    assert.deepStrictEqual(
      fresh.stages.map(({ status }) => status),
      ["fresh", "fresh"]
    )

    write("ending.ts", 'export const ending: string = "!!"\n')
    const stale = await inFolder("plan")
    assert.match(stale.stdout, /loud +shout +stale.*stage code changed/u)
    const second = await inFolder("run")
    assert.strictEqual(second.code, 0, second.stderr)
    assert.strictEqual(readFileSync(noise, "utf8"), "HELLO!!")
    // Moved with its folder, the code is the same code.
    for (const name of ["pipeline.yaml", "shout.ts", "ending.ts"])
      cpSync(join(folder, name), join(folder, "moved", name))
    const moved = JSON.parse(
      (await inFolder("plan", "moved/pipeline.yaml", "--runs", "runs", "--json")).stdout
    ) as PlanShape
    assert.deepStrictEqual(
      moved.stages.map(({ status }) => status),
      ["fresh", "fresh"]
    )
  })

  it("fail with the class and the next step that they say", async () => {
    const failed = await inFolder("run", "-S", "loud.text=other", "-S", "loud.fail=true")
    assert.strictEqual(failed.code, 1)
    assert.match(failed.stdout + failed.stderr, /told to fail[^]*Next: tell me not to/u)
  })

  it("come from packages too, by default export or by name", async () => {
    write(
      "node_modules/@me/stages/package.json",
      '{ "name": "@me/stages", "version": "1.0.0", "exports": { ".": { "import": "./index.js" } } }'
    )
    write(
      "node_modules/@me/stages/index.js",
      `import { Effect } from "effect"
import { writeFileSync } from "node:fs"
import { defineStage } from "tinyllama/stage"
export const note = defineStage({
  name: "note", version: 1, describe: "Writes a note", params: {}, inputs: {},
  outputs: { note: { type: "x-note", describe: "It" } },
  run: (context) => Effect.sync(() => (writeFileSync(context.output("note") + "/note.txt", "noted"), { note: {} }))
})
`
    )
    write("package.yaml", `version: 1\nname: package\nstages:\n${stage("a", "@me/stages#note")}`)
    const ran = await inFolder("run", "package.yaml")
    assert.strictEqual(ran.code, 0, ran.stderr)
    assert.strictEqual(readFileSync(join(folder, "runs/latest/stages/01-a/out/note/note.txt"), "utf8"), "noted")
  })

  it("are refused with place, cause and next step when they cannot be used: exit code 3", async () => {
    write("throws.ts", '\nthrow new TypeError("boom")\n')
    write("syntax.ts", "export const a = { : 1 }\n")
    write("missing.ts", 'import "nowhere-to-be-found"\n')
    write("none.mjs", "export const q = 1\n")
    write("bad.js", badDefinition)
    write("taken.js", badDefinition.replace("bad name", "pack").replace(/version: 0.*outputs: \{\}, runn: 1/su, good))
    write("node_modules/typed/package.json", '{ "name": "typed", "version": "1.0.0", "exports": "./index.ts" }')
    write("node_modules/typed/index.ts", "export default 1 as number\n")
    const cases: ReadonlyArray<readonly [string, RegExp]> = [
      ["./nofile.ts", /no file .*nofile\.ts\. Next: relative paths start at the pipeline file's folder/u],
      ["./throws.ts", /TypeError: boom \(throws\.ts:2:7\)\. Next: /u],
      ["./syntax.ts", /failed while loading: SyntaxError: .*\. Next: /u],
      ["./missing.ts", /Cannot find package 'nowhere-to-be-found' imported from .*missing\.ts\. Next: /u],
      ["./none.mjs", /no default export\. Next: export default defineStage/u],
      [
        "./shout.ts#dark",
        /exports no "dark"\. Next: it defines default, echo: write \.\/shout\.ts or \.\/shout\.ts#echo/u
      ],
      [
        "./bad.js",
        /unknown key "runn"; .*version: .*greater than 0; params\.p\.schema: expected a Schema; params\.p\.change: .*inputs\.i\.type: expected "Documents".*outputs: a stage has at least one output; run: missing key.*Next: compare it with docs\/plugins\.md/u
      ],
      ["./taken.js", /is named "pack", as a stage type of the program is\. Next: /u],
      ["./data.json", /no module: stages are \.ts, \.mts, \.js or \.mjs files/u],
      ["typed", /TypeScript inside node_modules/u],
      ["tinyllama-stage-unknown", /unknown stage type .* and installed packages/u],
      ["tokenise", /did you mean "tokenize"\?/u]
    ]
    const stages = cases.map(([uses], index) => stage(`s${index}`, uses)).join("")
    write("bad.yaml", `version: 1\nname: bad\nstages:\n${stages}`)
    const outcome = await inFolder("plan", "bad.yaml")
    assert.strictEqual(outcome.code, 3)
    const reports = outcome.stderr.split("\n").filter((line) => line.startsWith("bad.yaml:"))
    assert.strictEqual(reports.length, cases.length, outcome.stderr)
    for (const [index, [uses, says]] of cases.entries()) {
      assert.match(reports[index] ?? "", new RegExp(`^bad\\.yaml:${index + 4}:\\d+: stages\\.s${index}\\.uses: `, "u"))
      assert.match(reports[index] ?? "", says, uses)
    }
  })
})

interface PlanShape {
  readonly stages: ReadonlyArray<{ readonly status: string }>
}

const badDefinition = `export default { name: "bad name", version: 0, describe: "d",
  params: { p: { schema: 3, change: "never", describe: "x" } },
  inputs: { i: { type: "Nope", describe: "x" } }, outputs: {}, runn: 1 }
`
const good =
  'version: 1, describe: "d", params: {}, inputs: {}, outputs: { o: { type: "x-o", describe: "o" } }, run() {}'
