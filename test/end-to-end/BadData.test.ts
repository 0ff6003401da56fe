/**
 * Data as it comes: cut off, broken, empty, endless, misnamed. The message names the place, the cause and the next step; what the next step says
 * puts aside what is bad and keeps the rest.
 */
import { appendFileSync, readFileSync, readdirSync, realpathSync, rmSync } from "node:fs"
import { join } from "node:path"
import { pathToFileURL } from "node:url"
import { zstdCompressSync } from "node:zlib"
import { assert, describe, it } from "@effect/vitest"
import { parquetWriteBuffer } from "hyparquet-writer"
import { folderWith, root, tinyllama } from "./command-line.ts"

const prose = "The quick brown fox jumps over the lazy dog. ".repeat(40)
const rows = Array.from({ length: 2000 }, (_, i) => JSON.stringify({ text: `Row ${i} says ${(i * 7919) % 2003}.` }))
const compressed = Buffer.concat([
  zstdCompressSync(`${rows.slice(0, 1000).join("\n")}\n`),
  zstdCompressSync(rows.slice(1000).join("\n"))
])
const parquet = Buffer.from(
  parquetWriteBuffer({ columnData: [{ name: "content", data: [prose, prose], type: "STRING" }] })
)

interface Case {
  readonly name: string
  readonly file: string
  readonly content: string | Uint8Array
  /** Of tokenize, and of a pack stage behind it where one is given. */
  readonly tokenize?: string
  readonly pack?: string
  readonly place: RegExp
  readonly cause: RegExp
  readonly next: RegExp
  /** What the next step comes to, and what the run says then. */
  readonly follow: { readonly tokenize?: string; readonly pack?: string; readonly says: ReadonlyArray<RegExp> }
  /** Rows of the quarantine file then. */
  readonly quarantined?: number
}

const skip = "bad_rows: skip"

const cases: ReadonlyArray<Case> = [
  {
    name: "a Zstandard frame that is cut off",
    file: "a.jsonl.zst",
    content: compressed.subarray(0, compressed.length - 40),
    place: /tokens: .*a\.jsonl\.zst/u,
    cause: /the file ends in the middle of its Zstandard data/u,
    next: /Next: .*bad_rows: skip/u,
    follow: { tokenize: skip, says: [/skipped 1 broken file/u, /tokens of 1,\d\d\d documents/u] },
    quarantined: 1
  },
  {
    name: "a parquet file without the column",
    file: "a.parquet",
    content: parquet,
    place: /a\.parquet/u,
    cause: /there is no column "text"; it has content/u,
    next: /Next: set text_field to the column that holds the text/u,
    follow: { tokenize: "text_field: content", says: [/tokens of 2 documents/u] }
  },
  {
    name: "a misspelt column",
    file: "a.parquet",
    content: parquet,
    tokenize: "text_field: contents",
    place: /a\.parquet/u,
    cause: /there is no column "contents"; did you mean "content"\?/u,
    next: /Next: set text_field/u,
    follow: { tokenize: "text_field: content", says: [/tokens of 2 documents/u] }
  },
  {
    name: "a misspelt field of rows",
    file: "a.jsonl",
    content: rows.join("\n"),
    tokenize: "text_field: txt",
    place: /a\.jsonl:1/u,
    cause: /the row has no field "txt"; did you mean "text"\?/u,
    next: /Next: .*text_field/u,
    follow: { tokenize: "text_field: text", says: [/tokens of 2,000 documents/u] }
  },
  {
    name: "a misspelt field of a filter",
    file: "a.jsonl",
    content: rows.join("\n"),
    tokenize: "where: [{ field: meta.set, not: x }]",
    place: /a\.jsonl:1/u,
    cause: /the row has no field "meta\.set"/u,
    next: /Next: .*where/u,
    follow: { tokenize: "where: []", says: [/tokens of 2,000 documents/u] }
  },
  {
    name: "broken lines",
    file: "a.jsonl",
    content: [rows[0], '{"text": "torn', rows[1], "no JSON", rows[2]].join("\n"),
    place: /a\.jsonl:2/u,
    cause: /this is not JSON: the line ends too early/u,
    next: /Next: correct the row, or set bad_rows: skip/u,
    follow: {
      tokenize: skip,
      says: [/skipped 2 not json/u, /2 of these are listed in quarantine\.jsonl/u, /tokens of 3 documents/u]
    },
    quarantined: 2
  },
  {
    name: "nothing but empty documents",
    file: "a.jsonl",
    content: '{"text":""}\n{"text":""}\n',
    place: /tokens: /u,
    cause: /without one document \(skipped: \{"empty_documents":2\}\)/u,
    next: /Next: .*text_field/u,
    follow: { says: [/empty_documents/u] }
  },
  {
    name: "a row longer than a row may be",
    file: "a.jsonl",
    content: `${rows[0]}\n{"text":"${"x".repeat(2 ** 26 + 2 ** 20)}"}\n${rows[1]}\n`,
    place: /a\.jsonl:2/u,
    cause: /the row has more than 67108864 bytes/u,
    next: /Next: give so long a document as a text file/u,
    follow: { tokenize: skip, says: [/skipped 1 row too long/u, /tokens of 2 documents/u] },
    quarantined: 1
  },
  {
    name: "a sequence longer than all data",
    file: "a.txt",
    content: prose,
    pack: "seq_len: 100000, validation: 0",
    place: /packed: /u,
    cause: /seq_len 100,000 is larger than the data: [\d,]+ tokens in all/u,
    next: /Next: lower seq_len, add text, or lower validation/u,
    follow: { pack: "seq_len: 16, validation: 0", says: [/packed +done/u] }
  },
  {
    name: "weights that do not sum to one",
    file: "a.txt",
    content: prose,
    pack: "seq_len: 16, validation: 0, weights: [0.9], weights_sum: one",
    place: /packed: /u,
    cause: /weights sum to 0\.9, not to 1/u,
    next: /Next: correct weights, or set weights_sum: any/u,
    follow: { pack: "seq_len: 16, validation: 0, weights: [0.9], weights_sum: any", says: [/packed +done/u] }
  }
]

