/** One tokenize stage by several processes at a time, as a job array starts them. */
import { mkdirSync, realpathSync, rmSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { afterAll, assert, beforeAll, describe, it } from "@effect/vitest"
import { outputDigests, temporaryFolder, tinyllama } from "./command-line.ts"

const folder = realpathSync(temporaryFolder())
const inFolder = (...args: ReadonlyArray<string>) => tinyllama(args, { cwd: folder })
const shares = [1, 2, 3]

beforeAll(() => {
  mkdirSync(join(folder, "text"))
  for (let i = 0; i < 9; i++) writeFileSync(join(folder, "text", `${i}.txt`), `Text number ${i}. `.repeat(50 + i))
  writeFileSync(
    join(folder, "pipeline.yaml"),
    [
      "version: 1",
      "name: array",
      "stages:",
      "  corpus: { uses: download, with: { sources: [{ path: 'text/*.txt' }] } }",
      "  tokens: { uses: tokenize, in: { documents: [corpus.documents] }, with: { shard_bytes: 1000 } }",
      "  packed: { uses: pack, in: { tokens: [tokens.tokens] }, with: { seq_len: 31, validation: 0 } }",
      ""
    ].join("\n")
  )
})
afterAll(() => rmSync(folder, { recursive: true, force: true }))

describe("a job array", () => {
  it("makes in shares, all at once, what one process makes", async () => {
    assert.strictEqual((await inFolder("run", "--only", "corpus")).code, 0)
    const two = await inFolder("run", "--only", "tokens", "--shard", "2/3")
    assert.strictEqual(two.code, 0, two.stderr)
    assert.match(two.stdout, /tokens +partial .*2 of 5 parts are finished/u)
    const all = await Promise.all(shares.map((k) => inFolder("run", "--only", "tokens", "--shard", `${k}/3`)))
    for (const { code, stderr, stdout } of all) assert.strictEqual(code, 0, stdout + stderr)
    const last = await inFolder("run")
    assert.strictEqual(last.code, 0, last.stderr)
    assert.match(last.stdout, /tokens +cached/u)
    assert.match(last.stdout, /packed +done/u)
    const joined = outputDigests(join(folder, "runs"))
    assert.strictEqual((await inFolder("run", "--runs", "alone")).code, 0)
    assert.deepStrictEqual(joined, outputDigests(join(folder, "alone")))
  })

  it("is refused for what cannot be shared, by name", async () => {
    for (const [args, message] of [
      [["--shard", "1/2"], /--shard 1\/2: 3 stages are selected\. Next: choose one by --only/u],
      [["--only", "packed", "--shard", "1/2"], /packed is of type pack, whose work cannot be shared/u],
      [["--only", "tokens", "--shard", "1/2", "--force", "tokens"], /leave --force out/u],
      [["--only", "tokens", "--shard", "3/2"], /k\/n with k from 1 to n/u],
      [["--only", "tokens", "--shard", "half"], /k\/n with k from 1 to n/u]
    ] as const) {
      const { code, stderr } = await inFolder("run", ...args)
      assert.strictEqual(code, 2, stderr)
      assert.match(stderr, message)
    }
  })
})
