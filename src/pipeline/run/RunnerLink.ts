/**
 * Ties ranks to the runner that started them: each connects to a socket of the runner's, says who it is, and ends when the connection does. What a
 * pipe is to a single worker, this is to processes that mpirun starts, which have none of ours. The runner in turn learns that a rank ended,
 * though it is not its parent.
 */
import { mkdtempSync, rmSync } from "node:fs"
import { connect, createServer } from "node:net"
import { tmpdir } from "node:os"
import { dirname, join } from "node:path"
import { createInterface } from "node:readline"
import { Effect, Option, Schema } from "effect"

const Hello = Schema.Struct({ rank: Schema.Int, pid: Schema.Int })
const decodeHello = Schema.decodeUnknownOption(Schema.fromJsonString(Hello))

/** The path of a Unix socket may have 107 bytes. */
const longest = 100

export interface RunnerLink {
  /** What ranks connect to: the worker's --runner. */
  readonly path: string
}

/** Listens until the scope closes. Only this user's processes can connect. */
export const listenForRanks = (on: {
  readonly begun: (rank: number, pid: number) => void
  readonly ended: (rank: number) => void
}) =>
  Effect.acquireRelease(
    Effect.callback<{ readonly path: string; readonly close: () => void }, Error>((resume) => {
      const server = createServer((socket) => {
        let rank: number | undefined
        socket.on("error", () => {})
        createInterface({ input: socket }).on("line", (line) => {
          const hello = decodeHello(line)
          if (Option.isNone(hello)) return
          rank = hello.value.rank
          on.begun(rank, hello.value.pid)
        })
        socket.on("close", () => {
          if (rank !== undefined) on.ended(rank)
        })
      })
      const path = socketPath()
      const close = () => {
        server.close()
        rmSync(dirname(path), { recursive: true, force: true })
      }
      server.on("error", (error) => {
        close()
        resume(Effect.fail(error))
      })
      server.listen(path, () => resume(Effect.succeed({ path, close })))
    }),
    ({ close }) => Effect.sync(close)
  )

/** In a folder that this user alone may enter. */
const socketPath = (): string => {
  const beside = (folder: string) => join(mkdtempSync(join(folder, "tinyllama-")), "ranks")
  return join(tmpdir(), "tinyllama-XXXXXX", "ranks").length <= longest ? beside(tmpdir()) : beside("/tmp")
}

/** A rank's end: says who it is, and calls `runnerGone` when the runner is, at once where it is gone already. */
export const connectToRunner = (path: string, rank: number, runnerGone: () => void): void => {
  const socket = connect(path)
  socket.on("error", runnerGone)
  socket.on("close", runnerGone)
  socket.write(`${JSON.stringify({ rank, pid: process.pid })}\n`)
  // A finished rank must not live on for it.
  socket.unref()
}
