import { layer } from "@effect/vitest"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { Effect } from "effect"
import { assert } from "vitest"
import { chooseCompute } from "../../src/engine/Compute.ts"
import {
  cheapestChange,
  CONTEXT_BYTES,
  forecastMemory,
  gpuTrainingBytes,
  NCCL_BYTES
} from "../../src/engine/GpuMemory.ts"
import { load, type ModelOptions, type NativeWorld } from "../../src/engine/Native.ts"
import { presets } from "../../src/model/Architecture.ts"

const wish = { device: "auto", gpu: 0, precision: "auto", recompute: "pointwise" } as const

layer(NodeServices.layer)("where a model computes", (it) => {
  it.effect("on the CPU in fp32 where there is no GPU, and a GPU asked for by name is refused with the cause", () =>
    Effect.gen(function* () {
      const native = yield* load
      if (native.gpus().gpus.length > 0) return
      const chosen = yield* chooseCompute(wish, 3)
      assert.deepInclude(chosen, { device: "cpu", precision: "fp32", threads: 3, recompute: "none" })
      for (const change of [{ device: "cuda" }, { precision: "bf16" }] as const) {
        const refused = yield* Effect.flip(chooseCompute({ ...wish, ...change }, 3))
        assert.include(refused.message, "there is no GPU: ")
        assert.include(refused.next, "set device to cpu")
      }
      const mixed = yield* Effect.flip(chooseCompute({ ...wish, device: "cpu", precision: "bf16" }, 3))
      assert.include(mixed.message, "the CPU computes in fp32")
    })
  )

  it.effect("takes less memory the more is computed again", () =>
    Effect.gen(function* () {
      const native = yield* load
      const sizes = (["none", "pointwise", "gate_up", "full"] as const).map((recompute) =>
        gpuTrainingBytes(
          native,
          presets["tinyllama-1.1b"],
          { threads: 1, device: "cuda", precision: "bf16", recompute },
          { batch: 16, length: 2048 }
        )
      )
      assert.deepStrictEqual(
        sizes,
        sizes.toSorted((a, b) => b - a)
      )
      assert.isBelow(sizes[1]! / 2 ** 30, 0.75 * 72)
    })
  )

  const shape = presets["tinyllama-1.1b"]
  const size = { batch: 8, length: 2048 }
  const world = (ranks: number, communicator: NativeWorld["communicator"] = "nccl") => ({
    world: { rank: 0, size: ranks, communicator }
  })
  const gpu: ModelOptions = { threads: 1, device: "cuda", precision: "bf16", recompute: "pointwise" }

  it.effect(
    "of one rank of several falls with strategy and ranks; NCCL's own is told besides, once for each communicator",
    () =>
      Effect.gen(function* () {
        const native = yield* load
        const forecast = (options: Partial<ModelOptions>) => forecastMemory(native, shape, { ...gpu, ...options }, size)
        const alone = forecast({})
        assert.deepInclude(alone, { context: CONTEXT_BYTES, communicator: 0 })
        // Logits of a chunk, 8,192 × 32,000 in bf16, and the products' workspace of 64 MiB.
        assert.strictEqual(alone.overhead, 8192 * 32_000 * 2 + 64 * 2 ** 20)
        const totals = (["none", "zero2", "fsdp"] as const).map(
          (strategy) => forecast({ ...world(8), strategy }).planned
        )
        assert.deepStrictEqual(
          totals,
          totals.toSorted((a, b) => b - a)
        )
        const many = forecast({ ...world(64), strategy: "fsdp" })
        assert.isBelow(many.planned, forecast({ ...world(8), strategy: "fsdp" }).planned)
        assert.strictEqual(many.communicator, NCCL_BYTES)
        assert.strictEqual(forecast({ ...world(64), strategy: "hsdp", shardSize: 8 }).communicator, 3 * NCCL_BYTES)
        assert.strictEqual(forecast({ ...world(8, "host-staged"), strategy: "zero2" }).communicator, 0)
        assert.isBelow(
          forecast({ ...world(8), strategy: "fsdp", shareGradients: true }).planned,
          forecast({ ...world(8), strategy: "fsdp" }).planned - 3e9
        )
        assert.throws(
          () => forecast({ ...world(12), strategy: "hsdp", shardSize: 8 }),
          /must divide the number of ranks/u
        )
      })
  )

  it.effect(
    "that does not fit is answered with the cheapest change: strategy, gradients, ranks, micro-batch, recomputation",
    () =>
      Effect.gen(function* () {
        const native = yield* load
        const advice = (options: Partial<ModelOptions>, gibibytes: number, count = 1, batch = 8) =>
          cheapestChange(
            native,
            shape,
            { ...gpu, ...options },
            { ...size, batch },
            { memory: gibibytes * 2 ** 30, count }
          )
        // 8 ranks with everything on each: 34.2 GiB. With zero2 23.5.
        assert.match(
          advice({ ...world(8), strategy: "none" }, 32, 8) ?? "",
          /^set strategy to zero2: the cheapest change that fits/u
        )
        assert.match(advice({ ...world(8), strategy: "zero2" }, 23, 8) ?? "", /^set micro_batch to 4 /u)
        const sharded = (gibibytes: number) => advice({ ...world(8), strategy: "zero2" }, gibibytes, 8, 1) ?? ""
        assert.match(sharded(10), /^set strategy to fsdp: the cheapest change that fits, at about 3 % of the time/u)
        assert.match(sharded(8), /^set share_gradients to true: /u)
        // One sequence on one GPU of 16 GB, which holds not even the state: other GPUs of the machine must help.
        const more = advice({ strategy: "zero2" }, 16, 4, 1) ?? ""
        assert.match(more, /share the model among \d+ GPUs \(resources.ranks, resources.gpus\)/u)
        assert.match(more, /no cheaper change fits/u)
        // Alone on a GPU, a smaller micro-batch comes before GPUs that the machine does not have.
        assert.match(advice({}, 30) ?? "", /^set micro_batch to 4 /u)
        assert.isUndefined(advice({}, 1))
      })
  )
})
