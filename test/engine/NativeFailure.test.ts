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

  it("what keeps ranks from joining is to be mended, with the engine's next step where it has one", () => {
    for (const reason of [
      "MASTER_ADDR node-1 does not resolve on rank 3: Name or service not known; it must be the name or address of the machine of rank 0",
      "port 29500 is in use on this machine, by another run or program: choose another MASTER_PORT for all ranks",
      "WORLD_SIZE is 4, and MPI's world has 2: the ranks must be started together by this MPI's own launcher"
    ]) {
      const { failure, message, next } = failureOf(`the ranks cannot begin: ${reason}`)
      assert.deepStrictEqual([failure, message], ["invalid-input", `the ranks cannot begin: ${reason}`])
      assert.strictEqual(next, "mend that, then run again")
    }
    const differing = failureOf(
      "the ranks cannot begin: the ranks differ in seed: rank 0 has 1, rank 1 has 2. Next: start all ranks with the same seed"
    )
    assert.strictEqual(
      differing.message,
      "the ranks cannot begin: the ranks differ in seed: rank 0 has 1, rank 1 has 2"
    )
    assert.strictEqual(differing.next, "start all ranks with the same seed")
  })

  it("ranks that did not come in time, or were lost on the way, are worth another try", () => {
    for (const reason of [
      "the ranks cannot begin: ranks 1, 3 of 4 did not come to rank 0 at port 29500 within 300 s: look at their own logs",
      "Open MPI 4.1.4: MPI_Allgather(part, 1, type, out, 1, type, ranks_) failed: MPI_ERR_PROC_FAILED in all-gather 7 of group 3 (100 bytes)",
      "NCCL 2.28.9: ncclAllReduce failed: remote process exited or there was a network error"
    ])
      assert.strictEqual(failureOf(reason).failure, "worker-lost")
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
