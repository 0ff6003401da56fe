import { assert, describe, it } from "@effect/vitest"
import { presetNamed } from "../../src/data/Presets.ts"
import { expectedTokens, forecastDownload } from "../../src/stages/DownloadForecast.ts"
import { forecastTokenize } from "../../src/stages/TextForecast.ts"

const slimPajama = presetNamed("slimpajama")

describe("the forecast of a download", () => {
  it("knows presets without the network: bytes, files, tokens", () => {
    const { amount, bytes, outputs } = forecastDownload(
      [{ preset: "slimpajama" }, { preset: "starcoderdata" }],
      undefined,
      undefined
    )
    assert.strictEqual(amount, 1_183e9)
    assert.isAtLeast(bytes ?? 0, 1_183e9)
    const documents = outputs["documents"]
    assert.deepInclude(documents, { bytes: 1_183e9, expected_tokens: 950e9 })
    const { outputs: next } = forecastTokenize(
      { tokenizer: "llama-2", bos: "document", eos: "none", shard_bytes: 2 ** 27, sample: null },
      [documents ?? {}]
    )
    assert.deepInclude(next["tokens"], { tokens: 950e9 })
  })

  it("max_bytes bounds a preset, and is all that is known of another source", () => {
    const of = (source: Parameters<typeof forecastDownload>[0][number]) =>
      forecastDownload([source], undefined, undefined)
    assert.strictEqual(of({ preset: "slimpajama", max_bytes: 10e9 }).amount, 10e9)
    assert.strictEqual(of({ preset: "openassistant-guanaco", max_bytes: 10e9 }).amount, 20.9e6)
    assert.strictEqual(of({ preset: "slimpajama", include: "train/chunk1/*" }).amount, undefined)
    assert.strictEqual(of({ hub: "owner/name", include: "*", max_bytes: 5 }).amount, 5)
    assert.strictEqual(of({ url: "https://example.org/a.txt" }).amount, undefined)
  })

  it("tokens are told where a preset knows their rate", () => {
    assert.strictEqual(
      expectedTokens([{ preset: "slimpajama", max_bytes: 1e9 }], [1e9]),
      Math.round(1e9 * (slimPajama.tokensPerByte ?? 0))
    )
    assert.strictEqual(expectedTokens([{ path: "a.txt" }], [100]), undefined)
    assert.strictEqual(
      expectedTokens([{ preset: "slimpajama" }, { url: "https://example.org/a" }], [1, undefined]),
      undefined
    )
  })
})
