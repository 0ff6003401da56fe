/**
 * test/oracle/safetensors/tiny.safetensors and mixed.safetensors: bytes of Hugging Face's own writer (see the README beside them).
 */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, layer } from "@effect/vitest"
import { Effect, FileSystem, Result, Schema } from "effect"
import { fromBfloat16, fromFloat16, toBfloat16, toFloat16 } from "../../src/model/HalfPrecision.ts"
import {
  encodeFloats,
  type FloatDtype,
  MAX_HEADER_BYTES,
  readSafetensors,
  type TensorSource,
  writeSafetensors
} from "../../src/model/Safetensors.ts"

const source = (name: string, dtype: FloatDtype, shape: ReadonlyArray<number>, values: ReadonlyArray<number>) => ({
  name,
  dtype,
  shape,
  values: Effect.succeed(Float32Array.from(values))
})

const file = (header: string, data: Uint8Array = new Uint8Array(0)): Uint8Array => {
  const json = new TextEncoder().encode(header)
  const out = new Uint8Array(8 + json.length + data.length)
  new DataView(out.buffer).setBigUint64(0, BigInt(json.length), true)
  out.set(json, 8)
  out.set(data, 8 + json.length)
  return out
}

/** xorshift32: mutations must be the same on every run. */
const generator = (seed: number) => () => {
  seed ^= seed << 13
  seed ^= seed >>> 17
  seed ^= seed << 5
  return seed >>> 0
}

const Tensors = Schema.Array(
  Schema.Struct({
    name: Schema.NonEmptyString,
    dtype: Schema.Literals(["F32", "F16", "BF16"]),
    shape: Schema.Array(Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 4 }))).check(Schema.isMaxLength(3)),
    seed: Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 2 ** 31 - 1 }))
  })
).check(Schema.isMaxLength(6))

