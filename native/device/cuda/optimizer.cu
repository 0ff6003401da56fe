// AdamW, the gradient's norm, and additions and roundings over flat arrays.
#include <type_traits>

#include "native/device/cuda/optimizer_kernels.h"
#include "native/device/cuda/pointwise.h"

namespace tinyllama::cuda {
namespace {

// Elements of a partial sum of squares: the Device interface's.
constexpr std::int64_t norm_block = 4096;

// Calls body with the number of elements per access: 4 as far as whole vectors go, then 1 for what is left, or for all where an address is odd.
template <class Body>
void in_widths(std::int64_t count, bool vectors, Body&& body) {
  const std::int64_t whole = vectors ? count / 4 * 4 : 0;
  if (whole > 0) body(std::integral_constant<int, 4>{}, std::int64_t{0}, whole);
  if (whole < count) body(std::integral_constant<int, 1>{}, whole, count - whole);
}

// 12 bytes an element.
template <int width, int vectors>
__global__ __launch_bounds__(flat_threads) void add_flat(float* a, const float* b, std::int64_t count) {
  const std::int64_t first = (static_cast<std::int64_t>(blockIdx.x) * vectors * flat_threads + threadIdx.x) * width;
  Vector<float, width> x[vectors], y[vectors];
#pragma unroll
  for (int i = 0; i < vectors; ++i) {
    const std::int64_t at = first + i * flat_threads * width;
    if (at >= count) continue;
    x[i] = load_once<width>(a + at);
    y[i] = load_once<width>(b + at);
  }
#pragma unroll
  for (int i = 0; i < vectors; ++i) {
    const std::int64_t at = first + i * flat_threads * width;
    if (at >= count) continue;
#pragma unroll
    for (int k = 0; k < width; ++k) x[i].lane[k] += y[i].lane[k];
    store(a + at, x[i]);
  }
}

// 6 bytes an element.
template <int width, int vectors>
__global__ __launch_bounds__(flat_threads) void round_flat(__nv_bfloat16* rounded, const float* weights, std::int64_t count) {
  const std::int64_t first = (static_cast<std::int64_t>(blockIdx.x) * vectors * flat_threads + threadIdx.x) * width;
  Vector<float, width> w[vectors];
#pragma unroll
  for (int i = 0; i < vectors; ++i) {
    const std::int64_t at = first + i * flat_threads * width;
    if (at < count) w[i] = load_once<width>(weights + at);
  }
#pragma unroll
  for (int i = 0; i < vectors; ++i) {
    const std::int64_t at = first + i * flat_threads * width;
    if (at < count) store(rounded + at, to_vector<__nv_bfloat16>(to_floats(w[i])));
  }
}

__device__ __forceinline__ double warp_sum(double value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(0xffffffffu, value, distance);
  return value;
}

// sums[b] = the sum of squares of elements b * norm_block on, by one warp; 4 bytes an element.
template <int width>
__global__ __launch_bounds__(flat_threads) void square_blocks(double* sums, const float* values, std::int64_t count) {
  constexpr int ahead = 8, stride = 32 * width;
  const std::int64_t block = static_cast<std::int64_t>(blockIdx.x) * (flat_threads / 32) + threadIdx.x / 32;
  const std::int64_t end = (block + 1) * norm_block < count ? (block + 1) * norm_block : count;
  std::int64_t at = block * norm_block + threadIdx.x % 32 * width;
  if (block * norm_block >= count) return;
  double sum = 0.0;
  for (; at + (ahead - 1) * stride < end; at += ahead * stride) {
    Vector<float, width> part[ahead];
#pragma unroll
    for (int i = 0; i < ahead; ++i) part[i] = load_once<width>(values + at + i * stride);
#pragma unroll
    for (int i = 0; i < ahead; ++i)
#pragma unroll
      for (int k = 0; k < width; ++k) sum = fma(static_cast<double>(part[i].lane[k]), static_cast<double>(part[i].lane[k]), sum);
  }
  for (; at < end; at += stride) {
    const Vector<float, width> part = load_once<width>(values + at);
#pragma unroll
    for (int k = 0; k < width; ++k) sum = fma(static_cast<double>(part.lane[k]), static_cast<double>(part.lane[k]), sum);
  }
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) sums[block] = sum;
}

}  // namespace

void add(CudaContext& context, float* a, const float* b, std::int64_t count) {
  in_widths(count, aligned(a, 16) && aligned(b, 16), [&](auto width, std::int64_t first, std::int64_t length) {
    constexpr int vectors = 4;
    add_flat<width(), vectors><<<blocks_for(length, width() * vectors * flat_threads), flat_threads, 0, context.stream()>>>(a + first, b + first,
                                                                                                                          length);
    CHECK_LAUNCH("add");
  });
}

void round_weights(CudaContext& context, void* rounded, const float* weights, std::int64_t count) {
  auto* out = static_cast<__nv_bfloat16*>(rounded);
  in_widths(count, aligned(rounded, 8) && aligned(weights, 16), [&](auto width, std::int64_t first, std::int64_t length) {
    constexpr int vectors = 4;
    round_flat<width(), vectors><<<blocks_for(length, width() * vectors * flat_threads), flat_threads, 0, context.stream()>>>(
        out + first, weights + first, length);
    CHECK_LAUNCH("round_weights");
  });
}

void squared_norm(CudaContext& context, double* sums, const float* values, std::int64_t count) {
  if (count == 0) return;
  const auto grid = static_cast<unsigned>(blocks_for(count, norm_block * (flat_threads / 32)));
  if (aligned(values, 16) && count % 4 == 0) {
    square_blocks<4><<<grid, flat_threads, 0, context.stream()>>>(sums, values, count);
  } else {
    square_blocks<1><<<grid, flat_threads, 0, context.stream()>>>(sums, values, count);
  }
  CHECK_LAUNCH("squared_norm");
}

void adamw(CudaContext& context, float* weights, void* rounded, float* first_moment, float* second_moment, float* gradients,
           std::int64_t count, const AdamWArguments& arguments) {
  const AdamWFactors factors = adamw_factors(arguments);
  auto* out = static_cast<__nv_bfloat16*>(rounded);
  const bool vectorized = aligned(weights, 16) && aligned(rounded, 8) && aligned(first_moment, 16) && aligned(second_moment, 16) &&
                          aligned(gradients, 16);
  in_widths(count, vectorized, [&](auto width, std::int64_t first, std::int64_t length) {
    constexpr int vectors = 1, resident = 8;
    const AdamWArrays arrays{weights + first, out ? out + first : nullptr, first_moment + first, second_moment + first, gradients + first, length};
    adamw_update<width(), vectors, resident><<<blocks_for(length, width() * vectors * flat_threads), flat_threads, 0, context.stream()>>>(arrays, factors);
    CHECK_LAUNCH("adamw");
  });
}

}  // namespace tinyllama::cuda
