/** How a command ends other than by success: an exit code without a message of its own, or an error's message on stderr. */
import { Cause, Console, Effect, Exit, Runtime, Schema } from "effect"
import { CliError } from "effect/cli"

/** Ends the program with this exit code; whoever fails with it has said what there was to say. */
export class Ended extends Schema.TaggedError<Ended>()("Ended", { code: Schema.Int }) {
  override get [Runtime.errorExitCode](): number {
    return this.code
  }
}

/** Prints what a person can act on: the message and the next step of an expected failure, the stack of a defect. */
export const report = (cause: Cause.Cause<unknown>): Effect.Effect<void> => {
  if (Cause.hasInterruptsOnly(cause)) return Effect.void
  const error = Cause.squash(cause)
  if (error instanceof Ended || CliError.isCliError(error)) return Effect.void
  const expected = cause.reasons.some((reason) => reason._tag === "Fail")
  if (!expected || !(error instanceof Error)) return Console.error(Cause.pretty(cause))
  const next = "next" in error && typeof error.next === "string" ? `\nNext: ${error.next}` : ""
  return Console.error(`${error.message}${next}`)
}

/** Usage errors exit 2; everything else as the error's own exit code says, 1 where it says none. */
export const teardown: Runtime.Teardown = (exit, onExit) =>
  Runtime.defaultTeardown(exit, (code) =>
    onExit(code === 1 && Exit.isFailure(exit) && CliError.isCliError(Cause.squash(exit.cause)) ? 2 : code)
  )
