/**
 * `tinyllama doctor [FILE]`: looks at everything a run needs on this machine and, with a pipeline file, at the whole pipeline before hour 0; says
 * what to do about what is missing. Exit 6 when something is.
 */
import { availableParallelism, totalmem } from "node:os"
import { Console, Effect, FileSystem, Layer, Option } from "effect"
import { Argument, Command } from "effect/cli"
import * as FetchHttpClient from "effect/http/FetchHttpClient"
import * as Native from "../../engine/Native.ts"
import type { Finding } from "../../pipeline/plan/Preflight.ts"
import { Ended } from "../Ending.ts"
import * as Flags from "../Flags.ts"
import * as Format from "../Format.ts"

const finding = (subject: string, state: Finding["state"], detail: string, next?: string): Finding => ({
  subject,
  state,
  detail,
  ...(next === undefined ? {} : { next })
})

const engine = Native.load.pipe(
  Effect.map((native) =>
    finding("native engine", "ok", `CPU kernels: ${native.instructionSet()}, ${availableParallelism()} cores`)
  ),
  Effect.catch((error) => Effect.succeed(finding("native engine", "missing", error.message)))
)

/** None is no fault: everything runs on the CPU too. */
const gpu = Native.load.pipe(
  Effect.map((native) => {
    const { gpus, obstacle } = native.gpus()
    const named = gpus.map(
      ({ computeCapability, memory, name }) => `${name}, ${Format.bytes(memory)}, ${computeCapability}`
    )
    return finding(
      "GPU",
      "ok",
      gpus.length > 0 ? named.join("; ") : `none can be used, stages compute on the CPU: ${obstacle}`
    )
  }),
  Effect.catch(() => Effect.succeed(finding("GPU", "ok", "not looked for: there is no native engine")))
)

const tokenizer = Effect.tryPromise(() => import("../../engine/Tokenizer.ts")).pipe(
  Effect.flatMap(({ loadTokenizer }) => loadTokenizer("llama-2")),
  Effect.map((loaded) =>
    finding("tokenizer", "ok", `llama-2, ${loaded.vocabularySize} pieces, ${loaded.digest.slice(0, 12)}`)
  ),
  Effect.catch((error) => Effect.succeed(finding("tokenizer", "missing", String(error), "npm ci")))
)

const runtime = Effect.tryPromise(() => import("node-llama-cpp")).pipe(
  Effect.as(finding("node-llama-cpp", "ok", "chat runs GGUF files on the CPU")),
  Effect.catch((error) =>
    Effect.succeed(
      finding("node-llama-cpp", "missing", `${String(error.cause)}; chat does not work without it`, "npm ci")
    )
  )
)

const node = finding("node", "ok", `${process.versions.node} at ${process.execPath}`)

/** Below this even small models have no room. */
const littleMemory = 2e9

const memory = Effect.sync(() => {
  const free = process.availableMemory()
  const detail = `${Format.bytes(free)} can be had of ${Format.bytes(totalmem())}`
  return free < littleMemory
    ? finding("memory", "warning", `${detail}; the default pipeline wants about 2 GB`, "end other programs")
    : finding("memory", "ok", detail)
})

/** The runs folder, or where it will be made: can it be written? */
const folder = Effect.fn("doctor.folder")(function* (runs: string) {
  const fs = yield* FileSystem.FileSystem
  const exists = yield* fs.exists(runs)
  return yield* fs.makeTempDirectoryScoped({ directory: exists ? runs : ".", prefix: ".tinyllama-doctor-" }).pipe(
    Effect.as(
      finding("runs folder", "ok", exists ? `${runs} can be written` : `${runs} will be made by the first run`)
    ),
    Effect.catch((error) =>
      Effect.succeed(
        finding("runs folder", "missing", `${runs} cannot be written: ${error.message}`, "choose another with --runs")
      )
    )
  )
}, Effect.scoped)

/** What the pipeline needs, stage by stage. An invalid file ends the command with its own errors and exit code 3. */
const ofPipeline = Effect.fn("doctor.pipeline")(function* (
  flags: Parameters<typeof Flags.loadPipeline>[0] & { readonly runs: string }
) {
  const [LocalRunner, { plan }, { preflight }] = yield* Effect.promise(() =>
    Promise.all([
      import("../../pipeline/run/LocalRunner.ts"),
      import("../../pipeline/plan/Plan.ts"),
      import("../../pipeline/plan/Preflight.ts")
    ])
  )
  const pipeline = yield* Flags.loadPipeline(flags)
  const findings = yield* Effect.gen(function* () {
    const planned = yield* plan(pipeline, {}, { estimates: false })
    return yield* preflight(pipeline, planned, { thorough: true, all: true })
  }).pipe(Effect.provide(Layer.merge(LocalRunner.layer({ runs: flags.runs }), FetchHttpClient.layer)))
  return [finding("pipeline file", "ok", `${flags.file}: ${pipeline.stages.length} stages`), ...findings]
})

export const doctorCommand = Command.make(
  "doctor",
  {
    file: Argument.File("file").pipe(
      Argument.map(Flags.asSaid),
      Argument.optional,
      Argument.withDescription("A pipeline file to look at as a whole; without one only the machine is looked at")
    ),
    ...Flags.overlays,
    runs: Flags.runs,
    json: Flags.json
  },
  Effect.fn(function* (flags) {
    const machine = [
      node,
      yield* engine,
      yield* gpu,
      yield* tokenizer,
      yield* runtime,
      yield* memory,
      yield* folder(flags.runs)
    ]
    const file = Option.getOrUndefined(flags.file)
    const pipeline = file === undefined ? [] : yield* ofPipeline({ ...flags, file })
    const findings = [...machine, ...pipeline]
    const missing = findings.filter(({ state }) => state === "missing").length
    const warnings = findings.filter(({ state }) => state === "warning").length
    if (flags.json) yield* Console.log(JSON.stringify({ version: 1, findings }))
    else {
      yield* Console.log(Format.table(["what", "stage", "state", "detail"], findings.map(row)))
      const steps = findings.flatMap((found) => (found.next === undefined ? [] : [nextStep(found)]))
      if (steps.length > 0) yield* Console.log(`\n${steps.join("\n")}`)
      yield* Console.log(`\n${verdict(missing, warnings, file)}`)
    }
    if (missing > 0) return yield* new Ended({ code: 6 })
  })
).pipe(
  Command.withDescription("Check that this machine, and a pipeline as a whole, have what a run needs"),
  Command.withExamples([{ command: "tinyllama doctor" }, { command: "tinyllama doctor pipeline.yaml -p smoke" }])
)

const row = ({ detail, stage, state, subject }: Finding): ReadonlyArray<string> => [
  subject,
  stage ?? "",
  state === "ok" ? "ok" : state.toUpperCase(),
  detail
]

const nextStep = ({ next, stage, state, subject }: Finding): string =>
  `${state}: ${stage === undefined ? "" : `${stage}: `}${subject}\n  Next: ${next ?? ""}`

const verdict = (missing: number, warnings: number, file: string | undefined): string => {
  if (missing > 0) return `${missing} missing: a run would not get through`
  const noted = warnings === 0 ? "" : ` with ${warnings} ${warnings === 1 ? "warning" : "warnings"}`
  return `${file === undefined ? "This machine is ready" : "Ready"}${noted}. Next: npx tinyllama run ${file ?? "pipeline.yaml"}`
}
