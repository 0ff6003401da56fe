// Speed of AdamW on bf16 weights and moments, as a share of what a copy reaches on the same card.
//   cuda_stochastic_adamw_bench [millions of parameters]     1100 unless given, far more than a cache holds
// Bytes: 20 an element, each array read once and written once. Time: median of 25 by events. Gradients are made anew before each launch, outside
// the time. Fails where the engine's own choice of variant stays below 80 % of the copy.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "native/device/cuda/cuda_context.h"
#include "native/device/cuda/pointwise.h"
#include "native/device/cuda/stochastic_adamw_kernels.h"

namespace tinyllama {
namespace {

__global__ void fill(std::uint16_t* halves, float* floats, std::int64_t count, unsigned seed, float scale, bool positive) {
  for (std::int64_t i = blockIdx.x * 256ll + threadIdx.x; i < count; i += gridDim.x * 256ll) {
    unsigned x = static_cast<unsigned>(i) * 2654435761u + seed * 40503u + 12345u;
    x ^= x >> 16, x *= 0x7feb352du, x ^= x >> 15, x *= 0x846ca68bu, x ^= x >> 16;
    const float value = (static_cast<float>(x >> 8) * 0x1p-23f - (positive ? 0.f : 1.f)) * scale;
    if (halves) halves[i] = round_to_nearest(value);
    if (floats) floats[i] = value;
  }
}

__global__ __launch_bounds__(256) void copy_vectors(uint4* out, const uint4* in, std::int64_t count) {
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * 1024 + threadIdx.x;
  uint4 part[4];
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (first + i * 256 < count) part[i] = __ldcs(in + first + i * 256);
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (first + i * 256 < count) __stcs(out + first + i * 256, part[i]);
}

template <class T>
class Memory {
 public:
  explicit Memory(std::int64_t count) { CHECK_CUDA(cudaMalloc(&data_, static_cast<std::size_t>(count) * sizeof(T))); }
  ~Memory() { cudaFree(data_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  T* get() const { return data_; }

 private:
  T* data_ = nullptr;
};

struct Row {
  std::string name;
  double bytes, seconds;
  bool must;
};

class Bench {
 public:
  explicit Bench(std::int64_t count) : count_(count), weights_(count), first_(count), second_(count), gradients_(count) {
    CHECK_CUDA(cudaEventCreate(&start_));
    CHECK_CUDA(cudaEventCreate(&stop_));
    make_halves(weights_, 1, 0.02f, false);
    make_halves(first_, 2, 1e-3f, false);
    make_halves(second_, 3, 1e-6f, true);
  }
  ~Bench() {
    cudaEventDestroy(start_);
    cudaEventDestroy(stop_);
  }
  Bench(const Bench&) = delete;
  Bench& operator=(const Bench&) = delete;

  void copy() {
    const std::int64_t vectors = count_ * 2 / 16;
    time("copy", 4.0 * static_cast<double>(count_), false, [&] {
      copy_vectors<<<cuda::blocks_for(vectors, 1024), 256, 0, context_.stream()>>>(reinterpret_cast<uint4*>(gradients_.get()),
                                                                               reinterpret_cast<const uint4*>(weights_.get()), vectors);
    });
  }
  void operation(const char* name, std::int64_t first, bool must) {
    const AdamWArguments arguments{4e-4f, 0.9f, 0.95f, 1e-8f, 0.1f, 100, 0.5f};
    time(name, bytes(), must, [&] {
      cuda::adamw_stochastic(context_, weights_.get(), first_.get(), second_.get(), gradients_.get(), count_, first, 7, arguments);
    });
  }
  template <cuda::GradientAccess access>
  void variant(const char* name) {
    const AdamWFactors factors{0.5f, 0.9f, 0.95f, 1 - 4e-5f, 4e-4f, 1.2f, 1e-8f};
    const cuda::StochasticAdamWArrays arrays{weights_.get(), first_.get(), second_.get(), gradients_.get(), count_, 0, 7, 100, true};
    time("  <" + std::string(name) + ">", bytes(), false, [&] {
      cuda::adamw_stochastic_update<access>
          <<<cuda::blocks_for(count_ / rounding_block, cuda::stochastic_threads), cuda::stochastic_threads, 0, context_.stream()>>>(arrays, factors);
      CHECK_LAUNCH("adamw_stochastic_update");
    });
  }
  int report() const {
    double copy = 0;
    for (const Row& row : rows_)
      if (row.name == "copy") copy = std::max(copy, row.bytes / row.seconds);
    int slow = 0;
    std::printf("%s, %lld parameters\n%-36s %9s %9s %7s %8s %8s\n", context_.properties().name, static_cast<long long>(count_), "operation", "MB", "us", "GB/s",
                "of copy", "of 4300");
    for (const Row& row : rows_) {
      const double rate = row.bytes / row.seconds;
      const bool falls_short = row.must && rate < 0.8 * copy;
      slow += falls_short;
      std::printf("%-36s %9.1f %9.1f %7.0f %7.1f%% %7.1f%%%s\n", row.name.c_str(), row.bytes / 1e6, row.seconds * 1e6, rate / 1e9, 100 * rate / copy,
                  100 * rate / 4.3e12, falls_short ? "  < 80 %" : "");
    }
    return slow == 0 ? 0 : 1;
  }

 private:
  double bytes() const { return 20.0 * static_cast<double>(count_); }
  void make_halves(const Memory<std::uint16_t>& memory, unsigned seed, float scale, bool positive) {
    fill<<<4096, 256, 0, context_.stream()>>>(memory.get(), nullptr, count_, seed, scale, positive);
    CHECK_LAUNCH("fill");
  }
  void time(const std::string& name, double bytes, bool must, const std::function<void()>& work) {
    constexpr int samples = 25;
    std::vector<double> seconds;
    for (int sample = -3; sample < samples; ++sample) {
      fill<<<4096, 256, 0, context_.stream()>>>(nullptr, gradients_.get(), count_, static_cast<unsigned>(sample), 1e-2f, false);
      CHECK_CUDA(cudaEventRecord(start_, context_.stream()));
      work();
      CHECK_CUDA(cudaEventRecord(stop_, context_.stream()));
      CHECK_CUDA(cudaEventSynchronize(stop_));
      float milliseconds = 0;
      CHECK_CUDA(cudaEventElapsedTime(&milliseconds, start_, stop_));
      if (sample >= 0) seconds.push_back(milliseconds * 1e-3);
    }
    std::sort(seconds.begin(), seconds.end());
    rows_.push_back({name, bytes, seconds[samples / 2], must});
  }

  CudaContext context_{0};
  std::int64_t count_;
  Memory<std::uint16_t> weights_, first_, second_;
  Memory<float> gradients_;
  std::vector<Row> rows_;
  cudaEvent_t start_ = nullptr, stop_ = nullptr;
};

int run(std::int64_t count) {
  using enum cuda::GradientAccess;
  Bench bench(count);
  bench.copy();
  bench.operation("adamw_stochastic", 0, true);
  bench.operation("adamw_stochastic from index 8", 8, true);
  bench.operation("adamw_stochastic, not aligned", 3, false);
  bench.variant<own>("own");
  bench.variant<zeros>("zeros");
  bench.variant<shuffled>("shuffled");
  bench.copy();
  return bench.report();
}

}  // namespace
}  // namespace tinyllama

int main(int count, char** arguments) {
  try {
    const long long millions = count > 1 ? std::strtoll(arguments[1], nullptr, 10) : 1100;
    return tinyllama::run(millions * 1000000);
  } catch (const std::exception& error) {
    std::printf("FAILED: %s\n", error.what());
    return 1;
  }
}
