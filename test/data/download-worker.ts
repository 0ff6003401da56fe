/** Fetches one file, in a process of its own to be killed: node download-worker.ts URL TARGET SHA256. */
import { Duration, Effect } from "effect"
import * as FetchHttpClient from "effect/http/FetchHttpClient"
import { download } from "../../src/data/HttpDownload.ts"
import { makeSession } from "../../src/data/HttpTransport.ts"

const [url = "", target = "", sha256 = ""] = process.argv.slice(2)

const program = Effect.gen(function* () {
  const session = yield* makeSession({
    connections: 4,
    stopRequested: () => false,
    log: (line) => process.stdout.write(`${line}\n`),
    patience: { base: Duration.millis(20), longest: Duration.millis(200), stall: Duration.millis(500) }
  })
  return yield* download(session, { url, place: "file.bin", target, sha256, onBytes: () => {} })
})

Effect.runPromise(program.pipe(Effect.provide(FetchHttpClient.layer))).then(
  () => process.exit(0),
  (error: unknown) => {
    process.stdout.write(`${String(error)}\n`)
    process.exit(1)
  }
)
