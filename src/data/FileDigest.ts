/** Digests of files on the disk. */
import { Effect } from "effect"
import { FileDigests, readDigest } from "../artifacts/DigestCache.ts"
import type { StageError } from "../pipeline/StageType.ts"
import { fileFailure } from "./FileFailure.ts"

/** sha256 of a file's bytes, in hex. `place` leads the message of a failure. */
export const sha256OfFile = (file: string, place: string): Effect.Effect<string, StageError> =>
  Effect.tryPromise({ try: () => readDigest(file), catch: fileFailure(place) })

/** The same for a file that somebody else keeps: one that did not change since it was read last is not read again. */
export const sha256OfInput = (file: string, place: string): Effect.Effect<string, StageError> =>
  Effect.flatMap(FileDigests, (digests) =>
    Effect.tryPromise({ try: () => digests.sha256(file), catch: fileFailure(place) })
  )
