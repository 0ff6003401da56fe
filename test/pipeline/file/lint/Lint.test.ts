/** Each rule: what it finds, where, and what it leaves alone. */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Layer } from "effect"
import { lint } from "../../../../src/pipeline/file/lint/Lint.ts"
import { testRegistry } from "../../fixtures/stages.ts"

const look = (text: string) =>
  lint({ file: "p.yaml", text, baseDirectory: "." }).pipe(Effect.provide(Layer.merge(NodeServices.layer, testRegistry)))

const head = "version: 1\nname: t\n"
const writer = "a: { uses: write, with: { text: x } }"
const counter = "last: { uses: count, with: { steps: 1 }, in: { after: a.documents } }"

const cases: ReadonlyArray<{
  readonly rule: string
  readonly text: string
  /** "line:column path", with the word that the message must hold. */
  readonly at: string
  readonly says: RegExp
  readonly suggestion?: string
  /** The same without the fault. */
  readonly clean: string
}> = [
  {
    rule: "unused-variable",
    text: `vars: { word: x, wrod: y }\nstages:\n  a: { uses: write, with: { text: "\${vars.word}" } }\n`,
    at: "3:18 vars.wrod",
    says: /no value refers/u,
    clean: `vars: { word: x }\nstages:\n  a: { uses: write, with: { text: "<\${ vars.word }>" } }\n`
  },
  {
    rule: "profile-unknown-stage",
    text: `stages:\n  a: { uses: write, with: { text: x } }\nprofiles:\n  p: { stages: { aa: { with: { text: y } } } }\n`,
    at: "6:18 profiles.p.stages.aa",
    says: /no stage "aa"/u,
    suggestion: "a",
    clean: `stages:\n  ${writer}\nprofiles:\n  p: { stages: { aa: { uses: write, with: { text: y } } } }\n`
  },
  {
    rule: "profile-unknown-variable",
    text: `vars: { word: x }\nstages:\n  a: { uses: write, with: { text: "\${vars.word}" } }\nprofiles:\n  p: { vars: { words: y } }\n`,
    at: "7:16 profiles.p.vars.words",
    says: /no variable "words"/u,
    suggestion: "word",
    clean: `vars: { word: x }\nstages:\n  a: { uses: write, with: { text: "\${vars.word}" } }\nprofiles:\n  p: { vars: { word: y } }\n`
  },
  {
    rule: "profile-no-effect",
    text: `stages:\n  ${writer}\nprofiles:\n  p: { stages: { a: { with: { text: x } } } }\n`,
    at: "6:37 profiles.p.stages.a.with.text",
    says: /without the profile/u,
    clean: `stages:\n  ${writer}\nprofiles:\n  p: { stages: { a: { with: { text: y } } } }\n`
  },
  {
    rule: "unused-stage",
    text: `stages:\n  ${writer}\n  b: { uses: write, with: { text: y } }\n  c: { uses: join, in: { documents: a.documents } }\n`,
    at: "5:3 stages.b",
    says: /no stage takes b\.documents \(Documents\)/u,
    clean: `stages:\n  ${writer}\n  b: { uses: write, with: { text: y } }\n  c: { uses: join, in: { documents: [a.documents, b.documents] } }\n`
  },
  {
    rule: "default-parameter",
    text: `stages:\n  a: { uses: write, with: { text: x, lr: { peak: 0.0004, schedule: constant }, steps: 1e1 } }\n`,
    at: "4:44 stages.a.with.lr.peak",
    says: /0\.0004 is the default/u,
    clean: `vars: { many: 10 }\nstages:\n  a: { uses: write, with: { text: x, steps: "\${vars.many}" } }\n`
  },
  {
    rule: "shadowed-name",
    text: `stages:\n  vars: { uses: write, with: { text: x } }\n`,
    at: "4:3 stages.vars",
    says: /-S vars\.… means the file's own vars/u,
    clean: `stages:\n  variables: { uses: write, with: { text: x } }\n`
  },
  {
    rule: "redundant-after",
    text: `stages:\n  ${writer}\n  b: { uses: join, in: { documents: a.documents }, after: a }\n`,
    at: "5:59 stages.b.after",
    says: /an edge already puts this stage after a/u,
    clean: `stages:\n  ${writer}\n  b: { uses: write, with: { text: y }, after: a }\n`
  },
  {
    rule: "redundant-after",
    text: `stages:\n  ${writer}\n  ${counter}\n  b: { uses: write, with: { text: y }, after: [a, last] }\n`,
    at: "6:48 stages.b.after[0]",
    says: /last, which this stage needs, already/u,
    clean: `stages:\n  ${writer}\n  ${counter}\n  b: { uses: write, with: { text: y }, after: [last] }\n`
  },
  {
    rule: "redundant-after",
    text: `stages:\n  m: { uses: write, matrix: { n: [1, 2] }, with: { text: x, steps: "\${matrix.n}" } }\n  b: { uses: join, in: { documents: [m.documents] }, after: "m[n=2]" }\n`,
    at: "5:61 stages.b.after",
    says: /an edge already puts this stage after m\[n=2\]/u,
    clean: `stages:\n  m: { uses: write, matrix: { n: [1, 2] }, with: { text: x, steps: "\${matrix.n}" } }\n  b: { uses: join, in: { documents: ["m[n=1].documents"] }, after: m }\n`
  },
  {
    rule: "unused-axis",
    text: `stages:\n  m: { uses: write, matrix: { n: [1, 2], k: [p, q] }, with: { text: x, steps: "\${matrix.n}" } }\n`,
    at: "4:42 stages.m.matrix.k",
    says: /its instances are the same/u,
    clean: `stages:\n  m: { uses: write, matrix: { n: [1, 2], k: [p, q] }, with: { text: "\${matrix.k}", steps: "\${matrix.n}" } }\n`
  },
  {
    rule: "shadowed-name",
    text: `vars: { n: 1 }\nstages:\n  m: { uses: write, matrix: { n: [1, 2] }, with: { text: x, steps: "\${matrix.n}" } }\n`,
    at: "5:31 stages.m.matrix.n",
    says: /two values of one name/u,
    clean: `vars: { n: 1 }\nstages:\n  m: { uses: write, matrix: { k: [1, 2] }, with: { text: x, steps: "\${matrix.k}" } }\n`
  },
  {
    rule: "repeated-edge",
    text: `stages:\n  ${writer}\n  b: { uses: join, in: { documents: [a.documents, a.documents] } }\n`,
    at: "5:51 stages.b.in.documents[1]",
    says: /in this list already/u,
    clean: `stages:\n  ${writer}\n  b: { uses: join, in: { documents: [a.documents] } }\n`
  }
]

