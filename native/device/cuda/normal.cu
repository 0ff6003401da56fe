// Device::fill_normal. A thread makes the four values of one block; the writes of a warp are 512 contiguous bytes where first is a multiple of 4.
#include "native/core/normal.h"
#include "native/device/cuda/pointwise.h"

namespace tinyllama::cuda {
namespace {

constexpr int threads = 256;

__global__ void fill(float* out, std::int64_t count, std::uint64_t seed, std::int64_t first, float deviation) {
  const std::int64_t block = first / 4 + static_cast<std::int64_t>(blockIdx.x) * threads + threadIdx.x;
  const std::array<float, 4> values = normal_block(static_cast<std::uint64_t>(block), seed);
  for (int lane = 0; lane < 4; ++lane) {
    const std::int64_t at = block * 4 + lane - first;
    if (at >= 0 && at < count) out[at] = values[static_cast<std::size_t>(lane)] * deviation;
  }
}

}  // namespace

void fill_normal(CudaContext& context, float* out, std::int64_t count, std::uint64_t seed, std::int64_t first, float deviation) {
  if (count == 0) return;
  const std::int64_t blocks = (first + count + 3) / 4 - first / 4;
  fill<<<static_cast<unsigned>((blocks + threads - 1) / threads), threads, 0, context.stream()>>>(out, count, seed, first, deviation);
  CHECK_LAUNCH("fill_normal");
}

}  // namespace tinyllama::cuda
