/** Each way in which a pipeline file can be wrong, with the exact place and what was meant. */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import { Duration, Effect, Layer } from "effect"
import type { Diagnostic } from "../../../src/pipeline/file/Diagnostics.ts"
import { loadPipeline, loadPipelineText, type LoadOptions } from "../../../src/pipeline/file/Pipeline.ts"
import { describeOrigins } from "../../../src/pipeline/file/ResolvedPipeline.ts"
import { workplace } from "../fixtures/harness.ts"
import { testRegistry } from "../fixtures/stages.ts"

const services = Layer.merge(NodeServices.layer, testRegistry)

const load = (text: string, options: Omit<LoadOptions, "file"> = {}) =>
  Effect.gen(function* () {
    const place = yield* workplace
    return yield* loadPipeline({ ...options, file: place.write(text) })
  }).pipe(Effect.scoped, Effect.provide(services))

interface Expected {
  readonly at: string
  readonly path: string
  readonly message: RegExp
  readonly text?: string
  readonly suggestion?: string
}

const check = (found: Diagnostic | undefined, expected: Expected): void => {
  assert.isDefined(found)
  const at = found?.line === undefined ? found?.place : `${found.line}:${found.column}`
  assert.strictEqual(at, expected.at)
  if (found?.line !== undefined) assert.isTrue(found.place.endsWith(`pipeline.yaml:${at}`), found.place)
  assert.strictEqual(found?.path, expected.path)
  assert.match(found?.message ?? "", expected.message)
  if (expected.text !== undefined) assert.strictEqual(found?.text, expected.text)
  assert.strictEqual(found?.suggestion, expected.suggestion)
}

const head = "version: 1\nname: t\n"

