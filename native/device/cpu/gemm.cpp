#include "native/device/cpu/gemm.h"

#include <algorithm>
#include <string>

#include "native/core/error.h"

namespace tinyllama {
namespace {

// Most rows of one work item: whole groups of every instruction set's tile (4, 6, 8, 12), and 96 rows of a run's left operand fit the
// second-level cache.
constexpr std::int64_t row_block = 96;
// Columns of one work item. A transposed left operand is copied once per item, so its items are wider.
constexpr std::int64_t column_block = 384, column_block_transposed = 1536;
// Elements of the packed right operand held at a time.
constexpr std::int64_t panel_elements = std::int64_t{1} << 22;
// A product of at most so many outputs and at least such a depth is cut along its depth, into at most so many parts.
constexpr std::int64_t few_outputs = std::int64_t{1} << 16, long_depth = 1024, most_parts = 8;

std::string shape_of(const Tensor& tensor) {
  std::string text = "(";
  return text.append(std::to_string(tensor.rows)).append(", ").append(std::to_string(tensor.columns)).append(")");
}

void check(const Tensor& out, const Tensor& a, Transpose transpose_a, const Tensor& b, Transpose transpose_b) {
  const bool left = transpose_a == Transpose::yes, right = transpose_b == Transpose::yes;
  const std::int64_t rows = left ? a.columns : a.rows, depth = left ? a.rows : a.columns;
  const std::int64_t columns = right ? b.rows : b.columns, right_depth = right ? b.columns : b.rows;
  require(out.rows == rows && out.columns == columns && depth == right_depth,
          "matmul: " + shape_of(a) + (left ? "ᵀ" : "") + " · " + shape_of(b) + (right ? "ᵀ" : "") + " does not give " + shape_of(out));
  require(out.type == DataType::f32 && a.type == DataType::f32 && b.type == DataType::f32, "matmul: the CPU backend computes in fp32 only");
}

// Rows of one work item: even shares of at most row_block, fewer when the threads would otherwise have less than three items each.
std::int64_t rows_per_item(const CpuContext& context, std::int64_t rows, std::int64_t column_blocks) {
  const std::int64_t group = context.kernels.tile_rows;
  const std::int64_t wanted = divide_up(3 * context.pool.size(), column_blocks), most = divide_up(rows, 4 * group);
  return round_up(divide_up(rows, std::max(divide_up(rows, row_block), std::min(wanted, most))), group);
}

// The left operand's rows from m and depth from k: packed in `groups`, which holds block.rows * block.depth elements, or read in place.
void take_left(const Kernels& kernels, GemmBlock& block, const Tensor& a, std::int64_t m, std::int64_t k, float* groups) {
  if (block.left_transposed) {
    kernels.pack_left_transposed(groups, a.f32() + k * a.stride + m, a.stride, block.depth, block.rows);
    block.left = groups;
    block.left_stride = kernels.tile_rows;
    block.left_group = kernels.tile_rows * block.depth;
  } else {
    block.left = a.f32() + m * a.stride + k;
    block.left_stride = a.stride;
    block.left_group = kernels.tile_rows * a.stride;
  }
}

// Few outputs and a long depth, as in the gradient of a small weight: tiles are too few to share evenly. Each item takes a part of the
// depth and packs what it reads, so that nothing packed moves from core to core; the parts' sums are added in order. The parts depend on
// the shape alone, so that a result does not depend on the number of threads.
void multiply_in_parts(CpuContext& context, const Tensor& out, const Tensor& a, Transpose transpose_a, const Tensor& b,
                       Transpose transpose_b, bool accumulate) {
  const Kernels& kernels = context.kernels;
  const bool left = transpose_a == Transpose::yes, right = transpose_b == Transpose::yes;
  const std::int64_t depth = left ? a.rows : a.columns, step = depth_step(depth), runs = divide_up(depth, step);
  const std::int64_t parts = std::min(runs, most_parts), stride = round_up(out.columns, 16), size = out.rows * stride;
  float* sums = context.shares.request(parts * size);
  context.pool.parallel_for(parts, [&](std::int64_t part, int thread) {
    const std::int64_t panels = step * round_up(out.columns, kernels.tile_columns);
    float* packed = context.thread[static_cast<std::size_t>(thread)].request(panels + row_block * step);
    GemmBlock block{};
    block.columns = out.columns;
    block.out_stride = stride;
    block.left_transposed = left;
    block.right = packed;
    const std::int64_t begin = part * runs / parts * step, end = std::min((part + 1) * runs / parts * step, depth);
    for (std::int64_t k = begin; k < end; k += step) {
      block.depth = std::min(step, depth - k);
      block.right_panel = block.depth * kernels.tile_columns;
      block.accumulate = k > begin;
      const auto pack = right ? kernels.pack_right_transposed : kernels.pack_right;
      pack(packed, block.right_panel, b.f32() + (right ? k : k * b.stride), b.stride, block.depth, out.columns);
      for (std::int64_t m = 0; m < out.rows; m += row_block) {
        block.rows = std::min(row_block, out.rows - m);
        block.out = sums + part * size + m * stride;
        take_left(kernels, block, a, m, k, packed + panels);
        kernels.gemm_block(block);
      }
    }
  });
  constexpr std::int64_t rows = 8;
  context.pool.parallel_for(divide_up(out.rows, rows), [&](std::int64_t item, int) {
    for (std::int64_t row = item * rows; row < std::min((item + 1) * rows, out.rows); ++row) {
      float *to = out.f32() + row * out.stride, *from = sums + row * stride;
      for (std::int64_t part = 1; part < parts; ++part) kernels.add(from, from + part * size, out.columns);
      if (accumulate) {
        kernels.add(to, from, out.columns);
      } else {
        std::copy_n(from, out.columns, to);
      }
    }
  });
}

}  // namespace

std::int64_t round_up(std::int64_t value, std::int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }
std::int64_t divide_up(std::int64_t value, std::int64_t by) { return (value + by - 1) / by; }

std::int64_t depth_step(std::int64_t depth) {
  constexpr std::int64_t longest = 256;
  return depth <= longest ? depth : round_up(divide_up(depth, divide_up(depth, longest)), 4);
}

PackedRight pack_right(CpuContext& context, float* data, const Tensor& b, Transpose transpose_b, std::int64_t first, std::int64_t columns) {
  const Kernels& kernels = context.kernels;
  const bool transposed = transpose_b == Transpose::yes;
  const std::int64_t depth = transposed ? b.columns : b.rows;
  const PackedRight packed{data, depth, round_up(columns, kernels.tile_columns)};
  const std::int64_t step = depth_step(depth), runs = divide_up(depth, step);
  const std::int64_t block = 8 * kernels.tile_columns, blocks = divide_up(columns, block);
  context.pool.parallel_for(runs * blocks, [&](std::int64_t item, int) {
    const std::int64_t k = item / blocks * step, n = item % blocks * block;
    const std::int64_t length = std::min(step, depth - k), width = std::min(block, columns - n);
    float* panels = const_cast<float*>(packed.run(k, length, n));
    const std::int64_t panel = length * kernels.tile_columns;
    if (transposed) {
      kernels.pack_right_transposed(panels, panel, b.f32() + (first + n) * b.stride + k, b.stride, length, width);
    } else {
      kernels.pack_right(panels, panel, b.f32() + k * b.stride + first + n, b.stride, length, width);
    }
  });
  return packed;
}

void matmul(CpuContext& context, const Tensor& out, const Tensor& a, Transpose transpose_a, const Tensor& b, Transpose transpose_b,
            bool accumulate) {
  check(out, a, transpose_a, b, transpose_b);
  if (out.rows == 0 || out.columns == 0) return;
  const Kernels& kernels = context.kernels;
  const bool transposed = transpose_a == Transpose::yes;
  const std::int64_t depth = transposed ? a.rows : a.columns, step = depth_step(depth);
  if (depth == 0) {
    for (std::int64_t row = 0; row < out.rows && !accumulate; ++row) std::fill_n(out.f32() + row * out.stride, out.columns, 0.f);
    return;
  }
  if (out.rows * out.columns <= few_outputs && depth >= long_depth) {
    multiply_in_parts(context, out, a, transpose_a, b, transpose_b, accumulate);
    return;
  }
  const std::int64_t slab = std::max<std::int64_t>(panel_elements / depth / column_block, 1) * column_block;
  for (std::int64_t first = 0; first < out.columns; first += slab) {
    const std::int64_t columns = std::min(slab, out.columns - first);
    float* panels = context.panels.request(depth * round_up(columns, kernels.tile_columns));
    const PackedRight right = pack_right(context, panels, b, transpose_b, first, columns);
    const std::int64_t width = transposed ? column_block_transposed : column_block;
    const std::int64_t column_blocks = divide_up(columns, width), height = rows_per_item(context, out.rows, column_blocks);
    const std::int64_t row_blocks = divide_up(out.rows, height);
    context.pool.parallel_for(row_blocks * column_blocks, [&](std::int64_t item, int thread) {
      const std::int64_t m = item % row_blocks * height, n = item / row_blocks * width;
      GemmBlock block;
      block.rows = std::min(height, out.rows - m);
      block.columns = std::min(width, columns - n);
      block.out = out.f32() + m * out.stride + first + n;
      block.out_stride = out.stride;
      block.left_transposed = transposed;
      for (std::int64_t k = 0; k < depth; k += step) {
        block.depth = std::min(step, depth - k);
        take_left(kernels, block, a, m, k, context.thread[static_cast<std::size_t>(thread)].request(row_block * step));
        block.right = right.run(k, block.depth, n);
        block.right_panel = block.depth * kernels.tile_columns;
        block.accumulate = accumulate || k > 0;
        kernels.gemm_block(block);
      }
    });
  }
}

}  // namespace tinyllama
