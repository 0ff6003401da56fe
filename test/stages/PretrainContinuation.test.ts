import { readFileSync, rmSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { assert, describe, it } from "@effect/vitest"
import { Effect, FileSystem, PlatformError } from "effect"
import type { ArtifactHandle } from "../../src/artifacts/Artifact.ts"
import { pretrainStage } from "../../src/stages/Pretrain.ts"
import { filesOf, type RunOptions, runStage, type StageResult, temporaryFolder } from "./stage-fixture.ts"
import { tinyDataset, tinyShape } from "./training-fixture.ts"

const stepTokens = 4 * 16
const shared = {
  model: tinyShape,
  micro_batch: 3,
  batch_tokens: stepTokens,
  validate_every: 4,
  save_every: 3,
  log_every: 1
}
const lrOf = (schedule: string) => ({ peak: 1e-2, min: 1e-3, warmup_steps: 2, schedule, decay_fraction: 0.3 })

const pretrain = (
  data: ArtifactHandle,
  params: Readonly<Record<string, unknown>>,
  options: Omit<RunOptions, "inputs" | "params"> = {}
) => runStage(pretrainStage, { ...options, inputs: { data }, params: { ...shared, ...params } })

/** Steps that a run trained, by its log. */
const stepsOf = ({ logs }: Pick<StageResult, "logs">): number =>
  logs.filter((line) => /^step \d+\/\d+: \d+ tokens/u.test(line)).length

const firstDifference = (a: ReadonlyArray<unknown>, b: ReadonlyArray<unknown>) =>
  a.find((entry, index) => JSON.stringify(entry) !== JSON.stringify(b[index]))

/** Trains `after` with and without what `before` left; both must be the same bytes. Returns the steps that were spared. */
const spared = Effect.fnUntraced(function* (
  data: ArtifactHandle,
  before: Readonly<Record<string, unknown>>,
  after: Readonly<Record<string, unknown>>,
  stopAfterPolls?: number
) {
  const work = yield* temporaryFolder
  const old = pretrain(data, before, { work, ...(stopAfterPolls === undefined ? {} : { stopAfterPolls }) })
  const outputs = stopAfterPolls === undefined ? (yield* old).outputs : undefined
  if (stopAfterPolls !== undefined) assert.strictEqual((yield* Effect.flip(old))._tag, "Preempted")
  const previous = {
    params: { ...shared, ...before },
    outputs: outputs ?? {},
    work: outputs === undefined ? work : undefined
  }
  const left = filesOf(outputs?.state.folder ?? work)
  const continued = yield* pretrain(data, after, { previous })
  const anew = yield* pretrain(data, after)
  assert.deepStrictEqual(filesOf(outputs?.state.folder ?? work), left, "the older run is as it was")
  const [own, expected] = [filesOf(continued.outputs.state.folder), filesOf(anew.outputs.state.folder)]
  assert.deepStrictEqual(own, expected, JSON.stringify(firstDifference(own, expected)))
  assert.deepStrictEqual(continued.outputs.state.facts, anew.outputs.state.facts)
  return stepsOf(anew) - stepsOf(continued)
})

describe("pretrain on top of an older run gives the bytes of one from scratch", () => {
  it.live("constant: more tokens go on from the last step, also one that no schedule named", () =>
    Effect.gen(function* () {
      const data = yield* tinyDataset({ train: 16, validation: 4 })
      const lr = lrOf("constant")
      for (const [before, after] of [
        [10, 14],
        [12, 13],
        [9, 24],
        [2, 5]
      ] as const) {
        const steps = yield* spared(
          data,
          { lr, max_tokens: before * stepTokens },
          { lr, max_tokens: after * stepTokens }
        )
        assert.strictEqual(steps, before, `${before} → ${after}`)
      }
      assert.strictEqual(
        yield* spared(data, { lr, keep: 3, max_tokens: 10 * stepTokens }, { lr, keep: 1, max_tokens: 11 * stepTokens }),
        10
      )
    }).pipe(Effect.scoped)
  )

  it.live("a validation loss that rises again asks for an older best checkpoint, which is there", () =>
    Effect.gen(function* () {
      // Another text in the held-out part: from some step on its loss rises.
      const data = yield* tinyDataset({ train: 3, validation: 6 })
      const lr = { ...lrOf("constant"), peak: 5e-2 }
      for (const before of [10, 13, 17]) {
        const params = { lr, keep: 1, save_every: 0, validate_every: 4 }
        const steps = yield* spared(
          data,
          { ...params, max_tokens: before * stepTokens },
          { ...params, max_tokens: 22 * stepTokens }
        )
        assert.strictEqual(steps, before)
      }
      const params = { lr, keep: 1, save_every: 0, validate_every: 4, max_tokens: 22 * stepTokens }
      const files = filesOf((yield* pretrain(data, params)).outputs.state.folder)
      assert.isTrue(
        files.some(({ path }) => path.startsWith("checkpoints/step-00000004/")),
        files.map(({ path }) => path).join("\n")
      )
    }).pipe(Effect.scoped)
  )

  it.live("wsd: more tokens go on from where the decay began, again and again", () =>
    Effect.gen(function* () {
      const data = yield* tinyDataset({ train: 16, validation: 4 })
      const lr = lrOf("wsd")
      for (const keep of [1, 2, 3])
        assert.strictEqual(
          yield* spared(data, { lr, keep, max_tokens: 10 * stepTokens }, { lr, keep, max_tokens: 16 * stepTokens }),
          7
        )
      // The second continuation builds on the first.
      const first = yield* pretrain(data, { lr, max_tokens: 10 * stepTokens })
      const second = yield* pretrain(
        data,
        { lr, max_tokens: 16 * stepTokens },
        { previous: { params: { ...shared, lr, max_tokens: 640 }, outputs: first.outputs, work: undefined } }
      )
      const third = yield* pretrain(
        data,
        { lr, max_tokens: 20 * stepTokens },
        { previous: { params: { ...shared, lr, max_tokens: 1024 }, outputs: second.outputs, work: undefined } }
      )
      assert.strictEqual(stepsOf(third), 20 - 11)
      assert.deepStrictEqual(
        filesOf(third.outputs.state.folder),
        filesOf((yield* pretrain(data, { lr, max_tokens: 20 * stepTokens })).outputs.state.folder)
      )
    }).pipe(Effect.scoped)
  )

  it.live("another end of a wsd run, and a decay after a constant run, train the end alone", () =>
    Effect.gen(function* () {
      const data = yield* tinyDataset({ train: 16, validation: 4 })
      const max_tokens = 10 * stepTokens
      const wsd = lrOf("wsd")
      assert.strictEqual(yield* spared(data, { lr: wsd, max_tokens }, { lr: { ...wsd, min: 0 }, max_tokens }), 7)
      assert.strictEqual(
        yield* spared(data, { lr: wsd, max_tokens }, { lr: { ...wsd, decay_fraction: 0.1 }, max_tokens }),
        7
      )
      assert.strictEqual(
        yield* spared(data, { lr: lrOf("constant"), max_tokens }, { lr: wsd, max_tokens: 15 * stepTokens }),
        10
      )
    }).pipe(Effect.scoped)
  )

  it.live("fewer checkpoints to keep: nothing is trained", () =>
    Effect.gen(function* () {
      const data = yield* tinyDataset({ train: 16, validation: 4 })
      for (const schedule of ["cosine", "wsd", "constant", "linear"]) {
        const params = { lr: lrOf(schedule), max_tokens: 10 * stepTokens }
        assert.strictEqual(yield* spared(data, { ...params, keep: 3 }, { ...params, keep: 1 }), 10)
      }
    }).pipe(Effect.scoped)
  )

  it.live("an unfinished run is continued from its newest checkpoint", () =>
    Effect.gen(function* () {
      const data = yield* tinyDataset({ train: 16, validation: 4 })
      const lr = lrOf("wsd")
      assert.strictEqual(
        yield* spared(data, { lr, max_tokens: 10 * stepTokens }, { lr, max_tokens: 16 * stepTokens }, 14),
        5
      )
    }).pipe(Effect.scoped)
  )

  it.live("what differs is made anew: other rates, a damaged checkpoint, another seed, a log without its start", () =>
    Effect.gen(function* () {
      const data = yield* tinyDataset({ train: 16, validation: 4 })
      const lr = lrOf("cosine")
      assert.strictEqual(
        yield* spared(data, { lr, max_tokens: 10 * stepTokens }, { lr, max_tokens: 12 * stepTokens }),
        0
      )
      const constant = { lr: lrOf("constant"), max_tokens: 10 * stepTokens }
      assert.strictEqual(
        yield* spared(
          data,
          { ...constant, lr: lrOf("constant"), seed: 7 },
          { ...constant, max_tokens: 12 * stepTokens }
        ),
        0
      )
      const after = { ...constant, max_tokens: 12 * stepTokens }
      const expected = filesOf((yield* pretrain(data, after)).outputs.state.folder)
      const spoil: ReadonlyArray<(folder: string) => void> = [
        (folder) => writeFileSync(join(folder, "checkpoints/step-00000010/weights.safetensors"), "damage"),
        (folder) => rmSync(join(folder, "checkpoints"), { recursive: true }),
        (folder) => writeFileSync(join(folder, "metrics.jsonl"), '{"step":2}\n'),
        (folder) => {
          const lines = readFileSync(join(folder, "metrics.jsonl"), "utf8").split("\n")
          const kept = lines.filter((line) => !/^\{"step":4,.*validation_loss/u.test(line))
          assert.strictEqual(kept.length, lines.length - 1)
          writeFileSync(join(folder, "metrics.jsonl"), kept.join("\n"))
        },
        (folder) => rmSync(folder, { recursive: true })
      ]
      for (const damage of spoil) {
        const old = yield* pretrain(data, constant)
        damage(old.outputs.state.folder)
        const previous = { params: { ...shared, ...constant }, outputs: old.outputs, work: undefined }
        const { outputs } = yield* pretrain(data, after, { previous })
        assert.deepStrictEqual(filesOf(outputs.state.folder), expected)
      }
    }).pipe(Effect.scoped)
  )

  it.live("a disk that fails anywhere while checkpoints are taken over: the next attempt gives the same bytes", () =>
    Effect.gen(function* () {
      const data = yield* tinyDataset({ train: 16, validation: 4 })
      const before = { lr: lrOf("constant"), max_tokens: 10 * stepTokens }
      const after = { ...before, max_tokens: 11 * stepTokens }
      const old = yield* pretrain(data, before)
      const previous = { params: { ...shared, ...before }, outputs: old.outputs, work: undefined }
      const expected = filesOf((yield* pretrain(data, after)).outputs.state.folder)
      const left = filesOf(old.outputs.state.folder)
      const refuse = (method: string) => Effect.fail(PlatformError.badArgument({ module: "FileSystem", method }))
      let calls = Infinity
      for (let failing = 1; failing <= calls; failing += 4) {
        calls = 0
        const faulty: typeof pretrainStage = {
          ...pretrainStage,
          run: (context) =>
            Effect.updateService(pretrainStage.run(context), FileSystem.FileSystem, (fs) => {
              const ours = (path: string) => path.includes(".continued-checkpoints") && ++calls === failing
              return {
                ...fs,
                open: (path, options) => (ours(path) ? refuse("open") : fs.open(path, options)),
                makeDirectory: (path, options) => (ours(path) ? refuse("mkdir") : fs.makeDirectory(path, options)),
                rename: (from, to) => (ours(from) ? refuse("rename") : fs.rename(from, to))
              }
            })
        }
        const work = yield* temporaryFolder
        const options = { inputs: { data }, params: { ...shared, ...after }, work, previous }
        const failed = yield* Effect.exit(runStage(faulty, options))
        assert.strictEqual(failed._tag, calls >= failing ? "Failure" : "Success", `call ${failing}`)
        const { outputs } = yield* runStage(pretrainStage, options)
        assert.deepStrictEqual(filesOf(outputs.state.folder), expected, `call ${failing}`)
      }
      assert.deepStrictEqual(filesOf(old.outputs.state.folder), left)
    }).pipe(Effect.scoped)
  )

  it.live("interrupted after it took over, it goes on in its own folder", () =>
    Effect.gen(function* () {
      const data = yield* tinyDataset({ train: 16, validation: 4 })
      const before = { lr: lrOf("constant"), max_tokens: 10 * stepTokens }
      const after = { ...before, max_tokens: 14 * stepTokens }
      const old = yield* pretrain(data, before)
      const previous = { params: { ...shared, ...before }, outputs: old.outputs, work: undefined }
      const work = yield* temporaryFolder
      yield* Effect.flip(pretrain(data, after, { work, previous, stopAfterPolls: 3 }))
      rmSync(old.outputs.state.folder, { recursive: true })
      const { logs, outputs } = yield* pretrain(data, after, { work, previous })
      assert.isTrue(logs.some((line) => /goes on from the checkpoint of step 1[01]/u.test(line)))
      assert.deepStrictEqual(
        filesOf(outputs.state.folder),
        filesOf((yield* pretrain(data, after)).outputs.state.folder)
      )
    }).pipe(Effect.scoped)
  )
})
