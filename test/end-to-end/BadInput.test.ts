/** Every bad input of a pipeline: the message names the place, the cause and the next step, with the right exit code, and nothing complete is lost. */
import { readFileSync, readdirSync, realpathSync, rmSync, writeFileSync } from "node:fs"
import { createServer, type Server } from "node:http"
import type { AddressInfo } from "node:net"
import { join } from "node:path"
import { afterAll, assert, beforeAll, describe, it } from "@effect/vitest"
import { folderWith, tinyllama } from "./command-line.ts"

const pipeline = (stages: string): string => `version: 1\nname: bad\nstages:\n${stages}`

interface Case {
  readonly name: string
  readonly stages: string
  readonly files?: Readonly<Record<string, string | Uint8Array>>
  readonly code: number
  readonly says: ReadonlyArray<RegExp>
}

const prose = "The quick brown fox jumps over the lazy dog. ".repeat(40)
const text = "  text: { uses: download, with: { sources: [{ path: a.txt }] } }\n"
const tokens = "  tokens: { uses: tokenize, in: { documents: [text.documents] } }\n"

const cases: ReadonlyArray<Case> = [
  {
    name: "an unknown stage type",
    stages: "  a: { uses: dowload }\n",
    code: 3,
    says: [/pipeline\.yaml:4:\d+/u, /dowload/u, /did you mean "download"/u]
  },
  {
    name: "an unknown field",
    stages: "  text: { uses: download, with: { sourcs: [{ path: a.txt }] } }\n",
    code: 3,
    says: [/pipeline\.yaml:4:\d+/u, /sourcs/u, /did you mean "sources"/u]
  },
  {
    name: "an edge from an unknown stage",
    stages: `${text}  tokens: { uses: tokenize, in: { documents: [txt.documents] } }\n`,
    code: 3,
    says: [/pipeline\.yaml:5:\d+/u, /txt/u]
  },
  {
    name: "a port of the wrong type",
    stages: `${text}  packed: { uses: pack, in: { tokens: [text.documents] } }\n`,
    code: 3,
    says: [/pipeline\.yaml:5:\d+/u, /Documents/u, /TokenShards/u]
  },
  {
    name: "a cycle",
    stages:
      "  a: { uses: tokenize, in: { documents: [b.documents] }, after: [b] }\n  b: { uses: download, after: [a], with: { sources: [{ path: a.txt }] } }\n",
    code: 3,
    says: [/cycle/u, /a/u, /b/u]
  },
  {
    name: "a matrix that explodes",
    stages: `  text: { uses: download, matrix: { a: [${Array.from({ length: 101 }, (_, i) => i).join()}], b: [0,1,2,3,4,5,6,7,8,9] }, with: { sources: [{ path: "\${matrix.a}" }] } }\n`,
    code: 3,
    says: [/pipeline\.yaml:4:\d+/u, /101 \(a\) × 10 \(b\) = 1,010 stages; 1,000 are allowed/u, /list fewer values/u]
  },
  {
    name: "a secret that is not set",
    stages: text.replace("with:", "secrets: [NOBODY_SETS_THIS], with:"),
    files: { "a.txt": prose },
    code: 6,
    says: [/the secret NOBODY_SETS_THIS of stage text is not set/u, /Next: export NOBODY_SETS_THIS/u]
  },
  {
    name: "a result that fails a check",
    stages: text + tokens.replace("in:", 'checks: ["tokens >= 1e9"], in:'),
    files: { "a.txt": prose },
    code: 1,
    says: [/does not meet check "tokens >= 1e9" \(.*pipeline\.yaml:5:\d+\): tokens is \d+/u, /Next: correct the check/u]
  },
  {
    name: "a check that cannot be read",
    stages: text.replace("with:", 'checks: ["bytes = 5"], with:'),
    code: 3,
    says: [/pipeline\.yaml:4:\d+/u, /write == for =/u]
  },
  { name: "a missing file", stages: text, code: 6, says: [/text: files: .*a\.txt/u, /Next: /u] },
  { name: "an empty corpus", stages: text, files: { "a.txt": "" }, code: 1, says: [/empty/u, /Next: /u] },
  {
    name: "a document that is not UTF-8",
    stages: text + tokens,
    files: { "a.txt": Uint8Array.from([0x68, 0x69, 0xff, 0x21]) },
    code: 1,
    says: [/a\.txt/u, /byte 2|offset 2/u, /invalid_utf8/u]
  },
  {
    name: "a wrong sha256",
    stages: `  text: { uses: download, with: { sources: [{ path: a.txt, sha256: "${"0".repeat(64)}" }] } }\n`,
    files: { "a.txt": prose },
    code: 1,
    says: [/a\.txt/u, /0000000000/u, /Next: /u]
  },
  {
    name: "a sequence length larger than the data",
    stages: `${text}${tokens}  packed: { uses: pack, in: { tokens: [tokens.tokens] }, with: { seq_len: 100000 } }\n`,
    files: { "a.txt": prose },
    code: 1,
    says: [/seq_len/u, /100,?00[01]/u, /Next: /u]
  },
  {
    name: "a loss that is not a number",
    stages: `${text}${tokens}  packed: { uses: pack, in: { tokens: [tokens.tokens] }, with: { seq_len: 16, validation: 0 } }
  base:
    uses: pretrain
    in: { data: packed.dataset }
    with: { model: { hidden_size: 32, intermediate_size: 64, num_hidden_layers: 1, num_attention_heads: 2, num_key_value_heads: 1, max_position_embeddings: 32 }, max_tokens: 20000, batch_tokens: 64, micro_batch: 4, clip: 0, lr: { peak: 1e38, min: 1e37, warmup_steps: 0, schedule: cosine } }
`,
    files: { "a.txt": prose },
    code: 1,
    says: [/step \d+/u, /loss|gradient/u, /Next: /u]
  }
]

