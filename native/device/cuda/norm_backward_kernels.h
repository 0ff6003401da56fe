// Kernels of the RMS norm's backward pass.
//
// With y = x * r * gain and r = (mean(x²) + eps)^-1/2:  dx += r * gain * dy - x * r³ * mean(dy * gain * x),  dgain += dy * x * r.
// Accesses of each element: 4, 5 with `normed`.
//
// Kernel              launch                                      what a row's second pass reads
// norm_backward_rows  blocks that stay, `at_once` rows at a time  registers
// norm_backward_any   blocks that stay, one row each              the cache; for rows not of whole vectors, or too long
// sum_gain_gradient   a block per 16 columns                      (sums what the blocks of the other two leave)
//
// The sum between the two passes makes a row's threads wait for each other, so memory must be kept busy by other rows: by the blocks beside
// this one, whose number registers limit, and by `at_once` rows of the same block, which share one barrier.
#pragma once
#include "native/device/cuda/norm_kernels.h"

namespace tinyllama::cuda {

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

// Where a thread has the gain: in registers, or in the L1 cache, which all blocks of a multiprocessor share, for more blocks side by side.
enum class Gain { held, cached };

// The thread's vectors of the gain and of its gradient, which it keeps while its block goes from row to row.
template <class T, int row_threads, int vectors, Gain where>
struct GainShare {
  static constexpr int width = full_width<T>, rows_per_block = block_threads<row_threads> / row_threads;
  const float* from;
  Floats<width> held[where == Gain::held ? vectors : 1], gradient[vectors];

  __device__ __forceinline__ void start(const float* gain, int thread, int count) {
    from = gain + thread * width;
#pragma unroll
    for (int v = 0; v < vectors; ++v) {
      gradient[v] = Floats<width>{};
      if constexpr (where == Gain::held) held[v] = v * row_threads + thread < count ? load_floats<width>(from + v * row_threads * width) : Floats<width>{};
    }
  }

  __device__ __forceinline__ Floats<width> gain(int v) const {
    if constexpr (where == Gain::held) return held[v];
    return load_floats<width>(from + v * row_threads * width);
  }

  // A cached gain is read anew from here on, not kept in registers from its last use.
  __device__ __forceinline__ void forget_cached() {
    if constexpr (where == Gain::cached) asm volatile("" : "+l"(from));
  }

  // dx and the norm's output of one vector, and its part of the gain's gradient. `correction` is -r³ * mean(dy * gain * x).
  __device__ __forceinline__ void apply(int v, const Floats<width>& x, const Floats<width>& dy, float r, float correction, Floats<width>& dx,
                                        Floats<width>& normed) {
    const Floats<width> g = gain(v);
#pragma unroll
    for (int i = 0; i < width; ++i) {
      dx.lane[i] += fmaf(correction, x.lane[i], dy.lane[i] * g.lane[i] * r);
      gradient[v].lane[i] = fmaf(dy.lane[i], x.lane[i] * r, gradient[v].lane[i]);
      normed.lane[i] = normed_value(x.lane[i], r, g.lane[i]);
    }
  }

  __device__ __forceinline__ float product(int v, const Floats<width>& x, const Floats<width>& dy, float sum) const {
    const Floats<width> g = gain(v);
#pragma unroll
    for (int i = 0; i < width; ++i) sum = fmaf(dy.lane[i] * g.lane[i], x.lane[i], sum);
    return sum;
  }

