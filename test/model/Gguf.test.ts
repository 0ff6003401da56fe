import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, layer } from "@effect/vitest"
import { Effect, FileSystem, Result, Schema } from "effect"
import { readGgufFileInfo } from "node-llama-cpp"
import { presets, tensorShapes } from "../../src/model/Architecture.ts"
import { quantize } from "../../src/engine/Quantizer.ts"
import { dequantize } from "../../src/model/GgmlBlocks.ts"
import { ggufName, type GgufType, pairNeighbours, tensorType, writeLlamaGguf } from "../../src/model/Gguf.ts"
import { tensorBytes, type TensorType } from "../../src/model/GgufFormat.ts"
import { MAX_STRING_BYTES, readGguf } from "../../src/model/GgufReader.ts"
import { type MetadataValue, writeGguf } from "../../src/model/GgufWriter.ts"
import { loadVocabulary } from "../../src/model/Vocabulary.ts"
import { elementsOf, randomWeights, smallShape } from "./random-model.ts"

const Value = Schema.Union([
  Schema.Struct({
    type: Schema.Literal("uint32"),
    value: Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 2 ** 32 - 1 }))
  }),
  Schema.Struct({
    type: Schema.Literal("int32"),
    value: Schema.Int.check(Schema.isBetween({ minimum: -(2 ** 31), maximum: 2 ** 31 - 1 }))
  }),
  Schema.Struct({ type: Schema.Literal("bool"), value: Schema.Boolean }),
  Schema.Struct({ type: Schema.Literal("string"), value: Schema.String }),
  Schema.Struct({ type: Schema.Literal("array"), of: Schema.Literal("string"), values: Schema.Array(Schema.String) })
])
const Tensor = Schema.Struct({
  type: Schema.Literals(["F32", "F16", "Q8_0", "Q4_0"]),
  rows: Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 5 })),
  blocks: Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 3 }))
})

const generator = (seed: number) => () => {
  seed ^= seed << 13
  seed ^= seed >>> 17
  seed ^= seed << 5
  return seed >>> 0
}

const source = (name: string, type: TensorType, shape: ReadonlyArray<number>) => ({
  name,
  type,
  shape,
  bytes: Effect.sync(() =>
    Uint8Array.from({ length: tensorBytes(type, elementsOf(shape)) }, (_, i) => i * 7 + name.length)
  )
})

const small = (path: string) =>
  writeGguf(
    path,
    [
      ["general.architecture", { type: "string", value: "llama" }],
      ["general.alignment", { type: "uint32", value: 32 }],
      ["some.floats", { type: "array", of: "float32", values: [0.5, -1] }],
      ["some.words", { type: "array", of: "string", values: ["a", "▁b", ""] }]
    ],
    [source("w", "F32", [3, 2]), source("v.weight", "Q8_0", [2, 64]), source("h", "F16", [5])]
  )

const writeModel = (path: string, type: GgufType, shape = smallShape) =>
  Effect.gen(function* () {
    const weights = randomWeights(shape)
    const vocabulary = yield* loadVocabulary("llama-2")
    const write = { name: "tinyllama", shape, type, vocabulary, chat: "guanaco" } as const
    return yield* writeLlamaGguf(path, { ...write, weights: (name) => Effect.succeed(weights.get(name)!) })
  })

