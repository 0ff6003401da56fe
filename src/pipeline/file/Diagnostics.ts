/**
 * Errors in the pipeline file, as a compiler prints them: place, offending text, cause, and what was probably meant. All are collected and
 * reported together.
 */
import { Runtime, Schema } from "effect"

export const Diagnostic = Schema.Struct({
  /** "file:line:column", or the option ("-S base.lr=x") that the value came from. */
  place: Schema.String,
  /** 1-based; absent for values given on the command line. */
  line: Schema.optionalKey(Schema.Int),
  column: Schema.optionalKey(Schema.Int),
  /** Where in the document: "stages.base.with.lr.peak". */
  path: Schema.String,
  message: Schema.String,
  /** The offending text as it stands in the source. */
  text: Schema.optionalKey(Schema.String),
  /** The closest valid name. */
  suggestion: Schema.optionalKey(Schema.String)
})
export type Diagnostic = typeof Diagnostic.Type

/** `place: path: message; did you mean "x"?`, then the offending text on a line of its own. */
export const renderDiagnostic = (diagnostic: Diagnostic): string => {
  const path = diagnostic.path === "" ? "" : `${diagnostic.path}: `
  const hint = diagnostic.suggestion === undefined ? "" : `; did you mean "${diagnostic.suggestion}"?`
  const text = diagnostic.text === undefined ? "" : `\n    ${diagnostic.text}`
  return `${diagnostic.place}: ${path}${diagnostic.message}${hint}${text}`
}

/** A fault in what many stages share is reported by each of them; nobody reads a thousand lines. */
const mostShown = 50

/** The file cannot be run as it is. Exit code 3. */
export class PipelineInvalid extends Schema.TaggedError<PipelineInvalid>()("PipelineInvalid", {
  file: Schema.String,
  diagnostics: Schema.Array(Diagnostic)
}) {
  override readonly [Runtime.errorExitCode] = 3
  override get message(): string {
    const shown = this.diagnostics.slice(0, mostShown).map(renderDiagnostic)
    const more = this.diagnostics.length - shown.length
    return [...shown, ...(more > 0 ? [`… and ${more} more`] : [])].join("\n")
  }
}

/** The candidate nearest to `name` by edits (a swap of neighbours counts one), if near enough to be a slip of the hand. */
export const didYouMean = (name: string, candidates: Iterable<string>): string | undefined => {
  const wanted = name.toLowerCase()
  let best: { readonly name: string; readonly distance: number } | undefined
  for (const candidate of candidates) {
    const distance = editDistance(wanted, candidate.toLowerCase())
    const limit = Math.max(1, Math.floor(Math.max(wanted.length, candidate.length) / 3))
    if (distance <= limit && (best === undefined || distance < best.distance)) best = { name: candidate, distance }
  }
  return best?.name
}

/** Optimal string alignment distance. */
export const editDistance = (a: string, b: string): number => {
  let beforePrevious: Array<number> = []
  let previous = Array.from({ length: b.length + 1 }, (_, column) => column)
  for (let row = 1; row <= a.length; row++) {
    const current = [row]
    for (let column = 1; column <= b.length; column++) {
      const substitution = (previous[column - 1] ?? 0) + (a[row - 1] === b[column - 1] ? 0 : 1)
      let cost = Math.min(substitution, (previous[column] ?? 0) + 1, (current[column - 1] ?? 0) + 1)
      if (row > 1 && column > 1 && a[row - 1] === b[column - 2] && a[row - 2] === b[column - 1]) {
        cost = Math.min(cost, (beforePrevious[column - 2] ?? 0) + 1)
      }
      current.push(cost)
    }
    beforePrevious = previous
    previous = current
  }
  return previous[b.length] ?? 0
}
