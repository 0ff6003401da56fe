/** schema, lint and fmt as a user calls them: output, exit codes, and what is on the disk afterwards. */
import { lstatSync, readFileSync, symlinkSync } from "node:fs"
import { join } from "node:path"
import { assert, describe, it } from "@effect/vitest"
import { schemaNames } from "../../src/pipeline/file/FileSchemas.ts"
import { folderWith, root, tinyllama } from "../end-to-end/command-line.ts"

const good = `version: 1
name: t
vars: { unused: 1 }
stages:
  talk: { uses: download, with: { sources: [{ path: conversations.jsonl }] } }
  tokens: { uses: tokenize, in: { documents: [talk.documents] }, with: { bos: document } }
  packed: { uses: pack, in: { tokens: [tokens.tokens] }, with: { seq_len: 16 } }
`

describe("tinyllama schema", () => {
  it("prints the pipeline file's schema where no name is given, and refuses names that it does not know", async () => {
    const printed = await tinyllama(["schema"])
    assert.strictEqual(printed.code, 0)
    assert.strictEqual(printed.stdout, readFileSync(join(root, "schemas/pipeline.schema.json"), "utf8"))
    const unknown = await tinyllama(["schema", "pipelines"])
    assert.strictEqual(unknown.code, 2)
    assert.match(unknown.stderr, /Expected: "pipeline" \| "run"/u)
  })

  it("knows every schema of schemas/", async () => {
    for (const name of schemaNames) {
      const { stdout } = await tinyllama(["schema", name])
      assert.strictEqual(stdout, readFileSync(join(root, `schemas/${name}.schema.json`), "utf8"))
    }
  })
})

describe("tinyllama lint", () => {
  const cwd = folderWith({ "pipeline.yaml": good, "bad.yaml": good.replace("pack,", "pakc,") })

  it("exits 0 with warnings, and says place, cause, rule and next step", async () => {
    const { code, stdout } = await tinyllama(["lint"], { cwd })
    assert.strictEqual(code, 0)
    assert.include(
      stdout,
      "warning: pipeline.yaml:3:9: vars.unused: no value refers to this variable [unused-variable]\n" +
        "  Next: remove it, or write ${vars.unused} where it is meant\n"
    )
    assert.include(stdout, "warning: pipeline.yaml:7:3: stages.packed: no stage takes packed.dataset (PackedDataset)")
    assert.include(stdout, 'note: pipeline.yaml:6:74: stages.tokens.with.bos: "document" is the default')
    assert.match(stdout, /pipeline\.yaml: 2 warnings, 1 note\n$/u)
  })

  it("exits 1 with --strict when there are warnings", async () => {
    assert.strictEqual((await tinyllama(["lint", "--strict"], { cwd })).code, 1)
  })

  it("exits 3 for errors, and prints versioned JSON", async () => {
    const { code, stdout } = await tinyllama(["lint", "bad.yaml", "--json"], { cwd })
    assert.strictEqual(code, 3)
    const printed: unknown = JSON.parse(stdout)
    assert.nestedPropertyVal(printed, "version", 1)
    assert.nestedPropertyVal(printed, "file", "bad.yaml")
    assert.nestedPropertyVal(printed, "errors[0].line", 7)
    assert.nestedPropertyVal(printed, "errors[0].suggestion", "pack")
    assert.strictEqual((await tinyllama(["lint", "absent.yaml"], { cwd })).code, 3)
  })
})

describe("tinyllama fmt", () => {
  const untidy = good.replace("vars: { unused: 1 }", "vars:   {unused: 1}   # why")
  const tidy = good.replace("vars: { unused: 1 }", "vars: { unused: 1 } # why")

  it("formats in place, follows a link, and leaves nothing else behind", async () => {
    const cwd = folderWith({ "pipeline.yaml": untidy })
    symlinkSync("pipeline.yaml", join(cwd, "link.yaml"))
    const { code, stdout } = await tinyllama(["fmt", "link.yaml"], { cwd })
    assert.strictEqual(code, 0)
    assert.strictEqual(stdout, "link.yaml formatted\n")
    assert.strictEqual(readFileSync(join(cwd, "pipeline.yaml"), "utf8"), tidy)
    assert.isTrue(lstatSync(join(cwd, "link.yaml")).isSymbolicLink())
    const again = await tinyllama(["fmt"], { cwd })
    assert.deepStrictEqual(again, { code: 0, stdout: "", stderr: "" })
  })

  it("with --check writes nothing, names what is not formatted, and exits 1", async () => {
    const cwd = folderWith({ "a.yaml": untidy, "b.yaml": tidy })
    const { code, stderr, stdout } = await tinyllama(["fmt", "--check", "a.yaml", "b.yaml"], { cwd })
    assert.strictEqual(code, 1)
    assert.strictEqual(stdout, "a.yaml is not formatted\n")
    assert.strictEqual(stderr, "Next: npx tinyllama fmt a.yaml\n")
    assert.strictEqual(readFileSync(join(cwd, "a.yaml"), "utf8"), untidy)
    assert.strictEqual((await tinyllama(["fmt", "--check", "b.yaml"], { cwd })).code, 0)
  })

  it("leaves a file that is invalid as it is, and exits 3", async () => {
    const invalid = untidy.replace("pack,", "pakc,")
    const cwd = folderWith({ "pipeline.yaml": invalid })
    const { code, stderr } = await tinyllama(["fmt"], { cwd })
    assert.strictEqual(code, 3)
    assert.match(stderr, /pipeline\.yaml:7:19: stages\.packed\.uses: unknown stage type "pakc"/u)
    assert.strictEqual(readFileSync(join(cwd, "pipeline.yaml"), "utf8"), invalid)
  })
})