layer(NodeServices.layer)("Gguf", (it) => {
  it.effect.prop(
    "what is written reads back, metadata and tensors",
    [Schema.Array(Schema.Tuple([Schema.String, Value])), Schema.Array(Tensor)],
    ([entries, tensors]) =>
      Effect.gen(function* () {
        const fs = yield* FileSystem.FileSystem
        const path = `${yield* fs.makeTempDirectoryScoped()}/a.gguf`
        const metadata = [...new Map(entries.filter(([key]) => key !== "general.alignment" && key.isWellFormed()))]
        const sources = tensors.map(({ blocks, rows, type }, i) => source(`t${i}`, type, [rows, 32 * blocks]))
        yield* writeGguf(path, metadata as ReadonlyArray<[string, MetadataValue]>, sources)
        const read = yield* readGguf(path)
        for (const [key, entry] of metadata) {
          const expected = entry.type === "array" ? entry.values.map((v) => v.toWellFormed()) : entry.value
          const plain = typeof expected === "string" ? expected.toWellFormed() : expected
          assert.deepStrictEqual(read.metadata.get(key), plain)
        }
        assert.deepStrictEqual(
          [...read.tensors.keys()],
          sources.map(({ name }) => name)
        )
        for (const { bytes, name, shape, type } of sources) {
          const tensor = read.tensors.get(name)!
          assert.deepStrictEqual(tensor.dimensions, shape.toReversed())
          assert.strictEqual(tensor.type, type)
          assert.strictEqual(tensor.position % 32, 0)
          assert.deepStrictEqual(yield* tensor.bytes(), yield* bytes)
        }
      }).pipe(Effect.scoped),
    { arbitrary: { runs: 60 } }
  )

  it.effect("writes the layout of the specification, byte for byte", () =>
    Effect.gen(function* () {
      const fs = yield* FileSystem.FileSystem
      const path = `${yield* fs.makeTempDirectoryScoped()}/a.gguf`
      yield* writeGguf(
        path,
        [
          ["ab", { type: "uint32", value: 7 }],
          ["c", { type: "array", of: "string", values: ["é"] }]
        ],
        [{ name: "t", type: "F32", shape: [1, 2], bytes: Effect.succeed(new Uint8Array([1, 2, 3, 4, 5, 6, 7, 8])) }]
      )
      const u64 = (value: number) => [value, 0, 0, 0, 0, 0, 0, 0]
      const u32 = (value: number) => [value, 0, 0, 0]
      const start = [0x47, 0x47, 0x55, 0x46, ...u32(3), ...u64(1), ...u64(2)]
      const number = [...u64(2), 0x61, 0x62, ...u32(4), ...u32(7)]
      const array = [...u64(1), 0x63, ...u32(9), ...u32(8), ...u64(1), ...u64(2), 0xc3, 0xa9]
      const table = [...u64(1), 0x74, ...u32(2), ...u64(2), ...u64(1), ...u32(0), ...u64(0)]
      const head = [...start, ...number, ...array, ...table]
      const expected = [...head, ...Array.from({ length: 128 - head.length }, () => 0), 1, 2, 3, 4, 5, 6, 7, 8]
      assert.deepStrictEqual([...(yield* fs.readFile(path))], [...expected, ...Array.from({ length: 24 }, () => 0)])
    })
  )

  it.effect("an altered or truncated file gives a GgufError or a consistent parse", () =>
    Effect.gen(function* () {
      const fs = yield* FileSystem.FileSystem
      const path = `${yield* fs.makeTempDirectoryScoped()}/fuzz.gguf`
      yield* small(path)
      const valid = yield* fs.readFile(path)
      const next = generator(5)
      for (let round = 0; round < 800; round++) {
        const bytes = Uint8Array.from(round % 4 === 0 ? valid.subarray(0, next() % valid.length) : valid)
        // The header takes 340 of the bytes: most changes go there.
        if (round % 4 !== 0)
          for (let n = 0; n <= next() % 4; n++) bytes[next() % Math.min(360, bytes.length)] = next() & 255
        yield* fs.writeFile(path, bytes)
        const result = yield* Effect.result(readGguf(path))
        if (Result.isFailure(result)) assert.strictEqual(result.failure._tag, "GgufError")
        else {
          for (const tensor of result.success.tensors.values()) {
            assert.strictEqual((yield* tensor.bytes()).length, tensor.byteLength)
          }
        }
      }
    })
  )

  it.effect("refuses headers that lie, before it allocates what they claim", () =>
    Effect.gen(function* () {
      const fs = yield* FileSystem.FileSystem
      const path = `${yield* fs.makeTempDirectoryScoped()}/lie.gguf`
      const head = (tensors: bigint, entries: bigint, ...rest: ReadonlyArray<readonly [4 | 8, bigint]>) => {
        const out = new DataView(new ArrayBuffer(24 + rest.reduce((sum, [width]) => sum + width, 0) + 64))
        out.setUint32(0, 0x46554747, true)
        out.setUint32(4, 3, true)
        out.setBigUint64(8, tensors, true)
        out.setBigUint64(16, entries, true)
        let at = 24
        for (const [width, value] of rest) {
          if (width === 8) out.setBigUint64(at, value, true)
          else out.setUint32(at, Number(value), true)
          at += width
        }
        return new Uint8Array(out.buffer)
      }
      const huge = 2n ** 60n
      const version2 = head(0n, 0n)
      version2[4] = 2
      const cases: ReadonlyArray<readonly [Uint8Array, RegExp]> = [
        [new Uint8Array(0), /4 bytes are needed/],
        [new TextEncoder().encode("PK\u0003\u0004 and so on"), /does not begin with GGUF/],
        [version2, /version 2/],
        [head(huge, 0n), /tensors exceed the limit/],
        [head(1000n, 0n), /1000 tensors do not fit/],
        [head(0n, huge), /metadata entries exceed the limit/],
        [head(0n, 1n, [8, huge]), /bytes of a string exceed the limit/],
        [head(0n, 1n, [8, 60_000n]), /60000 bytes of a string do not fit/],
        // An empty key with a string, an array of strings, an array of arrays, a type that is none.
        [head(0n, 1n, [8, 0n], [4, 8n], [8, BigInt(MAX_STRING_BYTES) + 1n]), /exceed the limit/],
        [head(0n, 1n, [8, 0n], [4, 9n], [4, 8n], [8, 1000n]), /1000 array items do not fit/],
        [head(0n, 1n, [8, 0n], [4, 9n], [4, 9n], [8, 1n]), /an array in an array/],
        [head(0n, 1n, [8, 0n], [4, 13n]), /unknown value type 13/],
        // Tensors with an empty name: rank, dimensions, type, offset.
        [head(1n, 0n, [8, 0n], [4, 9n]), /9 dimensions/],
        [head(1n, 0n, [8, 0n], [4, 2n], [8, 2n ** 40n], [8, 2n ** 40n]), /too many elements/],
        [head(1n, 0n, [8, 0n], [4, 1n], [8, 2n ** 50n], [4, 0n], [8, 0n]), /needs 4503599627370496 bytes/],
        [head(1n, 0n, [8, 0n], [4, 1n], [8, 31n], [4, 8n], [8, 0n]), /no multiple of Q8_0's block/],
        [head(1n, 0n, [8, 0n], [4, 1n], [8, 1n], [4, 99n], [8, 0n]), /unknown type 99/],
        [head(1n, 0n, [8, 0n], [4, 1n], [8, 1n], [4, 0n], [8, 32n]), /starts at 32, not at 0/]
      ]
      for (const [bytes, cause] of cases) {
        yield* fs.writeFile(path, bytes)
        const error = yield* Effect.flip(readGguf(path))
        assert.strictEqual(error._tag, "GgufError")
        assert.match(error.message, cause)
        assert.include(error.message, path)
      }
    })
  )

  it("query and key rows: neighbours there are the halves of a head here", () => {
    for (const headSize of [4, 16, 64]) {
      for (const heads of [1, 3]) {
        const columns = 2
        const rows = Float32Array.from({ length: heads * headSize * columns }, (_, i) => i)
        const out = pairNeighbours(rows, columns, headSize)
        for (let h = 0; h < heads; h++) {
          for (let j = 0; j < headSize / 2; j++) {
            for (const p of [0, 1]) {
              const there = h * headSize + 2 * j + p
              const here = h * headSize + (p * headSize) / 2 + j
              for (let c = 0; c < columns; c++) assert.strictEqual(out[there * columns + c], rows[here * columns + c])
            }
          }
        }
      }
    }
  })

  it.effect("blocks read back within half a step of their scale", () =>
    Effect.gen(function* () {
      const next = generator(3)
      const values = Float32Array.from({ length: 640 }, () => (next() / 2 ** 32 - 0.5) * 0.1)
      for (const [type, steps] of [
        ["Q8_0", 127],
        ["Q4_0", 8],
        ["F16", 2048]
      ] as const) {
        const back = dequantize(type, yield* quantize(type, values, 64))
        for (let block = 0; block < 640; block += 32) {
          const largest = Math.max(...values.subarray(block, block + 32).map(Math.abs))
          // Q4_0 has levels −8..7 of a step: the far end of the other sign is one step away. The scale itself is rounded to f16.
          const allowed = (largest / steps) * (type === "Q4_0" ? 1 : 0.5) + largest * 2 ** -11
          for (let i = block; i < block + 32; i++) assert.isAtMost(Math.abs(back[i]! - values[i]!), allowed)
        }
      }
    })
  )

  it("types: norms F32, output projection at least Q8_0, rows without whole blocks F16", () => {
    const typesOf = (type: GgufType, tied: boolean, hidden_size = 64) =>
      new Map(
        tensorShapes({ ...smallShape, hidden_size, tie_word_embeddings: tied }).map((t) => [
          ggufName(t.name),
          tensorType(t, type, tied)
        ])
      )
    const four = typesOf("Q4_0", false)
    assert.deepStrictEqual(
      [four.get("output.weight"), four.get("token_embd.weight"), four.get("blk.1.ffn_down.weight")],
      ["Q8_0", "Q4_0", "Q4_0"]
    )
    for (const name of ["output_norm.weight", "blk.0.attn_norm.weight", "blk.1.ffn_norm.weight"]) {
      for (const type of ["F32", "F16", "Q8_0", "Q4_0"] as const)
        assert.strictEqual(typesOf(type, false).get(name), "F32")
    }
    assert.strictEqual(typesOf("Q4_0", true).get("token_embd.weight"), "Q8_0")
    assert.strictEqual(typesOf("Q8_0", false, 48).get("blk.0.attn_q.weight"), "F16")
    assert.strictEqual(typesOf("Q8_0", false, 48).get("blk.0.ffn_down.weight"), "Q8_0")
  })

  it("a TinyLlama file has the tensor bytes that llama.cpp's tool writes", () => {
    // From llama-quantize of the shape with random weights; its header took 0.74 MB. Q4_0 differs by the output projection: Q6_K there.
    const bytes = (type: GgufType) =>
      tensorShapes(presets["tinyllama-1.1b"]).reduce(
        (sum, t) => sum + tensorBytes(tensorType(t, type, false), elementsOf(t.shape)),
        0
      )
    const header = 2_201_017_472 - bytes("F16")
    assert.isTrue(header > 700_000 && header < 780_000)
    assert.isAtMost(Math.abs(1_169_808_544 - bytes("Q8_0") - header), 100)
    const q6k = tensorBytes("Q6_K", 65_536_000)
    const q8 = tensorBytes("Q8_0", 65_536_000)
    assert.isAtMost(Math.abs(636_726_432 - (bytes("Q4_0") - q8 + q6k) - header), 100)
  })

  it.effect("another reader finds the same in a model file", () =>
    Effect.gen(function* () {
      const fs = yield* FileSystem.FileSystem
      const folder = yield* fs.makeTempDirectoryScoped()
      for (const type of ["F32", "F16", "Q8_0", "Q4_0"] as const) {
        const path = `${folder}/${type}.gguf`
        const report = yield* writeModel(path, type)
        assert.strictEqual(report.bytes, Number((yield* fs.stat(path)).size))
        assert.deepStrictEqual(yield* writeModel(`${folder}/again.gguf`, type), report)
        const ours = yield* readGguf(path)
        const theirs = yield* Effect.promise(() => readGgufFileInfo(path, { sourceType: "filesystem" }))
        assert.strictEqual(theirs.version, 3)
        assert.deepStrictEqual(
          theirs.tensorInfo!.map((t) => [t.name, t.dimensions.map(Number), Number(t.offset) + theirs.infoEndOffset!]),
          [...ours.tensors.values()].map((t) => [t.name, [...t.dimensions], t.position])
        )
        const { general, llama, tokenizer } = theirs.metadata as unknown as Record<string, Record<string, unknown>>
        assert.strictEqual(general!["architecture"], "llama")
        assert.strictEqual(general!["file_type"], { F32: 0, F16: 1, Q8_0: 7, Q4_0: 2 }[type])
        assert.deepInclude(llama, { context_length: 64, embedding_length: 64, block_count: 2, feed_forward_length: 96 })
        assert.deepInclude(llama!["attention"], { head_count: 4, head_count_kv: 2, key_length: 16, value_length: 16 })
        const { ggml } = tokenizer as Record<string, Record<string, unknown>>
        assert.deepInclude(ggml, { model: "llama", bos_token_id: 1, eos_token_id: 2, unknown_token_id: 0 })
        assert.deepInclude(ggml, { add_bos_token: true, add_eos_token: false, add_space_prefix: true })
        assert.strictEqual((ggml!["tokens"] as ReadonlyArray<string>).length, 32_000)
        assert.include(String(tokenizer!["chat_template"]), "### Human: ")
      }
    })
  )

  it.effect("states the size and the error of each type", () =>
    Effect.gen(function* () {
      const fs = yield* FileSystem.FileSystem
      const folder = yield* fs.makeTempDirectoryScoped()
      const reports = new Map<GgufType, Effect.Success<ReturnType<typeof writeModel>>>()
      for (const type of ["F32", "F16", "Q8_0", "Q4_0"] as const) {
        reports.set(type, yield* writeModel(`${folder}/a.gguf`, type))
      }
      assert.strictEqual(reports.get("F32")!.rmsError, 0)
      assert.approximately(reports.get("F16")!.bitsPerWeight, 16, 0.1)
      assert.approximately(reports.get("Q8_0")!.bitsPerWeight, 8.5, 0.1)
      // Half of the weights are the output projection, at 8.5 bits.
      assert.approximately(reports.get("Q4_0")!.bitsPerWeight, (8.5 + 4.5) / 2, 0.1)
      // Uniform weights: a step of 2/254 resp. 2/16 of the range, error step / sqrt(12), weights' root mean square 1 / sqrt(3) of the range.
      assert.approximately(reports.get("Q8_0")!.relativeRmsError, 1 / 254, 0.0005)
      assert.isBelow(reports.get("F16")!.relativeRmsError, 2 ** -11)
      assert.deepStrictEqual(reports.get("Q4_0")!.fallbacks, [])
      const narrow = yield* writeModel(`${folder}/a.gguf`, "Q8_0", {
        ...smallShape,
        hidden_size: 48,
        intermediate_size: 64
      })
      assert.include(narrow.fallbacks, "model.layers.0.self_attn.q_proj.weight")
      assert.notInclude(narrow.fallbacks, "model.layers.0.mlp.down_proj.weight")
    })
  )

  it.effect("a tokenizer of another size is refused", () =>
    Effect.gen(function* () {
      const fs = yield* FileSystem.FileSystem
      const path = `${yield* fs.makeTempDirectoryScoped()}/a.gguf`
      const error = yield* Effect.flip(writeModel(path, "F16", { ...smallShape, vocab_size: 320 }))
      assert.include(error.message, "320 token ids")
    })
  )
})
