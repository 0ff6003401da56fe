/**
 * Asks a run's chat model the FAQ's own questions through the command line, and scores how recognisable the answers are:
 *   node scripts/faq-check.ts [RUN] [--count 10] [--runs DIR] [--type Q8_0]
 * An answer is recognised when it holds at least 60 % of the reference's content words. Exit 1 when fewer than 80 % of the answers are.
 */
import { execFile } from "node:child_process"
import { readFileSync } from "node:fs"
import { parseArgs, promisify } from "node:util"
import { Schema } from "effect"
import { table } from "../src/cli/Format.ts"
import { parseConversation } from "../src/data/Conversations.ts"
import { spread } from "../src/evaluation/tasks/Perplexity.ts"

const recognisedShare = 0.6
const requiredShare = 0.8

const { positionals, values } = parseArgs({
  allowPositionals: true,
  options: {
    count: { type: "string", default: "10" },
    runs: { type: "string", default: "runs" },
    type: { type: "string", default: "Q8_0" }
  }
})
const run = positionals[0] ?? "latest"
const program = new URL("../bin/tinyllama.js", import.meta.url).pathname
const faq = readFileSync(new URL("../examples/faq.jsonl", import.meta.url), "utf8")

const decodeRow = Schema.decodeUnknownSync(Schema.fromJsonString(Schema.Struct({ text: Schema.String })))
const pairs = faq
  .split("\n")
  .filter((line) => line !== "")
  .map((line) => parseConversation(decodeRow(line).text))
  .flatMap((parsed) =>
    parsed._tag === "Success" && parsed.success.exchanges.length === 1 ? parsed.success.exchanges : []
  )

const functionWords = new Set(
  "a an and are as at be but by can for from has have how i if in is it its me my no not of on one or so that the then there this to was what when where which will with you your".split(
    " "
  )
)
const contentWords = (text: string): ReadonlySet<string> =>
  new Set((text.toLowerCase().match(/[\p{L}\p{N}_]+/gu) ?? []).filter((word) => !functionWords.has(word)))

/** Share of the reference's content words that the answer holds. */
const recognition = (reference: string, answer: string): number => {
  const wanted = contentWords(reference)
  const given = contentWords(answer)
  return [...wanted].filter((word) => given.has(word)).length / wanted.size
}

const ask = async (question: string): Promise<string> => {
  const command = [program, "chat", run, "--runs", values.runs, "--type", values.type, "--once", question]
  const { stdout } = await promisify(execFile)(process.execPath, command)
  return stdout.trim()
}

const short = (text: string, width: number): string => (text.length > width ? `${text.slice(0, width - 1)}…` : text)

const rows: Array<readonly [string, string, string]> = []
let recognised = 0
for (const index of spread(pairs.length, Number(values.count))) {
  const pair = pairs[index]
  if (pair === undefined) continue
  const answer = await ask(pair.human)
  const share = recognition(pair.assistant, answer)
  if (share >= recognisedShare) recognised += 1
  rows.push([`${Math.round(100 * share)} %`, short(pair.human, 50), short(answer.replaceAll("\n", " "), 90)])
}
console.log(table(["words", "question", "answer"], rows))
console.log(`\nrecognised ${recognised} of ${rows.length}`)
process.exitCode = recognised >= requiredShare * rows.length ? 0 : 1
