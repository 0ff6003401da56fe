/** Real text of this machine for measuring the tokenizer, and texts made to be slow. Documents are whole files. */
import { randomBytes } from "node:crypto"
import { glob, readFile } from "node:fs/promises"
import { join } from "node:path"
import { gunzipSync } from "node:zlib"

export interface Corpus {
  readonly name: string
  readonly documents: ReadonlyArray<Uint8Array>
}

const repository = new URL("../..", import.meta.url).pathname

/** Files below the roots that fit a pattern, in the order of their paths, until `bytes` are there; none twice. */
const gather = async (name: string, patterns: ReadonlyArray<string>, bytes: number): Promise<Corpus> => {
  const documents: Array<Uint8Array> = []
  let total = 0
  for (const pattern of patterns) {
    for await (const path of glob(pattern)) {
      if (total >= bytes) return { name, documents }
      const content = await readFile(path).catch(() => new Uint8Array())
      if (content.length < 1000 || content.length > 300_000 || path.includes(".min.")) continue
      const text = path.endsWith(".gz") ? new Uint8Array(gunzipSync(content)) : content
      documents.push(text)
      total += text.length
    }
  }
  return { name, documents }
}

const modules = join(repository, "node_modules")

/** English prose, code, and manual pages in other languages, of at most `bytes` each: what the machine has. */
export const realCorpora = async (bytes: number): Promise<ReadonlyArray<Corpus>> => [
  await gather(
    "English",
    [
      `${modules}/**/*.md`,
      "/usr/share/doc/**/*.{txt,md,rst,html}",
      "/usr/share/doc/**/changelog*.gz",
      "/usr/share/perl/**/*.pod"
    ],
    bytes
  ),
  await gather("code", [`${modules}/**/*.ts`, "/usr/include/**/*.h", `${modules}/**/*.{js,mjs,cpp}`], bytes),
  await gather("multilingual", ["/usr/share/man/??/**/*.gz", "/usr/share/man/??_??/**/*.gz"], bytes / 2)
]

/** A megabyte each without a place to cut it. */
export const adversarialCorpora = (english: Corpus): ReadonlyArray<Corpus> => {
  const letters = Buffer.concat(english.documents)
    .toString("latin1")
    .replaceAll(/[^a-z]/gu, "")
  return [
    { name: "1 MB of a", documents: [Buffer.alloc(1e6, "a")] },
    { name: "1 MB of base64", documents: [Buffer.from(randomBytes(750_000).toString("base64"))] },
    { name: "1 MB of glued words", documents: [Buffer.from(letters.slice(0, 1e6), "latin1")] }
  ]
}
