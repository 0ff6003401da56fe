/** Errors of the disk in words: whoever meets them, however they were wrapped. */
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { createFileAtomic, diskFailure, temporaryName, writeFileAtomic } from "../../src/artifacts/DurableFile.ts"
import { workplace } from "../pipeline/fixtures/harness.ts"

const errno = (code: string) => Object.assign(new Error(`${code}: told to fail`), { code, path: "/disk/file" })

describe("DurableFile", () => {
  it("tells a disk's failure, also one that was caught and wrapped", () => {
    for (const error of [errno("EIO"), new Error("an error in Effect.try", { cause: errno("EIO") })]) {
      assert.match(
        diskFailure(error)?.message ?? "",
        /the disk of \/disk\/file reports an input\/output error \(EIO\)/u
      )
    }
    assert.strictEqual(diskFailure(errno("ENOSPC"))?.failure, "disk-full")
    assert.match(diskFailure(errno("EROFS"))?.message ?? "", /cannot be written \(EROFS: it is read-only\)/u)
    assert.isUndefined(diskFailure(errno("ENOENT")))
    assert.isUndefined(diskFailure(new Error("a bug")))
    assert.isUndefined(diskFailure("a string"))
  })

  it.live("makes a file once, and replaces one as a whole", () =>
    Effect.gen(function* () {
      const { folder } = yield* workplace
      const file = join(folder, "new", "file.json")
      const made = yield* Effect.forEach(["a", "b", "c"], (text) => createFileAtomic(file, text), { concurrency: 3 })
      assert.strictEqual(made.filter(Boolean).length, 1)
      yield* writeFileAtomic(file, "replaced")
      assert.strictEqual(readFileSync(file, "utf8"), "replaced")
      assert.deepStrictEqual(readdirSync(join(folder, "new")), ["file.json"])
    }).pipe(Effect.scoped, Effect.provide(NodeServices.layer))
  )

  it.live("a write that fails leaves the old file and nothing else", () =>
    Effect.gen(function* () {
      const { folder } = yield* workplace
      const target = join(folder, "target")
      mkdirSync(target)
      writeFileSync(join(target, "kept"), "")
      yield* Effect.flip(writeFileAtomic(target, "a file cannot replace a folder"))
      assert.deepStrictEqual(readdirSync(folder), ["target"])
      assert.match(temporaryName(target), new RegExp(`target\\.${process.pid}-.*\\.tmp$`, "u"))
    }).pipe(Effect.scoped, Effect.provide(NodeServices.layer))
  )
})
