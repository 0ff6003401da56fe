// The embedding's forward kernel: rows of the table gathered by token id. The backward one is in embedding_backward.cuh.
#pragma once
#include "native/device/cuda/vector_access.h"

namespace tinyllama::cuda {

// A warp copies a row: two accesses of each element. Rows of the table come again, so what is written leaves the cache first.
template <class T, int width>
__global__ __launch_bounds__(256) void gather(T* out, std::int64_t out_stride, const T* table, std::int64_t table_stride, const std::int32_t* ids,
                                              std::int64_t rows, int count) {
  constexpr int ahead = 8;
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * 8 + threadIdx.x / 32;
  if (row >= rows) return;
  const T* source = table + ids[row] * table_stride;
  T* target = out + row * out_stride;
  for (int first = threadIdx.x % 32; first < count; first += 32 * ahead) {
    Vector<T, width> part[ahead];
#pragma unroll
    for (int i = 0; i < ahead; ++i)
      if (first + i * 32 < count) part[i] = load<width>(source + (first + i * 32) * width);
#pragma unroll
    for (int i = 0; i < ahead; ++i)
      if (first + i * 32 < count) store_once(target + (first + i * 32) * width, part[i]);
  }
}

}  // namespace tinyllama::cuda
