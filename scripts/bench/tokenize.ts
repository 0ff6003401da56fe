/**
 * Speed of the tokenizer on one core, first pass with a cold cache, beside SentencePiece's C++ library and kitoken, whose ids are compared while
 * they are measured; and on two threads. CPU time, but for the two threads: on a shared machine the wall clock measures the others.
 */
import { execFile } from "node:child_process"
import { createRequire } from "node:module"
import { mkdtemp, rm, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { pathToFileURL } from "node:url"
import { promisify } from "node:util"
import { Console, Effect, Schema } from "effect"
import { load, type EncodedBatch, type Native } from "../../src/engine/Native.ts"
import { sentencePieceModel } from "../../src/model/SentencePieceModel.ts"
import { loadVocabulary, type Vocabulary } from "../../src/model/Vocabulary.ts"
import { adversarialCorpora, type Corpus, realCorpora } from "./TextCorpora.ts"
import { median } from "./training.ts"

const KITOKEN = "kitoken@0.10.1"
const oracle = new URL("../../build/programs/sentencepiece_oracle", import.meta.url).pathname
const run = promisify(execFile)
const options = { addBos: false, addEos: false, dummyPrefix: true }

interface Batch {
  readonly text: Uint8Array
  readonly offsets: Uint32Array
}

const batchOf = ({ documents }: Corpus): Batch => {
  const offsets = new Uint32Array(documents.length + 1)
  for (const [i, document] of documents.entries()) offsets[i + 1] = offsets[i]! + document.length
  return { text: Buffer.concat(documents), offsets }
}

const cpuSeconds = (): number => {
  const { user, system } = process.cpuUsage()
  return (user + system) / 1e6
}

interface Speeds {
  readonly first: number
  readonly second: number
  readonly batch: EncodedBatch
}

/** MB/s of the first and the second pass of a new tokenizer, medians. */
const measureNative = async (
  native: Native,
  vocabulary: Vocabulary,
  { text, offsets }: Batch,
  rounds: number
): Promise<Speeds> => {
  const times: [Array<number>, Array<number>] = [[], []]
  let batch: EncodedBatch = { ids: new Uint16Array(), offsets: new Uint32Array() }
  for (let round = 0; round < rounds; round++) {
    const tokenizer = new native.Tokenizer(vocabulary)
    for (const pass of times) {
      const start = cpuSeconds()
      batch = await tokenizer.encodeBatch(text, offsets, options, 1)
      pass.push(cpuSeconds() - start)
    }
  }
  const [first, second] = times.map((seconds) => text.length / 1e6 / median(seconds))
  return { first: first!, second: second!, batch }
}

/** Wall time of one thread over that of two, in turns. */
const measureScaling = async (
  native: Native,
  vocabulary: Vocabulary,
  { text, offsets }: Batch,
  rounds: number
): Promise<number> => {
  const tokenizer = new native.Tokenizer(vocabulary)
  await tokenizer.encodeBatch(text, offsets, options, 2)
  const times: [Array<number>, Array<number>] = [[], []]
  for (let round = 0; round < rounds; round++) {
    for (const [index, seconds] of times.entries()) {
      const start = performance.now()
      await tokenizer.encodeBatch(text, offsets, options, index + 1)
      seconds.push(performance.now() - start)
    }
  }
  return Math.min(...times[0]) / Math.min(...times[1])
}

const Kitoken = Schema.Struct({
  Kitoken: Schema.declare((value): value is KitokenClass => typeof value === "function")
})
interface KitokenClass {
  new (model: Uint8Array): { readonly encode: (text: string, specials: boolean) => Uint32Array }
}

/** MB/s of kitoken over the corpus's valid UTF-8 documents; its ids must be ours. */
const measureKitoken = (Peer: KitokenClass, model: Uint8Array, corpus: Corpus, ours: EncodedBatch): number => {
  const peer = new Peer(model)
  const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true })
  let bytes = 0
  let seconds = 0
  for (const [i, document] of corpus.documents.entries()) {
    let text: string
    try {
      text = decoder.decode(document)
    } catch {
      continue // no JavaScript string holds it
    }
    const start = cpuSeconds()
    const ids = peer.encode(text, false)
    seconds += cpuSeconds() - start
    bytes += document.length
    const expected = ours.ids.subarray(ours.offsets[i], ours.offsets[i + 1])
    if (ids.length !== expected.length || ids.some((id, at) => id !== expected[at])) {
      throw new Error(`kitoken's ids differ in document ${i} of ${corpus.name}`)
    }
  }
  return bytes / 1e6 / seconds
}

/** kitoken from npm, into a folder of its own: it is no dependency of this package. */
const fetchKitoken = async (folder: string): Promise<KitokenClass> => {
  await run("npm", ["install", "--prefix", folder, "--no-save", "--ignore-scripts", "--no-audit", "--no-fund", KITOKEN])
  const entry = pathToFileURL(createRequire(join(folder, "package.json")).resolve("kitoken/node")).href
  return Schema.decodeUnknownSync(Kitoken)(await import(entry)).Kitoken
}

