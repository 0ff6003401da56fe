/**
 * Writes the data of the full recipes' smoke profiles, pipelines/smoke/: this repository's own documents and sources in the form of SlimPajama
 * (jsonl.zst, the set's name in `meta`, some rows from its GitHub part) and of StarCoderData (parquet, text in `content`).
 *
 *   node scripts/smoke-samples.ts
 */
import { globSync, mkdirSync, readFileSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { zstdCompressSync, constants } from "node:zlib"
import { parquetWriteBuffer } from "hyparquet-writer"

const root = fileURLToPath(new URL("..", import.meta.url))
const target = join(root, "pipelines/smoke")
const read = (pattern: string) =>
  globSync(pattern, { cwd: root })
    .sort()
    .map((name) => ({ name, text: readFileSync(join(root, name), "utf8") }))

const prose = [...read("README.md"), ...read("docs/*.md"), ...read("CONTRIBUTING.md")].flatMap(({ text }) =>
  text.split(/\n(?=## )/u)
)
// short files, about three tokens of code for seven of prose
const code = read("native/**/*.cpp")
  .filter(({ text }) => text.length < 3000)
  .slice(0, 20)
const sets = ["RedPajamaCommonCrawl", "RedPajamaC4", "RedPajamaWikipedia", "RedPajamaStackExchange"]

const rows = prose.flatMap((text, index) => [
  { text, meta: { redpajama_set_name: sets[index % sets.length] } },
  // every tenth row is one that the recipe leaves out
  ...(index % 10 === 0 ? [{ text: "int main() { return 0; }", meta: { redpajama_set_name: "RedPajamaGithub" } }] : [])
])

mkdirSync(target, { recursive: true })
writeFileSync(
  join(target, "slimpajama.jsonl.zst"),
  zstdCompressSync(Buffer.from(rows.map((row) => `${JSON.stringify(row)}\n`).join("")), {
    params: { [constants.ZSTD_c_compressionLevel]: 19, [constants.ZSTD_c_checksumFlag]: 1 }
  })
)
writeFileSync(
  join(target, "starcoder.parquet"),
  Buffer.from(
    parquetWriteBuffer({
      columnData: [
        { name: "id", data: code.map((_, index) => String(index)), type: "STRING" },
        { name: "content", data: code.map(({ text }) => text), type: "STRING" }
      ]
    })
  )
)
console.log(`${rows.length} rows of prose, ${code.length} of code in ${target}`)
