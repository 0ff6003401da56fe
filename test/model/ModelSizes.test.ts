import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { load } from "../../src/engine/Native.ts"
import { presets, toModelConfig } from "../../src/model/Architecture.ts"
import { type SharedTraining, trainingMemory } from "../../src/model/ModelSizes.ts"

describe("the memory of training", () => {
  it.effect("of ranks that share a model and a machine is the engine's plan, within 2 %, under every strategy", () =>
    Effect.gen(function* () {
      const native = yield* load
      const shape = presets["tinyllama-1.1b"]
      const ways: ReadonlyArray<Omit<SharedTraining, "ranks">> = [
        { strategy: "none" },
        { strategy: "zero2" },
        { strategy: "zero2", share_gradients: true },
        { strategy: "fsdp" },
        { strategy: "fsdp", share_gradients: true },
        { strategy: "hsdp", shard_size: 2 }
      ]
      for (const way of ways)
        for (const ranks of [2, 4]) {
          const { share_gradients: shareGradients = false, shard_size: shardSize = 1, strategy } = way
          const world = { rank: 0, size: ranks, communicator: "mpi" } as const
          const options = { threads: 1, strategy, shardSize, shareGradients, world }
          const plan = native.planTrainingMemory(toModelConfig(shape), options, 1, 256)
          const planned = ranks * (plan.weights + plan.gradients + plan.moments + plan.activations)
          // What is said besides: of each process, what it passes through JavaScript, and itself.
          const besides = ranks * (2 * 4 * 32_000 * 2048 + 220e6)
          const told = trainingMemory(shape, 256, "fp32", { ...way, ranks }) - besides
          const what = `${JSON.stringify(way)} on ${ranks} ranks: ${told} of ${planned}`
          assert.isBelow(Math.abs(told / planned - 1), 0.02, what)
        }
    })
  )
})
