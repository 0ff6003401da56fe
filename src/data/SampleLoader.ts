/**
 * A split of a packed dataset as batches, by the native loader: the file is mapped, never read whole, so that training starts at any sample at once,
 * whatever the file's size. A native thread reads: a slow disk stalls no other work.
 */
import { stat } from "node:fs/promises"
import { join } from "node:path"
import { Effect } from "effect"
import type { ArtifactHandle } from "../artifacts/Artifact.ts"
import { load } from "../engine/Native.ts"
import { StageError } from "../pipeline/StageType.ts"
import { sha256OfFile } from "./FileDigest.ts"
import { fileFailure } from "./FileFailure.ts"
import { factsOf, type PackedDatasetFacts, type Split } from "./PackedDataset.ts"
import { isWide } from "./TokenShards.ts"

/** Files up to here are read once, to check their digest; of larger ones each block is checked when it is used. */
const digestedBytes = 2 ** 32

/**
 * Rows of inputs and of targets, (rows, seq_len); a target of -1 is not scored. `firstKeys`, where they were asked for: the position in the row at which
 * the input's document begins.
 */
export interface Rows {
  readonly tokens: Int32Array
  readonly targets: Int32Array
  readonly firstKeys?: Int32Array
}

export interface SampleLoader {
  readonly seqLen: number
  readonly blocks: number
  readonly facts: PackedDatasetFacts
  /** The samples first, first + stride, … of the global order under the seed; the next `count` are then on their way from the disk. */
  readonly samples: (first: number, count: number, stride?: number) => Effect.Effect<Rows, StageError>
  /** Blocks from `first` on, as they lie in the file. */
  readonly inOrder: (first: number, count: number) => Effect.Effect<Rows, StageError>
}

/**
 * Opens a split for as long as the scope lasts; `documents` asks for where documents begin. Fails as corrupt when the file is not what the facts say,
 * as invalid input when the blocks do not tell where documents begin.
 */
export const openLoader = Effect.fn("SampleLoader.open")(function* (
  handle: ArtifactHandle,
  split: Split,
  seed: number,
  { documents = false }: { readonly documents?: boolean } = {}
) {
  const facts = yield* factsOf(handle)
  if (documents && facts.attention_reset !== true)
    return yield* new StageError({
      failure: "invalid-input",
      message: `${handle.origin}: its blocks do not tell where documents begin, which document_mask: true needs`,
      next: `set attention_reset: true on ${handle.origin.split(".")[0]}, or document_mask: false`
    })
  const file = join(handle.folder, `${split}.arrow`)
  const place = `${handle.origin}: ${split}.arrow`
  const corrupt = (reason: string): StageError =>
    new StageError({
      failure: "corrupt",
      message: `${place}: ${reason}`,
      next: `pack the data anew: tinyllama run --force ${handle.origin.split(".")[0]}`
    })
  /** The native messages begin with the file's path. */
  const damaged = (cause: unknown): StageError => corrupt(String(cause).replace(`Error: ${file}: `, ""))
  const { size } = yield* Effect.tryPromise({ try: () => stat(file), catch: fileFailure(place) })
  if (size <= digestedBytes) {
    const sha256 = yield* sha256OfFile(file, place)
    if (sha256 !== facts.files[split])
      return yield* corrupt(`wrong sha256\n  expected ${facts.files[split]}\n  actual   ${sha256}`)
  }
  const { Loader } = yield* load.pipe(
    Effect.mapError(
      (error) => new StageError({ failure: "internal", message: error.message, next: "npm run build:native" })
    )
  )
  const native = yield* Effect.acquireRelease(
    Effect.try({
      try: () =>
        new Loader(file, {
          blockLength: facts.seq_len + 1,
          wide: isWide(facts.vocabulary_size),
          boundaries: facts.attention_reset === true,
          lengths: facts.packing === "best-fit",
          vocabularySize: facts.vocabulary_size,
          seed
        }),
      catch: damaged
    }),
    (opened) => Effect.sync(() => opened.dispose())
  )
  const blocks = native.blocks
  const stated = split === "train" ? facts.train_blocks : facts.validation_blocks
  if (blocks !== stated) return yield* corrupt(`it holds ${blocks} blocks where the facts state ${stated}`)
  const filled = (count: number, fill: (rows: Rows) => Promise<void>): Effect.Effect<Rows, StageError> =>
    Effect.tryPromise({
      try: async () => {
        const column = () => new Int32Array(count * facts.seq_len)
        const rows = { tokens: column(), targets: column(), ...(documents ? { firstKeys: column() } : {}) }
        await fill(rows)
        return rows
      },
      catch: damaged
    })
  const loader: SampleLoader = {
    seqLen: facts.seq_len,
    blocks,
    facts,
    samples: (first, count, stride = 1) =>
      filled(count, ({ firstKeys, targets, tokens }) =>
        native.samples(first, stride, tokens, targets, count, firstKeys)
      ),
    inOrder: (first, count) =>
      filled(count, ({ firstKeys, targets, tokens }) => native.inOrder(first, tokens, targets, firstKeys))
  }
  return loader
})
