/**
 * A finished result that a check refused, kept in the stage's work folder: once the check is met, it is published without the work.
 *
 *   <work>/.held/output/<port>/…   as the attempt left it
 *   <work>/.held/facts.json        written last: without it there is no held result
 */
import { Effect, FileSystem, Path, Schema } from "effect"
import { Facts } from "../artifacts/Artifact.ts"
import { storageFailure, writeJsonAtomic } from "../artifacts/DurableFile.ts"

const HeldFacts = Schema.fromJsonString(Schema.Record(Schema.String, Facts))

export interface HeldResult {
  /** Output port → folder. */
  readonly folders: Readonly<Record<string, string>>
  readonly facts: Readonly<Record<string, Facts>>
}

const placesIn = (path: Path.Path, work: string) => {
  const root = path.join(work, ".held")
  return { root, output: path.join(root, "output"), facts: path.join(root, "facts.json") }
}

/** Moves an attempt's outputs into the work folder. */
export const holdResult = Effect.fn("holdResult")(function* (
  work: string,
  output: string,
  facts: Readonly<Record<string, Facts>>
) {
  const fs = yield* FileSystem.FileSystem
  const held = placesIn(yield* Path.Path, work)
  yield* Effect.gen(function* () {
    yield* fs.remove(held.root, { recursive: true, force: true })
    yield* fs.makeDirectory(held.root, { recursive: true })
    yield* fs.rename(output, held.output)
    yield* writeJsonAtomic(held.facts, facts)
  }).pipe(Effect.mapError(storageFailure(held.root)))
})

/** The held result, if it is whole; a part of one (a crash in holding or in publishing it) is of no use, and the work is done again. */
export const heldResult = Effect.fn("heldResult")(function* (work: string, ports: ReadonlyArray<string>) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const held = placesIn(path, work)
  const facts = yield* fs.readFileString(held.facts).pipe(
    Effect.flatMap(Schema.decodeEffect(HeldFacts)),
    Effect.orElseSucceed(() => undefined)
  )
  if (facts === undefined) return undefined
  const folders = Object.fromEntries(ports.map((port) => [port, path.join(held.output, port)]))
  const present = yield* Effect.forEach(Object.values(folders), (folder) =>
    Effect.orElseSucceed(fs.exists(folder), () => false)
  )
  const result: HeldResult = { folders, facts }
  return present.every(Boolean) ? result : undefined
})

export const dropHeldResult = Effect.fn("dropHeldResult")(function* (work: string) {
  const fs = yield* FileSystem.FileSystem
  yield* Effect.ignore(fs.remove(placesIn(yield* Path.Path, work).root, { recursive: true, force: true }))
})
