/**
 * The data path: jsonl.zst → tokens → packed blocks against decompression and the tokenizer alone, one after the other; memory of each stage, also on one
 * document of 1 GB; the loader from a warm cache, and its first batch deep inside a dataset of 10^12 tokens.
 */
import { spawnSync } from "node:child_process"
import {
  closeSync,
  createWriteStream,
  globSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
  writeSync
} from "node:fs"
import { loadavg, tmpdir } from "node:os"
import { join } from "node:path"
import { performance } from "node:perf_hooks"
import { once } from "node:events"
import { fileURLToPath } from "node:url"
import { createZstdCompress } from "node:zlib"
import { Console, Effect, Schema } from "effect"
import { readPieces } from "../../src/data/Decompression.ts"
import { encodeList } from "../../src/data/Documents.ts"
import { PackedDatasetFacts } from "../../src/data/PackedDataset.ts"
import { load } from "../../src/engine/Native.ts"
import { workerFlags } from "../../src/pipeline/run/WorkerProcess.ts"
import { loadTokenizer } from "../../src/engine/Tokenizer.ts"
import { syntheticDataset } from "./synthetic-dataset.ts"

const root = fileURLToPath(new URL("../..", import.meta.url))
const stageProgram = fileURLToPath(new URL("data-stage.ts", import.meta.url))
const SEQ_LEN = 2048
const megabytes = (bytes: number): string => `${(bytes / 1e6).toFixed(0)} MB`
const secondsOf = async (work: () => Promise<unknown>): Promise<number> => {
  const started = performance.now()
  await work()
  return (performance.now() - started) / 1000
}

/** Real texts that the packages brought: documentation and sources, about half of each by bytes. */
const realTexts = (): ReadonlyArray<string> => {
  const take = (pattern: string, most: number): ReadonlyArray<string> => {
    let bytes = 0
    return globSync(pattern, { cwd: join(root, "node_modules") })
      .toSorted()
      .flatMap((name) => {
        const file = join(root, "node_modules", name)
        const { size } = statSync(file)
        if (bytes > most || size < 500 || size > 200_000) return []
        bytes += size
        return [readFileSync(file, "utf8")]
      })
  }
  return [...take("**/*.md", 12e6), ...take("{effect,undici,node-llama-cpp}/**/*.js", 12e6)]
}

/** A Documents artifact of one jsonl.zst file of SlimPajama's form, of `bytes` of text. Texts repeat, each time behind another number. */
export const makeCorpus = async (
  folder: string,
  bytes: number
): Promise<{ readonly text: number; readonly file: string }> => {
  mkdirSync(join(folder, "files"), { recursive: true })
  const file = join(folder, "files", "corpus.jsonl.zst")
  const compress = createZstdCompress()
  const sink = createWriteStream(file)
  compress.pipe(sink)
  const texts = realTexts()
  let written = 0
  for (let i = 0; written < bytes; i++) {
    const text = `${i}\n${texts[i % texts.length]}`
    written += Buffer.byteLength(text)
    if (
      !compress.write(
        `${JSON.stringify({ text, meta: { redpajama_set_name: i % 10 === 0 ? "RedPajamaGithub" : "RedPajamaBook" } })}\n`
      )
    )
      await once(compress, "drain")
  }
  compress.end()
  await once(sink, "close")
  const size = statSync(file).size
  const entry = {
    path: "files/corpus.jsonl.zst",
    format: "jsonl",
    source: "corpus.jsonl.zst",
    bytes: size,
    sha256: ""
  } as const
  writeFileSync(join(folder, "documents.jsonl"), encodeList([entry]))
  writeFileSync(join(folder, "facts.json"), JSON.stringify({ files: 1, bytes: size }))
  return { text: written, file }
}

const Measured = Schema.fromJsonString(
  Schema.Struct({ seconds: Schema.Finite, peakBytes: Schema.Finite, peakAnonymousBytes: Schema.Finite })
)

