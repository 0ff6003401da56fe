// Kernels of the RMS norm's backward pass.
//
// With y = x * r * gain and r = (mean(x²) + eps)^-1/2:  dx += r * gain * dy - x * r³ * mean(dy * gain * x),  dgain += dy * x * r.
// Accesses of each element: 4, 5 with `normed`.
//
// Kernel                 launch                                       where a row waits
// norm_backward_queue    blocks that stay, `rows_per_block` rows each   shared memory: a queue of `stages` rows per thread
// norm_backward_rows     the same                                       registers
// norm_backward_any      blocks that stay, one row each                 the cache: rows that are not whole vectors, or are too long
//
// The sum between the two passes over a row makes its threads wait for each other; memory must stay busy meanwhile. A thread of
// norm_backward_queue therefore copies its vectors of the next `stages` rows to shared memory by cp.async, which holds no registers, and reads
// back only what it copied itself, so the queue needs no barrier. Per multiprocessor some 100 KB are in flight then; 4.3 TB/s at a latency of
// 1 µs take 33.
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

// Which vectors of a row a thread holds, and what it keeps of the gain while its block goes from row to row.
template <class T, int row_threads, int vectors>
struct GainShare {
  static constexpr int width = full_width<T>, rows_per_block = block_threads<row_threads> / row_threads;
  Floats<width> gain[vectors], gradient[vectors];

  __device__ __forceinline__ void read(const float* from, int thread, int count) {
#pragma unroll
    for (int v = 0; v < vectors; ++v) {
      const int at = v * row_threads + thread;
      gain[v] = at < count ? load_floats<width>(from + at * width) : Floats<width>{};
      gradient[v] = Floats<width>{};
    }
  }

  // dx and the norm's output of one vector, and its part of the gain's gradient. `correction` is -r³ * mean(dy * gain * x).
  __device__ __forceinline__ void apply(int v, const Floats<width>& x, const Floats<width>& dy, float r, float correction, Floats<width>& dx,
                                        Floats<width>& normed) {
#pragma unroll
    for (int i = 0; i < width; ++i) {
      dx.lane[i] += fmaf(correction, x.lane[i], dy.lane[i] * gain[v].lane[i] * r);
      gradient[v].lane[i] = fmaf(dy.lane[i], x.lane[i] * r, gradient[v].lane[i]);
      normed.lane[i] = normed_value(x.lane[i], r, gain[v].lane[i]);
    }
  }

  __device__ __forceinline__ float product(int v, const Floats<width>& x, const Floats<width>& dy, float sum) const {
#pragma unroll
    for (int i = 0; i < width; ++i) sum = fmaf(dy.lane[i] * gain[v].lane[i], x.lane[i], sum);
    return sum;
  }

  // The block's share of the gain's gradient; its rows that ran side by side are summed in their order.
  __device__ __forceinline__ void write(float* partials, int columns, int thread, int lane_row) {
    if constexpr (rows_per_block > 1) {
      __shared__ float shares[rows_per_block - 1][row_threads * vectors * width];
      if (lane_row > 0) {
#pragma unroll
        for (int v = 0; v < vectors; ++v)
#pragma unroll
          for (int i = 0; i < width; ++i) shares[lane_row - 1][(v * width + i) * row_threads + thread] = gradient[v].lane[i];
      }
      __syncthreads();
      if (lane_row > 0) return;
      for (int other = 0; other < rows_per_block - 1; ++other)
#pragma unroll
        for (int v = 0; v < vectors; ++v)
#pragma unroll
          for (int i = 0; i < width; ++i) gradient[v].lane[i] += shares[other][(v * width + i) * row_threads + thread];
    }
#pragma unroll
    for (int v = 0; v < vectors; ++v) {
      const int at = v * row_threads + thread;
      if (at * width >= columns) continue;
#pragma unroll
      for (int i = 0; i < width; ++i) partials[static_cast<std::int64_t>(blockIdx.x) * columns + at * width + i] = gradient[v].lane[i];
    }
  }
};

template <class T, int row_threads, int vectors, int stages>
constexpr int norm_queue_bytes = stages * vectors * 3 * block_threads<row_threads> * 16;

