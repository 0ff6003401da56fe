/** Conditions: what they mean, and how each way of writing one wrongly is answered. */
import { assert, describe, it } from "@effect/vitest"
import { Result, type Schema } from "effect"
import { decideCondition, namesIn, parseCondition } from "../../../src/pipeline/file/Expression.ts"

const values: Readonly<Record<string, Schema.Json>> = {
  tokens: 1_000_000,
  loss: 3.5,
  nothing: null,
  done: true,
  name: "gqa",
  "exact-match": 0.4,
  "models.0.perplexity": 245
}

const answer = (text: string) => {
  const condition = parseCondition(text)
  if (Result.isFailure(condition)) return condition.failure
  return decideCondition(condition.success.expression, (segments) => {
    const name = segments.join(".")
    return Object.hasOwn(values, name) ? Result.succeed(values[name] ?? null) : Result.fail(`no ${name}`)
  })
}

describe("conditions", () => {
  const truths: Readonly<Record<string, boolean>> = {
    "tokens >= 1e6": true,
    "tokens > 1_000_000": false,
    "tokens != 400_000": true,
    "loss<5": true,
    "loss <= -3.5": false,
    "3 < loss": true,
    "name == 'gqa' and done": true,
    'name == "mha" or loss > 3': true,
    "not done or loss > 9": false,
    "not (done and loss > 9)": true,
    "loss > 1 or loss > 9 and done == false": true,
    "nothing == null": true,
    "nothing is nan": true,
    "loss is nan": false,
    "loss is not nan": true,
    "exact-match > .3": true,
    "models.0.perplexity < 300": true,
    true: true,
    "done == (loss > 1)": true
  }
  for (const [text, expected] of Object.entries(truths)) it(text, () => assert.strictEqual(answer(text), expected))

  it("what has no value is undecided, unless the rest decides", () => {
    assert.deepStrictEqual(answer("missing > 1"), { undecided: "no missing" })
    assert.deepStrictEqual(answer("not missing > 1"), { undecided: "no missing" })
    assert.deepStrictEqual(answer("missing > 1 and done"), { undecided: "no missing" })
    assert.strictEqual(answer("missing > 1 or done"), true)
    assert.strictEqual(answer("missing > 1 and loss > 9"), false)
    assert.deepStrictEqual(answer("nothing > 1"), { undecided: "null > 1 has no answer" })
    assert.deepStrictEqual(answer("name > 1"), { undecided: '"gqa" > 1 has no answer' })
    assert.deepStrictEqual(answer("tokens"), { undecided: "1000000 is neither true nor false" })
  })

  const faults: Readonly<Record<string, RegExp>> = {
    "": /expected a name or a value, not the end/u,
    "loss <": /expected a name or a value, not the end/u,
    "loss = 5": /cannot be read from "= 5" on; write == for =/u,
    "a > 1 && b > 1": /write and for &&/u,
    "1 < loss < 5": /compares more than twice at "<"; join two comparisons with and/u,
    "(loss < 5": /a "\(" is not closed/u,
    "loss < 5)": /expected and, or, or the end, not "\)"/u,
    "loss is 5": /after "is" only nan can stand, not "5"/u,
    "loss < and": /expected a name or a value, not "and"/u,
    "5": /is no condition: it must compare something/u,
    "loss < 5€": /cannot be read from "€" on/u,
    "loss > 1 after tokens": /after "after" a number and its unit must stand/u
  }
  for (const [text, expected] of Object.entries(faults)) {
    it(`refuses "${text}"`, () => assert.match(JSON.stringify(answer(text)).replaceAll("\\", ""), expected))
  }

  it("names and the point from which on it counts", () => {
    const condition = Result.getOrThrow(parseCondition('a.b."c d" > 1 and a.b."c d" < x after 1e8 tokens'))
    assert.deepStrictEqual(namesIn(condition.expression), [["a", "b", "c d"], ["x"]])
    assert.deepStrictEqual(condition.after, { amount: 1e8, unit: "tokens" })
  })
})