const runStage = Effect.fnUntraced(function* (
  name: "tokenize" | "pack",
  input: string,
  output: string,
  threads: number,
  params: Readonly<Record<string, unknown>>
) {
  const child = spawnSync(
    process.execPath,
    [...workerFlags, stageProgram, name, input, output, String(threads), JSON.stringify(params)],
    {
      encoding: "utf8",
      stdio: ["ignore", "pipe", "inherit"]
    }
  )
  const measured = yield* Schema.decodeUnknownEffect(Measured)(child.stdout)
  yield* Console.log(
    `  ${name}: ${measured.seconds.toFixed(1)} s, peak ${megabytes(measured.peakBytes)} resident, ${megabytes(measured.peakAnonymousBytes)} of them its own`
  )
  return measured
})

/**
 * Seconds of decompression alone, of the tokenizer alone on the same texts (measured on the first part of them), and of both stages. In sequence the first two
 * would go at 1 / (1 / decompression + 1 / tokenizer).
 */
const endToEnd = Effect.fnUntraced(function* (
  folder: string,
  corpus: { readonly text: number; readonly file: string },
  threads: number
) {
  yield* Console.log(
    `\n${megabytes(corpus.text)} of text in a jsonl.zst file of ${megabytes(statSync(corpus.file).size)}, ${threads === 1 ? "1 thread" : `${threads} threads`} (load ${loadavg()[0]?.toFixed(1)})`
  )
  const decompression = yield* Effect.promise(() =>
    secondsOf(async () => {
      for await (const piece of readPieces(corpus.file)) if (piece.bytes.length === 0) return
    })
  )
  const tokenizer = yield* loadTokenizer("llama-2")
  const texts = realTexts().map((text) => Buffer.from(text))
  const whole = Buffer.concat(texts)
  const offsets = new Uint32Array(texts.length + 1)
  for (const [i, text] of texts.entries()) offsets[i + 1] = (offsets[i] ?? 0) + text.length
  const encode = tokenizer.encodeBatch(whole, offsets, { addBos: true, threads })
  const timed = Effect.promise(() => secondsOf(() => Effect.runPromise(encode)))
  const rounds = [yield* timed, yield* timed, yield* timed]
  // texts come back after 24 MB here as in the file: what the tokenizer remembers of words counts for both
  const perByte = rounds.map((seconds) => seconds / whole.length).toSorted((a, b) => a - b)[1] ?? 0
  const tokenization = perByte * corpus.text
  yield* Console.log(
    `  decompression alone ${decompression.toFixed(1)} s (${(corpus.text / decompression / 1e6).toFixed(0)} MB/s), tokenizer alone ${tokenization.toFixed(1)} s (${(1e-6 / perByte).toFixed(0)} MB/s)`
  )
  const tokens = join(folder, "tokens")
  for (const name of ["tokens", "tokens.work", "packed", "packed.work"])
    rmSync(join(folder, name), { recursive: true, force: true })
  const tokenize = yield* runStage("tokenize", join(folder, "documents"), tokens, threads, {})
  const pack = yield* runStage("pack", tokens, join(folder, "packed"), threads, { seq_len: SEQ_LEN })
  const share = (decompression + tokenization) / (tokenize.seconds + pack.seconds)
  yield* Console.log(`  end to end ${(100 * share).toFixed(0)} % of decompression and tokenizer in sequence`)
  return {
    textBytes: corpus.text,
    threads,
    decompressionSeconds: decompression,
    tokenizerSeconds: tokenization,
    tokenize,
    pack,
    share
  }
})

const longDocument = Effect.fnUntraced(function* (folder: string, bytes: number, threads: number) {
  const documents = join(folder, "long")
  mkdirSync(join(documents, "files"), { recursive: true })
  const file = join(documents, "files", "long.txt")
  const descriptor = openSync(file, "w")
  const piece = Buffer.from(realTexts().join("\n"))
  let size = 0
  while (size < bytes) size += writeSync(descriptor, piece)
  closeSync(descriptor)
  writeFileSync(
    join(documents, "documents.jsonl"),
    encodeList([{ path: "files/long.txt", format: "text", source: "long.txt", bytes: size, sha256: "" }])
  )
  writeFileSync(join(documents, "facts.json"), JSON.stringify({ files: 1, bytes: size }))
  yield* Console.log(`\none document of ${megabytes(size)}`)
  const tokenize = yield* runStage("tokenize", documents, join(folder, "long-tokens"), threads, {})
  const pack = yield* runStage("pack", join(folder, "long-tokens"), join(folder, "long-packed"), threads, {
    seq_len: SEQ_LEN
  })
  return { bytes: size, tokenize, pack }
})

