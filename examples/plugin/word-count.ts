/**
 * word-count: counts the words of documents. A small stage with everything that a large one has: parameters, ports, progress, a stop that is heard,
 * and work that goes on where it was interrupted. `tinyllama stage test` proves the last two.
 */
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { Effect, Schema } from "effect"
import { countIn, defineStage, parameter, Preempted, StageError, writeJsonAtomic } from "tinyllama/stage"

/** What the work folder keeps between attempts: files that are done, and what was counted in them. */
const Saved = Schema.fromJsonString(
  Schema.Struct({ files: Schema.Int, words: Schema.Record(Schema.String, Schema.Int) })
)

export default defineStage({
  name: "word-count",
  // Raise it when the same parameters and inputs would give other bytes. (Edited code makes results stale by itself.)
  version: 1,
  describe: "Counts the words of documents",
  params: {
    // identity: another value is another result. operational: a value that leaves no trace in the result.
    min_length: parameter(Schema.Int.check(Schema.isGreaterThan(0)), {
      change: "identity",
      describe: "Shorter words are not counted",
      default: 1
    }),
    save_every: parameter(Schema.Int.check(Schema.isGreaterThan(0)), {
      change: "operational",
      describe: "Files between saves",
      default: 1
    })
  },
  inputs: { documents: { type: "Documents", describe: "What to count in" } },
  // The artifact types of the program, or one of your own that starts with x-.
  outputs: { counts: { type: "x-word-counts", describe: "words.json: word → count, in alphabetical order" } },
  headline: ({ counts }) => `${countIn(counts, "words")} words, ${countIn(counts, "different")} different ones`,

  run: Effect.fn("word-count")(function* (context) {
    const { inputs, params } = context
    const root = join(inputs.documents.folder, "files")
    const files = readdirSync(root, { recursive: true, withFileTypes: true })
      .filter((entry) => entry.isFile())
      .map((entry) => join(entry.parentPath, entry.name))
      .sort()
    if (files.length === 0)
      return yield* new StageError({
        failure: "invalid-input",
        message: `${inputs.documents.origin} holds no file`,
        next: "name sources that match something"
      })

    const save = join(context.work, "counted.json")
    const before = existsSync(save)
      ? yield* Effect.orDie(Schema.decodeEffect(Saved)(readFileSync(save, "utf8")))
      : { files: 0, words: {} }
    if (before.files > 0) context.log(`going on after ${before.files} files`)
    const words = new Map(Object.entries(before.words))
    for (const [index, file] of files.entries()) {
      if (index < before.files) continue
      if (context.stopRequested()) return yield* new Preempted({ message: `stopped after ${index} files` })
      for (const [word] of readFileSync(file, "utf8")
        .toLowerCase()
        .matchAll(/[\p{L}\p{N}]+/gu))
        if (word.length >= params.min_length) words.set(word, (words.get(word) ?? 0) + 1)
      const done = index + 1
      if (done % params.save_every === 0)
        yield* Effect.orDie(writeJsonAtomic(save, { files: done, words: Object.fromEntries(words) }))
      context.progress({ done, total: files.length, unit: "files" })
      yield* Effect.yieldNow // lets a stop be heard
    }

    // Nothing of time, place or threads: equal inputs give equal bytes.
    const sorted = Array.from(words).sort(([a], [b]) => (a < b ? -1 : 1))
    writeFileSync(
      join(context.output("counts"), "words.json"),
      `${JSON.stringify(Object.fromEntries(sorted), null, 2)}\n`
    )
    return { counts: { words: sorted.reduce((sum, [, count]) => sum + count, 0), different: sorted.length } }
  })
})
