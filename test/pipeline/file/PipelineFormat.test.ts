/** The canonical form: what it looks like, that it stays, and that it means what the file meant. */
import { readFileSync } from "node:fs"
import { fileURLToPath } from "node:url"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Layer } from "effect"
import { canonicalJson } from "../../../src/artifacts/CanonicalJson.ts"
import { PipelineInvalid } from "../../../src/pipeline/file/Diagnostics.ts"
import { stageFields, topLevelFields } from "../../../src/pipeline/file/Overlay.ts"
import { loadPipelineText } from "../../../src/pipeline/file/Pipeline.ts"
import { canonicalText, formatPipeline } from "../../../src/pipeline/file/PipelineFormat.ts"
import { describeOrigins } from "../../../src/pipeline/file/ResolvedPipeline.ts"
import { randomPipeline } from "../fixtures/random-layout.ts"
import { testRegistry } from "../fixtures/stages.ts"

const services = Layer.merge(NodeServices.layer, testRegistry)
const format = (text: string) =>
  formatPipeline({ file: "p.yaml", text, baseDirectory: "." }).pipe(Effect.provide(services))

/** What runs are made of, without the places of values. */
const decoded = (text: string) =>
  loadPipelineText({ label: "p.yaml", text, baseDirectory: "." }).pipe(
    Effect.map((pipeline) => ({
      vars: canonicalJson(pipeline.vars),
      order: pipeline.stages.map(({ name }) => name),
      values: canonicalJson(describeOrigins(pipeline)).replaceAll(/"from":"[^"]*"/gu, "")
    })),
    Effect.provide(services)
  )

const untidy = `# What it is

stages:
    b: {in: {documents: [a.documents,   a2.documents ]}, uses: join  }
    a:
        # about its parameters
        with: {text:   "it's",
          steps: 1_000,  # in flow
          lr: {peak: 4E-4, schedule: cosine}}
        timeout: 1h   # long


        # about its type
        uses: write
    a2: { uses: write, with: { text: '${"x".repeat(150)}' } }
name: t
version:   1   # of the format
`
const tidy = `# What it is

version: 1 # of the format
name: t
stages:
  b: { uses: join, in: { documents: [a.documents, a2.documents] } }
  a:
    # about its type
    uses: write
    # about its parameters
    with:
      text: "it's"
      steps: 1_000 # in flow
      lr: { peak: 4E-4, schedule: cosine }
    timeout: 1h # long
  a2:
    uses: write
    with:
      text: '${"x".repeat(150)}'
`

describe("the canonical form", () => {
  it.effect("orders keys, sets spaces and opens what is too wide; comments, quotes and numbers stay", () =>
    Effect.gen(function* () {
      assert.strictEqual(yield* format(untidy), tidy)
    })
  )

  it.effect("keeps anchors, and the order of keys where an alias would come before its anchor", () =>
    Effect.gen(function* () {
      const text = `version: 1
name: t
stages:
  a: { with: &words { text: x }, uses: write }
  b: { uses: write, with: *words }
`
      assert.include(
        yield* format(text),
        "a: { uses: write, with: &words { text: x } }\n  b: { uses: write, with: *words }"
      )
      const reversed = `stages:
  a: { uses: write, with: &words { text: x } }
vars: { shared: *words }
name: t
version: 1
`
      assert.strictEqual(yield* format(reversed), reversed)
    })
  )

  it.effect("keeps comments in odd places, and of several blank lines one", () =>
    Effect.gen(function* () {
      const text = `# c1


version: 1
name: t
stages:
  a: {uses: write, with: {text: x}}
  b:
    uses: join
    in: # c2
      # c3


      # c4
      documents: [ # c5
          a.documents # c6
          , # c7
          a.documents, # c8
          ] # c9
    # c10
# c11`
      const formatted = yield* format(text)
      assert.deepStrictEqual(
        formatted.match(/# c\d+/gu),
        Array.from({ length: 11 }, (_, index) => `# c${index + 1}`)
      )
      assert.notInclude(formatted, "\n\n\n")
    })
  )

  it.effect("is not made of a file that does not decode", () =>
    Effect.gen(function* () {
      const error = yield* Effect.flip(format("version: 1\nname: t\nstages: { a: { uses: wrte } }\n"))
      assert.instanceOf(error, PipelineInvalid)
      assert.match(error.message, /^p\.yaml:3:22: stages\.a\.uses: unknown stage type "wrte"/u)
      assert.isUndefined(canonicalText("a: [", true))
    })
  )

  it.effect("of random files in random layouts stays as it is, and means the same", () =>
    Effect.gen(function* () {
      const met = new Set<string>()
      for (let seed = 1; seed <= 200; seed++) {
        const text = randomPipeline(seed)
        for (const [, key = ""] of text.matchAll(/([a-z_]+): /gu)) met.add(key)
        const once = yield* format(text).pipe(
          Effect.tapError(() => Effect.sync(() => assert.fail(`seed ${seed}\n${text}`)))
        )
        assert.strictEqual(yield* format(once), once, `seed ${seed}`)
        assert.deepStrictEqual(yield* decoded(once), yield* decoded(text), `seed ${seed}`)
        const comments = (of: string) => (of.match(/# (?:why|above|a: b)|#note/gu) ?? []).length
        assert.strictEqual(comments(once), comments(text), `seed ${seed}: comments`)
      }
      assert.includeMembers([...met], [...topLevelFields, ...stageFields], "random-layout.ts lacks a field")
    }).pipe(Effect.provide(services))
  )

  for (const path of ["pipeline.yaml", "test/fixtures/small/pipeline.yaml"])
    it(`is that of ${path}`, () => {
      const text = readFileSync(fileURLToPath(new URL(`../../../${path}`, import.meta.url)), "utf8")
      assert.strictEqual(canonicalText(text, true), text, `Next: npx tinyllama fmt ${path}`)
    })
})
