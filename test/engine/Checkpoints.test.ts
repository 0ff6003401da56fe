import { createHash } from "node:crypto"
import { existsSync, statSync, writeFileSync } from "node:fs"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import { Effect, FileSystem, type Scope } from "effect"
import { saveCheckpoint } from "../../src/engine/CheckpointSave.ts"
import * as Checkpoints from "../../src/engine/Checkpoints.ts"
import { load, type NativeModel } from "../../src/engine/Native.ts"
import { filesOf } from "../stages/stage-fixture.ts"
import { progressAt } from "./rank-models.ts"
import { batchOf, tinyModel } from "./tiny-model.ts"

const folder = Effect.flatMap(FileSystem.FileSystem, (fs) => fs.makeTempDirectoryScoped({ prefix: "checkpoints-" }))

const trainedModel = Effect.gen(function* () {
  const model = yield* tinyModel(7)
  yield* Effect.promise(() => model.accumulate(batchOf([0, 1]), 1 / 32))
  yield* Effect.promise(() =>
    model.step({
      step: 1,
      learningRate: 1e-3,
      beta1: 0.9,
      beta2: 0.95,
      epsilon: 1e-8,
      weightDecay: 0.1,
      decay: "all",
      clip: 1
    })
  )
  return model
})

const contents = (model: NativeModel) =>
  (["weights", "firstMoment", "secondMoment"] as const).map((kind) => model.read(kind, 0, model.parameterCount))

const flipByte = Effect.fnUntraced(function* (file: string, position: number) {
  const fs = yield* FileSystem.FileSystem
  const bytes = yield* fs.readFile(file)
  bytes[position] = bytes[position]! ^ 1
  yield* fs.writeFile(file, bytes)
})

const live = (name: string, test: () => Effect.Effect<void, unknown, NodeServices.NodeServices | Scope.Scope>) =>
  it.live(name, () => Effect.scoped(test()).pipe(Effect.provide(NodeServices.layer)))