const cases: ReadonlyArray<{
  readonly name: string
  readonly text: string
  readonly options?: Omit<LoadOptions, "file">
  readonly errors: ReadonlyArray<Expected>
}> = [
  {
    name: "YAML syntax",
    text: "version: 1\nname: [t\nstages: {}\n",
    errors: [{ at: "3:1", path: "", message: /^not YAML: deficient indentation/u, text: "stages: {}" }]
  },
  { name: "an empty file", text: "", errors: [{ at: "1:1", path: "", message: /the file is empty/u }] },
  {
    name: "two documents",
    text: `${head}stages: { a: { uses: write, with: { text: x } } }\n---\nb: 1\n`,
    errors: [{ at: "4:1", path: "", message: /more than one YAML document/u }]
  },
  { name: "a list at the top", text: "- a\n", errors: [{ at: "1:1", path: "", message: /must be a mapping/u }] },
  {
    name: "an unknown top-level key",
    text: `${head}stagess: {}\nstages: { a: { uses: write, with: { text: x } } }\n`,
    errors: [{ at: "3:1", path: "stagess", message: /unknown key "stagess"/u, text: "stagess", suggestion: "stages" }]
  },
  {
    name: "missing version and name, no stages",
    text: "vars: {}\n",
    errors: [
      { at: "1:1", path: "version", message: /missing "version: 1"/u },
      { at: "1:1", path: "stages", message: /at least one stage/u },
      { at: "1:1", path: "name", message: /missing "name"/u }
    ]
  },
  {
    name: "another version",
    text: "version: 2\nname: t\nstages: { a: { uses: write, with: { text: x } } }\n",
    errors: [{ at: "1:10", path: "version", message: /reads version 1/u, text: "2" }]
  },
  {
    name: "a duplicate key",
    text: `${head}stages:\n  a:\n    uses: write\n    with:\n      text: x\n      text: y\n`,
    errors: [{ at: "8:7", path: "stages.a.with.text", message: /duplicate key, first given in line 7/u, text: "text" }]
  },
  {
    name: "an unknown stage field",
    text: `${head}stages:\n  a:\n    uses: write\n    wiht: { text: x }\n    with: { text: x }\n`,
    errors: [{ at: "6:5", path: "stages.a.wiht", message: /unknown key "wiht"; a stage has uses/u, suggestion: "with" }]
  },
  {
    name: "an unknown stage type",
    text: `${head}stages:\n  a: { uses: wrte }\n`,
    errors: [
      { at: "4:14", path: "stages.a.uses", message: /unknown stage type "wrte"/u, text: "wrte", suggestion: "write" }
    ]
  },
  {
    name: "no stage type",
    text: `${head}stages:\n  a: { with: {} }\n`,
    errors: [{ at: "4:3", path: "stages.a.uses", message: /missing "uses"/u, text: "a" }]
  },
  {
    name: "unknown, missing and ill-typed parameters at once",
    text: `${head}stages:\n  a:\n    uses: write\n    with:\n      txt: x\n      steps: many\n`,
    errors: [
      { at: "6:5", path: "stages.a.with.text", message: /missing parameter "text" of write: What to write/u },
      {
        at: "7:7",
        path: "stages.a.with.txt",
        message: /unknown parameter "txt" of write/u,
        text: "txt",
        suggestion: "text"
      },
      { at: "8:14", path: "stages.a.with.steps", message: /expected .*got "many"/u, text: "many" }
    ]
  },
  {
    name: "faults inside a nested parameter",
    text: `${head}stages:\n  a:\n    uses: write\n    with:\n      text: x\n      lr: { peek: 1, schedule: cosin }\n`,
    errors: [
      { at: "8:11", path: "stages.a.with.lr.peak", message: /missing key "peak"/u },
      { at: "8:13", path: "stages.a.with.lr.peek", message: /unknown key "peek"/u, text: "peek", suggestion: "peak" },
      {
        at: "8:32",
        path: "stages.a.with.lr.schedule",
        message: /expected one of cosine, constant, got "cosin"/u,
        text: "cosin",
        suggestion: "cosine"
      }
    ]
  },
  {
    name: "a value out of range",
    text: `${head}stages:\n  a:\n    uses: write\n    with: { text: x, lr: { peak: -1, schedule: cosine } }\n`,
    errors: [{ at: "6:34", path: "stages.a.with.lr.peak", message: /greater than 0/u, text: "-1" }]
  },
  {
    name: "an unknown port, and a missing one",
    text: `${head}stages:\n  a: { uses: write, with: { text: x } }\n  b:\n    uses: join\n    in: { documnts: a.documents }\n`,
    errors: [
      { at: "7:5", path: "stages.b.in.documents", message: /missing input "documents" \(Documents\)/u },
      { at: "7:11", path: "stages.b.in.documnts", message: /no input port "documnts"/u, suggestion: "documents" }
    ]
  },
  {
    name: "edges to nowhere",
    text: `${head}stages:\n  alpha: { uses: write, with: { text: x } }\n  b:\n    uses: join\n    in: { documents: [alpa.documents, alpha.document, alpha] }\n    after: alpah\n`,
    errors: [
      {
        at: "7:23",
        path: "stages.b.in.documents[0]",
        message: /no stage "alpa"/u,
        text: "alpa.documents",
        suggestion: "alpha.documents"
      },
      {
        at: "7:39",
        path: "stages.b.in.documents[1]",
        message: /no output port "document"; it has documents/u,
        suggestion: "alpha.documents"
      },
      { at: "7:55", path: "stages.b.in.documents[2]", message: /must be an edge "stage.port"/u, text: "alpha" },
      { at: "8:12", path: "stages.b.after", message: /no stage "alpah"/u, suggestion: "alpha" }
    ]
  },
  {
    name: "a port of the wrong type",
    text: `${head}stages:\n  a: { uses: write, with: { text: x } }\n  b: { uses: join, in: { documents: a.documents } }\n  c: { uses: join, in: { documents: b.tokens } }\n`,
    errors: [
      {
        at: "6:37",
        path: "stages.c.in.documents",
        message: /takes Documents, but b.tokens gives TokenShards; Documents comes from a.documents/u,
        text: "b.tokens"
      }
    ]
  },
  {
    name: "a list where one edge goes",
    text: `${head}stages:\n  a: { uses: write, with: { text: x } }\n  b: { uses: join, in: { documents: a.documents, extra: [a.documents, a.documents] } }\n`,
    errors: [{ at: "5:57", path: "stages.b.in.extra", message: /takes one edge, not a list of 2/u }]
  },
  {
    name: "a cycle, with its path",
    text: `${head}stages:\n  a: { uses: write, with: { text: x }, after: c }\n  b: { uses: join, in: { documents: a.documents } }\n  c: { uses: write, with: { text: x }, after: [b] }\n`,
    errors: [{ at: "5:37", path: "stages.b.in.documents", message: /a cycle: a → b → c → a/u, text: "a.documents" }]
  },
  {
    name: "a bad reference",
    text: `${head}vars: { budget: 3 }\nstages:\n  a: { uses: write, with: { text: "\${vars.bugdet}", steps: "\${budget}" } }\n`,
    errors: [
      {
        at: "5:35",
        path: "stages.a.with.text",
        message: /no variable "bugdet"/u,
        text: '"${vars.bugdet}"',
        suggestion: "vars.budget"
      },
      { at: "5:60", path: "stages.a.with.steps", message: /means nothing; references read/u },
      { at: "5:60", path: "stages.a.with.steps", message: /expected .*got/u }
    ]
  },
  {
    name: "variables that refer to each other in a circle",
    text: `${head}vars: { a: "\${vars.b}", b: "\${vars.a}" }\nstages:\n  s: { uses: write, with: { text: "x\${vars.a}" } }\n`,
    errors: [{ at: "3:12", path: "vars.a", message: /vars.b refers to itself \(b → a → b\)/u }]
  },
  {
    name: "a value that a variable brought",
    text: `${head}vars: { budget: lots }\nstages:\n  a: { uses: write, with: { text: x, steps: "\${vars.budget}" } }\n`,
    errors: [
      { at: "5:45", path: "stages.a.with.steps", message: /got "lots" \(vars.budget from .*pipeline.yaml:3:17\)/u }
    ]
  },
  {
    name: "retry, timeout, resources",
    text: `${head}defaults: { retry: { times: -1, for: [netwrok, out-of-memory] }, timeout: 3 parsecs }\nstages:\n  a: { uses: write, with: { text: x }, resources: { cpus: 0, memory: much }, grace: 7 }\n`,
    errors: [
      { at: "3:29", path: "defaults.retry.times", message: /whole number of at least 0/u, text: "-1" },
      { at: "3:39", path: "defaults.retry.for[0]", message: /unknown failure class "netwrok"/u, suggestion: "network" },
      { at: "3:48", path: "defaults.retry.for[1]", message: /never tried again unchanged/u },
      { at: "3:75", path: "defaults.timeout", message: /a duration such as/u, text: "3 parsecs" },
      { at: "5:59", path: "stages.a.resources.cpus", message: /whole number of at least 1/u },
      { at: "5:70", path: "stages.a.resources.memory", message: /a size such as/u, text: "much" },
      { at: "5:85", path: "stages.a.grace", message: /a duration such as/u, text: "7" }
    ]
  },
  {
    name: "a kind of GPU that is not known",
    text: `${head}stages:\n  a: { uses: write, with: { text: x }, resources: { gpus: 2, gpu: a1000 } }\n`,
    errors: [
      {
        at: "4:67",
        path: "stages.a.resources.gpu",
        message: /unknown kind of GPU "a1000"; known are a100, h100/u,
        suggestion: "a100"
      }
    ]
  },
  {
    name: "overrides and profiles that do not fit",
    text: `${head}vars: { n: 1 }\nstages:\n  base: { uses: write, with: { text: x } }\nprofiles:\n  smoke: { stage: {} }\n`,
    options: {
      profiles: ["smok"],
      overrides: ["vars.m=2", "bas.steps=1", "base.stepps=1", "base.steps=few", "base", "base.lr.peak=[1"]
    },
    errors: [
      { at: "-p smok", path: "", message: /no profile "smok" in the file \(it has smoke\)/u, suggestion: "smoke" },
      { at: "-S vars.m=2", path: "", message: /no variable "m"/u, suggestion: "n" },
      { at: "-S bas.steps=1", path: "", message: /unknown path: "bas" is no stage/u, suggestion: "base" },
      { at: "-S base", path: "", message: /must read path=value/u },
      { at: "-S base.lr.peak=[1", path: "", message: /not YAML/u },
      {
        at: "-S base.stepps=1",
        path: "stages.base.with.stepps",
        message: /unknown parameter "stepps"/u,
        suggestion: "steps"
      },
      { at: "-S base.steps=few", path: "stages.base.with.steps", message: /got "few"/u, text: "few" },
      { at: "7:12", path: "profiles.smoke.stage", message: /unknown key "stage"; a profile has/u, suggestion: "stages" }
    ]
  }
]

