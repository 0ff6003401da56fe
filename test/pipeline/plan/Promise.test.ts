/**
 * The plan's promise as a property: over random pipelines and random edits, a run does what the plan said, for the reasons that it gave, and what
 * it takes from the store is what a run from nothing would have made.
 */
import { readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { describeReason, type StagePlan } from "../../../src/pipeline/plan/Plan.ts"
import type { RunEvent } from "../../../src/pipeline/runs/RunEvent.ts"
import type { RunSummary } from "../../../src/pipeline/run/Runner.ts"
import type { Selection } from "../../../src/pipeline/plan/Selection.ts"
import { type Workplace, workplace } from "../fixtures/harness.ts"
import { planHere, runHere } from "../fixtures/in-process.ts"

/** Park & Miller's generator: the same pipelines and edits for the same seed. */
const randomFrom = (seed: number) => {
  let state = (seed % 2_147_483_646) + 1
  return (below: number): number => {
    state = (state * 48_271) % 2_147_483_647
    return state % below
  }
}
type Random = ReturnType<typeof randomFrom>

interface Stage {
  uses: "write" | "cut" | "join" | "train"
  inputs: Array<string>
  with: Record<string, unknown>
}
type Draft = Map<string, Stage>

const uses = ["write", "write", "cut", "cut", "join", "train"] as const
const texts = ["a", "ab", "abc", "b", "bc"]
const pick = <T>(random: Random, items: ReadonlyArray<T>): T => items[random(items.length)] as T

const parameters: Readonly<Record<Stage["uses"], Readonly<Record<string, (random: Random) => unknown>>>> = {
  write: {
    text: (random) => pick(random, texts),
    steps: (random) => 10 + random(2),
    lr: (random) => ({ peak: pick(random, [1e-3, 2e-3]), schedule: "cosine" }),
    log_every: (random) => 1 + random(5),
    watch: (random) => pick(random, [null, "seen.txt"])
  },
  cut: { letters: (random) => 1 + random(3), log_every: (random) => 1 + random(5) },
  join: { glue: (random) => pick(random, ["+", "-"]) },
  train: { steps: (random) => 1 + random(30), schedule: (random) => pick(random, ["constant", "cosine"]) }
}

const givesDocuments = (draft: Draft): ReadonlyArray<string> =>
  Array.from(draft).flatMap(([name, stage]) => (stage.uses === "write" || stage.uses === "cut" ? [name] : []))

const newStage = (random: Random, draft: Draft): Stage => {
  const sources = givesDocuments(draft)
  const kind = sources.length === 0 ? "write" : pick(random, uses)
  const inputs =
    kind === "write" ? [] : Array.from({ length: kind === "train" ? 1 : 1 + random(2) }, () => pick(random, sources))
  const required = kind === "write" ? ["text"] : kind === "train" ? ["steps"] : []
  const chosen = Object.entries(parameters[kind]).filter(([name]) => required.includes(name) || random(3) === 0)
  return { uses: kind, inputs, with: Object.fromEntries(chosen.map(([name, value]) => [name, value(random)])) }
}

const yamlOf = (draft: Draft): string => {
  const lines = Array.from(draft, ([name, stage]) => {
    const port = `documents: [${stage.inputs.map((input) => `${input}.documents`).join(", ")}]`
    return `  ${name}: { uses: ${stage.uses}${stage.inputs.length > 0 ? `, in: { ${port} }` : ""}, with: ${JSON.stringify(stage.with)} }`
  })
  return `version: 1\nname: t\nstages:\n${lines.join("\n")}\n`
}

/** One random edit; returns what the next command selects. */
const edit = (random: Random, draft: Draft, place: Workplace): Selection => {
  const names = Array.from(draft.keys())
  const name = pick(random, names)
  const stage = draft.get(name) as Stage
  switch (random(9)) {
    case 0:
      draft.set(`s${draft.size}x${random(1000)}`, newStage(random, draft))
      return {}
    case 1: {
      const used = new Set(Array.from(draft.values()).flatMap(({ inputs }) => inputs))
      const free = names.filter((one) => !used.has(one))
      if (names.length > 2 && free.length > 0) draft.delete(pick(random, free))
      return {}
    }
    case 2:
      writeFileSync(join(place.folder, "seen.txt"), String(random(3)))
      return {}
    case 3: {
      const artifacts = join(place.runs, "store", "artifacts")
      const folders = readdirSync(artifacts).filter((one) => !one.endsWith(".json"))
      rmSync(join(artifacts, pick(random, folders), "text.txt"), { force: true })
      return {}
    }
    case 4:
      return { force: [name] }
    case 5:
      return { fromStage: name, reuseStale: true }
    case 6:
      return { only: [name], reuseStale: true }
    default: {
      const [parameter, value] = pick(random, Object.entries(parameters[stage.uses]))
      stage.with[parameter] = value(random)
      return {}
    }
  }
}

const eventsOf = (summary: RunSummary): ReadonlyArray<RunEvent> => {
  const lines = readFileSync(join(summary.folder, "events.jsonl"), "utf8").trim().split("\n")
  const events = lines.map((line) => JSON.parse(line) as RunEvent)
  return events.slice(events.findLastIndex(({ _tag }) => _tag === "RunStarted"))
}

const isInput = (reason: string): boolean => reason.startsWith("input ")

/** What the run did to one stage is what the plan said of it. */
const checkStage = (planned: StagePlan, all: ReadonlyArray<StagePlan>, summary: RunSummary, story: string): void => {
  const done = summary.stages.find(({ stage }) => stage === planned.stage)
  const outcome = done?.outcome
  const event = eventsOf(summary).find((one) => one._tag === "StagePlanned" && one.stage === planned.stage)
  const ran = event?._tag === "StagePlanned" ? event : undefined
  const said = `${story}\n${planned.stage} was planned as ${planned.status} (${planned.reasons.map(describeReason).join("; ")}) and ${done?.failure?.message ?? "did not fail"}`
  const shares = all.some((other) =>
    other.reasons.some((reason) => reason._tag === "Shared" && [reason.stage, other.stage].includes(planned.stage))
  )
  switch (planned.status) {
    case "fresh":
    case "accepted":
    case "reuse":
      return assert.strictEqual(outcome, "cached", said)
    case "excluded":
      return assert.isUndefined(outcome, said)
    case "blocked":
      return assert.include(["failed", "skipped", "cached"], outcome, said)
    default: {
      if (planned.key !== undefined && !shares) assert.strictEqual(outcome, "done", said)
      else assert.include(["done", "cached"], outcome, said)
      if (ran === undefined || outcome !== "done" || shares) return
      if (planned.key !== undefined) assert.strictEqual(ran.key, planned.key, said)
      if (planned.reasons.some(({ _tag }) => _tag === "Forced")) return
      const promised = planned.reasons.filter(({ _tag }) => _tag !== "Upstream").map(describeReason)
      const open = planned.key === undefined
      assert.deepStrictEqual(
        ran.reasons.filter((reason) => !open || !isInput(reason)),
        open ? promised.filter((reason) => !isInput(reason)) : promised,
        said
      )
    }
  }
}

const digests = (summary: RunSummary) =>
  Object.fromEntries(
    summary.stages.map(({ outputs, stage }) => [
      stage,
      Object.fromEntries(Object.entries(outputs).map(([port, { digest }]) => [port, digest]))
    ])
  )

const scenario = (seed: number) =>
  Effect.gen(function* () {
    const random = randomFrom(seed)
    const place = yield* workplace
    writeFileSync(join(place.folder, "seen.txt"), "0")
    const draft: Draft = new Map()
    for (let index = 0; index < 3 + random(5); index++) draft.set(`s${index}`, newStage(random, draft))
    place.write(yamlOf(draft))
    yield* runHere(place)
    for (let step = 0; step < 4; step++) {
      const selection = edit(random, draft, place)
      place.write(yamlOf(draft))
      const planned = yield* planHere(place, selection)
      const summary = yield* runHere(place, { ...selection, run: "new" })
      const story = `seed ${seed}, edit ${step}, ${JSON.stringify(selection)}\n${yamlOf(draft)}`
      for (const entry of planned) checkStage(entry, planned, summary, story)
      if (Object.keys(selection).length > 0) continue

      const after = yield* planHere(place)
      assert.deepStrictEqual(
        after.filter(({ status }) => status !== "fresh").map(({ stage, status }) => `${stage} ${status}`),
        [],
        `${story}\nall is fresh after a run`
      )
      const elsewhere = yield* workplace
      elsewhere.write(yamlOf(draft))
      writeFileSync(join(elsewhere.folder, "seen.txt"), readFileSync(join(place.folder, "seen.txt")))
      assert.deepStrictEqual(digests(summary), digests(yield* runHere(elsewhere)), `${story}\nas from nothing`)
    }
  }).pipe(Effect.scoped)

describe("what the plan promises", () => {
  // A new set of pipelines every day, and one that stays.
  const day = Math.floor(Date.now() / 86_400_000)
  for (const first of [1, day * 1000]) {
    it.live(
      `is what the run does: 40 pipelines, 4 edits each, from seed ${first}`,
      () =>
        Effect.forEach(
          Array.from({ length: 40 }, (_, index) => first + index),
          scenario,
          { discard: true }
        ),
      120_000
    )
  }
})
