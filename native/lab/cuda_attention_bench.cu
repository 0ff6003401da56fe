// Times of attention's variants on the GPU, causal FLOPs counted: 2·B·H·T²·S forward, 5·B·H·T²·S backward (its preparation included). Inputs are
// random and rotate among sets that L2 cannot hold.
//   cuda_attention_bench [batch] [length] [heads] [kv heads]
#include <cuda_bf16.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "native/device/cuda/attention.h"
#include "native/device/cuda/attention_wgmma.h"
#include "native/device/cuda/attention_wgmma_launch.cuh"

namespace tinyllama::cuda {
namespace {

constexpr int input_sets = 2, runs = 20;
constexpr double ceiling = 790;  // TFLOP/s of a large bf16 product

__global__ void fill_normal(__nv_bfloat16* values, std::int64_t count, std::uint64_t seed) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    std::uint64_t bits = (static_cast<std::uint64_t>(i) + 1) * 0x9e3779b97f4a7c15ULL + seed;
    bits = (bits ^ bits >> 30) * 0xbf58476d1ce4e5b9ULL;
    bits = (bits ^ bits >> 27) * 0x94d049bb133111ebULL;
    bits ^= bits >> 31;
    float sum = -2.f;  // of four uniform values: near enough to a normal one
    for (int part = 0; part < 4; ++part) sum += static_cast<float>(bits >> (16 * part) & 0xffff) / 65536.f;
    values[i] = __float2bfloat16_rn(sum * 1.732f);
  }
}

struct InputSet {
  Tensor qkv, out, dout, dqkv;
  float* lse;
};

class Bench {
 public:
  Bench(CudaContext& context, const AttentionShape& shape) : context_(context), shape_(shape) {
    const std::int64_t rows = shape.batch * shape.length, width = (shape.heads + 2 * shape.kv_heads) * shape.head_size;
    const std::int64_t out_width = shape.heads * shape.head_size;
    for (int set = 0; set < input_sets; ++set) {
      const InputSet input{tensor(rows, width), tensor(rows, out_width), tensor(rows, out_width), tensor(rows, width),
                           static_cast<float*>(allocate(static_cast<std::size_t>(shape.batch * shape.heads * shape.length) * sizeof(float)))};
      fill(input.qkv, 1 + static_cast<std::uint64_t>(set)), fill(input.dout, 77 + static_cast<std::uint64_t>(set));
      attention_forward(context, input.out, input.lse, input.qkv, shape, nullptr);
      sets_.push_back(input);
    }
    CHECK_CUDA(cudaEventCreate(&start_));
    CHECK_CUDA(cudaEventCreate(&stop_));
    CHECK_CUDA(cudaStreamSynchronize(context.stream()));
  }
  ~Bench() {
    for (void* memory : memory_) cudaFree(memory);
    cudaEventDestroy(start_), cudaEventDestroy(stop_);
  }
  Bench(const Bench&) = delete;
  Bench& operator=(const Bench&) = delete;

  void forward(const std::string& name, const std::function<void(const InputSet&, const ForwardArguments&)>& launch) {
    time(name, 2, [&](const InputSet& set) { launch(set, forward_arguments(set.out, set.lse, set.qkv, shape_, nullptr)); });
  }
  void backward(const std::string& name, const std::function<void(const InputSet&, const BackwardOperands&)>& launch) {
    time(name, 5, [&](const InputSet& set) { launch(set, BackwardOperands{set.dqkv, set.dout, set.qkv, set.out, set.lse, shape_, nullptr}); });
  }

 private:
  void* allocate(std::size_t bytes) {
    void* memory = nullptr;
    CHECK_CUDA(cudaMalloc(&memory, bytes));
    memory_.push_back(memory);
    return memory;
  }
  Tensor tensor(std::int64_t rows, std::int64_t columns) {
    return matrix(allocate(static_cast<std::size_t>(rows * columns) * 2), DataType::bf16, rows, columns);
  }
  void fill(const Tensor& tensor, std::uint64_t seed) {
    fill_normal<<<1024, 256, 0, context_.stream()>>>(static_cast<__nv_bfloat16*>(tensor.data), tensor.rows * tensor.columns, seed << 40);
    CHECK_LAUNCH("fill_normal");
  }

  void time(const std::string& name, double products, const std::function<void(const InputSet&)>& run) {
    std::vector<float> times;
    for (int i = 0; i < runs + 3; ++i) {
      CHECK_CUDA(cudaEventRecord(start_, context_.stream()));
      run(sets_[static_cast<std::size_t>(i % input_sets)]);
      CHECK_CUDA(cudaEventRecord(stop_, context_.stream()));
      CHECK_CUDA(cudaEventSynchronize(stop_));
      float milliseconds = 0;
      CHECK_CUDA(cudaEventElapsedTime(&milliseconds, start_, stop_));
      if (i >= 3) times.push_back(milliseconds);
    }
    std::sort(times.begin(), times.end());
    const double median = times[times.size() / 2];
    const double flops = products * static_cast<double>(shape_.batch * shape_.heads * shape_.length) * static_cast<double>(shape_.length * shape_.head_size);
    const double rate = flops / median * 1e-9;
    std::printf("S%-4ld %-52s %8.3f ms (%.3f to %.3f)  %6.1f TFLOP/s  %4.1f%% of %.0f\n", static_cast<long>(shape_.head_size), name.c_str(), median,
                times.front(), times.back(), rate, 100 * rate / ceiling, ceiling);
  }