describe("lint", () => {
  for (const { at, clean, rule, says, suggestion, text } of cases)
    it.effect(`${rule}: ${at}`, () =>
      Effect.gen(function* () {
        const { errors, findings } = yield* look(head + text)
        // Such a profile cannot be applied, which is an error besides.
        if (rule !== "profile-unknown-stage") assert.deepStrictEqual(errors, [])
        const [found] = findings.filter((finding) => finding.rule === rule)
        assert.strictEqual(`${found?.line}:${found?.column} ${found?.path}`, at)
        assert.match(found?.message ?? "", says)
        assert.strictEqual(found?.suggestion, suggestion)
        assert.isAbove(found?.next.length ?? 0, 0)
        const after = yield* look(head + clean)
        assert.deepStrictEqual(after.errors, [])
        assert.isUndefined(after.findings.find((finding) => finding.rule === rule && finding.path === found?.path))
      })
    )

  it.effect("seeds-differ: points at the seed that is unlike the others", () =>
    Effect.gen(function* () {
      const stage = (seed: string) => `{ uses: seeded${seed === "" ? "" : `, with: { seed: ${seed} }`} }`
      const { findings } = yield* look(`${head}stages:\n  a: ${stage("7")}\n  b: ${stage("7")}\n  c: ${stage("8")}\n`)
      const found = findings.filter(({ rule }) => rule === "seeds-differ")
      assert.deepStrictEqual(
        found.map(({ line, message, path }) => ({ line, message, path })),
        [{ line: 6, path: "stages.c.with.seed", message: "the seed is 8 here and 7 in a, b" }]
      )
      const alike = yield* look(`${head}stages:\n  a: ${stage("7")}\n  b: ${stage("7")}\n`)
      assert.notInclude(
        alike.findings.map(({ rule }) => rule),
        "seeds-differ"
      )
    })
  )

  it.effect("finds the errors that only a profile brings, and names the profile", () =>
    Effect.gen(function* () {
      const { errors } = yield* look(
        `${head}stages:\n  ${writer}\nprofiles:\n  p: { stages: { a: { with: { steps: many } } } }\n  q: {}\n`
      )
      assert.deepStrictEqual(
        errors.map(({ line, message, path }) => ({ line, path, profile: /\(with .*\)$/u.exec(message)?.[0] })),
        [{ line: 6, path: "stages.a.with.steps", profile: "(with -p p)" }]
      )
    })
  )

  it.effect("reports the errors of a file that does not decode, and nothing else", () =>
    Effect.gen(function* () {
      const { errors, findings } = yield* look(`${head}vars: { unused: 1 }\nstages:\n  a: { uses: wrte }\n`)
      assert.strictEqual(errors.length, 1)
      assert.deepStrictEqual(findings, [])
    })
  )
})
