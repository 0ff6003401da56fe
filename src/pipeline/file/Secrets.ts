/**
 * Secrets: environment variables that the file names and never holds. Workers of stages that name one get it; other workers do not even
 * inherit it. What a worker says is scrubbed of the values before anything is written.
 */
import { Config, Effect, Option, Redacted, Runtime, Schema } from "effect"
import type { Diagnostic } from "./Diagnostics.ts"
import { describeVia } from "./Overlay.ts"
import type { ResolvedPipeline, ResolvedStage } from "./ResolvedPipeline.ts"
import { diagnose, type Node } from "./YamlSource.ts"

/** Shorter values stand in ordinary text by chance: scrubbing them would tear it apart, and guessing them takes no time. */
const shortest = 6

/** Something that the run needs is not there; nothing has begun. Exit code 6. */
export class PreflightFailed extends Schema.TaggedError<PreflightFailed>()("PreflightFailed", {
  problems: Schema.Array(Schema.String)
}) {
  override readonly [Runtime.errorExitCode] = 6
  override get message(): string {
    return this.problems.join("\n")
  }
}

/** `secrets`: names of environment variables. */
export const decodeSecrets = (
  node: Node | undefined,
  path: string,
  report: Array<Diagnostic>
): ReadonlyArray<string> => {
  if (node === undefined || (node._tag === "scalar" && node.value === null)) return []
  if (node._tag !== "sequence") {
    report.push(diagnose(node.span, path, `must be a list of names of environment variables${describeVia(node)}`))
    return []
  }
  const names = node.items.flatMap((item, index) => {
    if (item._tag === "scalar" && typeof item.value === "string" && /^[A-Za-z_]\w*$/u.test(item.value)) {
      return [item.value]
    }
    // A value pasted by mistake must not be repeated on the screen.
    const message = "must be the name of an environment variable, as in HF_TOKEN; its value stays in the environment"
    report.push(diagnose(item.span, `${path}[${index}]`, message, { text: "" }))
    return []
  })
  return Array.from(new Set(names))
}

export type Scrub = (text: string) => string

/** What one attempt's worker may know, and what must not be read in its output. */
export interface AttemptSecrets {
  readonly granted: ReadonlyMap<string, Redacted.Redacted>
  /** Variables that other stages name as secret. */
  readonly withheld: ReadonlyArray<string>
  readonly scrub: Scrub
}

export interface Secrets {
  /** The event as it may be written. */
  readonly scrubEvent: <A>(event: A) => A
  readonly of: (stage: ResolvedStage) => AttemptSecrets
}

/** The secrets of `running`, the stages that this run may start. Fails before anything runs with all that is missing or unfit. */
export const readSecrets = Effect.fn("readSecrets")(function* (
  pipeline: ResolvedPipeline,
  running: ReadonlyArray<ResolvedStage>
) {
  const problems: Array<string> = []
  const values = new Map<string, Redacted.Redacted>()
  for (const name of new Set(running.flatMap((stage) => stage.secrets))) {
    const value = yield* Config.option(Config.Redacted(name)).pipe(Effect.orElseSucceed(() => Option.none()))
    const users = running.filter((stage) => stage.secrets.includes(name)).map((stage) => stage.name)
    const problem = Option.match(value, {
      onNone: () => missing(name, users),
      onSome: (secret) => fault(name, Redacted.value(secret), users, pipeline)
    })
    if (problem !== undefined) problems.push(problem)
    else if (Option.isSome(value)) values.set(name, value.value)
  }
  if (problems.length > 0) return yield* new PreflightFailed({ problems })
  const named = new Set([...pipeline.secrets, ...pipeline.stages.flatMap((stage) => stage.secrets)])
  const scrub = scrubber(values)
  const secrets: Secrets = {
    scrubEvent: (event) => (values.size === 0 ? event : scrubDeep(event, scrub)),
    of: (stage) => ({
      granted: new Map(Array.from(values).filter(([name]) => stage.secrets.includes(name))),
      withheld: Array.from(named).filter((name) => !stage.secrets.includes(name)),
      scrub
    })
  }
  return secrets
})

const missing = (name: string, users: ReadonlyArray<string>): string =>
  `the secret ${name} of ${listed(users)} is not set. Next: export ${name} in the environment of this command, or take it out of "secrets"`

const fault = (
  name: string,
  value: string,
  users: ReadonlyArray<string>,
  pipeline: ResolvedPipeline
): string | undefined => {
  if (value === "") return missing(name, users)
  if (value.length < shortest) {
    return `the secret ${name} of ${listed(users)} has fewer than ${shortest} characters, so it cannot be told from ordinary text and kept out of logs. Next: use a longer one`
  }
  const written = [pipeline.text, ...pipeline.overrides, ...pipeline.stages.map(({ params }) => JSON.stringify(params))]
  const forms = [value, JSON.stringify(value).slice(1, -1)]
  if (!written.some((text) => forms.some((form) => text.includes(form)))) return undefined
  return `the value of the secret ${name} stands in the pipeline (${pipeline.file} or -S), where keys and run folders would keep it. Next: take it out, and replace the secret if the file was shared`
}

const listed = (stages: ReadonlyArray<string>): string =>
  `${stages.length === 1 ? "stage" : "stages"} ${stages.slice(0, 5).join(", ")}${stages.length > 5 ? ` and ${stages.length - 5} more` : ""}`

/** Replaces every form in which a value may be read: as it is, in JSON, in a URL, and the single lines of one that has several. */
export const scrubber = (values: ReadonlyMap<string, Redacted.Redacted>): Scrub => {
  const forms = Array.from(values).flatMap(([name, secret]) => {
    const value = Redacted.value(secret)
    const lines = value.split(/\r?\n/u).filter((line) => line.length >= shortest)
    return [value, JSON.stringify(value).slice(1, -1), encodeURIComponent(value), ...lines].map(
      (form) => [form, `[secret ${name}]`] as const
    )
  })
  // The longest first, so that no form is torn by one that it contains.
  const ordered = forms.toSorted(([a], [b]) => b.length - a.length)
  return (text) => ordered.reduce((clean, [form, mark]) => clean.replaceAll(form, mark), text)
}

/** The value with every text in it scrubbed, names of fields too. */
export const scrubDeep = <A>(value: A, scrub: Scrub): A => {
  if (typeof value === "string") return scrub(value) as A & string
  if (typeof value !== "object" || value === null) return value
  const clean: unknown = Array.isArray(value)
    ? value.map((item: unknown) => scrubDeep(item, scrub))
    : Object.fromEntries(Object.entries(value).map(([key, inner]) => [scrub(key), scrubDeep(inner, scrub)]))
  // Events and facts are plain JSON: the same shape comes back.
  return clean as A
}

/** A value may be torn between two reads: the last line is held back until it ends, or is longer than any secret. */
const longestHeld = 1 << 16

/** Passes a process's output on, line by line, scrubbed; `end` passes on what is left. */
export const scrubbedOutput = (scrub: Scrub, write: (text: string) => void) => {
  let held = ""
  return {
    take: (text: string): void => {
      const clean = scrub(held + text)
      const lineEnd = clean.lastIndexOf("\n") + 1
      const cut = lineEnd > 0 ? lineEnd : clean.length > 2 * longestHeld ? clean.length - longestHeld : 0
      if (cut > 0) write(clean.slice(0, cut))
      held = clean.slice(cut)
    },
    end: (): void => {
      if (held !== "") write(scrub(held))
      held = ""
    }
  }
}
