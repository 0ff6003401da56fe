/** `tinyllama stage new NAME`: a complete small stage to start from, with a fixture to test it on. */
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs"
import { dirname, join } from "node:path"
import { fileURLToPath } from "node:url"
import { Console, Effect } from "effect"
import { Argument, Command } from "effect/cli"
import { UsageError } from "../../pipeline/plan/Selection.ts"
import { StageRegistry } from "../../pipeline/StageRegistry.ts"

/** A stage that works, and is tested as all of examples/ is. */
const template = fileURLToPath(new URL("../../../examples/plugin", import.meta.url))
const templateName = "word-count"

export const newCommand = Command.make(
  "new",
  { name: Argument.String("name").pipe(Argument.withDescription("The new stage type, say dedupe: writes dedupe.ts")) },
  Effect.fn(function* ({ name }) {
    const registry = yield* StageRegistry
    if (!/^[a-z][a-z0-9-]*$/u.test(name))
      return yield* new UsageError({ message: `${name}: a stage's name is small letters, digits and -, as in dedupe` })
    if (registry.names.includes(name))
      return yield* new UsageError({ message: `${name} is a stage type of the program: choose another name` })
    const written = yield* Effect.try({
      try: () => write(name),
      catch: (error) => new UsageError({ message: error instanceof Error ? error.message : String(error) })
    })
    yield* Console.log(
      [
        ...written.map((file) => `wrote ${file}`),
        "",
        `Next: npx tinyllama stage test ./${name}.ts   runs it, kills it, and compares the bytes`,
        `      uses: ./${name}.ts   in a pipeline file beside it`
      ].join("\n")
    )
  })
).pipe(Command.withDescription("Write a small complete stage of your own, with a fixture to test it on"))

const write = (name: string): ReadonlyArray<string> => {
  const renamed = (file: string) => file.replaceAll(templateName, name)
  const files = readdirSync(template, { recursive: true, encoding: "utf8" })
    .filter((file) => /\.[a-z]+$/u.test(file) && !file.endsWith(".fixture"))
    .sort()
  const taken = files.map(renamed).filter((file) => existsSync(file))
  if (taken.length > 0)
    throw new Error(`${taken.join(", ")}: already there, and nothing was written. Move it away, or choose another name`)
  for (const file of files) {
    const target = renamed(file)
    mkdirSync(dirname(target), { recursive: true })
    if (/\.(ts|yaml)$/u.test(file))
      writeFileSync(target, renamed(readFileSync(join(template, file), "utf8")), { flag: "wx" })
    else cpSync(join(template, file), target, { force: false, errorOnExist: true })
  }
  return files.map(renamed)
}
