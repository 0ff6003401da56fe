/** The store: what is complete stays complete, whatever happens in between. */
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import { Effect, FileSystem, Layer } from "effect"
import type { Manifest } from "../../src/artifacts/Artifact.ts"
import { ArtifactStore, type KeyRecord } from "../../src/artifacts/ArtifactStore.ts"
import { fullDisk } from "../pipeline/fixtures/full-disk.ts"
import { workplace } from "../pipeline/fixtures/harness.ts"

const madeBy: Manifest["madeBy"] = {
  stageType: "write",
  stageVersion: 1,
  stageKey: "k",
  run: "r",
  stage: "s",
  attempt: 1
}

/** A filled output folder. */
const filled = (folder: string, name: string, files: Readonly<Record<string, string>>): string => {
  for (const [path, text] of Object.entries(files)) {
    mkdirSync(join(folder, name, path, ".."), { recursive: true })
    writeFileSync(join(folder, name, path), text)
  }
  return join(folder, name)
}

const files = { "b.txt": "bee", "sub/a.txt": "ay", "a.txt": "" }
const publication = (folder: string) => ({ type: "Documents" as const, folder, facts: { n: 2 }, madeBy })
const record = (key: string, outputs: Readonly<Record<string, string>>): KeyRecord => ({
  version: 1,
  key,
  outputs,
  run: "r",
  stage: "s",
  attempt: 1,
  seconds: 1,
  at: "2026-01-01T00:00:00.000Z"
})

/** Fails with ENOSPC in the n-th call that writes (1 for the first); counts them. */
const fullAfter = (limit: number) => {
  const seen: Array<string> = []
  return { seen, layer: fullDisk((operation) => seen.push(operation) === limit) }
}

const withStore = <A, E>(
  root: string,
  use: (store: ArtifactStore["Service"]) => Effect.Effect<A, E>,
  fileSystem: Layer.Layer<FileSystem.FileSystem, never, FileSystem.FileSystem> = Layer.effect(
    FileSystem.FileSystem,
    FileSystem.FileSystem
  )
) =>
  Effect.flatMap(ArtifactStore, use).pipe(
    Effect.provide(ArtifactStore.layer(root).pipe(Layer.provide(Layer.provideMerge(fileSystem, NodeServices.layer))))
  )

