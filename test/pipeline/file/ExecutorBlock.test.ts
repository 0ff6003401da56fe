import { assert, describe, it } from "@effect/vitest"
import { Duration, Effect, Layer, Result } from "effect"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { loadPipelineText } from "../../../src/pipeline/file/Pipeline.ts"
import { keyParts } from "../../../src/pipeline/plan/StageKey.ts"
import { testRegistry } from "../fixtures/stages.ts"

const load = (text: string, profiles: ReadonlyArray<string> = [], overrides: ReadonlyArray<string> = []) =>
  Effect.result(loadPipelineText({ label: "p.yaml", text, baseDirectory: ".", profiles, overrides })).pipe(
    Effect.provide(Layer.merge(testRegistry, NodeServices.layer))
  )
const pipeline = (text: string, profiles?: ReadonlyArray<string>, overrides?: ReadonlyArray<string>) =>
  Effect.map(load(text, profiles, overrides), (loaded) => Result.getOrThrow(loaded))
const faults = (text: string) =>
  Effect.map(load(text), (loaded) =>
    Result.isFailure(loaded) && loaded.failure._tag === "PipelineInvalid"
      ? loaded.failure.diagnostics.map(({ message, path, place }) => `${place}: ${path}: ${message}`).join("\n")
      : "none"
  )
const head = "version: 1\nname: t\n"
const write = "uses: write, with: { text: x }"

describe("executor", () => {
  it.effect("is this machine where nobody says otherwise", () =>
    Effect.gen(function* () {
      const { stages } = yield* pipeline(`${head}stages: { a: { ${write} } }\n`)
      assert.deepStrictEqual(stages[0]?.executor, { kind: "local" })
    })
  )

  it.effect("comes from defaults, a profile, the stage or -S, the nearer over the further, key by key", () =>
    Effect.gen(function* () {
      const text = [
        head,
        "defaults: { executor: { kind: slurm, partition: cpu, time: 2h } }",
        "stages:",
        `  a: { ${write} }`,
        `  b: { ${write}, executor: { partition: gpu, on_interrupt: detach } }`,
        `  c: { ${write}, executor: { kind: local } }`,
        "profiles: { big: { executor: { time: 24h, poll: 1m } } }"
      ].join("\n")
      const { stages } = yield* pipeline(text, ["big"], ["a.executor.qos=long"])
      const [a, b, c] = stages.map(({ executor }) => executor)
      assert.deepInclude(a, { kind: "slurm", partition: "cpu", qos: "long", time: Duration.hours(24) })
      assert.deepInclude(b, { partition: "gpu", onInterrupt: "detach", poll: Duration.minutes(1), qos: undefined })
      assert.deepStrictEqual(c, { kind: "local" })
    })
  )

  it.effect("changes no key", () =>
    Effect.gen(function* () {
      const keys = yield* Effect.forEach(["", ", executor: { kind: slurm, array: 3 }"], (more) =>
        Effect.map(pipeline(`${head}stages: { a: { ${write}${more}, resources: { nodes: 1 } } }\n`), ({ stages }) => {
          const [stage] = stages
          return stage === undefined ? undefined : keyParts(stage.type, stage.params, {}, null)
        })
      )
      assert.deepStrictEqual(keys[0], keys[1])
    })
  )

  it.effect("is refused with its place where it makes no sense", () =>
    Effect.gen(function* () {
      const said = (block: string) => faults(`${head}stages:\n  a: { ${write}, executor: ${block} }\n`)
      assert.match(
        yield* said("{ kind: slrum }"),
        /p\.yaml:4:\d+: stages\.a\.executor\.kind: must be one of local, slurm/u
      )
      assert.match(yield* said("{ partition: gpu }"), /executor\.kind: must be one of/u)
      assert.match(
        yield* said("{ kind: local, partition: gpu }"),
        /unknown key "partition"; the local executor has kind alone/u
      )
      assert.match(yield* said("{ kind: slurm, partiton: gpu }"), /unknown parameter "partiton" of the Slurm executor/u)
      assert.match(yield* said("{ kind: slurm, partition: two words }"), /must be one word/u)
      assert.match(yield* said("{ kind: slurm, time: tomorrow }"), /executor\.time: must be a duration/u)
      assert.match(yield* said("{ kind: slurm, extra: [exclude] }"), /extra\[0\]: must be an option of sbatch/u)
      assert.match(yield* said("{ kind: slurm, on_interrupt: leave }"), /expected one of cancel, detach/u)
      assert.match(yield* said("slurm"), /executor: must be a mapping/u)
    })
  )

  it.effect("ranks and nodes are held against each other and against the stage type", () =>
    Effect.gen(function* () {
      const said = (uses: string, block: string) => faults(`${head}stages:\n  a: { ${uses}, resources: ${block} }\n`)
      const together = "uses: together, with: { steps: 1 }"
      assert.strictEqual(yield* said(together, "{ ranks: 4, nodes: 2 }"), "none")
      assert.match(
        yield* said(write, "{ ranks: 2 }"),
        /resources\.ranks: is 2, but one process does the work of write/u
      )
      assert.match(yield* said(together, "{ ranks: 2, nodes: 3 }"), /nodes: is 3, more than the stage has ranks \(2\)/u)
      assert.match(yield* said(together, "{ ranks: 3, nodes: 2 }"), /by which 3 ranks cannot be divided evenly/u)
      assert.match(yield* said(together, "{ gpus: 3, ranks: 4, nodes: 2 }"), /by which 3 GPUs cannot be divided/u)
      const { stages } = yield* pipeline(`${head}stages:\n  a: { ${together}, resources: { gpus: 3 } }\n`)
      assert.strictEqual(stages[0]?.resources.ranks, 3)
    })
  )

  it.effect("elastic is a range that the ranks lie in, from its end where the file does not say", () =>
    Effect.gen(function* () {
      const said = (uses: string, block: string) => faults(`${head}stages:\n  a: { ${uses}, resources: ${block} }\n`)
      const together = "uses: together, with: { steps: 1 }"
      const { stages } = yield* pipeline(`${head}stages:\n  a: { ${together}, resources: { elastic: [2, 4] } }\n`)
      assert.deepInclude(stages[0]?.resources, { ranks: 4, elastic: { min: 2, max: 4 } })
      assert.strictEqual(yield* said(together, "{ ranks: 3, elastic: [2, 4] }"), "none")
      for (const range of ["4", "[4]", "[4, 2]", "[0, 2]", "[a, b]", "[1, 2, 3]"])
        assert.match(
          yield* said(together, `{ elastic: ${range} }`),
          /resources\.elastic: must be the fewest and the most ranks, say \[2, 4\]/u
        )
      assert.match(
        yield* said(together, "{ ranks: 5, elastic: [2, 4] }"),
        /elastic: is \[2, 4\], and the stage begins with 5 ranks, which are not among them/u
      )
      assert.match(
        yield* said(write, "{ elastic: [1, 2] }"),
        /elastic: one process does the work of write; leave it out/u
      )
    })
  )
})
