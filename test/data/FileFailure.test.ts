import { existsSync, symlinkSync } from "node:fs"
import { join } from "node:path"
import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { fileFailure } from "../../src/data/FileFailure.ts"
import { openSplitWriter } from "../../src/data/PackedDataset.ts"
import { ShardBuilder, writeShard } from "../../src/data/TokenShards.ts"
import { StageError } from "../../src/pipeline/StageType.ts"
import { temporaryFolder } from "../stages/stage-fixture.ts"
import { policy } from "./token-fixture.ts"

const coded = (code: string) => fileFailure("a.txt")(Object.assign(new Error(code), { code }))

describe("FileFailure", () => {
  it("names the class, the place and the next step", () => {
    assert.deepStrictEqual(
      ["ENOSPC", "EDQUOT", "ENOENT", "EACCES", "EIO"].map((code) => coded(code).failure),
      ["disk-full", "disk-full", "invalid-input", "invalid-input", "internal"]
    )
    assert.strictEqual(coded("ENOENT").message, "a.txt: no such file")
    const known = new StageError({ failure: "network", message: "m", next: "n" })
    assert.strictEqual(fileFailure("a.txt")(known), known)
    assert.include(fileFailure("a.txt")("odd").message, "a.txt: odd")
  })

  // /dev/full (Linux) is a disk without room: every write fails with ENOSPC
  const full = it.live.skipIf(!existsSync("/dev/full"))
  const noFull = existsSync("/dev/full") ? "" : " (no /dev/full here)"

  full(`a full disk while writing a shard${noFull}`, () =>
    Effect.gen(function* () {
      const folder = yield* temporaryFolder
      symlinkSync("/dev/full", join(folder, "shard"))
      const builder = new ShardBuilder(policy.vocabulary_size)
      builder.add("a", [1, 2, 3], 3)
      const error = yield* Effect.flip(writeShard(builder, folder, "shard", policy))
      assert.strictEqual(error.failure, "disk-full")
      assert.match(error.message, /^shard: no room left/)
    })
  )

  full(`a full disk while packing${noFull}`, () =>
    Effect.gen(function* () {
      const folder = yield* temporaryFolder
      symlinkSync("/dev/full", join(folder, "train.arrow"))
      const counts = { seq_len: 3, train_blocks: 1, validation_blocks: 0, mixture: [], accounting: [] }
      const error = yield* openSplitWriter(folder, "train", { ...policy, ...counts }).pipe(
        Effect.flatMap((writer) =>
          Effect.tryPromise({
            try: () => {
              writer.next()
              return writer.close()
            },
            catch: fileFailure("train.arrow")
          })
        ),
        Effect.flip
      )
      assert.strictEqual(error.failure, "disk-full")
    })
  )
})
