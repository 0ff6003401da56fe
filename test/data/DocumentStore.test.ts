import { join } from "node:path"
import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { FilePool, rowsInFile } from "../../src/data/DocumentStore.ts"
import { factsOf, readShard } from "../../src/data/TokenShards.ts"
import { policy, tokenShards } from "./token-fixture.ts"

describe("documents in files", () => {
  it.live("are the same with all offsets in memory, some of them, and none", () =>
    Effect.gen(function* () {
      const documents = Array.from({ length: 50 }, (_, i) =>
        Array.from({ length: (i * 7) % 23 }, (_, j) => i * 100 + j)
      )
      const handle = yield* tokenShards(documents, { perShard: 9 })
      const { shards } = yield* factsOf(handle)
      for (const offsetBytes of [undefined, 100, 0]) {
        const pool = new FilePool(offsetBytes)
        const read: Array<ReadonlyArray<number>> = []
        for (const shard of shards)
          for (const part of yield* readShard(handle, shard, policy)) {
            const rows = rowsInFile(pool, join(handle.folder, shard.path), part)
            for (let row = 0; row < rows.documents; row++) {
              assert.strictEqual(rows.length(row), part.offsets[row + 1]! - part.offsets[row]!)
              read.push([...rows.read(row)])
            }
          }
        pool.close()
        assert.deepStrictEqual(read, documents)
      }
    })
  )
})