describe("Checkpoints", () => {
  live("restores weights, moments and state bit for bit", () =>
    Effect.gen(function* () {
      const root = yield* folder
      const model = yield* trainedModel
      yield* saveCheckpoint(root, model, progressAt(1))
      const other = yield* tinyModel(8)
      const warnings: Array<string> = []
      const restored = yield* Checkpoints.restoreNewest(root, other, (line) => warnings.push(line))
      assert.deepStrictEqual(restored?.state, progressAt(1))
      assert.deepStrictEqual(contents(other), contents(model))
      assert.deepStrictEqual(warnings, [])
      assert.deepStrictEqual(
        filesOf(root).map(({ path }) => path),
        ["COMPLETE.json", "optimizer.safetensors", "state.json", "weights.safetensors"].map(
          (name) => `step-00000001/${name}`
        )
      )
    })
  )

  live("digests of pieces are node:crypto's", () =>
    Effect.gen(function* () {
      const fs = yield* FileSystem.FileSystem
      const native = yield* load
      const file = `${yield* folder}/bytes`
      const bytes = Uint8Array.from({ length: native.pieceBytes + 1000 }, (_, index) => (index * 2_654_435_761) >>> 13)
      for (const length of [0, 1, 55, 56, 63, 64, 65, 1000, native.pieceBytes, bytes.length]) {
        yield* fs.writeFile(file, bytes.subarray(0, length))
        const expected = Array.from({ length: Math.ceil(length / native.pieceBytes) }, (_, piece) =>
          createHash("sha256")
            .update(bytes.subarray(piece * native.pieceBytes, Math.min(length, (piece + 1) * native.pieceBytes)))
            .digest("hex")
        )
        assert.deepStrictEqual(yield* Effect.promise(() => native.hashPieces(file, 2)), {
          bytes: length,
          pieces: expected
        })
      }
    })
  )

  live("checkpoints of before, with one digest a file, are read, and their damage is seen", () =>
    Effect.gen(function* () {
      const root = yield* folder
      const model = yield* trainedModel
      for (const step of [1, 2]) {
        const path = yield* saveCheckpoint(root, model, progressAt(step))
        const files = filesOf(path).filter((file) => file.path !== "COMPLETE.json")
        const old = files.map(({ path: name, sha256 }) => ({
          path: name,
          bytes: statSync(`${path}/${name}`).size,
          sha256
        }))
        writeFileSync(`${path}/COMPLETE.json`, JSON.stringify({ step, files: old }))
      }
      const other = yield* tinyModel(8)
      const restored = yield* Checkpoints.restoreNewest(root, other, (line) => assert.fail(line))
      assert.strictEqual(restored?.state.step, 2)
      assert.deepStrictEqual(contents(other), contents(model))
      yield* flipByte(`${root}/step-00000002/optimizer.safetensors`, 5000)
      const warnings: Array<string> = []
      yield* Checkpoints.restoreNewest(root, other, (line) => warnings.push(line))
      assert.match(warnings[0]!, /optimizer\.safetensors has sha256 \w+, COMPLETE\.json says/u)
    })
  )

  live("a folder without checkpoints restores nothing, silently", () =>
    Effect.gen(function* () {
      const warnings: Array<string> = []
      const restored = yield* Checkpoints.restoreNewest(`${yield* folder}/absent`, yield* tinyModel(7), (line) =>
        warnings.push(line)
      )
      assert.isUndefined(restored)
      assert.deepStrictEqual(warnings, [])
    })
  )

  for (const name of ["weights.safetensors", "optimizer.safetensors", "state.json", "COMPLETE.json"]) {
    live(`a newest checkpoint with one flipped bit in ${name} falls back to the one before, aloud`, () =>
      Effect.gen(function* () {
        const root = yield* folder
        const model = yield* trainedModel
        yield* saveCheckpoint(root, model, progressAt(1))
        yield* saveCheckpoint(root, model, progressAt(2))
        yield* flipByte(`${root}/step-00000002/${name}`, name === "COMPLETE.json" ? 0 : 40)
        const warnings: Array<string> = []
        const restored = yield* Checkpoints.restoreNewest(root, model, (line) => warnings.push(line))
        assert.strictEqual(restored?.state.step, 1)
        assert.lengthOf(warnings, 1)
        assert.include(warnings[0], "step 2 is damaged")
        assert.include(warnings[0], name)
      })
    )
  }

  live("a truncated file, a missing file and a missing COMPLETE.json are damage; with nothing left it says so", () =>
    Effect.gen(function* () {
      const fs = yield* FileSystem.FileSystem
      const root = yield* folder
      const model = yield* trainedModel
      for (const step of [1, 2, 3]) yield* saveCheckpoint(root, model, progressAt(step))
      yield* fs.truncate(`${root}/step-00000001/weights.safetensors`, 1000)
      yield* fs.remove(`${root}/step-00000002/optimizer.safetensors`)
      yield* fs.remove(`${root}/step-00000003/COMPLETE.json`)
      const warnings: Array<string> = []
      assert.isUndefined(yield* Checkpoints.restoreNewest(root, model, (line) => warnings.push(line)))
      assert.lengthOf(warnings, 4)
      assert.include(warnings[0], "step 3")
      assert.include(warnings[2], "1000 bytes")
      assert.include(warnings[3], "starts again at step 1")
    })
  )

  live("what interrupted saves leave behind is settled: drafts go, a folder moved aside comes back", () =>
    Effect.gen(function* () {
      const fs = yield* FileSystem.FileSystem
      const root = yield* folder
      const model = yield* trainedModel
      yield* saveCheckpoint(root, model, progressAt(4))
      yield* fs.rename(`${root}/step-00000004`, `${root}/.replaced-step-00000004`)
      yield* fs.makeDirectory(`${root}/.draft-step-00000004`)
      yield* fs.writeFileString(`${root}/.draft-step-00000004/weights.safetensors`, "half")
      const restored = yield* Checkpoints.restoreNewest(root, model, (line) => assert.fail(line))
      assert.strictEqual(restored?.state.step, 4)
      assert.deepStrictEqual(yield* fs.readDirectory(root), ["step-00000004"])
    })
  )

  live("saving a step again replaces its folder", () =>
    Effect.gen(function* () {
      const fs = yield* FileSystem.FileSystem
      const root = yield* folder
      const model = yield* trainedModel
      yield* saveCheckpoint(root, model, { ...progressAt(4), validation: null })
      yield* saveCheckpoint(root, model, progressAt(4))
      assert.deepStrictEqual(yield* Checkpoints.verifyCheckpoint(`${root}/step-00000004`), progressAt(4))
      assert.deepStrictEqual(yield* fs.readDirectory(root), ["step-00000004"])
    })
  )

  live("pruning keeps what is named and what is newer", () =>
    Effect.gen(function* () {
      const root = yield* folder
      const model = yield* trainedModel
      for (const step of [1, 2, 3, 4, 5]) yield* saveCheckpoint(root, model, progressAt(step))
      yield* Checkpoints.pruneCheckpoints(root, 4, new Set([2]))
      assert.deepStrictEqual(yield* Checkpoints.stepsBelow(root), [2, 4, 5])
    })
  )

  // Linux's /dev/full refuses every write as a full disk does.
  const noFull = existsSync("/dev/full") ? "" : " (no /dev/full here)"
  it.live.skipIf(!existsSync("/dev/full"))(
    `a full disk names the place and the way on, and leaves the former intact${noFull}`,
    () =>
      Effect.gen(function* () {
        const fs = yield* FileSystem.FileSystem
        const root = yield* folder
        const model = yield* trainedModel
        yield* saveCheckpoint(root, model, progressAt(1))
        const full: FileSystem.FileSystem = {
          ...fs,
          makeDirectory: (path, options) =>
            Effect.andThen(
              fs.makeDirectory(path, options),
              path.endsWith(".draft-step-00000002")
                ? fs.symlink("/dev/full", `${path}/optimizer.safetensors`)
                : Effect.void
            )
        }
        const error = yield* Effect.flip(saveCheckpoint(root, model, progressAt(2))).pipe(
          Effect.provideService(FileSystem.FileSystem, full)
        )
        assert.strictEqual(error.failure, "disk-full")
        assert.include(error.message, root)
        assert.include(error.message, "step 1 is intact")
        assert.include(error.next, "free space")
        assert.deepStrictEqual(yield* fs.readDirectory(root), ["step-00000001"])
        assert.strictEqual((yield* Checkpoints.verifyCheckpoint(`${root}/step-00000001`)).step, 1)
      }).pipe(Effect.scoped, Effect.provide(NodeServices.layer))
  )
})