// stream: what is written is the first to leave the caches.
template <class T, int row_threads, int vectors, int stages, int resident, bool stream>
__global__ __launch_bounds__(block_threads<row_threads>, resident) void norm_backward_queue(NormBackward<T> a) {
  constexpr int width = full_width<T>, block = block_threads<row_threads>, rows_per_block = block / row_threads;
  using Part = Vector<T, width>;
  extern __shared__ uint4 queue_memory[];  // [stage][vector][x, dout, dx][thread]
  __shared__ float exchange[2][rows_per_block][row_threads / 32];
  Part* const queue = reinterpret_cast<Part*>(queue_memory) + threadIdx.x;
  const int thread = threadIdx.x % row_threads, lane_row = threadIdx.x / row_threads, count = a.columns / width;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * rows_per_block;
  auto place = [&](int stage, int v, int which) { return queue + ((stage * vectors + v) * 3 + which) * block; };
  auto ask = [&](std::int64_t row, int stage) {
    if (row < a.rows) {
#pragma unroll
      for (int v = 0; v < vectors; ++v) {
        const int at = v * row_threads + thread;
        if (at >= count) continue;
        copy_ahead(place(stage, v, 0), a.x + row * a.x_stride + at * width);
        copy_ahead(place(stage, v, 1), a.dout + row * a.dout_stride + at * width);
        copy_ahead(place(stage, v, 2), a.dx + row * a.dx_stride + at * width);
      }
    }
    close_copies();  // an empty group past the end, so that the count of groups holds
  };

  std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * rows_per_block + lane_row;
#pragma unroll
  for (int stage = 0; stage < stages; ++stage) ask(row + stage * step, stage);
  float next_rstd = row < a.rows ? __ldg(a.rstd + row) : 0.f;
  GainShare<T, row_threads, vectors> share;
  share.read(a.gain, thread, count);

  for (int stage = 0, parity = 0; row < a.rows; row += step, parity ^= 1) {
    const float r = next_rstd;
    if (row + step < a.rows) next_rstd = __ldg(a.rstd + row + step);
    wait_for_copies<stages - 1>();
    float product = 0.f;
#pragma unroll
    for (int v = 0; v < vectors; ++v) {
      if (v * row_threads + thread >= count) continue;
      product = share.product(v, to_floats(*place(stage, v, 0)), to_floats(*place(stage, v, 1)), product);
    }
    const float correction = -r * r * r * row_sum<row_threads>(product, exchange[parity][lane_row]) / static_cast<float>(a.columns);
#pragma unroll
    for (int v = 0; v < vectors; ++v) {
      const int at = v * row_threads + thread;
      if (at >= count) continue;
      // Read once more rather than held in registers: shared memory has time, and registers are blocks.
      Floats<width> dx = to_floats(*place(stage, v, 2)), normed;
      share.apply(v, to_floats(*place(stage, v, 0)), to_floats(*place(stage, v, 1)), r, correction, dx, normed);
      T *dx_at = a.dx + row * a.dx_stride + at * width, *normed_at = a.normed + row * a.normed_stride + at * width;
      if constexpr (stream) {
        store_once(dx_at, to_vector<T>(dx));
        if (a.normed) store_once(normed_at, to_vector<T>(normed));
      } else {
        store(dx_at, to_vector<T>(dx));
        if (a.normed) store(normed_at, to_vector<T>(normed));
      }
    }
    ask(row + stages * step, stage);  // its place has been read, by this thread
    stage = stage + 1 == stages ? 0 : stage + 1;
  }
  share.write(a.partials, a.columns, thread, lane_row);
}

template <class T, int row_threads, int vectors, int resident>
__global__ __launch_bounds__(block_threads<row_threads>, resident) void norm_backward_rows(NormBackward<T> a) {
  constexpr int width = full_width<T>, rows_per_block = block_threads<row_threads> / row_threads;
  __shared__ float exchange[2][rows_per_block][row_threads / 32];
  const int thread = threadIdx.x % row_threads, lane_row = threadIdx.x / row_threads, count = a.columns / width;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * rows_per_block;
  GainShare<T, row_threads, vectors> share;
  share.read(a.gain, thread, count);
  int parity = 0;
  for (std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * rows_per_block + lane_row; row < a.rows; row += step, parity ^= 1) {
    Vector<T, width> x[vectors], dout[vectors], old[vectors];
    const float r = __ldg(a.rstd + row);
#pragma unroll
    for (int v = 0; v < vectors; ++v) {
      const int at = v * row_threads + thread;
      if (at >= count) continue;
      x[v] = load_once<width>(a.x + row * a.x_stride + at * width);
      dout[v] = load_once<width>(a.dout + row * a.dout_stride + at * width);
      old[v] = load_once<width>(a.dx + row * a.dx_stride + at * width);
    }
    float product = 0.f;
#pragma unroll
    for (int v = 0; v < vectors; ++v)
      if (v * row_threads + thread < count) product = share.product(v, to_floats(x[v]), to_floats(dout[v]), product);
    const float correction = -r * r * r * row_sum<row_threads>(product, exchange[parity][lane_row]) / static_cast<float>(a.columns);
#pragma unroll
    for (int v = 0; v < vectors; ++v) {
      const int at = v * row_threads + thread;
      if (at >= count) continue;
      Floats<width> dx = to_floats(old[v]), normed;
      share.apply(v, to_floats(x[v]), to_floats(dout[v]), r, correction, dx, normed);
      store(a.dx + row * a.dx_stride + at * width, to_vector<T>(dx));
      if (a.normed) store(a.normed + row * a.normed_stride + at * width, to_vector<T>(normed));
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

// dgain += the blocks' shares in a fixed order: 32 columns a block, 32 threads a column, each over every 32nd share.
static __global__ __launch_bounds__(1024) void sum_gain_gradient(float* dgain, const float* partials, int parts, int columns) {
  __shared__ float shares[32][33];
  const int lane = threadIdx.x % 32, way = threadIdx.x / 32, column = static_cast<int>(blockIdx.x) * 32 + lane;
  constexpr int at_once = 16;  // what 512 blocks leave takes one round trip
  float share = 0.f;
  for (int first = way; column < columns && first < parts; first += 32 * at_once) {
    float part[at_once];
#pragma unroll
    for (int i = 0; i < at_once; ++i)
      part[i] = first + 32 * i < parts ? partials[static_cast<std::int64_t>(first + 32 * i) * columns + column] : 0.f;
#pragma unroll
    for (int i = 0; i < at_once; ++i) share += part[i];
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
