/** All that a runner on this machine needs, over one runs folder; the caller adds Node's platform services and a StageRegistry. */
import { Effect, Layer, Path } from "effect"
import * as DigestCache from "../../artifacts/DigestCache.ts"
import { ArtifactStore } from "../../artifacts/ArtifactStore.ts"
import { KeyLedger } from "../plan/KeyLedger.ts"
import type { Joined } from "./JoinedWorker.ts"
import * as Executors from "./Executors.ts"
import { RunEvents } from "../runs/RunEvent.ts"
import { Runs } from "../runs/Runs.ts"

export const layer = (options: {
  /** The runs folder; the first run makes it. */
  readonly runs: string
  /** Reads every byte of inputs and of stored results again instead of trusting what the file system says of them. */
  readonly paranoid?: boolean
  /** Entry of the worker processes; the program's own by default. */
  readonly worker?: string
  /** Of a run whose ranks somebody else started: this one is rank 0. */
  readonly joined?: Joined
}) =>
  Layer.unwrap(
    Effect.map(Path.Path, (path) => {
      const root = path.resolve(options.runs)
      const store = path.join(root, "store")
      const artifacts = ArtifactStore.layer(store)
      return Layer.mergeAll(
        options.paranoid === true ? Layer.empty : DigestCache.layer(store),
        Runs.layer(root),
        KeyLedger.layer.pipe(Layer.provideMerge(artifacts)),
        RunEvents.layer,
        Executors.layer(options).pipe(Layer.provide(artifacts))
      )
    })
  )
