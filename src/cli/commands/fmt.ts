/** `tinyllama fmt [FILE…]`: writes pipeline files in their canonical form, comments kept, meaning proven the same; --check only looks. */
import { realpathSync } from "node:fs"
import { Console, Effect, Path } from "effect"
import { Argument, Command, Flag } from "effect/cli"
import { writeFileAtomic } from "../../artifacts/DurableFile.ts"
import { readPipelineText } from "../../pipeline/file/Pipeline.ts"
import { Ended } from "../Ending.ts"
import * as Flags from "../Flags.ts"

export const fmtCommand = Command.make(
  "fmt",
  {
    files: Argument.File("file").pipe(
      Argument.map(Flags.asSaid),
      Argument.atLeast(0),
      Argument.withDescription("Pipeline files (pipeline.yaml where none is given)")
    ),
    check: Flag.Boolean("check").pipe(
      Flag.withDefault(false),
      Flag.withDescription("Write nothing; name the files that are not formatted, and exit 1 if there are any")
    )
  },
  Effect.fn(function* (flags) {
    const { formatPipeline } = yield* Effect.promise(() => import("../../pipeline/file/PipelineFormat.ts"))
    const path = yield* Path.Path
    const unformatted: Array<string> = []
    for (const file of flags.files.length === 0 ? ["pipeline.yaml"] : flags.files) {
      const text = yield* readPipelineText(file)
      const formatted = yield* formatPipeline({ file, text, baseDirectory: path.dirname(path.resolve(file)) })
      if (formatted === text) continue
      unformatted.push(file)
      // A link stays a link: what it points to is replaced.
      if (!flags.check) yield* writeFileAtomic(realpathSync(file), formatted)
      yield* Console.log(flags.check ? `${file} is not formatted` : `${file} formatted`)
    }
    if (!flags.check || unformatted.length === 0) return
    yield* Console.error(`Next: npx tinyllama fmt ${unformatted.join(" ")}`)
    return yield* new Ended({ code: 1 })
  })
).pipe(Command.withDescription("Format pipeline files: comments stay, and so does the meaning"))
