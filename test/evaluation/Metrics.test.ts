import { assert, it } from "@effect/vitest"
import { argmax, bitsPerByte, codePoints, mean, perplexity, standardError } from "../../src/evaluation/Metrics.ts"
import { continuations, scoreItems } from "../../src/evaluation/tasks/MultipleChoice.ts"

it("takes the first of equal values", () => {
  assert.strictEqual(argmax([-3, -1, -1, -2]), 1)
  assert.strictEqual(argmax([-2, -2]), 0)
  assert.strictEqual(argmax([-2, -3, -0.5]), 2)
})

it("counts code points, not UTF-16 units or bytes", () => {
  assert.strictEqual(codePoints("abc"), 3)
  assert.strictEqual(codePoints("né😀"), 3)
  assert.strictEqual(codePoints(" leading"), 8)
})

it("gives the harness' standard error", () => {
  // Three right of four: p = 0.75, sqrt(p (1 - p) / (n - 1)) = sqrt(0.1875 / 3) = 0.25.
  assert.strictEqual(mean([1, 1, 0, 1]), 0.75)
  assert.closeTo(standardError([1, 1, 0, 1]) ?? Number.NaN, 0.25, 1e-15)
  assert.isUndefined(standardError([1]))
})

it("gives perplexity and bits per byte by their definitions", () => {
  // Ten tokens, each at probability 1/8: perplexity 8, three bits each; thirty bits over sixty bytes.
  const logLikelihood = 10 * Math.log(1 / 8)
  assert.closeTo(perplexity(logLikelihood, 10), 8, 1e-12)
  assert.closeTo(bitsPerByte(logLikelihood, 60), 0.5, 1e-15)
})

it("scores acc by sums and acc_norm by sums over characters", () => {
  const items = [
    // Sums favour the short wrong choice; per character the long right one wins: -4/8 > -3/2.
    continuations("q", ["no", "lengthen"], 1),
    // A tie goes to the lowest index, which is right here.
    continuations("q", ["aa", "bb"], 0),
    // The first of the tied is wrong here.
    continuations("q", ["aa", "bb", "cc"], 2)
  ]
  const metrics = scoreItems(items, [-3, -4, -5, -5, -6, -6, -6])
  assert.closeTo(metrics["acc"] ?? Number.NaN, 1 / 3, 1e-15)
  assert.closeTo(metrics["acc_norm"] ?? Number.NaN, 2 / 3, 1e-15)
  assert.strictEqual(metrics["n"], 3)
  // p (1 - p) / (n - 1) = (2/9) / 2 = 1/9 for both.
  assert.closeTo(metrics["acc_stderr"] ?? Number.NaN, 1 / 3, 1e-15)
  assert.closeTo(metrics["acc_norm_stderr"] ?? Number.NaN, 1 / 3, 1e-15)
})

it("says no standard error for a single question", () => {
  const metrics = scoreItems([continuations("q", ["a", "b"], 1)], [-2, -1])
  assert.deepStrictEqual(metrics, { acc: 1, acc_norm: 1, n: 1 })
})
