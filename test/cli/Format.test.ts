import { assert, describe, it } from "@effect/vitest"
import * as Format from "../../src/cli/Format.ts"

describe("Format", () => {
  it("counts", () => {
    assert.deepStrictEqual([0, 7, 9999, 12_345, 1_100_048_384, 3e12].map(Format.count), [
      "0",
      "7",
      "9999",
      "12.3k",
      "1.1B",
      "3T"
    ])
  })
  it("bytes in decimal units", () => {
    assert.deepStrictEqual([0, 999, 1000, 636_726_432, 999_999].map(Format.bytes), [
      "0 B",
      "999 B",
      "1 kB",
      "637 MB",
      "1 MB"
    ])
  })
  it("durations", () => {
    assert.deepStrictEqual([0.44, 12, 185, 7620, 359_999, 7_812_500, 1e11, Number.NaN].map(Format.duration), [
      "0.4 s",
      "12 s",
      "3 m 05 s",
      "2 h 07 m",
      "99 h 59 m",
      "2,170 h (90 d)",
      "27,777,778 h (3,169 years)",
      "?"
    ])
  })
  it("significant digits", () => {
    assert.deepStrictEqual([5.2817, 0.001234, 128.4, 10, -2.5].map(Format.significant), [
      "5.28",
      "0.00123",
      "128",
      "10",
      "-2.5"
    ])
  })
  it("bars stay inside their width", () => {
    assert.deepStrictEqual(
      [-1, 0, 0.5, 1, 2].map((share) => Format.bar(share, 4)),
      ["░░░░", "░░░░", "██░░", "████", "████"]
    )
  })
  it("tables align", () => {
    assert.strictEqual(Format.table(["a", "long"], [["xyz", "1"]]), "a    long\n───  ────\nxyz  1")
  })
})
