/** The bash script at work in bash: what TAB would offer. */
import { spawnSync } from "node:child_process"
import { writeFileSync } from "node:fs"
import { join } from "node:path"
import { assert, beforeAll, describe, it } from "@effect/vitest"
import { folderWith, tinyllama } from "../end-to-end/command-line.ts"

const pipeline = `version: 1
name: t
stages:
  corpus:
    uses: download
    with: { sources: [{ path: x }] }
  # a comment
  tokens: { uses: tokenize, in: { documents: corpus.documents } }
profiles:
  smoke: {}
`
const folder = folderWith({ "pipeline.yaml": pipeline, "other.yaml": pipeline.replaceAll("corpus", "texts") })

beforeAll(async () => {
  writeFileSync(join(folder, "script.bash"), (await tinyllama(["completions", "bash"])).stdout)
})

/** What bash offers for the last of the words. */
const offered = (...words: ReadonlyArray<string>): ReadonlyArray<string> => {
  const line = words.join(" ")
  const call = `source ${join(folder, "script.bash")}
COMP_WORDS=(${words.map((word) => `'${word}'`).join(" ")}); COMP_CWORD=${words.length - 1}
COMP_LINE='${line}'; COMP_POINT=${line.length}
$(complete -p tinyllama | sed -E 's/.*-F ([^ ]+) .*/\\1/') tinyllama '${words.at(-1)}' '${words.at(-2)}'
printf '%s\\n' "\${COMPREPLY[@]}"`
  const { status, stderr, stdout } = spawnSync("bash", ["--norc", "-c", call], { cwd: folder, encoding: "utf8" })
  assert.strictEqual(status, 0, stderr)
  return stdout.split("\n").filter((word) => word !== "")
}

describe("bash completion", () => {
  it("offers the commands, and those that a beginning leaves", () => {
    assert.includeMembers([...offered("tinyllama", "")], ["run", "plan", "lint", "fmt", "schema", "completions"])
    assert.deepStrictEqual(offered("tinyllama", "tok"), ["tokenizer"])
  })

  it("offers a command's flags and the words that an argument takes", () => {
    assert.includeMembers([...offered("tinyllama", "run", "--fr")], ["--from-stage"])
    assert.includeMembers([...offered("tinyllama", "fmt", "--")], ["--check"])
    assert.includeMembers([...offered("tinyllama", "schema", "p")], ["pipeline"])
    assert.deepStrictEqual(offered("tinyllama", "completions", "f"), ["fish"])
  })

  it("offers the stages and profiles of the pipeline file on the line, else of pipeline.yaml", () => {
    assert.deepStrictEqual(offered("tinyllama", "run", "--from-stage", ""), ["corpus", "tokens"])
    assert.deepStrictEqual(offered("tinyllama", "run", "--from-stage", "=", "to"), ["tokens"])
    assert.deepStrictEqual(offered("tinyllama", "run", "other.yaml", "--only", "te"), ["texts"])
    assert.deepStrictEqual(offered("tinyllama", "plan", "-p", ""), ["smoke"])
  })
})

describe("completions of other shells", () => {
  it("name the program's commands", async () => {
    for (const shell of ["zsh", "fish"]) {
      const { code, stdout } = await tinyllama(["completions", shell])
      assert.strictEqual(code, 0)
      for (const command of ["run", "plan", "lint", "completions"]) assert.include(stdout, command)
    }
  })

  it("are refused for a shell that nobody wrote them for", async () => {
    const { code, stderr } = await tinyllama(["completions", "tcsh"])
    assert.strictEqual(code, 2)
    assert.match(stderr, /Expected: "bash" \| "zsh" \| "fish"/u)
  })
})
