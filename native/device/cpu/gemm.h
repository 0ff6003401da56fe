// Matrix products on all threads.
#pragma once
#include <cstdint>

#include "native/core/tensor.h"
#include "native/device/cpu/cpu_context.h"
#include "native/device/device.h"

namespace tinyllama {

// Sums over the depth are taken in runs of this length, added up in order. It depends on the depth alone, so that a result does not depend
// on how the outputs were divided.
std::int64_t depth_step(std::int64_t depth);

std::int64_t round_up(std::int64_t value, std::int64_t multiple);
std::int64_t divide_up(std::int64_t value, std::int64_t by);

// A packed right operand: runs of the depth one after the other, in each the panels of tile_columns columns.
struct PackedRight {
  const float* data;
  std::int64_t depth, padded_columns;

  const float* run(std::int64_t first_depth, std::int64_t step_depth, std::int64_t first_column) const {
    return data + first_depth * padded_columns + first_column * step_depth;
  }
};

// Packs op(b)'s columns [first, first + columns) into `data`, which holds depth * round_up(columns, tile_columns) elements. On all threads.
PackedRight pack_right(CpuContext& context, float* data, const Tensor& b, Transpose transpose_b, std::int64_t first, std::int64_t columns);

// Device::matmul.
void matmul(CpuContext& context, const Tensor& out, const Tensor& a, Transpose transpose_a, const Tensor& b, Transpose transpose_b,
            bool accumulate);

}  // namespace tinyllama
