/** What makes a plugin's code another code, and references that `uses` may hold. */
import { appendFileSync, cpSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { dirname, join } from "node:path"
import { afterEach, assert, beforeEach, describe, it } from "@effect/vitest"
import {
  fingerprint,
  isCurrent,
  isPackageReference,
  parseReference
} from "../../../src/pipeline/plugin/PluginModule.ts"

let folder = ""
const write = (name: string, text: string, below = folder) => {
  mkdirSync(dirname(join(below, name)), { recursive: true })
  writeFileSync(join(below, name), text)
}
const digest = (below = folder) => fingerprint(join(below, "stage.ts")).digest

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "tinyllama-test-"))
  write(
    "stage.ts",
    `import { a } from "./lib/a.ts"
export * from './b.ts'
import type { T } from "./gone.ts"
import { Effect } from "effect"
import { words } from "words/some.js"
const lazy = () => import("./lazy.ts")
`
  )
  write("lib/a.ts", 'import "../stage.ts"\nexport { deep } from "./deep.ts"\n')
  write("lib/deep.ts", "export const deep = 1\n")
  write("b.ts", "export const b = 1\n")
  write("lazy.ts", "export const lazy = 1\n")
  write("unrelated.ts", "export const c = 1\n")
  write("node_modules/words/package.json", '{ "name": "words", "version": "1.0.0" }')
  write("node_modules/words/some.js", "export const words = 1\n")
  write("node_modules/effect/package.json", '{ "name": "effect", "version": "1.0.0" }')
})
afterEach(() => rmSync(folder, { recursive: true, force: true }))

describe("a plugin's code", () => {
  it("covers what it imports by relative paths, through cycles, lazily too, and nothing else", () => {
    const before = fingerprint(join(folder, "stage.ts"))
    const names = Array.from(before.files.keys(), (file) => file.slice(folder.length + 1)).sort()
    assert.deepStrictEqual(names, ["b.ts", "lazy.ts", "lib/a.ts", "lib/deep.ts", "stage.ts"])
    for (const name of names) {
      const old = digest()
      appendFileSync(join(folder, name), "// edited\n")
      assert.notStrictEqual(digest(), old, name)
      assert.isFalse(isCurrent(before))
    }
    const old = digest()
    write("unrelated.ts", "export const c = 2\n")
    assert.strictEqual(digest(), old)
  })

  it("covers the versions of packages, but not that of effect, which is the program's own", () => {
    const old = digest()
    write("node_modules/effect/package.json", '{ "name": "effect", "version": "2.0.0" }')
    assert.strictEqual(digest(), old)
    write("node_modules/words/package.json", '{ "name": "words", "version": "1.0.1" }')
    assert.notStrictEqual(digest(), old)
  })

  it("is the same wherever its folder lies", () => {
    const other = mkdtempSync(join(tmpdir(), "tinyllama-test-"))
    cpSync(folder, other, { recursive: true })
    assert.strictEqual(digest(other), digest())
    assert.isTrue(isCurrent(fingerprint(join(other, "stage.ts"))))
    rmSync(other, { recursive: true })
  })

  it("of a module that is not there has no file", () => {
    assert.strictEqual(fingerprint(join(folder, "nowhere.ts")).files.size, 0)
  })
})

describe("a reference", () => {
  it("is a module, and perhaps an export of it", () => {
    assert.deepStrictEqual(parseReference("./a.ts"), { module: "./a.ts", exported: undefined })
    assert.deepStrictEqual(parseReference("@me/stages#second"), { module: "@me/stages", exported: "second" })
  })

  it("to a package looks like npm's names", () => {
    for (const name of ["tinyllama-stage-foo", "@me/stages", "stages/clean.js"])
      assert.isTrue(isPackageReference(name), name)
    for (const name of ["", "no name", "../up", "@me", "node:fs"]) assert.isFalse(isPackageReference(name), name)
  })
})
