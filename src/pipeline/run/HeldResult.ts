/**
 * A finished result that a check refused, kept in the stage's work folder: once the check is met, it is published without the work.
 *
 *   <work>/.held/output/<port>/…   as the attempt left it
 *   <work>/.held/result.json       facts and effort; written last: without it there is no held result
 */
import { Effect, FileSystem, Path, Schema } from "effect"
import { Facts } from "../../artifacts/Artifact.ts"
import { storageFailure, sync, writeJsonAtomic } from "../../artifacts/DurableFile.ts"

/** What making it took. */
const Effort = Schema.Struct({
  seconds: Schema.Finite,
  cpus: Schema.Int,
  amount: Schema.optionalKey(Schema.Finite),
  unit: Schema.optionalKey(Schema.String)
})
const Held = Schema.Struct({ facts: Schema.Record(Schema.String, Facts), effort: Effort })
const decodeHeld = Schema.decodeEffect(Schema.fromJsonString(Held))

export interface HeldResult {
  /** Output port → folder. */
  readonly folders: Readonly<Record<string, string>>
  readonly facts: typeof Held.Type.facts
  readonly effort: typeof Effort.Type
}

const placesIn = (path: Path.Path, work: string) => {
  const root = path.join(work, ".held")
  return { root, output: path.join(root, "output"), result: path.join(root, "result.json") }
}

/** Moves an attempt's outputs (port → folder) into the work folder, durably. */
export const holdResult = Effect.fnUntraced(function* (
  work: string,
  outputs: Readonly<Record<string, string>>,
  result: Pick<HeldResult, "facts" | "effort">
) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const held = placesIn(path, work)
  yield* Effect.gen(function* () {
    yield* fs.remove(held.root, { recursive: true, force: true })
    yield* fs.makeDirectory(held.output, { recursive: true })
    for (const [port, folder] of Object.entries(outputs)) {
      // Folders too: a file whose name is lost is lost.
      for (const name of [...(yield* fs.readDirectory(folder, { recursive: true })), "."])
        yield* sync(path.join(folder, name))
      yield* fs.rename(folder, path.join(held.output, port))
    }
    yield* sync(held.output)
    yield* writeJsonAtomic(held.result, result)
    yield* sync(work)
  }).pipe(Effect.mapError(storageFailure(held.root)))
})

/** The held result, if it is whole; a part of one (a crash in holding or in publishing it) is of no use, and the work is done again. */
export const heldResult = Effect.fnUntraced(function* (work: string, ports: ReadonlyArray<string>) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const held = placesIn(path, work)
  const found = yield* fs.readFileString(held.result).pipe(
    Effect.flatMap(decodeHeld),
    Effect.orElseSucceed(() => undefined)
  )
  if (found === undefined) return undefined
  const folders = Object.fromEntries(ports.map((port) => [port, path.join(held.output, port)]))
  const present = yield* Effect.forEach(Object.values(folders), (folder) =>
    Effect.orElseSucceed(fs.exists(folder), () => false)
  )
  const result: HeldResult = { folders, ...found }
  return present.every(Boolean) ? result : undefined
})
