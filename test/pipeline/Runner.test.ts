import { readFileSync } from "node:fs"
import { join } from "node:path"
import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { exitCodeOf } from "../../src/pipeline/Runner.ts"
import { outcomes, runFile, workplace } from "./fixtures/harness.ts"

const diamond = `
version: 1
name: diamond
vars: { word: left }
stages:
  left: { uses: write, with: { text: "\${vars.word}" } }
  right: { uses: write, with: { text: right } }
  both: { uses: join, in: { documents: [left.documents, right.documents] } }
`

describe("run", () => {
  it.live("runs in order, then takes everything from the store", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      place.write(diamond)
      const first = yield* runFile(place)
      assert.deepStrictEqual(outcomes(first), { left: "done", right: "done", both: "done" })
      assert.strictEqual(exitCodeOf(first), 0)
      const made = readFileSync(join(first.folder, "stages", "03-both", "out", "tokens", "text.txt"), "utf8")
      assert.strictEqual(made, "left+right")
      const second = yield* runFile(place)
      assert.deepStrictEqual(outcomes(second), { left: "cached", right: "cached", both: "cached" })
      assert.notStrictEqual(second.run, first.run)
    }).pipe(Effect.scoped)
  )
})
