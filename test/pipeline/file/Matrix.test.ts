/** matrix: what it expands to, how instances are called, who takes them, and each way in which it can be wrong. */
import { readdirSync } from "node:fs"
import { join } from "node:path"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Layer, Result } from "effect"
import { namesIn } from "../../../src/cli/Flags.ts"
import { StageNames } from "../../../src/pipeline/file/Matrix.ts"
import { loadPipeline, type LoadOptions } from "../../../src/pipeline/file/Pipeline.ts"
import { describeOrigins } from "../../../src/pipeline/file/ResolvedPipeline.ts"
import { Runs, stageFolder, stageOfFolder } from "../../../src/pipeline/runs/Runs.ts"
import { resolveSelection } from "../../../src/pipeline/plan/Selection.ts"
import { outcomes, workplace } from "../fixtures/harness.ts"
import { newRecord, runHere } from "../fixtures/in-process.ts"
import { testRegistry } from "../fixtures/stages.ts"

const services = Layer.merge(NodeServices.layer, testRegistry)
const load = (text: string, options: Omit<LoadOptions, "file"> = {}) =>
  Effect.gen(function* () {
    const place = yield* workplace
    return yield* loadPipeline({ ...options, file: place.write(text) })
  }).pipe(Effect.scoped, Effect.provide(services))

const head = "version: 1\nname: t\nvars: { rates: [1e-3, 2e-3] }\nstages:\n"
const sweep = `${head}
  base:
    uses: write
    matrix: { lr: "\${vars.rates}", seed: [1, 2] }
    with: { text: "seed \${matrix.seed} of \${vars.rates_name}", steps: "\${matrix.seed}", lr: { peak: "\${matrix.lr}", schedule: constant } }
  one: { uses: join, matrix: { lr: "\${vars.rates}" }, in: { documents: "base[lr=\${matrix.lr}].documents", extra: "base[seed=2,lr=\${matrix.lr}].documents" } }
  all: { uses: join, in: { documents: base.documents }, after: one }
  few: { uses: join, in: { documents: ["base[lr=1e-3].documents", "base[lr=0.002,seed=1].documents"] } }
`.replace("rates: [1e-3, 2e-3]", "rates: [1e-3, 2e-3], rates_name: two")

