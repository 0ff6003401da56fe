/** Eager PyTorch in a process of its own, asked for one measurement at a time. */
import { type ChildProcessByStdio, spawn, spawnSync } from "node:child_process"
import { once } from "node:events"
import { createInterface } from "node:readline"
import type { Readable, Writable } from "node:stream"
import { fileURLToPath } from "node:url"
import { Effect, Schema } from "effect"
import type { TrainingCase } from "./training.ts"

const decode = <A>(schema: Schema.Codec<A, unknown>) => Schema.decodeEffect(Schema.fromJsonString(schema))
const Hello = Schema.Struct({ torch: Schema.String })
const Gemm = Schema.Struct({ gflops: Schema.Finite })
const Training = Schema.Struct({ parameters: Schema.Int, step_seconds: Schema.Finite, loss: Schema.Finite })

export class TorchFailed extends Schema.TaggedError<TorchFailed>()("TorchFailed", { reason: Schema.String }) {
  override get message() {
    return `PyTorch's benchmark process failed: ${this.reason}`
  }
}

/** The first of /usr/bin/python3 (Debian's python3-torch) and python3 that can import torch. */
export const findPythonWithTorch: Effect.Effect<string | undefined> = Effect.sync(() =>
  ["/usr/bin/python3", "python3"].find(
    (python) => spawnSync(python, ["-c", "import torch"], { stdio: "ignore", timeout: 60_000 }).status === 0
  )
)

const script = fileURLToPath(new URL("torch_cpu.py", import.meta.url))

const start = (python: string, threads: number) =>
  Effect.sync(() => spawn(python, [script, String(threads)], { stdio: ["pipe", "pipe", "inherit"] }))

const stop = (child: ChildProcessByStdio<Writable, Readable, null>) =>
  Effect.promise(async () => {
    if (child.exitCode !== null || child.signalCode !== null) return
    const closed = once(child, "close")
    child.stdin.end()
    child.kill()
    await closed
  })

/** Lives as long as the scope. */
export const startTorch = Effect.fn("startTorch")(function* (python: string, threads: number) {
  const child = yield* Effect.acquireRelease(start(python, threads), stop)
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]()
  const failed = (reason: unknown) => new TorchFailed({ reason: String(reason) })
  const next = Effect.tryPromise({ try: () => lines.next(), catch: failed }).pipe(
    Effect.flatMap((line) =>
      line.done === true ? Effect.fail(failed("it ended; its messages are above")) : Effect.succeed(line.value)
    )
  )
  const ask = Effect.fnUntraced(function* <A>(request: object, answer: Schema.Codec<A, unknown>) {
    child.stdin.write(`${JSON.stringify(request)}\n`)
    return yield* decode(answer)(yield* next).pipe(Effect.mapError(failed))
  })
  const hello = yield* decode(Hello)(yield* next).pipe(Effect.mapError(failed))
  return {
    version: hello.torch,
    /** GFLOP/s of a square product. */
    gemm: (size: number) => Effect.map(ask({ gemm: size }, Gemm), ({ gflops }) => gflops),
    /** Median seconds of a training step. */
    train: ({ batch, length, shape }: TrainingCase, effort: { readonly seconds: number; readonly steps: number }) =>
      ask({ shape, batch, length, ...effort }, Training)
  }
})
