// Kernels of the RMS norm: the forward pass, and what the backward pass (norm_backward_kernels.h) shares with it. `row_threads` threads hold one
// row in registers, `vectors` 16-byte vectors each, vector v of thread t at index v * row_threads + t, so that a warp's access is contiguous. A
// block is one row, or eight where a warp holds a row. Rows that do not fit, or are not made of whole vectors, go through the *_any kernels: one
// block a row, an element at a time, and a second read that the cache answers.
#pragma once
#include "native/device/cuda/vector_access.h"

namespace tinyllama::cuda {

template <int row_threads>
constexpr int block_threads = row_threads > 32 ? row_threads : 256;

template <class T>
struct NormForward {
  T* out;
  float* rstd;
  T* sum;  // null: x is what is normalized
  const T* x;
  const T* delta;
  const float* gain;
  std::int64_t out_stride, sum_stride, x_stride, delta_stride, rows;
  int columns;
  float eps;
};

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(0xffffffffu, value, distance);
  return value;
}

// Each of `sums` values becomes its sum over the threads of a row, in a fixed order; every one of them gets it. `exchange` are
// sums * row_threads / 32 floats of shared memory, which must not be those of the call before: then one barrier a call is enough.
template <int row_threads, int sums>
__device__ __forceinline__ void row_sums(float (&value)[sums], float* exchange) {
#pragma unroll
  for (int k = 0; k < sums; ++k) value[k] = warp_sum(value[k]);
  if constexpr (row_threads > 32) {
    constexpr int warps = row_threads / 32;
    const int warp = threadIdx.x % row_threads / 32;
#pragma unroll
    for (int k = 0; k < sums; ++k)
      if (threadIdx.x % 32 == 0) exchange[k * warps + warp] = value[k];
    __syncthreads();
#pragma unroll
    for (int k = 0; k < sums; ++k) {
      value[k] = 0.f;
#pragma unroll
      for (int i = 0; i < warps; ++i) value[k] += exchange[k * warps + i];
    }
  }
}

template <int row_threads>
__device__ __forceinline__ float row_sum(float value, float* exchange) {
  float one[1] = {value};
  row_sums<row_threads, 1>(one, exchange);
  return one[0];
}

__device__ __forceinline__ float reciprocal_rms(float squares, int columns, float eps) {
  return 1.f / sqrtf(squares / static_cast<float>(columns) + eps);
}

// The one formula of the norm's output, so that forward, again and backward give the same bits.
__device__ __forceinline__ float normed_value(float x, float rstd, float gain) { return x * rstd * gain; }

// 4 accesses of each element with a residual, 2 without. What is normalized is the sum as rounded to T, which the backward pass reads.
template <class T, int row_threads, int vectors, bool residual>
__global__ __launch_bounds__(block_threads<row_threads>) void norm_forward_rows(NormForward<T> a) {
  constexpr int width = full_width<T>, rows_per_block = block_threads<row_threads> / row_threads;
  __shared__ float exchange[rows_per_block][row_threads / 32];
  const int thread = threadIdx.x % row_threads, lane_row = threadIdx.x / row_threads;
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * rows_per_block + lane_row;
  if (row >= a.rows) return;  // the whole row's threads leave together
  const int count = a.columns / width;
  Vector<T, width> value[vectors], delta[vectors];
#pragma unroll
  for (int v = 0; v < vectors; ++v) {
    const int at = v * row_threads + thread;
    if (at >= count) continue;
    value[v] = load_once<width>(a.x + row * a.x_stride + at * width);
    if constexpr (residual) delta[v] = load_once<width>(a.delta + row * a.delta_stride + at * width);
  }
  float squares = 0.f;
#pragma unroll
  for (int v = 0; v < vectors; ++v) {
    const int at = v * row_threads + thread;
    if (at >= count) continue;
    Floats<width> x = to_floats(value[v]);
    if constexpr (residual) {
      const Floats<width> d = to_floats(delta[v]);
#pragma unroll
      for (int i = 0; i < width; ++i) x.lane[i] += d.lane[i];
      value[v] = to_vector<T>(x);
      store(a.sum + row * a.sum_stride + at * width, value[v]);
      x = to_floats(value[v]);
    }
#pragma unroll
    for (int i = 0; i < width; ++i) squares = fmaf(x.lane[i], x.lane[i], squares);
  }
  const float rstd = reciprocal_rms(row_sum<row_threads>(squares, exchange[lane_row]), a.columns, a.eps);
  if (thread == 0) a.rstd[row] = rstd;
#pragma unroll
  for (int v = 0; v < vectors; ++v) {
    const int at = v * row_threads + thread;
    if (at >= count) continue;
    const Floats<width> x = to_floats(value[v]), gain = load_floats<width>(a.gain + at * width);
    Floats<width> y;
#pragma unroll
    for (int i = 0; i < width; ++i) y.lane[i] = normed_value(x.lane[i], rstd, gain.lane[i]);
    store(a.out + row * a.out_stride + at * width, to_vector<T>(y));
  }
}

template <class T>
__global__ __launch_bounds__(256) void norm_forward_any(NormForward<T> a) {
  __shared__ float exchange[8];
  const std::int64_t row = blockIdx.x;
  const T* x = a.x + row * a.x_stride;
  float squares = 0.f;
  for (int at = threadIdx.x; at < a.columns; at += 256) {
    float value = to_float(x[at]);
    if (a.sum) {
      const Vector<T, 1> sum = to_vector<T>(Floats<1>{value + to_float(a.delta[row * a.delta_stride + at])});
      a.sum[row * a.sum_stride + at] = sum.lane[0];
      value = to_float(sum.lane[0]);
    }
    squares = fmaf(value, value, squares);
  }
  const float rstd = reciprocal_rms(row_sum<256>(squares, exchange), a.columns, a.eps);
  if (threadIdx.x == 0) a.rstd[row] = rstd;
  const T* normalized = a.sum ? a.sum + row * a.sum_stride : x;  // each thread reads back what it wrote itself
  for (int at = threadIdx.x; at < a.columns; at += 256) {
    a.out[row * a.out_stride + at] = to_vector<T>(Floats<1>{normed_value(to_float(normalized[at]), rstd, a.gain[at])}).lane[0];
  }
}

}  // namespace tinyllama::cuda
