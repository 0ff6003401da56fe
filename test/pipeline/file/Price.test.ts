/** price: the ways to write it, and what is refused. */
import { assert, describe, it } from "@effect/vitest"
import type { Diagnostic } from "../../../src/pipeline/file/Diagnostics.ts"
import { decodePrice, parsePrice } from "../../../src/pipeline/file/Price.ts"
import { parseYaml, Source } from "../../../src/pipeline/file/YamlSource.ts"

const decode = (text: string) => {
  const report: Array<Diagnostic> = []
  const price = decodePrice(parseYaml(new Source("file", "p.yaml", text)).root, report)
  return { price, messages: report.map(({ message, path, place }) => `${place} ${path}: ${message}`) }
}

describe("a price", () => {
  it("reads as people write it", () => {
    assert.deepStrictEqual(parsePrice("$2.50/h"), { perHour: 2.5, currency: "$" })
    assert.deepStrictEqual(parsePrice("2.5 EUR / hour"), { perHour: 2.5, currency: "EUR" })
    assert.deepStrictEqual(parsePrice("€ 12/h"), { perHour: 12, currency: "€" })
    for (const text of ["2.5/h", "$2.50", "$/h", "$2.5/day", "$2 EUR/h", "", "-$2/h"]) {
      assert.isUndefined(parsePrice(text), text)
    }
  })

  it("or as a mapping, dollars where no currency is named", () => {
    assert.deepStrictEqual(decode("{ per_hour: 2.5, currency: EUR }").price, { perHour: 2.5, currency: "EUR" })
    assert.deepStrictEqual(decode("{ per_hour: 2 }").price, { perHour: 2, currency: "$" })
    assert.deepStrictEqual(decode("~"), { price: undefined, messages: [] })
  })

  it("is refused with its place", () => {
    assert.deepStrictEqual(decode("3").messages, [
      'p.yaml:1:1 price: must be "$2.50/h", or { per_hour: 2.5, currency: "$" }'
    ])
    assert.match(decode("[1]").messages[0] ?? "", /price: must be/u)
    assert.match(decode("{ per_hour: -1 }").messages[0] ?? "", /1:13 price\.per_hour: must be a number of at least 0/u)
    assert.match(decode("{ currency: EUR }").messages[0] ?? "", /price\.per_hour: must be a number/u)
    assert.match(decode('{ per_hour: 1, currency: "" }').messages[0] ?? "", /price\.currency: must be a text/u)
    assert.match(decode("{ per_hour: 1, curency: EUR }").messages[0] ?? "", /unknown key "curency"/u)
  })
})
