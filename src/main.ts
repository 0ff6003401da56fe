/** The program: its commands, its services, and how it ends. */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { Console, Effect, Layer, Logger } from "effect"
import { CliOutput, Command } from "effect/cli"
import * as PromptFileSystem from "./artifacts/PromptFileSystem.ts"
import { acceptCommand } from "./cli/commands/accept.ts"
import { benchCommand } from "./cli/commands/bench.ts"
import { chatCommand } from "./cli/commands/chat.ts"
import { CommandTree, completionsCommand } from "./cli/commands/completions.ts"
import { diffCommand } from "./cli/commands/diff.ts"
import { doctorCommand } from "./cli/commands/doctor.ts"
import { fmtCommand } from "./cli/commands/fmt.ts"
import { lintCommand } from "./cli/commands/lint.ts"
import { gcCommand } from "./cli/commands/gc.ts"
import { lineageCommand } from "./cli/commands/lineage.ts"
import { logsCommand } from "./cli/commands/logs.ts"
import { manifestCommand } from "./cli/commands/manifest.ts"
import { planCommand } from "./cli/commands/plan.ts"
import { runCommand } from "./cli/commands/run.ts"
import { runsCommand } from "./cli/commands/runs.ts"
import { schemaCommand } from "./cli/commands/schema.ts"
import { stageCommand } from "./cli/commands/stage.ts"
import { statusCommand } from "./cli/commands/status.ts"
import { stopCommand } from "./cli/commands/stop.ts"
import { tokenizerCommand } from "./cli/commands/tokenizer.ts"
import { whyCommand } from "./cli/commands/why.ts"
import { verifyCommand } from "./cli/commands/verify.ts"
import { watchCommand } from "./cli/commands/watch.ts"
import { report, teardown } from "./cli/Ending.ts"
import { PreflightRules } from "./pipeline/plan/Preflight.ts"
import { runMain } from "./pipeline/run/Signals.ts"
import * as registry from "./stages/registry.ts"
import { version } from "./version.ts"

const program = Command.make("tinyllama").pipe(
  Command.withDescription(
    "The whole life of a small language model from one file: download, tokenize, pack, pretrain, fine-tune, evaluate, quantize, chat"
  ),
  Command.withSubcommands([
    runCommand,
    planCommand,
    diffCommand,
    whyCommand,
    acceptCommand,
    statusCommand,
    watchCommand,
    logsCommand,
    stopCommand,
    runsCommand,
    lineageCommand,
    verifyCommand,
    gcCommand,
    stageCommand,
    lintCommand,
    fmtCommand,
    schemaCommand,
    manifestCommand,
    chatCommand,
    tokenizerCommand,
    doctorCommand,
    benchCommand,
    completionsCommand
  ])
)

/** A mistake in the call is one line on stderr, not a page of help on stdout. */
const terseUsageErrors = CliOutput.layerPresenter({
  present: (event) =>
    event._tag === "InvalidInvocation"
      ? Console.error(
          `${event.errors.map((error) => error.message).join("\n")}\nTry: ${event.commandPath.join(" ")} --help`
        )
      : CliOutput.defaultPresenter.present(event)
})

// A reader that goes away (`tinyllama runs ls | head`) ends the program quietly, as Unix tools do.
process.stdout.on("error", (error: NodeJS.ErrnoException) => process.exit(error.code === "EPIPE" ? 0 : 1))

/** Loaded when a run or doctor begins to look. */
const preflightRules = Layer.succeed(
  PreflightRules,
  Effect.map(
    Effect.promise(() => import("./stages/preflight/rules.ts")),
    ({ rules }) => rules
  )
)

const services = Layer.mergeAll(
  PromptFileSystem.layer.pipe(Layer.provideMerge(NodeServices.layer)),
  registry.layer,
  preflightRules,
  terseUsageErrors,
  Layer.succeed(CommandTree, program),
  Layer.succeed(Logger.LogToStderr, true)
)

Command.run(program, { version }).pipe(
  Effect.tapCause(report),
  Effect.provide(services),
  runMain({ teardown, disableErrorReporting: true })
)
