/** `tinyllama lint [FILE]`: a pipeline file's errors, and what is legal in it but suspicious. Exit 3 for errors; with --strict 1 for warnings. */
import { Console, Effect, Path } from "effect"
import { Command, Flag } from "effect/cli"
import { renderDiagnostic } from "../../pipeline/file/Diagnostics.ts"
import type { Finding } from "../../pipeline/file/lint/Finding.ts"
import { readPipelineText } from "../../pipeline/file/Pipeline.ts"
import { Ended } from "../Ending.ts"
import * as Flags from "../Flags.ts"

export const lintCommand = Command.make(
  "lint",
  {
    file: Flags.pipelineFile,
    strict: Flag.Boolean("strict").pipe(
      Flag.withDefault(false),
      Flag.withDescription("Exit 1 when there are warnings")
    ),
    json: Flags.json
  },
  Effect.fn(function* (flags) {
    const { lint } = yield* Effect.promise(() => import("../../pipeline/file/lint/Lint.ts"))
    const path = yield* Path.Path
    const text = yield* readPipelineText(flags.file)
    const { errors, findings } = yield* lint({
      file: flags.file,
      text,
      baseDirectory: path.dirname(path.resolve(flags.file))
    })
    if (flags.json) yield* Console.log(JSON.stringify({ version: 1, file: flags.file, errors, findings }))
    else {
      for (const error of errors) yield* Console.log(`error: ${renderDiagnostic(error)}`)
      for (const finding of findings)
        yield* Console.log(`${finding.level}: ${describe(finding)}\n  Next: ${finding.next}`)
      yield* Console.log(`${flags.file}: ${summary(errors.length, findings)}`)
    }
    if (errors.length > 0) return yield* new Ended({ code: 3 })
    if (flags.strict && findings.some(({ level }) => level === "warning")) return yield* new Ended({ code: 1 })
  })
).pipe(Command.withDescription("Look a pipeline file over: errors, and what is legal but probably not meant"))

/** On one line: the place says enough, the text is not wrong. */
const describe = ({ message, path, place, rule, suggestion }: Finding): string =>
  renderDiagnostic({
    place,
    path,
    message: `${message} [${rule}]`,
    ...(suggestion === undefined ? {} : { suggestion })
  })

const summary = (errors: number, findings: ReadonlyArray<Finding>): string => {
  const counted = (count: number, word: string) => (count === 0 ? [] : [`${count} ${word}${count === 1 ? "" : "s"}`])
  const warnings = findings.filter(({ level }) => level === "warning").length
  const parts = [
    ...counted(errors, "error"),
    ...counted(warnings, "warning"),
    ...counted(findings.length - warnings, "note")
  ]
  return parts.length === 0 ? "nothing to report" : parts.join(", ")
}