  // The block's share of the gain's gradient; its rows that ran side by side are summed in their order. By all threads of the block.
  __device__ __forceinline__ void write(float* partials, int columns, int thread, int lane_row) {
    if constexpr (rows_per_block > 1) {
      __shared__ float sums[vectors * width][row_threads];
      for (int turn = 0; turn < rows_per_block; ++turn) {
        if (lane_row == turn) {
#pragma unroll
          for (int v = 0; v < vectors; ++v)
#pragma unroll
            for (int i = 0; i < width; ++i) {
              float& sum = sums[v * width + i][thread];
              gradient[v].lane[i] += turn > 0 ? sum : 0.f;
              sum = gradient[v].lane[i];
            }
        }
        __syncthreads();
      }
      if (lane_row < rows_per_block - 1) return;
    }
#pragma unroll
    for (int v = 0; v < vectors; ++v) {
      const int at = (v * row_threads + thread) * width;
      if (at >= columns) continue;
      float* to = partials + static_cast<std::int64_t>(blockIdx.x) * columns + at;
#pragma unroll
      for (int i = 0; i < width; i += 4)
        store(to + i, Vector<float, 4>{gradient[v].lane[i], gradient[v].lane[i + 1], gradient[v].lane[i + 2], gradient[v].lane[i + 3]});
    }
  }
};

// Rows row, row + step, … of `at_once` go together.
template <class T, int row_threads, int vectors, int at_once, int resident, Gain gain>
__global__ __launch_bounds__(block_threads<row_threads>, resident) void norm_backward_rows(NormBackward<T> a) {
  constexpr int width = full_width<T>, rows_per_block = block_threads<row_threads> / row_threads;
  __shared__ float exchange[2][rows_per_block][at_once * (row_threads / 32)];
  const int thread = threadIdx.x % row_threads, lane_row = threadIdx.x / row_threads, count = a.columns / width;
  const unsigned step = gridDim.x * rows_per_block, rows = static_cast<unsigned>(a.rows);
  const float mean = 1.f / static_cast<float>(a.columns);
  GainShare<T, row_threads, vectors, gain> share;
  share.start(a.gain, thread, count);
  int parity = 0;
  for (unsigned first = blockIdx.x * rows_per_block + lane_row; first < rows; first += at_once * step, parity ^= 1) {
    asm volatile("" : "+r"(first));  // addresses are made from it each time, not held for each array
    uint4 x[at_once][vectors], dout[at_once][vectors], old[at_once][vectors];
    float r[at_once], product[at_once];
#pragma unroll
    for (int k = 0; k < at_once; ++k) {
      if (at_once > 1 && first + k * step >= rows) continue;
      const auto row = static_cast<std::int64_t>(first + k * step);
      r[k] = __ldg(a.rstd + row);
#pragma unroll
      for (int v = 0; v < vectors; ++v) {
        const int at = v * row_threads + thread;
        if (at >= count) continue;
        x[k][v] = load_packed_once(a.x + row * a.x_stride + at * width);
        dout[k][v] = load_packed_once(a.dout + row * a.dout_stride + at * width);
        old[k][v] = load_packed_once(a.dx + row * a.dx_stride + at * width);
      }
    }
#pragma unroll
    for (int k = 0; k < at_once; ++k) {
      product[k] = 0.f;
      if (at_once > 1 && first + k * step >= rows) continue;
#pragma unroll
      for (int v = 0; v < vectors; ++v)
        if (v * row_threads + thread < count) product[k] = share.product(v, unpack<T>(x[k][v]), unpack<T>(dout[k][v]), product[k]);
    }
    row_sums<row_threads, at_once>(product, exchange[parity][lane_row]);
    asm volatile("" : "+r"(first));
#pragma unroll
    for (int k = 0; k < at_once; ++k) {
      if (at_once > 1 && first + k * step >= rows) continue;
      const auto row = static_cast<std::int64_t>(first + k * step);
      const float correction = -r[k] * r[k] * r[k] * (product[k] * mean);
#pragma unroll
      for (int v = 0; v < vectors; ++v) {
        const int at = v * row_threads + thread;
        if (at >= count) continue;
        forget(x[k][v]);
        forget(dout[k][v]);
        share.forget_cached();
        Floats<width> dx = unpack<T>(old[k][v]), normed;
        share.apply(v, unpack<T>(x[k][v]), unpack<T>(dout[k][v]), r[k], correction, dx, normed);
        store(a.dx + row * a.dx_stride + at * width, to_vector<T>(dx));
        if (a.normed) store(a.normed + row * a.normed_stride + at * width, to_vector<T>(normed));
      }
    }
  }
  share.write(a.partials, a.columns, thread, lane_row);
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

constexpr int gain_columns = 16;  // of a block of sum_gain_gradient

// dgain += the blocks' shares in a fixed order: 64 threads a column, each over every 64th share.
static __global__ __launch_bounds__(1024) void sum_gain_gradient(float* dgain, const float* partials, int parts, int columns) {
  constexpr int ways = 1024 / gain_columns, at_once = 16;  // what 1024 blocks leave takes one round trip
  __shared__ float shares[ways][gain_columns + 1];
  const int lane = threadIdx.x % gain_columns, way = threadIdx.x / gain_columns, column = static_cast<int>(blockIdx.x) * gain_columns + lane;
  float share = 0.f;
  for (int first = way; column < columns && first < parts; first += ways * at_once) {
    float part[at_once];
#pragma unroll
    for (int i = 0; i < at_once; ++i)
      part[i] = first + ways * i < parts ? partials[static_cast<std::int64_t>(first + ways * i) * columns + column] : 0.f;
#pragma unroll
    for (int i = 0; i < at_once; ++i) share += part[i];
  }
  shares[way][lane] = share;
  __syncthreads();
  if (way > 0 || column >= columns) return;
  float total = 0.f;
#pragma unroll
  for (int i = 0; i < ways; ++i) total += shares[i][lane];
  dgain[column] += total;
}

}  // namespace tinyllama::cuda
