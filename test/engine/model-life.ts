/** A process, or a worker thread, that uses models in the way its argument names; it ends by itself where the way is not to end it. */
import { isMainThread, Worker, workerData } from "node:worker_threads"
import { setTimeout as sleep } from "node:timers/promises"
import { Effect } from "effect"
import { type Batch, load } from "../../src/engine/Native.ts"

const native = Effect.runSync(load)

const makeModel = (width: number) => {
  const model = new native.Model(
    {
      vocab_size: 64,
      hidden_size: width,
      intermediate_size: 2 * width,
      num_hidden_layers: 1,
      num_attention_heads: 2,
      num_key_value_heads: 1,
      head_dim: width / 2,
      rms_norm_eps: 1e-5,
      rope_theta: 10_000,
      tie_word_embeddings: false
    },
    { threads: 1 }
  )
  model.initialize(1)
  return model
}

const ids = (count: number) => Int32Array.from({ length: count }, (_, index) => index % 64)
const batchOf = (batch: number, length: number): Batch => ({
  tokens: ids(batch * length),
  targets: ids(batch * length),
  batch,
  length
})

/** Seconds of work, of which the first tenth of a second is done when it returns. */
const busy = async (): Promise<void> => {
  const model = makeModel(256)
  for (let call = 0; call < 500; call++)
    model.accumulate(batchOf(4, 64), 1).catch((error: unknown) => console.log(String(error)))
  await sleep(100)
}

const inWorker = (way: string) =>
  new Worker(new URL(import.meta.url), { workerData: way, execArgv: ["--disable-warning=ExperimentalWarning"] })

const ended = (worker: Worker) => new Promise<number>((resolve) => worker.once("exit", resolve))

const ways: Readonly<Record<string, () => Promise<void>>> = {
  /** The loop stays alive for the calls, and no longer. */
  idle: async () => {
    const model = makeModel(32)
    makeModel(32)
    const { scored } = await model.accumulate(batchOf(1, 16), 1)
    model
      .step({
        step: 1,
        learningRate: 1e-3,
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-8,
        weightDecay: 0,
        decay: "all",
        clip: 1
      })
      .then(
        ({ gradientNorm }) => console.log(`${scored} scored, gradient norm above 0: ${gradientNorm > 0}`),
        () => undefined
      )
  },
  exit: async () => {
    await busy()
    process.exit(3)
  },
  throw: async () => {
    await busy()
    throw new Error("as asked")
  },
  busy,
  workers: async () => {
    for (let round = 0; round < 5; round++) {
      const [idle, exit, busy] = [inWorker("idle"), inWorker("exit"), inWorker("busy")]
      const codes = Promise.all([ended(idle), ended(exit)])
      // At its start, and while its calls are under way.
      await sleep(60 * round)
      await busy.terminate()
      console.log("idle %d, exit %d", ...(await codes))
    }
  },
  /** Many calls, and many models, of which half are left to the garbage collector; prints KiB that the second half of each took. */
  many: async () => {
    const resident = () => {
      globalThis.gc?.()
      return Math.round(process.memoryUsage().rss / 1024)
    }
    const model = makeModel(32)
    const calls = async (count: number) => {
      for (let done = 0; done < count; done += 500)
        await Promise.all(Array.from({ length: 500 }, () => model.accumulate(batchOf(1, 64), 1)))
    }
    const models = async (count: number) => {
      for (let made = 0; made < count; made++) {
        const one = makeModel(32)
        await one.accumulate(batchOf(1, 4), 1)
        if (made % 2 === 0) one.dispose()
        if (made % 50 === 0) globalThis.gc?.()
        await sleep(0)
      }
    }
    const growth = async (work: (count: number) => Promise<void>, count: number) => {
      await work(count)
      const before = resident()
      await work(count)
      return resident() - before
    }
    console.log(JSON.stringify({ calls: await growth(calls, 10_000), models: await growth(models, 200) }))
  }
}

await ways[isMainThread ? (process.argv[2] ?? "") : String(workerData)]?.()
