import { layer } from "@effect/vitest"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { Effect } from "effect"
import { assert } from "vitest"
import { chooseCompute } from "../../src/engine/Compute.ts"
import { gpuTrainingBytes } from "../../src/engine/GpuMemory.ts"
import { load } from "../../src/engine/Native.ts"
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
})
