/** What an editor with a YAML language server shows in a pipeline file, by the real server and the committed schema. */
import { readFileSync } from "node:fs"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { afterAll, assert, beforeAll, describe, it } from "@effect/vitest"
import { type LanguageServer, startLanguageServer } from "./language-server.ts"

const root = fileURLToPath(new URL("../..", import.meta.url))
const file = join(root, "unsaved.yaml") // only its place matters: the server takes the text from the editor
const head = "# yaml-language-server: $schema=./schemas/pipeline.schema.json\nversion: 1\nname: t\n"

let server: LanguageServer
beforeAll(async () => {
  server = await startLanguageServer()
})
afterAll(() => server.stop())

/** Opens `text`, in which "|" is the cursor. */
const at = async (text: string) => {
  const whole = head + text
  const before = whole.slice(0, whole.indexOf("|")).split("\n")
  await server.open(file, whole.replace("|", ""))
  return { line: before.length - 1, character: before.at(-1)?.length ?? 0 }
}
const completions = async (text: string) => server.complete(file, await at(text))

describe("completion", () => {
  it("offers the stage types after uses, each with what it does", async () => {
    const offered = await completions("stages:\n  a:\n    uses: |\n")
    assert.includeMembers([...offered.keys()], ["download", "tokenize", "pack", "pretrain", "sft", "eval", "quantize"])
    assert.match(offered.get("pack") ?? "", /Cuts tokens into blocks/u)
  })

  it("offers the type's own parameters inside with", async () => {
    const offered = await completions(
      "stages:\n  a:\n    uses: tokenize\n    in: { documents: x.documents }\n    with:\n      |\n"
    )
    assert.includeMembers([...offered.keys()], ["tokenizer", "bos", "shard_bytes"])
    assert.notInclude([...offered.keys()], "seq_len")
    assert.match(offered.get("shard_bytes") ?? "", /bytes of text after which a shard is closed/u)
  })

  it("offers keys and words inside a parameter", async () => {
    const stage = "stages:\n  a:\n    uses: pretrain\n    in: { data: p.dataset }\n    with:\n      lr:\n"
    assert.includeMembers([...(await completions(`${stage}        |\n`)).keys()], ["peak", "min", "warmup_steps"])
    const schedules = await completions(`${stage}        schedule: |\n`)
    assert.includeMembers([...schedules.keys()], ["cosine", "linear", "constant", "wsd"])
  })

  it("offers the type's ports inside in", async () => {
    const offered = await completions("stages:\n  a:\n    uses: eval\n    in:\n      |\n")
    assert.includeMembers([...offered.keys()], ["models", "data", "questions"])
    assert.match(offered.get("models") ?? "", /a list/u)
  })

  it("offers parameters in a profile, where the type stands elsewhere", async () => {
    const offered = await completions(
      "stages: {}\nprofiles:\n  smoke:\n    stages:\n      a:\n        with:\n          |\n"
    )
    assert.includeMembers([...offered.keys()], ["max_tokens", "seq_len", "epochs"])
  })
})

describe("hover", () => {
  it("tells what a parameter is, its default, and what a change does", async () => {
    const place = await at(
      "stages:\n  a:\n    uses: pretrain\n    in: { data: p.dataset }\n    with:\n      micro_b|atch: 8\n"
    )
    const text = await server.hover(file, place)
    assert.match(text, /Sequences per forward and backward pass/u)
    assert.match(text, /Default: 8/u)
    assert.match(text, /A change makes/u)
  })
})

describe("diagnostics", () => {
  const found = (text: string) => server.open(file, head + text)

  it("point at an unknown parameter", async () => {
    const stage = "stages:\n  a:\n    uses: pack\n    in: { tokens: [t.tokens] }\n    with:\n      seq_len: 64\n"
    assert.deepStrictEqual(await found(stage), [])
    assert.deepStrictEqual(await found(`${stage}      seeed: 1\n`), ["10: Property seeed is not allowed."])
  })

  it("point inside a nested parameter, at an unknown port, at a wrong word and at a wrong type", async () => {
    const messages = await found(
      "stages:\n  a:\n    uses: pretrain\n    in: { dat: x.y }\n    with:\n      model: llama-15m\n      max_tokens: many\n" +
        "      lr:\n        peek: 3\n        schedule: cosin\n"
    )
    assert.includeMembers(
      [...messages],
      [
        "7: Property dat is not allowed.",
        '10: Incorrect type. Expected "integer".',
        "12: Property peek is not allowed."
      ]
    )
    assert.isTrue(messages.some((message) => message.startsWith('13: Value is not accepted. Valid values: "cosine"')))
  })

  it("let references, grouped numbers, stage types of one's own and partial overlays stand", async () => {
    const messages = await found(
      "vars: { budget: 400_000, lr: { peak: 1e-3 } }\n" +
        "stages:\n" +
        "  a: { uses: ./my-stage.ts, with: { anything: 1 } }\n" +
        "  d: { uses: pack, matrix: { n: [64, 128] }, max_parallel: 1, in: { tokens: [a.tokens] }, with: { seq_len: '${matrix.n}' } }\n" +
        '  b: { uses: pretrain, in: { data: a.dataset }, with: { model: llama-15m, max_tokens: "${vars.budget}", lr: "${vars.lr}" } }\n' +
        "  c: { uses: pack, in: { tokens: [a.tokens] }, with: { seq_len: 1_024 }, timeout: 2h, after: a }\n" +
        "profiles: { p: { vars: { budget: 1 }, stages: { b: { with: { lr: { peak: 1 } }, resources: { cpus: all } } } } }\n"
    )
    assert.deepStrictEqual(messages, [])
  })

  for (const path of ["pipeline.yaml", "test/fixtures/small/pipeline.yaml"])
    it(`find nothing wrong with ${path}`, async () => {
      const text = readFileSync(join(root, path), "utf8")
      assert.match(text, /^# yaml-language-server: \$schema=[./]+\/schemas\/pipeline\.schema\.json\n/u)
      assert.deepStrictEqual(await server.open(join(root, path), text), [])
    })
})