describe("bad input", () => {
  for (const bad of cases) {
    it(`${bad.name}: exit ${bad.code}`, async () => {
      const folder = folderWith({ "pipeline.yaml": pipeline(bad.stages), ...bad.files })
      const outcome = await tinyllama(["run", "pipeline.yaml"], { cwd: folder })
      const said = outcome.stdout + outcome.stderr
      assert.strictEqual(outcome.code, bad.code, said)
      for (const pattern of bad.says) assert.match(said, pattern)
      assert.notMatch(said, /^\s+at .*\.ts:\d+/mu, "a stack trace is no message")
      rmSync(folder, { recursive: true })
    })
  }

  it("a file that is not there: exit 3 or 2 with its name", async () => {
    const outcome = await tinyllama(["run", "nowhere.yaml"])
    assert.include([2, 3], outcome.code)
    assert.match(outcome.stderr, /nowhere\.yaml/u)
  })

  it("a corrupt shard in the store: named, made again, and the run completes", async () => {
    const folder = folderWith({
      "a.txt": prose,
      "pipeline.yaml": pipeline(
        `${text}${tokens}  packed: { uses: pack, in: { tokens: [tokens.tokens] }, with: { seq_len: 16, validation: 0 } }\n`
      )
    })
    assert.strictEqual((await tinyllama(["run", "pipeline.yaml", "--to-stage", "tokens"], { cwd: folder })).code, 0)
    const shard = join(outputFolder(folder, "tokens", "tokens"), "shard-00000.arrow")
    const bytes = readFileSync(shard)
    writeFileSync(shard, bytes.subarray(0, bytes.length - 100))
    const outcome = await tinyllama(["run", "pipeline.yaml"], { cwd: folder })
    assert.strictEqual(outcome.code, 0, outcome.stdout + outcome.stderr)
    assert.match(outcome.stdout + outcome.stderr, /shard-00000\.arrow|damaged|corrupt/u)
    assert.strictEqual(readFileSync(shard).length, bytes.length)
    rmSync(folder, { recursive: true })
  })
})

describe("a download that ends early", () => {
  let server: Server
  let truncate = true
  const body = Buffer.from(prose)
  beforeAll(async () => {
    server = createServer((request, response) => {
      const from = Number(/bytes=(\d+)-/u.exec(request.headers.range ?? "")?.[1] ?? 0)
      response.writeHead(from > 0 ? 206 : 200, {
        "content-length": body.length - from,
        ...(from > 0 ? { "content-range": `bytes ${from}-${body.length - 1}/${body.length}` } : {})
      })
      if (!truncate) return response.end(body.subarray(from))
      // A hundred bytes, and nothing after them: as long as something comes, a download goes on by itself.
      if (from < 100) response.write(body.subarray(from, 100))
      else response.flushHeaders()
      setTimeout(() => response.destroy(), 20)
    })
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve))
  })
  afterAll(() => server.close())

  it("names the url and how much came, exit 1; the next run goes on from there", async () => {
    const port = (server.address() as AddressInfo).port
    const folder = folderWith({
      "pipeline.yaml": pipeline(
        `  text: { uses: download, retry: { times: 0 }, with: { sources: [{ url: "http://127.0.0.1:${port}/a.txt", format: text }] } }\n`
      )
    })
    truncate = true
    const cut = await tinyllama(["run", "pipeline.yaml"], { cwd: folder })
    assert.strictEqual(cut.code, 1, cut.stdout + cut.stderr)
    assert.match(cut.stdout + cut.stderr, /127\.0\.0\.1/u)
    truncate = false
    const whole = await tinyllama(["run", "pipeline.yaml"], { cwd: folder })
    assert.strictEqual(whole.code, 0, whole.stdout + whole.stderr)
    const files = join(outputFolder(folder, "text", "documents"), "files")
    const names = readdirSync(files, { recursive: true, encoding: "utf8" }).filter((name) => name.endsWith("a.txt"))
    assert.strictEqual(names.length, 1)
    assert.strictEqual(readFileSync(join(files, names[0] ?? "")).compare(body), 0)
    rmSync(folder, { recursive: true })
    // Eight tries that bring nothing, each after a longer pause than the one before, take most of a minute.
  }, 180_000)
})

/** The folder of an output of the latest run. */
const outputFolder = (folder: string, stage: string, port: string): string => {
  const stages = join(folder, "runs/latest/stages")
  const name = readdirSync(stages).find((entry) => entry.endsWith(`-${stage}`)) ?? stage
  return realpathSync(join(stages, name, "out", port))
}
