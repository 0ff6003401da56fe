/** Looks a pipeline file over: what makes it invalid, with any of its profiles too, and what is legal but probably not meant. */
import { Effect, Result } from "effect"
import type { Diagnostic } from "../Diagnostics.ts"
import { loadPipelineText } from "../Pipeline.ts"
import { parseYaml, Source } from "../YamlSource.ts"
import { redundantAfter, repeatedEdge, unusedStage } from "./Edges.ts"
import type { Finding, Rule } from "./Finding.ts"
import { shadowedName, unusedAxis, unusedVariable } from "./Names.ts"
import { profileUnknown, profileWithoutEffect } from "./Profiles.ts"
import { defaultParameter, seedsDiffer } from "./Values.ts"

const rules: ReadonlyArray<Rule> = [
  unusedVariable,
  profileUnknown,
  profileWithoutEffect,
  unusedStage,
  defaultParameter,
  shadowedName,
  unusedAxis,
  seedsDiffer,
  redundantAfter,
  repeatedEdge
]

export interface Lint {
  readonly errors: ReadonlyArray<Diagnostic>
  /** In the file's order. Empty where the file does not decode: its errors come first. */
  readonly findings: ReadonlyArray<Finding>
}

export const lint = Effect.fn("lint")(function* (input: {
  readonly file: string
  readonly text: string
  readonly baseDirectory: string
}) {
  const load = (profiles: ReadonlyArray<string>) =>
    Effect.result(loadPipelineText({ label: input.file, ...input, profiles }))
  const base = yield* load([])
  const { root } = parseYaml(new Source("file", input.file, input.text))
  if (Result.isFailure(base)) return { errors: base.failure.diagnostics, findings: [] } satisfies Lint
  if (root?._tag !== "mapping") return { errors: [], findings: [] } satisfies Lint

  const findings = rules
    .flatMap((rule) => rule({ root, pipeline: base.success }))
    .toSorted((a, b) => (a.line ?? 0) - (b.line ?? 0) || (a.column ?? 0) - (b.column ?? 0))
  const declared = root.entries.get("profiles")?.value
  const errors: Array<Diagnostic> = []
  for (const profile of declared?._tag === "mapping" ? declared.entries.keys() : []) {
    const result = yield* load([profile])
    if (Result.isFailure(result))
      for (const diagnostic of result.failure.diagnostics)
        errors.push({ ...diagnostic, message: `${diagnostic.message} (with -p ${profile})` })
  }
  return { errors, findings } satisfies Lint
})
