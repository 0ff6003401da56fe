/** What an error of the file system means for a stage: its failure class, and the step that helps. */
import { StageError } from "../pipeline/StageType.ts"

const codeOf = (cause: unknown): string =>
  typeof cause === "object" && cause !== null && "code" in cause ? String(cause.code) : ""

/** Maps a Node file system error at `place` (what was being read or written); other errors become `internal`. A StageError passes through. */
export const fileFailure =
  (place: string) =>
  (cause: unknown): StageError => {
    if (cause instanceof StageError) return cause
    const code = codeOf(cause)
    switch (code) {
      case "ENOSPC":
      case "EDQUOT":
        return new StageError({
          failure: "disk-full",
          message: `${place}: no room left on the disk (${code})`,
          next: "free space or move the runs folder to another disk, then run again: finished work is kept"
        })
      case "ENOENT":
        return new StageError({
          failure: "invalid-input",
          message: `${place}: no such file`,
          next: "check the path; relative paths start at the pipeline file's folder"
        })
      case "EACCES":
      case "EPERM":
        return new StageError({
          failure: "invalid-input",
          message: `${place}: permission denied (${code})`,
          next: "give this user the right to read it, or name another file"
        })
      default:
        return new StageError({
          failure: "internal",
          message: `${place}: ${cause instanceof Error ? cause.message : String(cause)}`,
          next: "run again; if it comes back, report it with this message"
        })
    }
  }
