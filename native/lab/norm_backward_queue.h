// A candidate for the RMS norm's backward pass, timed beside the engine's: a thread copies its vectors of the next `stages` rows to shared memory
// by cp.async, which holds no registers, and reads back only what it copied itself, so the queue needs no barrier.
#pragma once
#include "native/device/cuda/norm_backward_kernels.h"

namespace tinyllama::cuda {

// 16 bytes from global to shared memory, without registers between. What a thread has asked for up to close_copies() is one group; after
// wait_for_copies<newer>() all its groups but the `newer` last ones have arrived and may be read by that thread.
__device__ __forceinline__ void copy_ahead(void* shared, const void* global) {
  const auto to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\n" ::"r"(to), "l"(global) : "memory");
}
__device__ __forceinline__ void close_copies() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
template <int newer>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(newer) : "memory");
}

template <class T, int row_threads, int vectors, int stages>
constexpr int norm_queue_bytes = stages * vectors * 3 * block_threads<row_threads> * 16;

template <class T, int row_threads, int vectors, int stages, int resident>
__global__ __launch_bounds__(block_threads<row_threads>, resident) void norm_backward_queue(NormBackward<T> a) {
  constexpr int width = full_width<T>, block = block_threads<row_threads>, rows_per_block = block / row_threads;
  extern __shared__ uint4 queue_memory[];  // [stage][vector][x, dout, dx][thread]
  __shared__ float exchange[2][rows_per_block][row_threads / 32];
  uint4* const queue = queue_memory + threadIdx.x;
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
  GainShare<T, row_threads, vectors, Gain::held> share;
  share.start(a.gain, thread, count);

  for (int stage = 0, parity = 0; row < a.rows; row += step, parity ^= 1) {
    const float r = next_rstd;
    if (row + step < a.rows) next_rstd = __ldg(a.rstd + row + step);
    wait_for_copies<stages - 1>();
    float product = 0.f;
#pragma unroll
    for (int v = 0; v < vectors; ++v) {
      if (v * row_threads + thread >= count) continue;
      product = share.product(v, unpack<T>(*place(stage, v, 0)), unpack<T>(*place(stage, v, 1)), product);
    }
    const float correction = -r * r * r * row_sum<row_threads>(product, exchange[parity][lane_row]) / static_cast<float>(a.columns);
#pragma unroll
    for (int v = 0; v < vectors; ++v) {
      const int at = v * row_threads + thread;
      if (at >= count) continue;
      // Read once more rather than held in registers: shared memory has time, and registers are blocks.
      Floats<width> dx = unpack<T>(*place(stage, v, 2)), normed;
      share.apply(v, unpack<T>(*place(stage, v, 0)), unpack<T>(*place(stage, v, 1)), r, correction, dx, normed);
      T *dx_at = a.dx + row * a.dx_stride + at * width, *normed_at = a.normed + row * a.normed_stride + at * width;
      store(dx_at, to_vector<T>(dx));
      if (a.normed) store(normed_at, to_vector<T>(normed));
    }
    ask(row + stages * step, stage);  // its place has been read, by this thread
    stage = stage + 1 == stages ? 0 : stage + 1;
  }
  share.write(a.partials, a.columns, thread, lane_row);
}

}  // namespace tinyllama::cuda
