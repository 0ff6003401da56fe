/** What a lint rule is given and what it reports, and how rules look at the written file. */
import type { Diagnostic } from "../Diagnostics.ts"
import type { ResolvedPipeline, ResolvedStage } from "../ResolvedPipeline.ts"
import { diagnose, type MappingNode, type Node, nodeAt, type Span } from "../YamlSource.ts"

export interface Finding extends Diagnostic {
  readonly rule: string
  /** A note says what could be left out; only warnings count for --strict. */
  readonly level: "warning" | "note"
  readonly next: string
}

/** The file as it is written, and what it decodes to without profiles. */
export interface LintSubject {
  readonly root: MappingNode
  readonly pipeline: ResolvedPipeline
}
export type Rule = (subject: LintSubject) => ReadonlyArray<Finding>

export const finding = (
  rule: string,
  span: Span,
  path: string,
  message: string,
  next: string,
  options: { readonly level?: Finding["level"]; readonly suggestion?: string } = {}
): Finding => ({
  ...diagnose(span, path, message, { suggestion: options.suggestion }),
  rule,
  level: options.level ?? "warning",
  next
})

/** The entries of the mapping at the path; none where there is none. */
export const mapping = (root: Node, ...path: ReadonlyArray<string>): MappingNode["entries"] => {
  const { depth, node } = nodeAt(root, path)
  return depth === path.length && node._tag === "mapping" ? node.entries : new Map()
}

/** The name that the file gives to the stage: instances of a matrix share one. */
export const writtenName = (stage: ResolvedStage): string => stage.matrix?.group ?? stage.name

/** One stage for each block of the file: of a matrix, the first instance. */
export const writtenStages = (pipeline: ResolvedPipeline): ReadonlyArray<readonly [string, ResolvedStage]> => {
  const written = new Map<string, ResolvedStage>()
  for (const stage of pipeline.stages) if (!written.has(writtenName(stage))) written.set(writtenName(stage), stage)
  return Array.from(written)
}

/** "" for what is no scalar. */
export const plainText = (node: Node): string => (node._tag === "scalar" ? String(node.value) : "")

/** Every text in the tree, keys aside. */
export const textsIn = (node: Node): ReadonlyArray<string> => {
  switch (node._tag) {
    case "scalar":
      return typeof node.value === "string" ? [node.value] : []
    case "sequence":
      return node.items.flatMap(textsIn)
    case "mapping":
      return Array.from(node.entries.values()).flatMap(({ value }) => textsIn(value))
  }
}
