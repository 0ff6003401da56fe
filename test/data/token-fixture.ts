/** Token shards from lists of tokens, for tests of what reads them. */
import { Effect } from "effect"
import {
  ShardBuilder,
  shardName,
  type TokenPolicy,
  type TokenShardsFacts,
  writeShard
} from "../../src/data/TokenShards.ts"
import { artifactOf, temporaryFolder } from "../stages/stage-fixture.ts"

export const policy: TokenPolicy = {
  tokenizer: "llama-2",
  tokenizer_digest: "d".repeat(64),
  vocabulary_size: 32000,
  bos: "document",
  eos: "none"
}

/** An artifact with these documents, `perShard` in each shard. */
export const tokenShards = Effect.fnUntraced(function* (
  documents: ReadonlyArray<ReadonlyArray<number>>,
  options: { readonly origin?: string; readonly perShard?: number; readonly policy?: Partial<TokenPolicy> } = {}
) {
  const folder = yield* temporaryFolder
  const origin = options.origin ?? "tokens.tokens"
  const perShard = options.perShard ?? 3
  const used: TokenPolicy = { ...policy, ...options.policy }
  const shards: Array<TokenShardsFacts["shards"][number]> = []
  for (let first = 0; first < documents.length; first += perShard) {
    const builder = new ShardBuilder(used.vocabulary_size)
    for (const [row, tokens] of documents.slice(first, first + perShard).entries())
      builder.add(`document ${first + row} ü`, tokens, tokens.length * 3)
    shards.push(yield* writeShard(builder, folder, shardName(shards.length), used))
  }
  const tokens = documents.reduce((sum, document) => sum + document.length, 0)
  const facts: TokenShardsFacts = {
    ...used,
    documents: documents.length,
    tokens,
    bytes: tokens * 3,
    skipped: {},
    replaced: 0,
    shards
  }
  return artifactOf("TokenShards", folder, { ...facts }, origin)
})
