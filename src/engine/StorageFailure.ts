/** What a failed write means for a training stage: a full disk is the user's to mend, anything else is told as it is. */
import { StageError } from "../pipeline/StageType.ts"

/** Whether a write failed for want of room: ENOSPC or EDQUOT anywhere down the chain of causes. */
export const isDiskFull = (error: unknown): boolean => {
  if (typeof error === "string") return /\b(?:ENOSPC|EDQUOT)\b/u.test(error)
  if (typeof error !== "object" || error === null) return false
  const { cause, code, message, reason } = error as Readonly<Record<string, unknown>>
  return code === "ENOSPC" || code === "EDQUOT" || [message, cause, reason].some(isDiskFull)
}

/** `what` could not be written; `kept` is what the failure has not harmed, `resume` what the same command will do. */
export const storageFailure =
  (what: string, kept: string, resume: string) =>
  (error: Error): StageError =>
    isDiskFull(error)
      ? new StageError({
          failure: "disk-full",
          message: `no room for ${what}: the disk is full; ${kept}`,
          next: `free space on that disk, then give the same command again: ${resume}`
        })
      : new StageError({
          failure: "internal",
          message: `cannot write ${what}: ${error.message}; ${kept}`,
          next: `see that the folder can be written to, then give the same command again: ${resume}`
        })