describe("errors in the file", () => {
  for (const { errors, name, options, text } of cases) {
    it.effect(name, () =>
      Effect.gen(function* () {
        const error = yield* Effect.flip(load(text, options))
        assert.strictEqual(error._tag, "PipelineInvalid")
        if (error._tag !== "PipelineInvalid") return
        const found = [...error.diagnostics].sort(byPlace)
        const shown = found
          .map((diagnostic) => `${diagnostic.place} ${diagnostic.path}: ${diagnostic.message}`)
          .join("\n")
        assert.strictEqual(found.length, errors.length, shown)
        for (const [index, expected] of errors.entries()) check(found[index], expected)
      })
    )
  }

  it.effect("a file that is not there", () =>
    Effect.gen(function* () {
      const error = yield* Effect.flip(loadPipeline({ file: "/nowhere/pipeline.yaml" }).pipe(Effect.provide(services)))
      assert.strictEqual(error.message, "/nowhere/pipeline.yaml: cannot be read: no such file")
    })
  )

  it.effect("text without a file has its label as its place", () =>
    Effect.gen(function* () {
      const text = `${head}stages: { a: { uses: write, with: { text: x } } }\n`
      const label = "main:pipeline.yaml"
      const pipeline = yield* loadPipelineText({ label, text, baseDirectory: "/somewhere" })
      assert.strictEqual(pipeline.file, label)
      assert.strictEqual(pipeline.baseDirectory, "/somewhere")
      const faulty = text.replace("write", "wrte")
      const error = yield* Effect.flip(loadPipelineText({ label, text: faulty, baseDirectory: "/somewhere" }))
      assert.match(error.message, /^main:pipeline\.yaml:3:22: stages\.a\.uses: unknown stage type/u)
    }).pipe(Effect.provide(services))
  )

  it.effect("reads like a compiler's", () =>
    Effect.gen(function* () {
      const error = yield* Effect.flip(load(`${head}stages:\n  a: { uses: wrte }\n`))
      assert.match(
        error.message,
        /pipeline\.yaml:4:14: stages\.a\.uses: unknown stage type "wrte"; there are .*; did you mean "write"\?\n {4}wrte$/u
      )
    })
  )
})

