/** What to say about a field or column that is not there. */
import { didYouMean } from "../pipeline/file/Diagnostics.ts"
import { StageError } from "../pipeline/StageType.ts"

/** `; did you mean "text"?`, or the names that there are. */
export const hintAt = (name: string, names: ReadonlyArray<string>): string => {
  const meant = didYouMean(name, names)
  return meant !== undefined
    ? `; did you mean "${meant}"?`
    : names.length === 0
      ? ""
      : `; it has ${names.slice(0, 12).join(", ")}${names.length > 12 ? ", …" : ""}`
}

/** A columnar file lacks a column: the pipeline file is wrong, not a row. */
export const columnMissing = (place: string, name: string, names: ReadonlyArray<string>, isText: boolean): StageError =>
  new StageError({
    failure: "invalid-input",
    message: `${place}: there is no column "${name}"${hintAt(name, names)}`,
    next: isText ? "set text_field to the column that holds the text" : "correct the field's name in where"
  })