const OracleSpeeds = Schema.fromJsonString(
  Schema.Array(Schema.Struct({ first: Schema.Number, second: Schema.Number, sentencepiece: Schema.Number }))
)

/** SentencePiece's C++ library over the same text in documents of 4 KB; the program ends with an error when an id differs. */
const measureSentencePiece = async (model: string, corpora: ReadonlyArray<Corpus>, folder: string) => {
  const paths = corpora.map((_, i) => join(folder, `corpus-${i}`))
  for (const [i, corpus] of corpora.entries()) await writeFile(paths[i]!, Buffer.concat(corpus.documents))
  const { stdout } = await run(oracle, [model, "speed", ...paths])
  return Schema.decodeUnknownSync(OracleSpeeds)(stdout.trimEnd().split("\n").at(-1))
}

const attempt = <A>(work: () => Promise<A>) =>
  Effect.tryPromise({ try: work, catch: (cause) => (cause instanceof Error ? cause.message : String(cause)) })

export const tokenize = Effect.fn("bench.tokenize")(function* ({ quick }: { readonly quick: boolean }) {
  const native = yield* load
  const vocabulary = yield* loadVocabulary("llama-2")
  const folder = yield* Effect.acquireRelease(
    Effect.promise(() => mkdtemp(join(tmpdir(), "tinyllama-tokenize-"))),
    (path) => Effect.promise(() => rm(path, { recursive: true, force: true }))
  )
  const model = sentencePieceModel(vocabulary)
  const modelPath = join(folder, "tokenizer.model")
  yield* Effect.promise(() => writeFile(modelPath, model))
  const real = yield* Effect.promise(() => realCorpora(quick ? 4e6 : 22e6))
  const corpora = [...real, ...adversarialCorpora(real[0]!)]
  const peer = yield* attempt(() => fetchKitoken(folder)).pipe(
    Effect.catch((reason) => Effect.as(Console.log(`No comparison with kitoken: ${reason.split("\n")[0]}`), undefined))
  )
  const sentencePiece = yield* attempt(() => measureSentencePiece(modelPath, corpora, folder)).pipe(
    Effect.catch((reason) =>
      Effect.as(
        Console.log(
          `No comparison with SentencePiece (Debian: apt install libsentencepiece-dev, then npm run test:native): ${reason.split("\n")[0]}`
        ),
        undefined
      )
    )
  )
  yield* Console.log(
    `${native.instructionSet()}; MB/s of one core, CPU time\n` +
      `${"".padEnd(20)}${["MB", "B/token", "first pass", "second", "avx2", "scalar", "SentencePiece", "kitoken", "ratios"].map((head) => head.padStart(14)).join("")}`
  )
  const rows = []
  for (const [i, corpus] of corpora.entries()) {
    const batch = batchOf(corpus)
    const rounds = quick ? 3 : 7
    const lowered = (set: string) =>
      Effect.acquireUseRelease(
        Effect.sync(() => (process.env["TINYLLAMA_SIMD"] = set)),
        () => Effect.promise(() => measureNative(native, vocabulary, batch, 3)),
        () => Effect.sync(() => delete process.env["TINYLLAMA_SIMD"])
      )
    const ours = yield* Effect.promise(() => measureNative(native, vocabulary, batch, rounds))
    const { first: avx2 } = yield* lowered("avx2")
    const { first: scalar } = yield* lowered("scalar")
    const kitoken = peer === undefined ? undefined : measureKitoken(peer, model, corpus, ours.batch)
    const sentencepiece = sentencePiece?.[i]?.sentencepiece
    const row = {
      corpus: corpus.name,
      bytes: batch.text.length,
      tokens: ours.batch.ids.length,
      first: ours.first,
      second: ours.second,
      avx2,
      scalar,
      sentencepiece,
      kitoken,
      // In C++, in turns, in one process.
      overSentencePiece: sentencePiece?.[i] && sentencePiece[i].first / sentencePiece[i].sentencepiece,
      overKitoken: kitoken && ours.first / kitoken
    }
    rows.push(row)
    const cells = [
      (row.bytes / 1e6).toFixed(1),
      (row.bytes / row.tokens).toFixed(2),
      ...[row.first, row.second, avx2, scalar].map((rate) => rate.toFixed(0)),
      sentencepiece?.toFixed(2) ?? "-",
      kitoken?.toFixed(2) ?? "-",
      [row.overSentencePiece, row.overKitoken].map((ratio) => (ratio ? `${ratio.toFixed(1)}x` : "-")).join(" ")
    ]
    yield* Console.log(corpus.name.padEnd(20) + cells.map((cell) => cell.padStart(14)).join(""))
  }
  const scaling = yield* Effect.promise(() => measureScaling(native, vocabulary, batchOf(real[0]!), quick ? 5 : 15))
  yield* Console.log(`2 threads: ${scaling.toFixed(2)}x one (wall time, the best of each, in turns, warm)`)
  return { instructionSet: native.instructionSet(), rows, scaling }
}, Effect.scoped)
