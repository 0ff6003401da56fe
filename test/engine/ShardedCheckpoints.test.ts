/** Checkpoints of several ranks: any number restores what any other saved, and what one of them cannot read, none takes. */
import { existsSync, readFileSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import { Effect, FileSystem, type Scope } from "effect"
import { publishCheckpoint } from "../../src/engine/CheckpointGather.ts"
import { readCompletion } from "../../src/engine/CheckpointManifest.ts"
import { wholeWeights } from "../../src/engine/CheckpointShards.ts"
import { restoreNewest, verifyCheckpoint } from "../../src/engine/Checkpoints.ts"
import type { ModelOptions, NativeModel } from "../../src/engine/Native.ts"
import type { ModelShape } from "../../src/model/Architecture.ts"
import { readSafetensors } from "../../src/model/Safetensors.ts"
import { StageError } from "../../src/pipeline/StageType.ts"
import { filesOf } from "../stages/stage-fixture.ts"
import { heldBy, progressAt, type Rank, rankModels, saveTogether, together } from "./rank-models.ts"
import { tinyConfig } from "./tiny-model.ts"

const shape: ModelShape = { ...tinyConfig, max_position_embeddings: 32 }

const folder = Effect.flatMap(FileSystem.FileSystem, (fs) => fs.makeTempDirectoryScoped({ prefix: "sharded-" }))

const live = (name: string, test: () => Effect.Effect<void, unknown, NodeServices.NodeServices | Scope.Scope>) =>
  it.live(name, () => Effect.scoped(test()).pipe(Effect.provide(NodeServices.layer)))

/** What each rank restores, and says. */
const restoreTogether = (root: string, all: ReadonlyArray<Rank>) =>
  together(all, ({ model, ranks }) => {
    const warnings: Array<string> = []
    return Effect.map(
      restoreNewest(root, model, (line) => warnings.push(line), ranks),
      (restored) => ({ step: restored?.state.step, warnings })
    )
  })

const flip = (file: string, position: number) => {
  const bytes = readFileSync(file)
  bytes[position] = bytes[position]! ^ 1
  writeFileSync(file, bytes)
}

/** A model that has something else in one place. */
const withMember = <K extends keyof NativeModel>(model: NativeModel, name: K, member: NativeModel[K]): NativeModel =>
  new Proxy(model, {
    get: (target, key) => {
      const value: unknown = key === name ? member : Reflect.get(target, key, target)
      return typeof value === "function" ? value.bind(target) : value
    }
  })

const WORLDS: ReadonlyArray<readonly [number, Pick<ModelOptions, "strategy" | "shardSize">]> = [
  [1, {}],
  [2, { strategy: "none" }],
  [3, { strategy: "zero2" }],
  [4, { strategy: "hsdp", shardSize: 2 }],
  [5, { strategy: "fsdp" }],
  [6, { strategy: "hsdp", shardSize: 3 }],
  [7, { strategy: "fsdp" }]
]

describe("sharded checkpoints", () => {
  live("any number of ranks restores what any other saved, bit for bit, under every strategy", () =>
    Effect.gen(function* () {
      for (const [writers, strategy] of WORLDS) {
        const root = yield* folder
        const saving = yield* rankModels(writers, 7, strategy)
        yield* saveTogether(root, saving, progressAt(3))
        const names = filesOf(join(root, "step-00000003")).map(({ path }) => path)
        assert.lengthOf(names, 2 * writers + 2)
        if (writers === 5) assert.include(names, "weights-00002-of-00005.safetensors")
        for (const [readers, other] of WORLDS) {
          const expected = yield* rankModels(readers, 7, other)
          const reading = yield* rankModels(readers, 8, other)
          const restored = yield* restoreTogether(root, reading)
          assert.deepStrictEqual(
            restored,
            reading.map(() => ({ step: 3, warnings: [] }))
          )
          assert.deepStrictEqual(
            reading.map(({ model }) => heldBy(model)),
            expected.map(({ model }) => heldBy(model)),
            `${writers} → ${readers}`
          )
        }
      }
    }).pipe(Effect.scoped)
  )

  live("every file is safetensors, every element is in one of them once, and bf16 stays bf16", () =>
    Effect.gen(function* () {
      for (const state of ["fp32", "bf16"] as const) {
        const root = yield* folder
        const all = yield* rankModels(4, 7, { strategy: "fsdp", state })
        yield* saveTogether(root, all, progressAt(1))
        let elements = 0
        for (const { path } of filesOf(root).filter(({ path: name }) => name.endsWith(".safetensors"))) {
          const { headerBytes, metadata, tensors } = yield* readSafetensors(join(root, path))
          assert.strictEqual(headerBytes % 4096, 0)
          assert.deepStrictEqual(metadata, { format: "pt" })
          for (const tensor of tensors.values()) {
            assert.strictEqual(tensor.dtype, state === "fp32" ? "F32" : "BF16")
            elements += tensor.elements
          }
        }
        assert.strictEqual(elements, 3 * all[0]!.model.parameterCount)
      }
    })
  )

  live("published, it is what one rank would have written, byte for byte; and its weights are read whole", () =>
    Effect.gen(function* () {
      const [one, four, published] = [yield* folder, yield* folder, yield* folder]
      yield* saveTogether(one, yield* rankModels(1, 7), progressAt(3))
      const all = yield* rankModels(4, 7, { strategy: "zero2" })
      yield* saveTogether(four, all, progressAt(3))
      const from = join(four, "step-00000003")
      yield* publishCheckpoint(from, join(published, "step-00000003"), shape, "fp32")
      assert.deepStrictEqual(filesOf(published), filesOf(one))
      yield* verifyCheckpoint(join(published, "step-00000003"))

      const [whole] = yield* rankModels(1, 7)
      const { model } = whole!
      const { parameters } = model
      const tensors = yield* wholeWeights(from, yield* readCompletion(from), parameters)
      assert.strictEqual(tensors.size, parameters.length)
      for (const { name, offset } of parameters) {
        const values = yield* tensors.get(name)!.toFloat32()
        assert.deepStrictEqual(values, model.read("weights", offset, values.length))
        assert.deepStrictEqual(new Float32Array((yield* tensors.get(name)!.bytes()).buffer), values)
      }
    })
  )

  live("a byte of one rank's part: all ranks pass over the checkpoint together, aloud", () =>
    Effect.gen(function* () {
      const root = yield* folder
      const all = yield* rankModels(3, 7, { strategy: "fsdp" })
      yield* saveTogether(root, all, progressAt(1))
      yield* saveTogether(root, all, progressAt(2))
      flip(join(root, "step-00000002/optimizer-00001-of-00003.safetensors"), 6000)
      const reading = yield* rankModels(3, 8, { strategy: "fsdp" })
      const restored = yield* restoreTogether(root, reading)
      assert.deepStrictEqual(
        restored.map(({ step }) => step),
        [1, 1, 1]
      )
      // The piece holds the header, which every rank checks.
      for (const { warnings } of restored)
        assert.match(warnings[0]!, /optimizer-00001-of-00003\.safetensors: bytes 0 to \d+ have sha256 \w+, not/u)
      assert.deepStrictEqual(
        reading.map(({ model }) => heldBy(model)),
        all.map(({ model }) => heldBy(model))
      )
    })
  )

  live("what one rank alone cannot read, none takes", () =>
    Effect.gen(function* () {
      const root = yield* folder
      const all = yield* rankModels(2, 7, { strategy: "fsdp" })
      yield* saveTogether(root, all, progressAt(1))
      yield* saveTogether(root, all, progressAt(2))
      let calls = 0
      const [first, second] = yield* rankModels(2, 8, { strategy: "fsdp" })
      const failing = withMember(second!.model, "restore", (...given: Parameters<NativeModel["restore"]>) =>
        calls++ === 0 ? Promise.reject(new Error("weights: bytes 0 to 9")) : second!.model.restore(...given)
      )
      const restored = yield* restoreTogether(root, [first!, { ...second!, model: failing }])
      assert.deepStrictEqual(
        restored.map(({ step }) => step),
        [1, 1]
      )
      assert.match(restored[0]!.warnings[0]!, /step 2 .*rank 1 could not read its part/u)
      assert.match(restored[1]!.warnings[0]!, /step 2 .*weights: bytes 0 to 9/u)
    })
  )

  live(
    "a missing shard, a manifest that names too few or contradicts itself, and an unfinished one are passed over",
    () =>
      Effect.gen(function* () {
        const fs = yield* FileSystem.FileSystem
        const root = yield* folder
        const all = yield* rankModels(2, 7, { strategy: "fsdp" })
        for (const step of [1, 2, 3, 4, 5]) yield* saveTogether(root, all, progressAt(step))
        const at = (step: number, name: string) => join(root, `step-0000000${step}`, name)
        const manifest = (step: number, change: (text: string) => string) =>
          writeFileSync(at(step, "COMPLETE.json"), change(readFileSync(at(step, "COMPLETE.json"), "utf8")))
        yield* fs.remove(at(5, "weights-00001-of-00002.safetensors"))
        manifest(4, (text) => text.replace('"world_size": 2', '"world_size": 3'))
        manifest(3, (text) => text.replace(/"digest": "./u, '"digest": "'.padEnd(11, "0")))
        yield* fs.remove(at(2, "COMPLETE.json"))
        const restored = yield* restoreTogether(root, yield* rankModels(1, 8))
        assert.strictEqual(restored[0]!.step, 1)
        const [missing = "", few = "", contradiction = "", unfinished = ""] = restored[0]!.warnings
        assert.match(missing, /step 5 .*weights-00001-of-00002\.safetensors cannot be read/u)
        assert.match(few, /step 4 .*COMPLETE\.json does not name weights-00000-of-00003\.safetensors/u)
        assert.match(contradiction, /step 3 .*COMPLETE\.json (?:contradicts itself|is not valid)/u)
        assert.match(unfinished, /step 2 .*no COMPLETE\.json/u)
        assert.lengthOf(restored[0]!.warnings, 4)
      })
  )

  live("a checkpoint of another model is refused, and nothing of it is taken; a damaged one is passed over", () =>
    Effect.gen(function* () {
      const root = yield* folder
      yield* saveTogether(root, yield* rankModels(2, 7, { strategy: "fsdp" }), progressAt(1))
      const [rank] = yield* rankModels(1, 8)
      const foreign = rank!.model.parameters.map((parameter, index) =>
        index === 0 ? { ...parameter, name: "another" } : parameter
      )
      const model = withMember(rank!.model, "parameters", foreign)
      const error = yield* Effect.flip(restoreNewest(root, model, (line) => assert.fail(line)))
      assert.strictEqual(error.failure, "invalid-input")
      assert.match(error.message, /of another model: .*model\.embed_tokens\.weight\S* is none of the model's$/u)
      const file = join(root, "step-00000001", "weights-00000-of-00002.safetensors")
      const bytes = yield* (yield* FileSystem.FileSystem).readFile(file)
      bytes[bytes.length - 1]! ^= 1
      yield* (yield* FileSystem.FileSystem).writeFile(file, bytes)
      const warnings: Array<string> = []
      assert.isUndefined(yield* restoreNewest(root, model, (line) => warnings.push(line)))
      assert.match(warnings[0]!, /is damaged and is passed over/u)
      assert.isTrue(model.read("firstMoment", 0, 100).every((value) => value === 0))
    })
  )

  live("ranks that see different folders are told so", () =>
    Effect.gen(function* () {
      const [here, there] = [yield* folder, yield* folder]
      const all = yield* rankModels(2, 7, { strategy: "fsdp" })
      yield* saveTogether(here, all, progressAt(1))
      const errors = yield* together(all, ({ model, ranks }) =>
        Effect.flip(restoreNewest(ranks.rank === 0 ? here : there, model, (line) => assert.fail(line), ranks))
      )
      for (const error of errors) {
        assert.instanceOf(error, StageError)
        assert.match(error.message, /rank 1 sees other checkpoints/u)
      }
    })
  )

  const noFull = existsSync("/dev/full") ? "" : " (no /dev/full here)"
  it.live.skipIf(!existsSync("/dev/full"))(
    `a rank whose disk is full: all fail, the former checkpoint is intact${noFull}`,
    () =>
      Effect.gen(function* () {
        const fs = yield* FileSystem.FileSystem
        const root = yield* folder
        const all = yield* rankModels(3, 7, { strategy: "fsdp" })
        yield* saveTogether(root, all, progressAt(1))
        const draft = join(root, ".draft-step-00000002")
        yield* fs.makeDirectory(draft)
        yield* fs.symlink("/dev/full", join(draft, "optimizer-00002-of-00003.safetensors"))
        const errors = yield* together(all, (rank) => Effect.flip(saveTogether(root, [rank], progressAt(2))))
        for (const rank of [0, 2]) assert.strictEqual(errors[rank]!.failure, "disk-full")
        assert.match(errors[0]!.message, /checkpoint of step 2 .*step 1 is intact/u)
        assert.match(errors[1]!.message, /rank 0 did not publish it/u)
        assert.deepStrictEqual(
          (yield* fs.readDirectory(root)).filter((name) => !name.startsWith(".draft-")),
          ["step-00000001"]
        )
        assert.deepStrictEqual(
          (yield* restoreTogether(root, all)).map(({ step }) => step),
          [1, 1, 1]
        )
        assert.deepStrictEqual(yield* fs.readDirectory(root), ["step-00000001"])
      }).pipe(Effect.scoped, Effect.provide(NodeServices.layer))
  )
})
