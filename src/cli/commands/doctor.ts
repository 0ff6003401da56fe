/** `tinyllama doctor`: looks at everything a run needs on this machine, and says what to do about what is missing. Exit 6 when something is. */
import { availableParallelism, freemem, totalmem } from "node:os"
import { Console, Effect, FileSystem } from "effect"
import { Command } from "effect/cli"
import * as Native from "../../engine/Native.ts"
import { Ended } from "../Ending.ts"
import * as Flags from "../Flags.ts"
import * as Format from "../Format.ts"

interface Finding {
  readonly subject: string
  readonly state: "ok" | "warning" | "missing"
  readonly detail: string
}

const finding = (subject: string, state: Finding["state"], detail: string): Finding => ({ subject, state, detail })

const engine = Native.load.pipe(
  Effect.map((native) =>
    finding("native engine", "ok", `CPU kernels: ${native.instructionSet()}, ${availableParallelism()} cores`)
  ),
  Effect.catch((error) => Effect.succeed(finding("native engine", "missing", error.message)))
)

const tokenizer = Effect.tryPromise(() => import("../../engine/Tokenizer.ts")).pipe(
  Effect.flatMap(({ loadTokenizer }) => loadTokenizer("llama-2")),
  Effect.map((loaded) =>
    finding("tokenizer", "ok", `llama-2, ${loaded.vocabularySize} pieces, ${loaded.digest.slice(0, 12)}`)
  ),
  Effect.catch((error) => Effect.succeed(finding("tokenizer", "missing", `${String(error)}. Next: npm ci`)))
)

const runtime = Effect.tryPromise(() => import("node-llama-cpp")).pipe(
  Effect.as(finding("node-llama-cpp", "ok", "chat runs GGUF files on the CPU")),
  Effect.catch((error) =>
    Effect.succeed(
      finding("node-llama-cpp", "missing", `${String(error.cause)}. chat does not work without it. Next: npm ci`)
    )
  )
)

const node = finding("node", "ok", `${process.versions.node} at ${process.execPath}`)

const memory = finding(
  "memory",
  freemem() < 2e9 ? "warning" : "ok",
  `${Format.bytes(freemem())} free of ${Format.bytes(totalmem())}${freemem() < 2e9 ? "; the default pipeline wants about 2 GB" : ""}`
)

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
        finding(
          "runs folder",
          "missing",
          `${runs} cannot be written: ${error.message}. Next: choose another with --runs`
        )
      )
    )
  )
}, Effect.scoped)

export const doctorCommand = Command.make(
  "doctor",
  { runs: Flags.runs, json: Flags.json },
  Effect.fn(function* (flags) {
    const findings = [node, yield* engine, yield* tokenizer, yield* runtime, memory, yield* folder(flags.runs)]
    const missing = findings.filter(({ state }) => state === "missing").length
    if (flags.json) yield* Console.log(JSON.stringify({ version: 1, findings }))
    else {
      yield* Console.log(
        Format.table(
          ["what", "state", "detail"],
          findings.map(({ detail, state, subject }) => [subject, state, detail])
        )
      )
      yield* Console.log(
        missing === 0
          ? "\nThis machine is ready. Next: npx tinyllama run pipeline.yaml"
          : `\n${missing} missing: see the details above`
      )
    }
    if (missing > 0) return yield* new Ended({ code: 6 })
  })
).pipe(Command.withDescription("Check that this machine has what a run needs"))
