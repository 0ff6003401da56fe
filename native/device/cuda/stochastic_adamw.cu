// Device::adamw_stochastic, and Device::widen.
#include "native/device/cuda/pointwise.h"
#include "native/device/cuda/stochastic_adamw_kernels.h"

namespace tinyllama::cuda {
namespace {

constexpr int widen_threads = 256;

// 6 bytes an element, one a thread: what the GPU widens are a model's gains, some 100 thousand values.
__global__ __launch_bounds__(widen_threads) void widen_flat(float* out, const std::uint16_t* values, std::int64_t count) {
  const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * widen_threads + threadIdx.x;
  if (at < count) out[at] = tinyllama::widen(values[at]);
}

// Whether element `at` of an array would lie on a multiple of 16 bytes.
bool aligned_at(const void* array, std::int64_t at, std::int64_t size) {
  return (static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(array) % 16) + at * size) % 16 == 0;
}

}  // namespace

void widen(CudaContext& context, float* out, const std::uint16_t* values, std::int64_t count) {
  if (count == 0) return;
  widen_flat<<<blocks_for(count, widen_threads), widen_threads, 0, context.stream()>>>(out, values, count);
  CHECK_LAUNCH("widen");
}

void adamw_stochastic(CudaContext& context, std::uint16_t* weights, std::uint16_t* first_moment, std::uint16_t* second_moment, float* gradients,
                      std::int64_t count, std::int64_t first, std::uint64_t seed, const AdamWArguments& arguments) {
  if (count == 0) return;
  const std::int64_t begin = (rounding_block - first % rounding_block) % rounding_block;  // where the first whole block begins
  const bool aligned = aligned_at(weights, begin, 2) && aligned_at(first_moment, begin, 2) && aligned_at(second_moment, begin, 2) &&
                       aligned_at(gradients, begin, 4);
  const StochasticAdamWArrays arrays{weights, first_moment, second_moment, gradients, count, first, seed,
                                     static_cast<std::uint64_t>(arguments.step), aligned};
  const std::int64_t blocks = (first + count - 1) / rounding_block - first / rounding_block + 1;
  adamw_stochastic_update<GradientAccess::zeros><<<blocks_for(blocks, stochastic_threads), stochastic_threads, 0, context.stream()>>>(
      arrays, adamw_factors(arguments));
  CHECK_LAUNCH("adamw_stochastic");
}

}  // namespace tinyllama::cuda
