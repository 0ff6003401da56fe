/** Unchanged files are not read again; every change that the file system tells of is noticed, also one that keeps size and mtime. */
import { mkdtempSync, readFileSync, renameSync, rmSync, statSync, utimesSync, writeFileSync } from "node:fs"
import { createHash } from "node:crypto"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { setTimeout as delay } from "node:timers/promises"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Layer } from "effect"
import * as DigestCache from "../../src/artifacts/DigestCache.ts"

const sha256 = (text: string) => createHash("sha256").update(text).digest("hex")
const folder = Effect.acquireRelease(
  Effect.sync(() => mkdtempSync(join(tmpdir(), "tinyllama-digests-"))),
  (path) => Effect.sync(() => rmSync(path, { recursive: true }))
)

/** A process of its own over the same cache file: digests what it is given and saves. */
const digest = (root: string, file: string) =>
  Effect.gen(function* () {
    const digests = yield* DigestCache.FileDigests
    const result = yield* Effect.promise(() => digests.sha256(file))
    yield* digests.save
    return result
  }).pipe(Effect.provide(DigestCache.layer(root).pipe(Layer.provideMerge(NodeServices.layer))))

describe("digests of files outside the store", () => {
  it.live("come from the cache while nothing changed, and only then", () =>
    Effect.gen(function* () {
      const root = yield* folder
      const [file, cache] = [join(root, "a.txt"), join(root, "digests.json")]
      writeFileSync(file, "one")
      assert.strictEqual(yield* digest(root, file), sha256("one"))
      assert.throws(() => readFileSync(cache), undefined, undefined, "a file that just changed is not remembered")

      yield* Effect.promise(() => delay(2100))
      assert.strictEqual(yield* digest(root, file), sha256("one"))
      const kept = JSON.parse(readFileSync(cache, "utf8")) as { readonly entries: Array<{ sha256: string }> }
      assert.lengthOf(kept.entries, 1)
      // What the cache says is believed: that is how we see that the file is not read.
      kept.entries[0]!.sha256 = "believed"
      writeFileSync(cache, JSON.stringify(kept))
      assert.strictEqual(yield* digest(root, file), "believed")

      const { atime, mtime } = statSync(file)
      writeFileSync(file, "two")
      utimesSync(file, atime, mtime)
      assert.strictEqual(yield* digest(root, file), sha256("two"), "same size and mtime, another ctime")
      writeFileSync(join(root, "b.txt"), "six")
      renameSync(join(root, "b.txt"), file)
      assert.strictEqual(yield* digest(root, file), sha256("six"))

      writeFileSync(cache, "{ damaged")
      assert.strictEqual(yield* digest(root, file), sha256("six"))
      rmSync(file)
      assert.match(String(yield* Effect.flip(Effect.sandbox(digest(root, file)))), /ENOENT/u)
    }).pipe(Effect.scoped)
  )
})
