/**
 * One stage in a process of its own, as a worker would run it, for its time and its peak of memory.
 *
 *   node scripts/bench/data-stage.ts tokenize|pack INPUT OUTPUT THREADS '{"seq_len":2048}'
 *
 * INPUT and OUTPUT are folders with an artifact's files and its facts in facts.json. Prints JSON.
 */
import { mkdirSync, readFileSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { performance } from "node:perf_hooks"
import * as NodeHttpClient from "@effect/platform-node/NodeHttpClient"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { Effect, Layer, Schema } from "effect"
import { type ArtifactHandle, type ArtifactType, Facts } from "../../src/artifacts/Artifact.ts"
import type { AnyStageType } from "../../src/pipeline/StageType.ts"
import { packStage } from "../../src/stages/Pack.ts"
import { tokenizeStage } from "../../src/stages/Tokenize.ts"
import { alone } from "../../src/pipeline/run/Ranks.ts"

const [name, input = "", output = "", threads = "1", given = "{}"] = process.argv.slice(2)
const stage: AnyStageType = name === "pack" ? packStage : tokenizeStage
const [port, type, made]: readonly [string, ArtifactType, string] =
  name === "pack" ? ["tokens", "TokenShards", "dataset"] : ["documents", "Documents", "tokens"]

/** The most of this process's own memory since it began, in bytes: pages of files that it reads are the system's to take back. */
const peakAnonymous = { bytes: 0 }
const sample = (): void => {
  const text = readFileSync("/proc/self/status", "latin1")
  const kilobytes = Number(/RssAnon:\s+(\d+)/u.exec(text)?.[1] ?? 0)
  peakAnonymous.bytes = Math.max(peakAnonymous.bytes, kilobytes * 1024)
}

const run = Effect.gen(function* () {
  const params: Record<string, unknown> = {}
  const written = yield* Schema.decodeUnknownEffect(Facts)(JSON.parse(given))
  for (const [key, parameter] of Object.entries(stage.params))
    params[key] = yield* Schema.decodeUnknownEffect(parameter.schema)(key in written ? written[key] : parameter.default)
  const handle: ArtifactHandle = {
    type,
    digest: "0".repeat(64),
    folder: input,
    facts: yield* Schema.decodeUnknownEffect(Facts)(JSON.parse(readFileSync(join(input, "facts.json"), "utf8"))),
    origin: `bench.${port}`
  }
  // which ports the stage has is known here, not to its erased type
  const inputs = { [port]: [handle] } as unknown as Parameters<AnyStageType["run"]>[0]["inputs"]
  mkdirSync(output, { recursive: true })
  mkdirSync(`${output}.work`, { recursive: true })
  const context = {
    stage: stage.name,
    params,
    inputs,
    output: () => output,
    work: `${output}.work`,
    previous: undefined,
    baseDirectory: input,
    threads: Number(threads),
    ranks: alone,
    progress: sample,
    log: () => undefined,
    warn: (line: string) => console.error(line),
    stopRequested: () => false
  }
  const started = performance.now()
  const facts = yield* stage.run(context)
  const seconds = (performance.now() - started) / 1000
  sample()
  writeFileSync(join(output, "facts.json"), JSON.stringify(facts[made]))
  const maxRss = process.resourceUsage().maxRSS * 1024
  console.log(JSON.stringify({ seconds, peakBytes: maxRss, peakAnonymousBytes: peakAnonymous.bytes }))
})

await Effect.runPromise(run.pipe(Effect.provide(Layer.merge(NodeServices.layer, NodeHttpClient.layerUndici))))