  CudaContext& context_;
  AttentionShape shape_;
  std::vector<InputSet> sets_;
  std::vector<void*> memory_;
  cudaEvent_t start_ = nullptr, stop_ = nullptr;
};

// A variant's name is its template arguments.
#define FORWARD(...) \
  bench.forward("forward <" #__VA_ARGS__ ">", [&](const InputSet&, const ForwardArguments& a) { launch_forward_mma<__VA_ARGS__>(context, a, shape); })
#define GROUP_FORWARD(...)                                                        \
  bench.forward("wgmma forward <" #__VA_ARGS__ ">", [&](const InputSet& s, const ForwardArguments&) { \
    launch_forward_wgmma<__VA_ARGS__>(context, s.out, s.lse, s.qkv, shape, nullptr);          \
  })
#define GROUP_BACKWARD(wave, ...)                          \
  bench.backward("wgmma backward <" #__VA_ARGS__ "> wave " #wave, \
                 [&](const InputSet&, const BackwardOperands& o) { launch_backward_wgmma<__VA_ARGS__>(context, o, wave); })
#define BACKWARD(wave, ...) \
  bench.backward("backward <" #__VA_ARGS__ "> wave " #wave, \
                 [&](const InputSet&, const BackwardOperands& o) { launch_backward_mma<__VA_ARGS__>(context, o, wave); })

void engine_path(CudaContext& context, Bench& bench, const AttentionShape& shape) {
  bench.forward("attention_forward", [&](const InputSet& s, const ForwardArguments&) { attention_forward(context, s.out, s.lse, s.qkv, shape, nullptr); });
  bench.backward("attention_backward", [&](const InputSet& s, const BackwardOperands&) {
    attention_backward(context, s.dqkv, s.dout, s.qkv, s.out, s.lse, shape, nullptr);
  });
}

void head_size_64(CudaContext& context, AttentionShape shape) {
  shape.head_size = 64;
  Bench bench(context, shape);
  engine_path(context, bench, shape);
  // <head size, warp-groups, keys, stages, blocks per multiprocessor, copier, overlap, turns>
  if (attention_wgmma_available(context)) {
    GROUP_FORWARD(64, 3, 128, 2, 1, true, true, true);
    GROUP_FORWARD(64, 3, 128, 2, 1, true, true, false);
    GROUP_FORWARD(64, 3, 128, 3, 1, true, true, true);
    GROUP_FORWARD(64, 2, 128, 2, 1, true, true, true);
    GROUP_FORWARD(64, 2, 128, 3, 1, true, true, false);
    GROUP_FORWARD(64, 2, 128, 2, 2, false, false, false);
    GROUP_FORWARD(64, 2, 64, 3, 2, false, true, false);
    GROUP_FORWARD(64, 2, 64, 3, 2, false, false, false);
    // <stages, warp-groups that sum dQ>
    GROUP_BACKWARD(all_groups, 3, 2);
    GROUP_BACKWARD(all_groups, 2, 2);
    GROUP_BACKWARD(all_groups, 4, 2);
    GROUP_BACKWARD(all_groups, 3, 1);
    GROUP_BACKWARD(9, 3, 2);
  }
  // <head size, warps, 16-row tiles per warp, keys, stages, blocks per multiprocessor>
  FORWARD(64, 4, 2, 64, 3, 2);
  // <head size, warps, 16-row tiles per warp, queries, queries per chunk, blocks per multiprocessor>; wave 0: as many groups as fill the GPU
  BACKWARD(all_groups, 64, 4, 2, 64, 32, 2);
}

void head_size_128(CudaContext& context, AttentionShape shape) {
  shape.head_size = 128, shape.heads /= 2, shape.kv_heads = std::max<std::int64_t>(1, shape.kv_heads / 2);
  Bench bench(context, shape);
  engine_path(context, bench, shape);
  if (attention_wgmma_available(context)) {
    GROUP_FORWARD(128, 2, 128, 2, 1, true, true, true);
    GROUP_FORWARD(128, 2, 128, 2, 1, true, true, false);
    GROUP_FORWARD(128, 2, 64, 4, 1, true, true, true);
  }
  FORWARD(128, 4, 1, 64, 2, 2);
  BACKWARD(0, 128, 8, 1, 64, 32, 1);
  BACKWARD(all_groups, 128, 8, 1, 64, 32, 1);
}

}  // namespace
}  // namespace tinyllama::cuda

int main(int count, char** arguments) {
  using namespace tinyllama;
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  const auto argument = [&](int index, std::int64_t otherwise) { return count > index ? std::atoll(arguments[index]) : otherwise; };
  AttentionShape shape{argument(1, 16), argument(2, 2048), argument(3, 32), argument(4, 4), 64};
  try {
    CudaContext context(0);
    std::printf("%s, B%ld T%ld H%ld G%ld, causal; PyTorch's FA2 on an H200: forward 272, backward 196 TFLOP/s\n", context.properties().name,
                static_cast<long>(shape.batch), static_cast<long>(shape.length), static_cast<long>(shape.heads),
                static_cast<long>(shape.kv_heads));
    cuda::head_size_64(context, shape);
    cuda::head_size_128(context, shape);
  } catch (const std::exception& error) {
    std::printf("FAILED %s\n", error.what());
    return 1;
  }
  return 0;
}
