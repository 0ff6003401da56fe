/** Runs whose ranks somebody else starts: the convention's variables, as Kubernetes sets them, and mpirun. */
import { type ChildProcess, spawn } from "node:child_process"
import { once } from "node:events"
import { existsSync, readFileSync, readdirSync } from "node:fs"
import { join } from "node:path"
import { setTimeout as delay } from "node:timers/promises"
import { fileURLToPath } from "node:url"
import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { findProgram } from "../../../src/pipeline/run/RankProcesses.ts"
import { type Workplace, workplace } from "../fixtures/harness.ts"

const program = fileURLToPath(new URL("../fixtures/joined.ts", import.meta.url))
const head = "version: 1\nname: t\nstages:\n"
const mpi = findProgram("mpirun") !== undefined

interface Rank {
  readonly child: ChildProcess
  readonly ended: Promise<{ readonly code: number | null; readonly text: string }>
}
const watch = (child: ChildProcess): Rank => {
  let text = ""
  for (const output of [child.stdout, child.stderr]) output?.on("data", (chunk: Buffer) => (text += chunk.toString()))
  return { child, ended: once(child, "close").then(([code]) => ({ code, text })) }
}
const startRank = (place: Workplace, rank: number, size: number): Rank =>
  watch(
    spawn(process.execPath, [program, place.folder], {
      stdio: ["ignore", "pipe", "pipe"],
      env: {
        ...process.env,
        RANK: String(rank),
        WORLD_SIZE: String(size),
        MASTER_ADDR: "pod-0.launch",
        MASTER_PORT: "29500"
      }
    })
  )
const launch = (place: Workplace, size: number) =>
  Array.from({ length: size }, (_, rank) => startRank(place, rank, size))
const codes = (ranks: ReadonlyArray<Rank>) =>
  Effect.promise(async () => {
    const ends = await Promise.all(ranks.map(({ ended }) => ended))
    return { codes: ends.map(({ code }) => code), text: ends.map(({ text }) => text).join("\n") }
  })
const reached = (place: Workplace, ranks: number, step: number) =>
  Effect.promise(async () => {
    const work = join(place.runs, "store", "work")
    const at = (rank: number) => {
      const [key] = existsSync(work) ? readdirSync(work) : []
      const file = key === undefined ? "" : join(work, key, `rank-${rank}.txt`)
      return existsSync(file) ? Number(readFileSync(file, "utf8")) : 0
    }
    while (Array.from({ length: ranks }, (_, rank) => at(rank)).some((one) => one < step)) await delay(10)
  })

describe("ranks that somebody else started", () => {
  it.live("do every stage together that asks for them, and leave the others to rank 0", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      place.write(
        `${head}  a: { uses: write, with: { text: x } }\n  b: { uses: together, with: { steps: 5 }, resources: { ranks: 3, cpus: 1 }, after: a }\n` +
          "  c: { uses: together, with: { steps: 3 }, resources: { ranks: 3, cpus: 1 }, after: b }\n"
      )
      const ended = yield* codes(launch(place, 3))
      assert.deepStrictEqual(ended.codes, [0, 0, 0], ended.text)
      const log = (stage: string, name: string) =>
        readFileSync(join(place.runs, "latest", "stages", stage, "attempts", "1", name), "utf8")
      assert.include(log("02-b", "rank-2.stdout.log"), "rank 2 of 3 by environment")
      assert.include(log("03-c", "stdout.log"), "rank 0 of 3")
    }).pipe(Effect.scoped)
  )

  it.live("may be fewer than the stage begins with, where it is elastic", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      const file = (range: string) =>
        place.write(
          `${head}  a: { uses: together, with: { steps: 3 }, resources: { cpus: 1, elastic: ${range} }, retry: { times: 0 } }\n`
        )
      file("[3, 4]")
      const refused = yield* codes(launch(place, 2))
      assert.match(refused.text, /the stage asks for 4 ranks, and 2 were started/u)
      file("[2, 4]")
      const ended = yield* codes(launch(place, 2))
      assert.deepStrictEqual(ended.codes, [0, 0], ended.text)
    }).pipe(Effect.scoped)
  )

  it.live("try again together when one of them fails", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      place.write(
        `${head}  a: { uses: together, with: { steps: 6, step_ms: 5, accident: 1 fails at 3 }, resources: { ranks: 2 }, retry: { base: 10ms } }\n`
      )
      const ended = yield* codes(launch(place, 2))
      assert.deepStrictEqual(ended.codes, [0, 0], ended.text)
      assert.match(
        readFileSync(join(place.runs, "latest", "events.jsonl"), "utf8"),
        /"network","message":"rank 1: told to"/u
      )
    }).pipe(Effect.scoped)
  )

  it.live("save and end with 75 when rank 0 is told to stop", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      place.write(`${head}  a: { uses: together, with: { steps: 60000, step_ms: 5 }, resources: { ranks: 2 } }\n`)
      const ranks = launch(place, 2)
      yield* reached(place, 2, 3)
      ranks[0]?.child.kill("SIGTERM")
      assert.deepStrictEqual((yield* codes(ranks)).codes, [75, 75])
    }).pipe(Effect.scoped)
  )

  it.live("that are not as many as the stage asks for are refused by name", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      place.write(`${head}  a: { uses: together, with: { steps: 3 }, resources: { ranks: 3 } }\n`)
      const ended = yield* codes(launch(place, 2))
      assert.deepStrictEqual(ended.codes, [1, 1])
      assert.match(ended.text, /the stage asks for 3 ranks, and 2 were started \(by environment\)/u)
    }).pipe(Effect.scoped)
  )

  const withMpi = mpi ? it.live : it.live.skip
  withMpi(mpi ? "find each other under mpirun" : "find each other under mpirun (skipped: no mpirun here)", () =>
    Effect.gen(function* () {
      const place = yield* workplace
      place.write(`${head}  a: { uses: together, with: { steps: 3 }, resources: { ranks: 2 } }\n`)
      const allow = { OMPI_ALLOW_RUN_AS_ROOT: "1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM: "1" }
      const options = ["-n", "2", "--oversubscribe", process.execPath, program, place.folder]
      const started = watch(
        spawn("mpirun", options, { stdio: ["ignore", "pipe", "pipe"], env: { ...process.env, ...allow } })
      )
      const ended = yield* codes([started])
      assert.deepStrictEqual(ended.codes, [0], ended.text)
      assert.match(ended.text, /"ranks":2/u)
    }).pipe(Effect.scoped)
  )
})