const byPlace = (a: Diagnostic, b: Diagnostic) => (a.line ?? 0) - (b.line ?? 0) || (a.column ?? 0) - (b.column ?? 0)

describe("a good file", () => {
  const text = `
version: 1
name: good
vars: { budget: 400_000, word: hello, lr: { peak: 0.001, schedule: constant } }
defaults: { retry: { times: 5, base: 10s }, timeout: 48h }
stages:
  last: { uses: join, in: { documents: [second.documents, first.documents] }, timeout: 90s, after: [third] }
  first: { uses: write, with: { text: "\${vars.word} world", steps: "\${vars.budget}", lr: "\${vars.lr}" } }
  second: { uses: write, with: { text: b }, retry: { times: 0 }, resources: { cpus: 3, memory: 2GiB }, grace: 5m }
  third: { uses: write, with: { text: c } }
profiles:
  small: { vars: { budget: 7 }, stages: { second: { with: { steps: 1 } } } }
`
  it.effect("decodes, in topological order, with defaults", () =>
    Effect.gen(function* () {
      const { stages, vars } = yield* load(text)
      assert.deepStrictEqual(
        stages.map((stage) => stage.name),
        ["second", "first", "third", "last"]
      )
      const [second, first, , last] = stages
      assert.strictEqual(vars["budget"], 400_000)
      assert.deepStrictEqual(first?.params, {
        text: "hello world",
        lr: { peak: 0.001, schedule: "constant" },
        steps: 400_000,
        log_every: 1,
        watch: null,
        wait: 0
      })
      assert.deepStrictEqual(
        last?.inputs["documents"]?.map((edge) => edge.stage),
        ["second", "first"]
      )
      assert.deepStrictEqual(last?.inputs["extra"], [])
      assert.deepStrictEqual(last?.needs, ["second", "first", "third"])
      assert.strictEqual(last?.resources.cpus, "all")
      assert.deepStrictEqual(second?.resources, { cpus: 3, memory: 2 ** 31, gpus: 0, ranks: 1 })
      assert.strictEqual(second?.retry.times, 0)
      assert.strictEqual(first?.retry.times, 5)
      assert.strictEqual(Duration.toSeconds(first?.retry.base ?? 0), 10)
      assert.strictEqual(Duration.toSeconds(first?.timeout ?? 0), 48 * 3600)
      assert.strictEqual(Duration.toSeconds(last?.timeout ?? 0), 90)
      assert.strictEqual(Duration.toSeconds(second?.grace ?? 0), 300)
    })
  )

  it.effect("profiles, then overrides, and where each value came from", () =>
    Effect.gen(function* () {
      const overrides = ["first.lr.peak=2e-3", "stages.second.resources.cpus=all", "second.watch=", "vars.word=bye"]
      const pipeline = yield* load(text, { profiles: ["small"], overrides })
      const second = pipeline.stages.find((stage) => stage.name === "second")
      const first = pipeline.stages.find((stage) => stage.name === "first")
      assert.strictEqual(first?.params["steps"], 7)
      assert.strictEqual(first?.params["text"], "bye world")
      assert.strictEqual(second?.params["steps"], 1)
      assert.strictEqual(second?.resources.cpus, "all")
      const resolved = JSON.stringify(describeOrigins(pipeline))
      assert.include(resolved, '"peak":{"value":0.002,"from":"-S first.lr.peak=2e-3"}')
      assert.match(resolved, /"steps":\{"value":1,"from":"[^"]*pipeline.yaml:12:68 \(profile small\)"\}/u)
      assert.include(resolved, '"log_every":{"value":1,"from":"default"}')
      assert.include(resolved, '"text":{"value":"bye world","from":"-S vars.word=bye"}')
    })
  )

  it.effect("what comes from defaults, lists and profiles has its origin too", () =>
    Effect.gen(function* () {
      const more = `${text.replace("profiles:\n", 'price: "$2/h"\nsecrets: [HF_TOKEN, OTHER]\nprofiles:\n')}  cloud: { price: { per_hour: 9 } }\n`
      const pipeline = yield* load(more.replace("grace: 5m", "grace: 5m, secrets: [OWN, OTHER], checks: length > 1"), {
        profiles: ["cloud"]
      })
      const { price, stages, vars, ...rest } = JSON.parse(JSON.stringify(describeOrigins(pipeline)))
      const at = (line: number) => new RegExp(`pipeline\\.yaml:${line}:\\d+$`, "u")
      assert.deepStrictEqual([price.per_hour.value, price.currency.value], [9, "$"])
      assert.match(price.per_hour.from, /:\d+:\d+ \(profile cloud\)$/u)
      assert.match(vars.lr.peak.from, at(4))
      assert.match(rest.secrets[1].from, at(12))
      const { first, second } = stages
      assert.match(first.retry.times.from, at(5))
      assert.strictEqual(first.retry.jitter.from, "default")
      assert.match(first.timeout.from, at(5))
      assert.match(second.retry.times.from, at(9))
      assert.deepStrictEqual(pipeline.stages.find(({ name }) => name === "second")?.secrets, [
        "OWN",
        "OTHER",
        "HF_TOKEN"
      ])
      assert.match(second.secrets[1].from, /:9:\d+$/u)
      assert.match(second.secrets[2].from, at(12))
      assert.match(second.checks[0].from, /:9:\d+$/u)
    })
  )
})
