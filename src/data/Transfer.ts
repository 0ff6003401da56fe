/** A file on its way over http(s), and the two things that its server may turn out to do. */
import type { FileHandle } from "node:fs/promises"
import { Data, type Effect } from "effect"
import type { StageError } from "../pipeline/StageType.ts"
import type { Ask, Session } from "./HttpTransport.ts"
import type { RangeJournal } from "./RangeJournal.ts"

/** The server has another file now than the one that the pieces are of. */
export class Changed extends Data.TaggedError("Changed")<{ readonly what: string }> {}

/** The server has no ranges. */
export class WholeOnly extends Data.TaggedError("WholeOnly")<{ readonly reason: string }> {}

/** A file on its way: one for each part file. */
export interface Transfer {
  readonly session: Session
  readonly ask: Ask
  readonly part: string
  readonly file: FileHandle
  /** What stays the same where addresses change. */
  readonly key: string
  readonly md5Etag: boolean
  /** A digest or a commit says what the file is: validators of the servers that hold copies need not agree. */
  readonly pinned: boolean
  /** Called once the size is known, before bytes come. */
  readonly ensureRoom: (bytes: number) => Effect.Effect<void, StageError>
  readonly onBytes: (done: number, total: number | undefined) => void
  journal: RangeJournal | undefined
  /** Where redirects led last. */
  direct: string | undefined
  /** How often in a row answers said this. */
  said: { readonly what: string; readonly times: number } | undefined
  /** The server has no ranges. */
  wholeOnly: boolean
}
