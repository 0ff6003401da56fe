/** `price`: what an hour of the machine costs. */
import type { Diagnostic } from "./Diagnostics.ts"
import { checkKeys, describeVia } from "./Overlay.ts"
import type { Price } from "./ResolvedPipeline.ts"
import { diagnose, type Node } from "./YamlSource.ts"

export const priceForm = '"$2.50/h", or { per_hour: 2.5, currency: "$" }'

/** "$2.50/h", "2.5 EUR/h", "EUR 2.5 / hour". */
export const parsePrice = (text: string): Price | undefined => {
  const [, before = "", amount = "", after = ""] =
    /^\s*([^\d\s./+-]{0,4})\s*(\d+(?:\.\d+)?)\s*([^\d\s./+-]{0,4})\s*\/\s*(?:h|hour)\s*$/u.exec(text) ?? []
  const currency = before === "" ? after : before
  const one = (before === "") !== (after === "")
  return amount === "" || !one ? undefined : { perHour: Number(amount), currency }
}

export const decodePrice = (node: Node | undefined, report: Array<Diagnostic>): Price | undefined => {
  if (node === undefined || (node._tag === "scalar" && node.value === null)) return undefined
  const wrong = (at: Node, path: string, wanted: string): undefined => {
    report.push(diagnose(at.span, path, `must be ${wanted}${describeVia(at)}`))
    return undefined
  }
  if (node._tag === "scalar") {
    return (typeof node.value === "string" ? parsePrice(node.value) : undefined) ?? wrong(node, "price", priceForm)
  }
  if (node._tag === "sequence") return wrong(node, "price", priceForm)
  checkKeys(node, "price", ["per_hour", "currency"], "price", report)
  const perHour = node.entries.get("per_hour")?.value
  const currency = node.entries.get("currency")?.value
  if (perHour?._tag !== "scalar" || typeof perHour.value !== "number" || perHour.value < 0) {
    return wrong(perHour ?? node, "price.per_hour", "a number of at least 0, in the currency per hour")
  }
  if (currency === undefined) return { perHour: perHour.value, currency: "$" }
  return currency._tag === "scalar" && typeof currency.value === "string" && currency.value.trim() !== ""
    ? { perHour: perHour.value, currency: currency.value.trim() }
    : wrong(currency, "price.currency", 'a text, say "$" or "EUR"')
}
