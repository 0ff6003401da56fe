// Kernels of the RMS norm. `row_threads` threads hold one row in registers, `vectors` 16-byte vectors each, vector v of thread t at index
// v * row_threads + t, so that a warp's access is contiguous. A block is one row, or eight where a warp holds a row. Rows that do not fit, or
// are not made of whole vectors, go through the *_any kernels: one block a row, an element at a time, and a second read that the cache answers.
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

template <class T>
struct NormBackward {
  T* dx;
  float* partials;  // (blocks, columns): each block's share of the gain's gradient
  T* normed;        // may be null
  const T* dout;
  const T* x;
  const float* gain;
  const float* rstd;
  std::int64_t dx_stride, normed_stride, dout_stride, x_stride, rows;
  int columns;
};

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(0xffffffffu, value, distance);
  return value;
}

// The sum over the threads of a row, in a fixed order; every one of them gets it. `exchange` are row_threads / 32 floats of shared memory, which
// must not be those of the call before: then one barrier a call is enough.
template <int row_threads>
__device__ __forceinline__ float row_sum(float value, float* exchange) {
  value = warp_sum(value);
  if constexpr (row_threads > 32) {
    const int warp = threadIdx.x % row_threads / 32;
    if (threadIdx.x % 32 == 0) exchange[warp] = value;
    __syncthreads();
    value = 0.f;
#pragma unroll
    for (int i = 0; i < row_threads / 32; ++i) value += exchange[i];
  }
  return value;
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

// With y = x * r * gain and r = (mean(x²) + eps)^-1/2:  dx += r * gain * dy - x * r³ * mean(dy * gain * x),  dgain += dy * x * r.
// 4 accesses of each element, 5 with `normed`. Blocks stay for many rows, with the gain and their share of its gradient in registers.
// prefetch: the next row is asked for before this one is summed, so that the reduction's wait does not leave the memory idle.
template <class T, int row_threads, int vectors, bool prefetch, int resident>
__global__ __launch_bounds__(block_threads<row_threads>, resident) void norm_backward_rows(NormBackward<T> a) {
  constexpr int width = full_width<T>, rows_per_block = block_threads<row_threads> / row_threads;
  __shared__ float exchange[2][rows_per_block][row_threads / 32];
  const int thread = threadIdx.x % row_threads, lane_row = threadIdx.x / row_threads, count = a.columns / width;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * rows_per_block;

  struct Row {
    Vector<T, width> x[vectors], dout[vectors], dx[vectors];
    float rstd;
  };
  auto read = [&](Row& into, std::int64_t row) {
    into.rstd = __ldg(a.rstd + row);
#pragma unroll
    for (int v = 0; v < vectors; ++v) {
      const int at = v * row_threads + thread;
      if (at >= count) continue;
      into.x[v] = load_once<width>(a.x + row * a.x_stride + at * width);
      into.dout[v] = load_once<width>(a.dout + row * a.dout_stride + at * width);
      into.dx[v] = load_once<width>(a.dx + row * a.dx_stride + at * width);
    }
  };

  Floats<width> gain[vectors], gain_gradient[vectors];
#pragma unroll
  for (int v = 0; v < vectors; ++v) {
    const int at = v * row_threads + thread;
    gain[v] = at < count ? load_floats<width>(a.gain + at * width) : Floats<width>{};
    gain_gradient[v] = Floats<width>{};
  }

  std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * rows_per_block + lane_row;
  Row current, next;
  if (prefetch && row < a.rows) read(next, row);
  for (int parity = 0; row < a.rows; row += step, parity ^= 1) {
    if constexpr (prefetch) {
      current = next;
      if (row + step < a.rows) read(next, row + step);
    } else {
      read(current, row);
    }
    float product = 0.f;
#pragma unroll
    for (int v = 0; v < vectors; ++v) {
      if (v * row_threads + thread >= count) continue;
      const Floats<width> x = to_floats(current.x[v]), dy = to_floats(current.dout[v]);
#pragma unroll
      for (int i = 0; i < width; ++i) product = fmaf(dy.lane[i] * gain[v].lane[i], x.lane[i], product);
    }
    const float r = current.rstd;
    const float correction = -r * r * r * row_sum<row_threads>(product, exchange[parity][lane_row]) / static_cast<float>(a.columns);
#pragma unroll
    for (int v = 0; v < vectors; ++v) {
      const int at = v * row_threads + thread;
      if (at >= count) continue;
      const Floats<width> x = to_floats(current.x[v]), dy = to_floats(current.dout[v]);
      Floats<width> dx = to_floats(current.dx[v]), normed;
#pragma unroll
      for (int i = 0; i < width; ++i) {
        dx.lane[i] += fmaf(correction, x.lane[i], dy.lane[i] * gain[v].lane[i] * r);
        gain_gradient[v].lane[i] = fmaf(dy.lane[i], x.lane[i] * r, gain_gradient[v].lane[i]);
        normed.lane[i] = normed_value(x.lane[i], r, gain[v].lane[i]);
      }
      store(a.dx + row * a.dx_stride + at * width, to_vector<T>(dx));
      if (a.normed) store(a.normed + row * a.normed_stride + at * width, to_vector<T>(normed));
    }
  }

  // The block's rows that ran side by side, summed in their order.
  __shared__ float shares[rows_per_block > 1 ? rows_per_block - 1 : 1][rows_per_block > 1 ? row_threads * vectors * width : 1];
  if (rows_per_block > 1) {
    if (lane_row > 0) {
#pragma unroll
      for (int v = 0; v < vectors; ++v)
#pragma unroll
        for (int i = 0; i < width; ++i) shares[lane_row - 1][(v * width + i) * row_threads + thread] = gain_gradient[v].lane[i];
    }
    __syncthreads();
    if (lane_row > 0) return;
    for (int other = 0; other < rows_per_block - 1; ++other)
#pragma unroll
      for (int v = 0; v < vectors; ++v)
#pragma unroll
        for (int i = 0; i < width; ++i) gain_gradient[v].lane[i] += shares[other][(v * width + i) * row_threads + thread];
  }
#pragma unroll
  for (int v = 0; v < vectors; ++v) {
    const int at = v * row_threads + thread;
    if (at >= count) continue;
#pragma unroll
    for (int i = 0; i < width; ++i) a.partials[static_cast<std::int64_t>(blockIdx.x) * a.columns + at * width + i] = gain_gradient[v].lane[i];
  }
}

template <class T>
__global__ __launch_bounds__(256) void norm_backward_any(NormBackward<T> a) {
  __shared__ float exchange[2][8];
  float* share = a.partials + static_cast<std::int64_t>(blockIdx.x) * a.columns;
  for (int at = threadIdx.x; at < a.columns; at += 256) share[at] = 0.f;
  int parity = 0;
  for (std::int64_t row = blockIdx.x; row < a.rows; row += gridDim.x, parity ^= 1) {
    const T *x = a.x + row * a.x_stride, *dout = a.dout + row * a.dout_stride;
    T* dx = a.dx + row * a.dx_stride;
    const float r = a.rstd[row];
    float product = 0.f;
    for (int at = threadIdx.x; at < a.columns; at += 256) product = fmaf(to_float(dout[at]) * a.gain[at], to_float(x[at]), product);
    const float correction = -r * r * r * row_sum<256>(product, exchange[parity]) / static_cast<float>(a.columns);
    for (int at = threadIdx.x; at < a.columns; at += 256) {
      const float value = to_float(x[at]), dy = to_float(dout[at]), gain = a.gain[at];
      share[at] = fmaf(dy, value * r, share[at]);
      dx[at] = to_vector<T>(Floats<1>{to_float(dx[at]) + fmaf(correction, value, dy * gain * r)}).lane[0];
      if (a.normed) a.normed[row * a.normed_stride + at] = to_vector<T>(Floats<1>{normed_value(value, r, gain)}).lane[0];
    }
  }
}

// dgain += the blocks' shares in a fixed order: 32 columns a block, 32 threads a column, each over every 32nd share.
static __global__ __launch_bounds__(1024) void sum_gain_gradient(float* dgain, const float* partials, int parts, int columns) {
  __shared__ float shares[32][33];
  const int lane = threadIdx.x % 32, way = threadIdx.x / 32, column = static_cast<int>(blockIdx.x) * 32 + lane;
  float share = 0.f;
  if (column < columns) {
#pragma unroll 4
    for (int part = way; part < parts; part += 32) share += partials[static_cast<std::int64_t>(part) * columns + column];
  }
  shares[way][lane] = share;
  __syncthreads();
  if (way > 0 || column >= columns) return;
  float total = 0.f;
#pragma unroll
  for (int i = 0; i < 32; ++i) total += shares[i][lane];
  dgain[column] += total;
}

}  // namespace tinyllama::cuda