const pipelineOf = (file: string, tokenize = "", pack?: string): string =>
  [
    "version: 1",
    "name: data",
    "stages:",
    `  text: { uses: download, with: { sources: [{ path: ${file} }] } }`,
    `  tokens: { uses: tokenize, in: { documents: [text.documents] }, with: { ${tokenize} } }`,
    ...(pack === undefined ? [] : [`  packed: { uses: pack, in: { tokens: [tokens.tokens] }, with: { ${pack} } }`]),
    ""
  ].join("\n")

const quarantineOf = (folder: string): ReadonlyArray<string> => {
  const stages = join(folder, "runs/latest/stages")
  const name = readdirSync(stages).find((entry) => entry.endsWith("-tokens")) ?? ""
  return readFileSync(join(realpathSync(join(stages, name, "out/tokens")), "quarantine.jsonl"), "utf8")
    .split("\n")
    .filter((line) => line !== "")
}

describe("bad data", () => {
  for (const bad of cases)
    it(`${bad.name}: exit 1 with place, cause and next step, which helps`, async () => {
      const folder = folderWith({
        "pipeline.yaml": pipelineOf(bad.file, bad.tokenize, bad.pack),
        "next.yaml": pipelineOf(bad.file, bad.follow.tokenize ?? bad.tokenize, bad.follow.pack ?? bad.pack),
        [bad.file]: bad.content
      })
      const refused = await tinyllama(["run", "pipeline.yaml"], { cwd: folder })
      const said = refused.stdout + refused.stderr
      assert.strictEqual(refused.code, 1, said)
      for (const pattern of [bad.place, bad.cause, bad.next]) assert.match(said, pattern)
      assert.notMatch(said, /^\s+at .*\.ts:\d+/mu, "a stack trace is no message")

      const followed = await tinyllama(["run", "next.yaml"], { cwd: folder })
      for (const pattern of bad.follow.says) assert.match(followed.stdout + followed.stderr, pattern)
      if (bad.quarantined !== undefined) assert.strictEqual(quarantineOf(folder).length, bad.quarantined)
      rmSync(folder, { recursive: true })
    }, 60_000)
})

describe("one document of any length", () => {
  /** 64 MB here; a gigabyte by hand: LONG_DOCUMENT_BYTES=1e9 npx vitest run test/end-to-end/BadData.test.ts -t length */
  const bytes = Number(process.env["LONG_DOCUMENT_BYTES"] ?? 64e6)
  const mostMemory = 300e6

  it(`tokenize and pack take ${bytes / 1e6} MB in one file within ${mostMemory / 1e6} MB of memory`, async () => {
    const folder = folderWith({
      "pipeline.yaml": pipelineOf("long.txt", "", "seq_len: 2048, validation: 0")
    })
    const line = "One line of a document that has no end, with größe and  two spaces.\n"
    const piece = line.repeat(Math.ceil(1e6 / Buffer.byteLength(line)))
    const pieces = Math.ceil(bytes / Buffer.byteLength(piece))
    for (let i = 0; i < pieces; i++) appendFileSync(join(folder, "long.txt"), piece)
    const peaks = join(folder, "peaks")
    const outcome = await tinyllama(["run", "pipeline.yaml"], {
      cwd: folder,
      env: {
        MEMORY_PEAKS: peaks,
        NODE_OPTIONS: `--import=${pathToFileURL(join(root, "test/fixtures/memory/peak.mjs")).href}`
      }
    })
    assert.strictEqual(outcome.code, 0, outcome.stdout + outcome.stderr)
    assert.match(outcome.stdout, /1 documents of more than 4194304 bytes are in \d+ rows, with the same tokens/u)
    // each line has the same tokens; <s> and the space in front of a text are the document's
    const tokens = Number(/tokens +done.* ([\d,]+) tokens of/u.exec(outcome.stdout)?.[1]?.replaceAll(",", ""))
    const lines = pieces * Math.ceil(1e6 / Buffer.byteLength(line))
    assert.isTrue(tokens > lines * 15 && tokens < lines * 25, `${tokens} tokens in ${lines} lines`)
    const used = readFileSync(peaks, "utf8")
      .split("\n")
      .flatMap((entry) => {
        const [role = "", kibibytes] = entry.split(" ")
        return role === "worker" ? [1024 * Number(kibibytes)] : []
      })
    assert.isAtLeast(used.length, 2)
    for (const peak of used) assert.isBelow(peak, mostMemory)
    console.log(
      `one document of ${bytes / 1e6} MB: workers' peaks ${used.map((peak) => (peak / 1e6).toFixed(0)).join(", ")} MB`
    )
    rmSync(folder, { recursive: true })
  }, 600_000)
})