layer(NodeServices.layer)("Safetensors", (it) => {
  it.effect.prop(
    "written tensors read back in their dtype, and writing again gives the same bytes",
    [Tensors, Schema.Record(Schema.String, Schema.String)],
    ([tensors, metadata]) =>
      Effect.gen(function* () {
        const fs = yield* FileSystem.FileSystem
        const folder = yield* fs.makeTempDirectoryScoped()
        const unique = [...new Map(tensors.filter((t) => t.name !== "__metadata__").map((t) => [t.name, t])).values()]
        const made = unique.map((tensor) => {
          const next = generator(tensor.seed)
          const length = tensor.shape.reduce((a, b) => a * b, 1)
          return { ...tensor, numbers: Array.from({ length }, () => next() / 2 ** 31 - 1) }
        })
        const sources = made.map((t) => source(t.name, t.dtype, t.shape, t.numbers))
        const written = yield* writeSafetensors(`${folder}/a`, sources, metadata)
        const again = yield* writeSafetensors(`${folder}/b`, sources.toReversed(), metadata)
        assert.deepStrictEqual(written, again)
        const read = yield* readSafetensors(`${folder}/a`)
        assert.deepStrictEqual({ ...read.metadata }, { ...metadata })
        assert.strictEqual(read.tensors.size, made.length)
        for (const tensor of made) {
          const back = read.tensors.get(tensor.name)!
          assert.strictEqual(back.dtype, tensor.dtype)
          assert.deepStrictEqual(back.shape, tensor.shape)
          const bytes = yield* back.bytes()
          assert.deepStrictEqual([...bytes], [...encodeFloats(Float32Array.from(tensor.numbers), tensor.dtype)])
          const values = yield* back.toFloat32()
          const tolerance = { F32: 0, F16: 2 ** -11, BF16: 2 ** -8 }[tensor.dtype]
          values.forEach((value, i) =>
            assert.isAtMost(Math.abs(value - Math.fround(tensor.numbers[i]!)), tolerance * Math.abs(value) + 2 ** -25)
          )
        }
      }).pipe(Effect.scoped),
    { arbitrary: { runs: 60 } }
  )

  it.effect("reads what Hugging Face wrote and writes the same bytes", () =>
    Effect.gen(function* () {
      const fs = yield* FileSystem.FileSystem
      const folder = yield* fs.makeTempDirectoryScoped()
      for (const name of ["tiny", "mixed"]) {
        const path = `test/oracle/safetensors/${name}.safetensors`
        const { metadata, tensors } = yield* readSafetensors(path)
        const sources = [...tensors.values()].map((t): TensorSource => ({
          name: t.name,
          dtype: t.dtype as FloatDtype,
          shape: t.shape,
          values: Effect.orDie(t.toFloat32())
        }))
        yield* writeSafetensors(`${folder}/${name}`, sources.toReversed(), metadata)
        assert.deepStrictEqual(
          Buffer.from(yield* fs.readFile(`${folder}/${name}`)),
          Buffer.from(yield* fs.readFile(path))
        )
      }
    })
  )

  it.effect("pads the header with spaces so that the data start at a multiple of 8", () =>
    Effect.gen(function* () {
      const fs = yield* FileSystem.FileSystem
      const path = `${yield* fs.makeTempDirectoryScoped()}/a`
      for (const name of ["a", "ab", "abc", "abcd", "abcdefgh"]) {
        yield* writeSafetensors(path, [source(name, "F32", [1], [1])])
        const bytes = yield* fs.readFile(path)
        const length = Number(new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true))
        assert.strictEqual(length % 8, 0)
        assert.match(new TextDecoder().decode(bytes.subarray(8, 8 + length)), /^\{.*\} *$/)
      }
    })
  )

  it.effect("refuses headers that lie", () =>
    Effect.gen(function* () {
      const fs = yield* FileSystem.FileSystem
      const path = `${yield* fs.makeTempDirectoryScoped()}/lie`
      const four = new Uint8Array(4)
      const huge = new Uint8Array(16)
      new DataView(huge.buffer).setBigUint64(0, 2n ** 63n, true)
      const long = huge.slice()
      new DataView(long.buffer).setBigUint64(0, BigInt(MAX_HEADER_BYTES), true)
      const entry = (offsets: string, shape = "[1]", dtype = "F32") =>
        `"t":{"dtype":"${dtype}","shape":${shape},"data_offsets":${offsets}}`
      const cases: ReadonlyArray<readonly [Uint8Array, RegExp]> = [
        [new Uint8Array(5), /5 bytes, fewer than the 8/],
        [huge, /exceeds the limit/],
        [long, /in a file of 16/],
        [file("[]"), /not a JSON object/],
        [file("{"), /not JSON/],
        [file(`{"\u00ff":1}`).with(10, 0xff), /not JSON/],
        [file(`{${entry("[0,4]")}}`), /ends at 4 of 0 data bytes/],
        [file(`{${entry("[4,0]")}}`, four), /starts at 4, not at 0/],
        [file(`{${entry("[0,4]", "[2]")}}`, four), /takes 8 bytes, not 4/],
        [file(`{${entry("[0,4]", "[9007199254740991,9007199254740991]")}}`, four), /takes/],
        [file(`{${entry("[0,4]", "[-1]")}}`, four), /tensor t/],
        [file(`{${entry("[0,4]", "[0.5]")}}`, four), /tensor t/],
        [file(`{${entry("[0,4]", "[1,1,1,1,1,1,1,1,1]")}}`, four), /tensor t/],
        [file(`{${entry("[0,4]", "[1]", "Q4")}}`, four), /tensor t/],
        [
          file(`{${entry("[0,4]")},"u":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}`, four),
          /starts at 0, not at 4/
        ],
        [file(`{${entry("[0,4]")}}`, new Uint8Array(9)), /5 bytes after the last tensor/],
        [file(`{"__metadata__":{"a":1}}`), /__metadata__/],
        [file(`{"__proto__":{"dtype":"F32"}}`), /tensor __proto__/]
      ]
      for (const [bytes, cause] of cases) {
        yield* fs.writeFile(path, bytes)
        const error = yield* Effect.flip(readSafetensors(path))
        assert.strictEqual(error._tag, "SafetensorsError")
        assert.strictEqual(error.path, path)
        assert.match(error.message, cause)
      }
      const missing = yield* Effect.flip(readSafetensors(`${path}.none`))
      assert.include(missing.message, `${path}.none`)
    })
  )

  it.effect("a truncated or altered file gives a SafetensorsError or a consistent parse", () =>
    Effect.gen(function* () {
      const fs = yield* FileSystem.FileSystem
      const path = `${yield* fs.makeTempDirectoryScoped()}/fuzz`
      yield* writeSafetensors(
        path,
        [source("w", "F32", [2, 3], [1, 2, 3, 4, 5, 6]), source("v", "F16", [4], [1, 2, 3, 4])],
        { format: "pt" }
      )
      const valid = yield* fs.readFile(path)
      const next = generator(7)
      for (let round = 0; round < 1500; round++) {
        const bytes = Uint8Array.from(round % 3 === 0 ? valid.subarray(0, next() % valid.length) : valid)
        if (round % 3 !== 0) for (let n = 0; n <= next() % 3; n++) bytes[next() % bytes.length] = next() & 255
        yield* fs.writeFile(path, bytes)
        const result = yield* Effect.result(readSafetensors(path))
        if (Result.isFailure(result)) {
          assert.strictEqual(result.failure._tag, "SafetensorsError")
        } else {
          for (const tensor of result.success.tensors.values()) {
            assert.strictEqual((yield* tensor.bytes()).length, tensor.byteLength)
          }
        }
      }
    })
  )

  it.effect("a tensor of the wrong length is refused by name", () =>
    Effect.gen(function* () {
      const fs = yield* FileSystem.FileSystem
      const path = `${yield* fs.makeTempDirectoryScoped()}/a`
      const error = yield* Effect.flip(writeSafetensors(path, [source("w", "F16", [3], [1, 2])]))
      assert.include(error.message, "tensor w was given 4 bytes for F16 [3], which takes 6")
    })
  )

  it("fp16 agrees with the engine's Float16Array for all bit patterns and around every rounding border", () => {
    const Float16 = (
      globalThis as unknown as { readonly Float16Array: new (from: ArrayLike<number>) => ArrayBufferView }
    ).Float16Array
    const halves = Uint16Array.from({ length: 65_536 }, (_, i) => i)
    const values = fromFloat16(halves)
    const expected = new Float16(values)
    const bits = new Uint16Array(expected.buffer)
    const isNaN16 = (half: number) => (half & 0x7fff) > 0x7c00
    const back = toFloat16(values)
    for (let i = 0; i < 65_536; i++) {
      const same = isNaN16(i) ? Number.isNaN(values[i]) && isNaN16(back[i]!) : bits[i] === i && back[i] === i
      if (!same) assert.fail(`pattern ${i}`)
    }
    const next = generator(11)
    const words = Uint32Array.from({ length: 400_000 }, (_, i) => {
      // Random patterns, and patterns next to the middle between two halves.
      const word = next()
      return i % 2 === 0 ? word : ((word & 0x8fffe000) | 0x30000000) + 0x1000 + (i % 7) - 3
    })
    const floats = new Float32Array(words.buffer)
    const ours = toFloat16(floats)
    const theirs = new Uint16Array(new Float16(floats).buffer)
    for (let i = 0; i < ours.length; i++) {
      if (ours[i] !== theirs[i] && !(isNaN16(ours[i]!) && isNaN16(theirs[i]!))) assert.fail(`float bits ${words[i]}`)
    }
  })

  it("bf16 rounds to nearest even, keeps NaN and overflows to infinity", () => {
    const words = Uint32Array.of(0x3f808000, 0x3f818000, 0x3f808001, 0x7f800001, 0xff7fffff, 0x80000000, 0x00008001)
    const expected = [0x3f80, 0x3f82, 0x3f81, 0x7fc0, 0xff80, 0x8000, 0x0001]
    assert.deepStrictEqual([...toBfloat16(new Float32Array(words.buffer))], expected)
    const all = Uint16Array.from({ length: 65_536 }, (_, i) => i)
    const back = toBfloat16(fromBfloat16(all))
    for (let i = 0; i < all.length; i++) {
      if ((i & 0x7fff) <= 0x7f80) assert.strictEqual(back[i], i)
      else assert.isTrue((back[i]! & 0x7fff) > 0x7f80)
    }
  })
})