const loader = Effect.fnUntraced(function* (folder: string) {
  const { Loader } = yield* load
  const facts = yield* Schema.decodeUnknownEffect(PackedDatasetFacts)(
    JSON.parse(readFileSync(join(folder, "packed", "facts.json"), "utf8"))
  )
  const layout = {
    blockLength: SEQ_LEN + 1,
    wide: false,
    boundaries: false,
    lengths: false,
    vocabularySize: facts.vocabulary_size,
    seed: 3407
  }
  const warm = new Loader(join(folder, "packed", "train.arrow"), layout)
  const rows = 64
  const buffer = () => [new Int32Array(rows * SEQ_LEN), new Int32Array(rows * SEQ_LEN)] as const
  const buffers = Array.from({ length: 4 }, buffer)
  /** As the training loop: four batches in flight. */
  const pass = async () => {
    const reading: Array<Promise<void>> = []
    for (let batch = 0; batch * rows < warm.blocks; batch++) {
      await reading[batch - buffers.length]
      const [into, next] = buffers[batch % buffers.length]!
      reading.push(warm.samples(batch * rows, 1, into, next, rows))
    }
    await Promise.all(reading)
    return Math.ceil(warm.blocks / rows) * rows * SEQ_LEN
  }
  const tokensPerSecond = yield* Effect.promise(async () => {
    await pass()
    const started = performance.now()
    let read = 0
    while (performance.now() - started < 2000) read += await pass()
    return read / ((performance.now() - started) / 1000)
  })
  warm.dispose()
  const synthetic = syntheticDataset(join(folder, "synthetic.arrow"), 10 ** 12, SEQ_LEN + 1)
  const [tokens, targets] = buffer()
  const milliseconds = yield* Effect.forEach([0, 1, 2, 3, 4], (i) =>
    Effect.promise(async () => {
      const at = performance.now()
      const cold = new Loader(join(folder, "synthetic.arrow"), layout)
      await cold.samples(10 ** 9 + i * 10 ** 6, 1, tokens, targets, rows)
      const took = performance.now() - at
      cold.dispose()
      return took
    })
  )
  yield* Console.log(
    `\nloader: ${(tokensPerSecond / 1e6).toFixed(0)} M tokens/s on one core from a warm cache; first batch (${rows} × ${SEQ_LEN}) at sample 10^9 of ${synthetic.blocks * SEQ_LEN} tokens ` +
      `(${synthetic.batches} record batches, sparse): ${milliseconds.map((ms) => ms.toFixed(1)).join(", ")} ms`
  )
  return { tokensPerSecond, firstBatchMilliseconds: milliseconds, syntheticTokens: synthetic.blocks * SEQ_LEN }
})

export const data = Effect.fn("bench.data")(function* (options: { readonly quick: boolean; readonly threads: number }) {
  const folder = mkdtempSync(join(tmpdir(), "tinyllama-bench-"))
  return yield* Effect.gen(function* () {
    const corpus = yield* Effect.promise(() => makeCorpus(join(folder, "documents"), options.quick ? 200e6 : 2e9))
    const path = []
    for (const threads of new Set([1, options.threads])) path.push(yield* endToEnd(folder, corpus, threads))
    const long = options.quick ? null : yield* longDocument(folder, 1e9, options.threads)
    return { endToEnd: path, longDocument: long, loader: yield* loader(folder) }
  }).pipe(Effect.ensuring(Effect.sync(() => rmSync(folder, { recursive: true, force: true }))))
})
