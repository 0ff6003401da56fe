/** The tokenizer against SentencePiece itself, where its library is installed; the committed golden ids stand in for it elsewhere. */
import { execFile } from "node:child_process"
import { existsSync } from "node:fs"
import { mkdtemp, readdir, rm, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { promisify } from "node:util"
import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { sentencePieceModel } from "../../src/model/SentencePieceModel.ts"
import { loadVocabulary } from "../../src/model/Vocabulary.ts"

const root = new URL("../..", import.meta.url).pathname
const oracle = join(root, "build/programs/sentencepiece_oracle")
const run = promisify(execFile)

const missing = !existsSync(oracle)
if (missing) {
  console.log(
    "SentencePiece is not installed: its ids come from test/oracle/tokenizer/golden.jsonl alone (apt-get install libsentencepiece-dev, npm run test:native)"
  )
}

const title = `Tokenizer beside SentencePiece${missing ? " (not installed here: the committed ids stand in)" : ""}`
describe.skipIf(missing)(title, () => {
  const withModel = <A>(body: (model: string, folder: string) => Promise<A>) =>
    Effect.gen(function* () {
      const vocabulary = yield* loadVocabulary("llama-2")
      const folder = yield* Effect.acquireRelease(
        Effect.promise(() => mkdtemp(join(tmpdir(), "tinyllama-oracle-"))),
        (path) => Effect.promise(() => rm(path, { recursive: true, force: true }))
      )
      const model = join(folder, "tokenizer.model")
      yield* Effect.promise(() => writeFile(model, sentencePieceModel(vocabulary)))
      return yield* Effect.promise(() => body(model, folder))
    }).pipe(Effect.scoped)

  it.live("gives the same ids for fuzzed texts, of which many are not UTF-8", () =>
    Effect.gen(function* () {
      const { stdout } = yield* withModel((model) => run(oracle, [model, "fuzz", "5000", "11"]))
      assert.strictEqual(stdout, "5000 fuzzed texts: equal\n")
    })
  )

  it.live("gives the same ids for this repository's files, and for texts without a place to cut", () =>
    Effect.gen(function* () {
      const { stdout } = yield* withModel(async (model, folder) => {
        const paths: Array<string> = []
        for (const part of ["src", "native", "test", "docs"]) {
          for (const entry of await readdir(join(root, part), { recursive: true, withFileTypes: true })) {
            if (entry.isFile()) paths.push(join(entry.parentPath, entry.name))
          }
        }
        const made = {
          a: "a".repeat(300_000),
          words: "internationalizationofthe".repeat(10_000),
          "=-": "=-".repeat(50_000)
        }
        for (const [name, text] of Object.entries(made)) {
          paths.push(join(folder, name))
          await writeFile(join(folder, name), text)
        }
        const list = join(folder, "list")
        await writeFile(list, `${paths.filter((path) => !path.endsWith(".safetensors")).join("\n")}\n`)
        return run(oracle, [model, "files", list])
      })
      assert.match(stdout, /: equal\n$/u)
    })
  )
})