describe("ArtifactStore", () => {
  it.effect("publishes by content: same bytes and facts, same artifact", () =>
    Effect.gen(function* () {
      const { folder } = yield* workplace
      const root = join(folder, "store")
      yield* withStore(root, (store) =>
        Effect.gen(function* () {
          const first = yield* store.publish(publication(filled(folder, "one", files)))
          const again = yield* store.publish({
            ...publication(filled(folder, "two", files)),
            madeBy: { ...madeBy, run: "other" }
          })
          const other = yield* store.publish({ ...publication(filled(folder, "three", files)), facts: { n: 3 } })
          assert.strictEqual(first.reused, false)
          assert.strictEqual(again.reused, true)
          assert.strictEqual(again.manifest.digest, first.manifest.digest)
          assert.strictEqual(again.manifest.madeBy.run, "r")
          assert.notStrictEqual(other.manifest.digest, first.manifest.digest)
          assert.deepStrictEqual(
            first.manifest.files.map((file) => [file.path, file.bytes]),
            [
              ["a.txt", 0],
              ["b.txt", 3],
              ["sub/a.txt", 2]
            ]
          )
          assert.strictEqual(readFileSync(join(first.folder, "sub", "a.txt"), "utf8"), "ay")
          assert.strictEqual(existsSync(join(folder, "two")), false)
          assert.deepStrictEqual(yield* store.verify(first.manifest.digest), [])
        })
      )
    }).pipe(Effect.scoped)
  )

  it.effect("a record is complete only while its artifacts are", () =>
    Effect.gen(function* () {
      const { folder } = yield* workplace
      const root = join(folder, "store")
      yield* withStore(root, (store) =>
        Effect.gen(function* () {
          const made = yield* store.publish(publication(filled(folder, "one", files)))
          assert.strictEqual((yield* store.lookup("k"))._tag, "Absent")
          yield* store.commit(record("k", { documents: made.manifest.digest }))
          assert.strictEqual((yield* store.lookup("k"))._tag, "Complete")

          truncateSync(join(made.folder, "b.txt"), 1)
          const short = yield* store.lookup("k")
          assert.strictEqual(short._tag, "Damaged")
          if (short._tag === "Damaged") assert.match(short.detail, /b\.txt has 1 bytes, not 3/u)
          assert.isUndefined(yield* store.get(made.manifest.digest))

          // Made again: the damaged folder is replaced.
          const repaired = yield* store.publish(publication(filled(folder, "two", files)))
          assert.strictEqual(repaired.reused, false)
          assert.strictEqual((yield* store.lookup("k"))._tag, "Complete")

          writeFileSync(join(made.folder, "b.txt"), "bad")
          assert.strictEqual(
            (yield* store.lookup("k"))._tag,
            "Complete",
            "sizes are right: only verify reads every byte"
          )
          assert.deepStrictEqual(yield* store.verify(made.manifest.digest), ["b.txt does not have its sha256"])

          rmSync(join(made.folder, "sub"), { recursive: true })
          const gone = yield* store.lookup("k")
          assert.strictEqual(gone._tag === "Damaged" ? /sub\/a\.txt is missing/u.test(gone.detail) : false, true)
        })
      )
    }).pipe(Effect.scoped)
  )

  it.live("of many that publish the same at once, one publishes it, and the others take it", () =>
    Effect.gen(function* () {
      const { folder } = yield* workplace
      for (let round = 0; round < 10; round++) {
        const root = join(folder, `store-${round}`)
        const outputs = Array.from({ length: 6 }, (_, index) => filled(folder, `same-${round}-${index}`, files))
        const made = yield* withStore(root, (store) =>
          Effect.forEach(
            outputs,
            (output) =>
              Effect.tap(store.publish(publication(output)), (found) =>
                Effect.sync(() => assert.strictEqual(readFileSync(join(found.folder, "b.txt"), "utf8"), "bee"))
              ),
            { concurrency: "unbounded" }
          )
        )
        assert.strictEqual(made.filter((one) => !one.reused).length, 1)
        assert.strictEqual(new Set(made.map((one) => one.manifest.digest)).size, 1)
        assert.strictEqual(readdirSync(join(root, "artifacts")).length, 2, "one folder, one manifest")
      }
    }).pipe(Effect.scoped)
  )

  it.effect("an empty output is no artifact", () =>
    Effect.gen(function* () {
      const { folder } = yield* workplace
      mkdirSync(join(folder, "empty"))
      const error = yield* Effect.flip(
        withStore(join(folder, "store"), (store) => store.publish(publication(join(folder, "empty"))))
      )
      assert.match(error.message, /left its Documents output empty/u)
    }).pipe(Effect.scoped)
  )

  it.effect("a full disk at any write leaves the old state or the new one, and says so", () =>
    Effect.gen(function* () {
      const { folder } = yield* workplace
      // A dry run counts the writes of one publication and commit; then the disk is full at each of them in turn.
      const dry = fullAfter(Number.POSITIVE_INFINITY)
      const publishAndCommit = (root: string, name: string, layer: typeof dry.layer) =>
        withStore(
          root,
          (store) =>
            Effect.gen(function* () {
              const made = yield* store.publish(publication(filled(folder, name, files)))
              yield* store.commit(record("k", { documents: made.manifest.digest }))
            }),
          layer
        )
      const keep = (root: string, name: string) =>
        withStore(root, (store) =>
          Effect.gen(function* () {
            const kept = yield* store.publish(publication(filled(folder, name, { "kept.txt": "kept" })))
            yield* store.commit(record("kept", { documents: kept.manifest.digest }))
            return kept.manifest.digest
          })
        )
      yield* keep(join(folder, "dry"), "dry-kept")
      yield* publishAndCommit(join(folder, "dry"), "dry-output", dry.layer)
      const writes = dry.seen.length
      assert.isAbove(writes, 8)
      for (let limit = 1; limit <= writes; limit++) {
        const root = join(folder, `store-${limit}`)
        const before = yield* keep(root, `kept-${limit}`)
        const error = yield* Effect.flip(publishAndCommit(root, `output-${limit}`, fullAfter(limit).layer))
        assert.strictEqual(error.failure, "disk-full")
        assert.match(error.message, /no room left on the disk of .*ENOSPC/u)
        assert.match(error.next, /free some space/u)
        yield* withStore(root, (store) =>
          Effect.gen(function* () {
            assert.strictEqual((yield* store.lookup("kept"))._tag, "Complete")
            assert.deepStrictEqual(yield* store.verify(before), [])
            // Every artifact that can be seen is whole.
            for (const name of readdirSync(join(root, "artifacts")).filter((name) => name.endsWith(".json"))) {
              assert.deepStrictEqual(yield* store.verify(name.replace(".json", "")), [])
            }
            const found = yield* store.lookup("k")
            assert.notStrictEqual(found._tag, "Damaged")
            // With room again the same steps succeed.
            const made = yield* store.publish(publication(filled(folder, `again-${limit}`, files)))
            yield* store.commit(record("k", { documents: made.manifest.digest }))
            assert.strictEqual((yield* store.lookup("k"))._tag, "Complete")
          })
        )
      }
    }).pipe(Effect.scoped)
  )
})
