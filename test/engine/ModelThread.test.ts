/** The model's native thread: what waits, what is dropped, and how the process, a worker thread or the model itself ends meanwhile. */
import { execFile } from "node:child_process"
import { fileURLToPath } from "node:url"
import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { batchOf, tinyModel } from "./tiny-model.ts"

const program = fileURLToPath(new URL("model-life.ts", import.meta.url))

const live = (way: string, ...options: ReadonlyArray<string>) =>
  Effect.callback<{ readonly code: number | string; readonly output: string; readonly errors: string }>((resume) => {
    execFile(process.execPath, [...options, program, way], { timeout: 50_000 }, (error, output, errors) =>
      resume(Effect.succeed({ code: error === null ? 0 : (error.code ?? error.signal ?? "?"), output, errors }))
    )
  })

/** Handlers are there before the first call can fail. */
const failures = (calls: ReadonlyArray<Promise<unknown>>) =>
  Effect.promise(async () =>
    (await Promise.allSettled(calls)).flatMap((call) => (call.status === "rejected" ? [String(call.reason)] : []))
  )

/** Keeps the thread for some time, so that the calls behind it wait. */
const long = batchOf(Array.from({ length: 2000 }, (_, index) => index))

const repeated = (count: number) => Array.from({ length: count }, () => batchOf([1, 2]))

describe("calls that wait", () => {
  it.live("are dropped when their step is discarded, and leave no gradient", () =>
    Effect.gen(function* () {
      const model = yield* tinyModel(1)
      const calls = [long, ...repeated(200)].map((batch) => model.accumulate(batch, 1))
      const dropped = yield* failures([...calls, model.discard()])
      assert.isAtLeast(dropped.length, 1)
      assert.deepStrictEqual(new Set(dropped), new Set(["Error: the step was discarded"]))
      const gradients = model.read("gradients", 0, model.parameterCount)
      assert.isTrue(gradients.every((value) => value === 0))
    })
  )

  it.live("of a step before are not dropped", () =>
    Effect.gen(function* () {
      const model = yield* tinyModel(1)
      const calls = [model.accumulate(batchOf([1, 2]), 1), model.score(batchOf([1, 2])), model.discard()]
      assert.deepStrictEqual(yield* failures(calls), [])
    })
  )

  it.live("are bounded: the call after them is refused, and the model goes on", () =>
    Effect.gen(function* () {
      const model = yield* tinyModel(1)
      const calls = [long, ...repeated(4000)].map((batch) => model.accumulate(batch, 1))
      const refused = yield* failures(calls)
      assert.isAbove(refused.length, 0)
      assert.deepStrictEqual(new Set(refused), new Set(["Error: 1024 calls wait already: await some of them first"]))
      assert.strictEqual((yield* Effect.promise(() => model.accumulate(batchOf([1]), 1))).scored, 16)
    })
  )

  it.live("are rejected when the model is disposed of, after the one that runs", () =>
    Effect.gen(function* () {
      const model = yield* tinyModel(1)
      const order: Array<number> = []
      const calls = [long, ...repeated(200)].map(async (batch, index) => {
        await model.accumulate(batch, 1).finally(() => order.push(index))
      })
      model.dispose()
      assert.deepStrictEqual(new Set(yield* failures(calls)), new Set(["Error: the model was disposed of"]))
      assert.deepStrictEqual(
        order,
        Array.from({ length: 201 }, (_, index) => index)
      )
    })
  )
})

describe("the end", () => {
  it.live("a process with idle models ends by itself, and not before its calls", () =>
    Effect.gen(function* () {
      assert.deepStrictEqual(yield* live("idle"), {
        code: 0,
        output: "16 scored, gradient norm above 0: true\n",
        errors: ""
      })
    })
  )

  for (const [way, code] of [
    ["exit", 3],
    ["throw", 1]
  ] as const)
    it.live(`a process that ends by ${way} while calls run and wait keeps its exit code`, () =>
      Effect.gen(function* () {
        const ended = yield* live(way)
        assert.strictEqual(ended.code, code, ended.errors)
      })
    )

  it.live("worker threads end by themselves, by force and by exit, each with models of its own", () =>
    Effect.gen(function* () {
      const { code, errors, output } = yield* live("workers")
      assert.strictEqual(code, 0, errors)
      const lines = output.split("\n")
      assert.strictEqual(lines.filter((line) => line === "idle 0, exit 3").length, 5, output)
      assert.strictEqual(lines.filter((line) => line.startsWith("16 scored")).length, 5, output)
    })
  )

  it.live("10,000 calls and 200 models leave no memory behind", () =>
    Effect.gen(function* () {
      const { code, errors, output } = yield* live("many", "--expose-gc")
      assert.strictEqual(code, 0, errors)
      const growth = JSON.parse(output) as { readonly calls: number; readonly models: number }
      assert.isBelow(growth.calls, 8192, output)
      assert.isBelow(growth.models, 8192, output)
    })
  )
})
