#include "native/device/cuda/contention.h"

#include <algorithm>
#include <chrono>
#include <string>
#include <thread>

#include "native/core/error.h"

namespace tinyllama::cuda {
namespace {

constexpr int threads = 1024;
constexpr int vectors = 4;   // of 16 bytes under way per thread
constexpr int rounds = 8;    // of a chunk: 1024 * 4 * 16 B * 8 = 512 KiB read, and as much written
constexpr std::size_t chunk = std::size_t{threads} * vectors * rounds;  // in uint4
constexpr std::size_t buffer_bytes = std::size_t{256} << 20;            // read, and again written: far more than the L2 holds

// In the host's memory, which the kernel reads and writes.
struct Control {
  volatile int stop;
  int arrived;
  unsigned long long moved;  // bytes, of blocks that have ended
};

__device__ unsigned long long now() {
  unsigned long long nanoseconds;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(nanoseconds));
  return nanoseconds;
}

enum Action : int { nap, copy, leave };

// One block a multiprocessor, which its shared memory fills. A block copies chunk after chunk of its own slice of `from` to `to`, never ahead of
// bytes_per_nanosecond since its start.
__global__ void __launch_bounds__(threads, 1) contend(const uint4* from, uint4* to, std::size_t chunks, float bytes_per_nanosecond,
                                                      unsigned long long most_nanoseconds, Control* control) {
  __shared__ Action action;
  const unsigned long long start = now();
  if (threadIdx.x == 0) atomicAdd_system(&control->arrived, 1);
  const std::size_t slice = static_cast<std::size_t>(blockIdx.x) * chunks * chunk;
  unsigned long long moved = 0;
  for (std::size_t at = 0;;) {
    if (threadIdx.x == 0) {
      const unsigned long long passed = now() - start;
      if (control->stop || passed > most_nanoseconds) action = leave;
      else action = static_cast<float>(moved) < static_cast<float>(passed) * bytes_per_nanosecond ? copy : nap;
    }
    __syncthreads();
    const Action next = action;
    __syncthreads();
    if (next == leave) break;
    if (next == nap) {
      __nanosleep(500);
      continue;
    }
    const std::size_t base = slice + at * chunk + threadIdx.x;
    for (int round = 0; round < rounds; ++round) {
      uint4 held[vectors];
#pragma unroll
      for (int v = 0; v < vectors; ++v) held[v] = __ldcs(from + base + static_cast<std::size_t>(round * vectors + v) * threads);
#pragma unroll
      for (int v = 0; v < vectors; ++v) __stcs(to + base + static_cast<std::size_t>(round * vectors + v) * threads, held[v]);
    }
    moved += 2 * chunk * sizeof(uint4);
    at = at + 1 == chunks ? 0 : at + 1;
  }
  if (threadIdx.x == 0) atomicAdd_system(&control->moved, moved);
}

class CudaContention final : public Contention {
 public:
  CudaContention() = default;
  void start(CudaContext& context, const ContentionOptions& options) {
    const int blocks = options.multiprocessors;
    require(blocks >= 1 && blocks < context.multiprocessors(), "contention takes from 1 to " + std::to_string(context.multiprocessors() - 1) +
                                                                   " multiprocessors of this GPU, not " + std::to_string(blocks));
    CHECK_CUDA(cudaGetDevice(&ordinal_));
    int lowest = 0, highest = 0;
    CHECK_CUDA(cudaDeviceGetStreamPriorityRange(&lowest, &highest));
    CHECK_CUDA(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, highest));
    CHECK_CUDA(cudaMalloc(&memory_, 2 * buffer_bytes));
    CHECK_CUDA(cudaMemsetAsync(memory_, 1, 2 * buffer_bytes, stream_));
    CHECK_CUDA(cudaHostAlloc(&control_, sizeof(Control), cudaHostAllocMapped));
    *control_ = {};
    const std::size_t shared = context.properties().sharedMemPerBlockOptin - 64;  // 64: what the kernel itself holds there
    CHECK_CUDA(cudaFuncSetAttribute(contend, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)));
    auto* from = static_cast<const uint4*>(memory_);
    auto* to = static_cast<uint4*>(memory_) + buffer_bytes / sizeof(uint4);
    const std::size_t chunks = std::max<std::size_t>(1, buffer_bytes / sizeof(uint4) / chunk / static_cast<std::size_t>(blocks));
    started_ = Clock::now();
    contend<<<blocks, threads, shared, stream_>>>(from, to, chunks, static_cast<float>(options.gigabytes_per_second / blocks),
                                                  static_cast<unsigned long long>(options.most_seconds * 1e9), control_);
    CHECK_LAUNCH("contend");
    await(blocks);
  }
  ~CudaContention() override {
    cudaSetDevice(ordinal_);
    if (control_) control_->stop = 1;
    if (stream_) cudaStreamSynchronize(stream_), cudaStreamDestroy(stream_);
    cudaFree(memory_);
    cudaFreeHost(control_);
  }

  double stop() override {
    CHECK_CUDA(cudaSetDevice(ordinal_));
    control_->stop = 1;
    const double seconds = std::chrono::duration<double>(Clock::now() - started_).count();
    CHECK_CUDA(cudaStreamSynchronize(stream_));
    return static_cast<double>(control_->moved) / seconds / 1e9;
  }

 private:
  using Clock = std::chrono::steady_clock;

  void await(int blocks) {
    const Clock::time_point begun = Clock::now();
    while (static_cast<volatile int&>(control_->arrived) < blocks) {
      const cudaError_t status = cudaStreamQuery(stream_);
      if (status != cudaErrorNotReady) CHECK_CUDA(status);
      require(Clock::now() - begun < std::chrono::seconds(5), "the multiprocessors for contention are not free: something else runs on the GPU");
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    started_ = Clock::now();
  }

  int ordinal_ = 0;
  cudaStream_t stream_ = nullptr;
  void* memory_ = nullptr;
  Control* control_ = nullptr;
  Clock::time_point started_;
};

}  // namespace

std::unique_ptr<Contention> start_contention(CudaContext& context, const ContentionOptions& options) {
  auto contention = std::make_unique<CudaContention>();
  contention->start(context, options);
  return contention;
}

}  // namespace tinyllama::cuda