describe("a matrix", () => {
  it.effect("is one stage for each combination, the last axis fastest", () =>
    Effect.gen(function* () {
      const { stages } = yield* load(sweep)
      const [first, , third] = stages
      assert.deepStrictEqual(
        stages.map(({ name }) => name),
        [
          "base[lr=0.001,seed=1]",
          "base[lr=0.001,seed=2]",
          "base[lr=0.002,seed=1]",
          "base[lr=0.002,seed=2]",
          "one[lr=0.001]",
          "one[lr=0.002]",
          "all",
          "few"
        ]
      )
      assert.deepStrictEqual(first?.matrix, { group: "base", values: { lr: 0.001, seed: 1 } })
      assert.deepStrictEqual(first?.params["text"], "seed 1 of two")
      assert.strictEqual(third?.params["steps"], 1, "a value keeps its type")
      assert.deepStrictEqual(third?.params["lr"], { peak: 0.002, schedule: "constant" })
    })
  )

  it.effect("a list port takes all instances of a name, or those with the values in brackets", () =>
    Effect.gen(function* () {
      const { stages } = yield* load(sweep)
      const edges = (name: string, port = "documents") =>
        stages.find((stage) => stage.name === name)?.inputs[port]?.map(({ stage }) => stage)
      assert.deepStrictEqual(edges("all"), [
        "base[lr=0.001,seed=1]",
        "base[lr=0.001,seed=2]",
        "base[lr=0.002,seed=1]",
        "base[lr=0.002,seed=2]"
      ])
      assert.deepStrictEqual(stages.find(({ name }) => name === "all")?.after, ["one[lr=0.001]", "one[lr=0.002]"])
      assert.deepStrictEqual(edges("few"), ["base[lr=0.001,seed=1]", "base[lr=0.001,seed=2]", "base[lr=0.002,seed=1]"])
      assert.deepStrictEqual(edges("one[lr=0.002]"), ["base[lr=0.002,seed=1]", "base[lr=0.002,seed=2]"])
      assert.deepStrictEqual(edges("one[lr=0.002]", "extra"), ["base[lr=0.002,seed=2]"])
    })
  )

  it.effect("goes over whole edges, resources and checks", () =>
    Effect.gen(function* () {
      const { stages } = yield* load(`${head}
  a: { uses: write, with: { text: a } }
  b: { uses: write, with: { text: b } }
  c: { uses: join, matrix: { from: [a.documents, b.documents], cpus: [1, all] }, in: { documents: "\${matrix.from}" }, resources: { cpus: "\${matrix.cpus}" }, checks: "count >= \${matrix.cpus}" }
`)
      assert.deepStrictEqual(
        stages.slice(2).map(({ inputs, name, resources }) => [name, inputs["documents"]?.[0]?.stage, resources.cpus]),
        [
          ["c[from=a.documents,cpus=1]", "a", 1],
          ["c[from=a.documents,cpus=all]", "a", "all"],
          ["c[from=b.documents,cpus=1]", "b", 1],
          ["c[from=b.documents,cpus=all]", "b", "all"]
        ]
      )
      assert.strictEqual(stages[2]?.checks[0]?.text, "count >= 1")
    })
  )

  it.effect("has names that are short, safe and different", () =>
    Effect.gen(function* () {
      const long = "x".repeat(300)
      const { stages } = yield* load(
        `${head}  a: { uses: write, matrix: { text: [data/a b.md, data/a/b.md, "${long}1", "${long}2", ""] }, with: { text: "\${matrix.text}" } }\n`
      )
      const names = stages.map(({ name }) => name)
      assert.strictEqual(new Set(names).size, 5)
      for (const name of names) {
        assert.match(name, /^a\[text=[\w.+~-]*\]$/u)
        assert.isBelow(name.length, 60)
        assert.strictEqual(stageOfFolder(stageFolder(123, name)), name)
      }
      assert.strictEqual(stageFolder(2, "base[lr=0.001,seed=1]"), "03-base@lr=0.001,seed=1")
      assert.strictEqual(stageOfFolder("03-base"), "base")
    })
  )

  it.effect("profiles and overrides address the group, and every value has its origin", () =>
    Effect.gen(function* () {
      const overrides = ["base.matrix.seed=[7]", "base.with.wait=3"]
      const text = `${sweep}profiles: { quick: { vars: { rates: [5e-4] }, stages: { base: { max_parallel: 1 } } } }\n`
        .replace('"base[lr=1e-3].documents", "base[lr=0.002,seed=1].documents"', "base.documents")
        .replace(', extra: "base[seed=2,lr=${matrix.lr}].documents"', "")
      const pipeline = yield* load(text, { profiles: ["quick"], overrides })
      assert.deepStrictEqual(
        pipeline.stages.map(({ name }) => name),
        ["base[lr=0.0005,seed=7]", "one[lr=0.0005]", "all", "few"]
      )
      assert.strictEqual(pipeline.stages[0]?.params["wait"], 3)
      const resolved = JSON.stringify(describeOrigins(pipeline))
      assert.include(resolved, '"seed":{"value":7,"from":"-S base.matrix.seed=[7]"}')
      assert.match(resolved, /"peak":\{"value":0\.0005,"from":"[^"]*:\d+:\d+ \(profile quick\)"\}/u)
      assert.match(resolved, /"max_parallel":\{"value":1,"from":"[^"]* \(profile quick\)"\}/u)
      assert.match(resolved, /"vars":\{"rates":\[\{"value":0\.0005,"from":"[^"]* \(profile quick\)"\}\]/u)
    })
  )

  const stage = (more: string) => `${head}  a: { uses: write, with: { text: x }, ${more} }\n`
  const faults: ReadonlyArray<readonly [name: string, text: string, message: RegExp]> = [
    [
      "an explosion",
      stage(
        `matrix: { a: [${Array.from({ length: 40 }, (_, i) => i).join()}], b: [${Array.from({ length: 26 }, (_, i) => i).join()}] }`
      ),
      /:5:\d+: stages\.a\.matrix: makes 40 \(a\) × 26 \(b\) = 1,040 stages; 1,000 are allowed: list fewer values/u
    ],
    ["an empty axis", stage("matrix: { a: [] }"), /:5:\d+: stages\.a\.matrix\.a: is an empty list/u],
    ["no axes", stage("matrix: {}"), /:5:\d+: stages\.a\.matrix: must name axes with their values/u],
    ["a matrix that is a list", stage("matrix: [1, 2]"), /stages\.a\.matrix: must name axes with their values/u],
    ["an axis that is no list", stage("matrix: { lr: 1e-3 }"), /stages\.a\.matrix\.lr: must be a list of values/u],
    [
      "a value twice",
      stage("matrix: { lr: [1e-3, 0.001] }"),
      /stages\.a\.matrix\.lr\[1\]: lr has the value 0\.001 twice/u
    ],
    ["a value that is none", stage("matrix: { lr: [[1]] }"), /matrix\.lr\[0\]: must be a plain value/u],
    ["an axis' name", stage("matrix: { 1r: [1] }"), /matrix\.1r: an axis is named by letters/u],
    [
      "an unknown axis",
      `${head}  a: { uses: write, matrix: { seed: [1] }, with: { text: "\${matrix.sed}" } }\n`,
      /:5:\d+: stages\.a\.with\.text: no axis "sed" in the stage's matrix; it has seed; did you mean "matrix\.seed"\?/u
    ],
    [
      "a reference without a matrix",
      `${head}  a: { uses: write, with: { text: "\${matrix.lr}" } }\n`,
      /:5:\d+: stages\.a\.with\.text: \$\{matrix\.lr\} has a meaning only in a stage with "matrix: \{ lr: \[\.\.\.\] \}"/u
    ],
    [
      "a reference outside of stages",
      `${head.replace("1e-3", '"${matrix.x}"')}  a: { uses: write, with: { text: x } }\n`,
      /vars\.rates\[0\]: \$\{matrix\.x\} has a meaning only in a stage with a matrix/u
    ],
    ["max_parallel without a matrix", stage("max_parallel: 2"), /a\.max_parallel: limits the instances of a matrix/u],
    ["max_parallel of none", stage("matrix: { a: [1] }, max_parallel: 0"), /must be a whole number of at least 1/u],
    [
      "a group on a single port",
      `${sweep}  bad: { uses: join, in: { documents: all.tokens, extra: base.documents } }\n`,
      /bad\.in\.extra: base is 4 stages, and the port "extra" takes one edge: name one, as in "base\[lr=0\.001,seed=1\]\.documents", or fan out as well, with a matrix of the same axis and "base\[lr=\$\{matrix\.lr\},seed=\$\{matrix\.seed\}\]\.documents"/u
    ],
    [
      "an instance that is not there",
      `${sweep}  bad: { uses: join, in: { documents: "base[lr=0.003].documents" } }\n`,
      /bad\.in\.documents: no instance "base\[lr=0\.003\]" in the matrix of base; there are base\[lr=0\.001,seed=1\]/u
    ],
    [
      "an override of one instance",
      sweep,
      /an override addresses all instances of a matrix together.*did you mean "base"\?/u
    ]
  ]
  for (const [name, text, message] of faults) {
    it.effect(`refuses ${name}`, () =>
      Effect.gen(function* () {
        const overrides = name.startsWith("an override") ? ["base[lr=0.001].with.steps=1"] : []
        const error = yield* Effect.flip(load(text, { overrides }))
        assert.match(error.message, message)
        assert.strictEqual(error._tag, "PipelineInvalid")
        if (error._tag === "PipelineInvalid" && !name.includes("port")) assert.strictEqual(error.diagnostics.length, 1)
      })
    )
  }
})

describe("names of stages", () => {
  it("commas between brackets belong to the name", () => {
    assert.deepStrictEqual(namesIn("a,b[x=1,y=2],c"), ["a", "b[x=1,y=2]", "c"])
  })

  it("a group, an instance, some of its values, in any order and spelling", () => {
    const values = [
      { lr: 0.001, seed: 1 },
      { lr: 0.001, seed: 2 },
      { lr: 2e-7, seed: 1 }
    ]
    const names = new StageNames([
      { name: "plain", matrix: undefined },
      ...values.map((value, index) => ({ name: `base[${index}]`, matrix: { group: "base", values: value } }))
    ])
    const found = (name: string) => Result.getOrElse(names.find(name), ({ message }) => message)
    assert.deepStrictEqual(found("plain"), ["plain"])
    assert.deepStrictEqual(found("base"), ["base[0]", "base[1]", "base[2]"])
    assert.deepStrictEqual(found("base[lr=1e-3]"), ["base[0]", "base[1]"])
    assert.deepStrictEqual(found("base[seed=1, lr=0.0000002]"), ["base[2]"])
    assert.match(String(found("base[sed=1]")), /no instance/u)
    assert.match(String(found("plain[lr=1]")), /stage "plain" has no matrix/u)
    assert.match(String(found("bas")), /no stage "bas"/u)
  })

  it.effect("select all instances or one", () =>
    Effect.gen(function* () {
      const pipeline = yield* load(sweep)
      const running = (selection: Parameters<typeof resolveSelection>[1]) => {
        const roles = Result.getOrThrow(resolveSelection(pipeline, selection))
        return pipeline.stages.filter(({ name }) => roles.of(name) === "run").map(({ name }) => name)
      }
      assert.deepStrictEqual(running({ only: ["one"] }), ["one[lr=0.001]", "one[lr=0.002]"])
      assert.deepStrictEqual(running({ only: ["base[lr=0.001,seed=2]"] }), ["base[lr=0.001,seed=2]"])
      assert.deepStrictEqual(running({ fromStage: "base[lr=0.002]" }), [
        "base[lr=0.002,seed=1]",
        "base[lr=0.002,seed=2]",
        "one[lr=0.002]",
        "all",
        "few"
      ])
      const error = Result.flip(resolveSelection(pipeline, { only: ["base[lr=3]"] }))
      assert.match(Result.getOrThrow(error).message, /--only base\[lr=3\]: no instance "base\[lr=3\]"/u)
    })
  )
})

describe("a run of a matrix", () => {
  it.live("runs max_parallel instances at a time, in folders that are found again", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      const text = (limit: number) =>
        `${head}  a: { uses: write, matrix: { n: [1, 2, 3, 4, 5] }, max_parallel: ${limit}, with: { text: "n \${matrix.n}", wait: 60 } }\n`
      place.write(text(2))
      const record = newRecord()
      const summary = yield* runHere(place, { cpus: 8 }, record)
      assert.strictEqual(record.peak, 2)
      assert.strictEqual(Object.values(outcomes(summary)).filter((outcome) => outcome === "done").length, 5)
      assert.strictEqual(readdirSync(join(summary.folder, "stages"))[4], "05-a@n=5")
      const outputs = yield* Effect.flatMap(Runs, (runs) => Effect.flatMap(runs.find(summary.run), runs.outputs)).pipe(
        Effect.provide(Runs.layer(place.runs).pipe(Layer.provideMerge(NodeServices.layer)))
      )
      assert.deepStrictEqual(
        outputs.map(({ stage }) => stage),
        ["a[n=1]", "a[n=2]", "a[n=3]", "a[n=4]", "a[n=5]"]
      )
      // max_parallel is operational, and a further value makes nothing stale that was there.
      place.write(text(5).replace("4, 5]", "4, 5, 6]"))
      const more = yield* runHere(place, { cpus: 8 })
      assert.deepStrictEqual(Object.values(outcomes(more)), ["cached", "cached", "cached", "cached", "cached", "done"])
    }).pipe(Effect.scoped)
  )
})
