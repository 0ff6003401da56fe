/** Digests of files on the disk. */
import { createHash } from "node:crypto"
import { createReadStream } from "node:fs"
import { readFile, stat } from "node:fs/promises"
import { Effect } from "effect"
import type { StageError } from "../pipeline/StageType.ts"
import { fileFailure } from "./FileFailure.ts"

/** sha256 of a file's bytes, in hex. `place` leads the message of a failure. */
export const sha256OfFile = (file: string, place: string): Effect.Effect<string, StageError> =>
  Effect.tryPromise({
    try: async () => {
      const hash = createHash("sha256")
      if ((await stat(file)).size <= 1 << 22) return hash.update(await readFile(file)).digest("hex")
      for await (const chunk of createReadStream(file, { highWaterMark: 1 << 20 })) hash.update(chunk as Buffer)
      return hash.digest("hex")
    },
    catch: fileFailure(place)
  })
