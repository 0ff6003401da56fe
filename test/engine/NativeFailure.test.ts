import { assert, describe, it } from "@effect/vitest"
import { nativeFailure } from "../../src/engine/TrainingModel.ts"

const failureOf = (message: string) => nativeFailure("step 7", "lower micro_batch")(new Error(message))

describe("what native code says becomes a failure with its class and a next step", () => {
  it("a GPU that fails is a lost worker: the last checkpoint goes on", () => {
    const error = failureOf(
      "CUDA: cudaStreamSynchronize(stream) failed at native/device/cuda/cuda_device.cu:70: uncorrectable ECC error encountered (cudaErrorECCUncorrectable)"
    )
    assert.strictEqual(error.failure, "worker-lost")
    assert.include(error.message, "step 7: the GPU failed: CUDA: cudaStreamSynchronize")
    assert.include(error.next, "from the last checkpoint")
  })

  it("want of memory is not tried again unchanged", () => {
    const error = failureOf("out of memory: 4096 MiB were asked for, 12 of the GPU's 81079 MiB are free")
    assert.deepStrictEqual([error.failure, error.next], ["out-of-memory", "lower micro_batch"])
  })

  it("an id that the model does not have is a fault of the data", () => {
    const error = failureOf("token 32001 at index 5 (sequence 0, position 5) is outside the vocabulary of 32000")
    assert.strictEqual(error.failure, "corrupt")
    assert.include(error.next, "tokenize and pack them anew")
  })
})
