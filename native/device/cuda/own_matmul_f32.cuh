// f32 products by FFMA: 128 x 128 outputs per block of 256 threads, 8 x 8 per thread, K in steps of 8 through two buffers in shared memory.
// Any size and stride; one element per load, coalesced along whichever dimension is contiguous.
#pragma once
#include <cstdint>

namespace tinyllama::cuda {

struct F32Product {
  const float* a;
  const float* b;
  float* out;
  std::int64_t stride_a, stride_b, stride_out;
  std::int32_t m, n, k;
  bool accumulate;
};

inline constexpr int f32_tile = 128, f32_depth = 8, f32_threads = 256;
inline constexpr int f32_loads = f32_tile * f32_depth / f32_threads;  // per thread, operand and step
// Rows of shared memory are 4 floats longer: the stores that turn a K-contiguous operand spread over the banks, and vectors stay aligned.
inline constexpr int f32_row = f32_tile + 4;

// k_inner: K runs along the rows in memory. A thread holds f32_loads elements of the tile between device and shared memory: one K and
// every 32nd output, or one output and every second K.
template <bool k_inner>
class F32Operand {
 public:
  __device__ F32Operand(const float* operand, std::int64_t stride, int first, int outputs, int k)
      : from_(operand + static_cast<std::int64_t>(k_inner ? first + output() : depth()) * stride + (k_inner ? depth() : first + output())),
        step_(k_inner ? output_step * stride : 2 * stride),
        outputs_left_(outputs - first - output()),
        k_left_(k - depth()) {}

  // The next tile along K.
  __device__ void read(float (&values)[f32_loads]) {
    const float* from = from_;
#pragma unroll
    for (int i = 0; i < f32_loads; ++i, from += step_) {
      const bool inside = k_inner ? output_step * i < outputs_left_ && k_left_ > 0 : outputs_left_ > 0 && 2 * i < k_left_;
      values[i] = inside ? *from : 0.f;
    }
    from_ = k_inner ? from_ + f32_depth : from;
    k_left_ -= f32_depth;
  }
  __device__ static void write(float (*shared)[f32_row], const float (&values)[f32_loads]) {
#pragma unroll
    for (int i = 0; i < f32_loads; ++i) shared[depth() + (k_inner ? 0 : 2 * i)][output() + (k_inner ? output_step * i : 0)] = values[i];
  }

 private:
  static constexpr int output_step = f32_threads / f32_depth;
  __device__ static int output() { return k_inner ? static_cast<int>(threadIdx.x) / f32_depth : static_cast<int>(threadIdx.x) % f32_tile; }
  __device__ static int depth() { return k_inner ? static_cast<int>(threadIdx.x) % f32_depth : static_cast<int>(threadIdx.x) / f32_tile; }

  const float* from_;
  std::int64_t step_;
  int outputs_left_, k_left_;
};

template <bool transpose_a, bool transpose_b>
__global__ void __launch_bounds__(f32_threads, 1) ffma_product(const F32Product product) {
  __shared__ __align__(16) float shared_a[2][f32_depth][f32_row], shared_b[2][f32_depth][f32_row];
  const int tiles_n = (product.n + f32_tile - 1) / f32_tile;
  const int first_m = static_cast<int>(blockIdx.x) / tiles_n * f32_tile, first_n = static_cast<int>(blockIdx.x) % tiles_n * f32_tile;
  F32Operand<!transpose_a> a(product.a, product.stride_a, first_m, product.m, product.k);
  F32Operand<transpose_b> b(product.b, product.stride_b, first_n, product.n, product.k);
  const int steps = (product.k + f32_depth - 1) / f32_depth;
  const int row = static_cast<int>(threadIdx.x) / 16 * 4, column = static_cast<int>(threadIdx.x) % 16 * 4;

  float next_a[f32_loads], next_b[f32_loads], sums[8][8] = {};
  a.read(next_a);
  b.read(next_b);
  for (int step = 0; step < steps; ++step) {
    a.write(shared_a[step % 2], next_a);
    b.write(shared_b[step % 2], next_b);
    __syncthreads();  // one barrier a step: the buffer written next was last read before this one
    if (step + 1 < steps) {
      a.read(next_a);
      b.read(next_b);
    }
#pragma unroll
    for (int k = 0; k < f32_depth; ++k) {
      float left[8], right[8];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        *reinterpret_cast<float4*>(left + 4 * half) = *reinterpret_cast<const float4*>(&shared_a[step % 2][k][row + 64 * half]);
        *reinterpret_cast<float4*>(right + 4 * half) = *reinterpret_cast<const float4*>(&shared_b[step % 2][k][column + 64 * half]);
      }
#pragma unroll
      for (int i = 0; i < 8; ++i)
#pragma unroll
        for (int j = 0; j < 8; ++j) sums[i][j] = fmaf(left[i], right[j], sums[i][j]);
    }
  }

  const int rows_left = product.m - first_m - row, columns_left = product.n - first_n - column;
  float* const out = product.out + static_cast<std::int64_t>(first_m + row) * product.stride_out + first_n + column;
#pragma unroll
  for (int i = 0; i < 8; ++i)
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const int r = i % 4 + i / 4 * 64, c = j % 4 + j / 4 * 64;
      if (r >= rows_left || c >= columns_left) continue;
      float& element = out[r * product.stride_out + c];
      element = product.accumulate ? element + sums[i][j] : sums[i][j];
    }
}

}  // namespace tinyllama::cuda
