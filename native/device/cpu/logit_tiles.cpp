#include "native/device/cpu/logit_tiles.h"

#include <cstring>
#include <string>

#include "native/core/error.h"

namespace tinyllama {
namespace {

constexpr std::int64_t chunk_rows = 480;
// Elements of one chunk's logits: 64 MiB.
constexpr std::int64_t logit_elements = std::int64_t{1} << 24;

}  // namespace

LogitTiles::LogitTiles(CpuContext& context, const Tensor& hidden, const Tensor& weight, const std::int32_t* targets)
    : context_(context), hidden_(hidden), weight_(weight), targets_(targets) {
  require(hidden.columns == weight.columns, "linear loss: hidden states are " + std::to_string(hidden.columns) + " wide, the weight " +
                                                std::to_string(weight.columns));
  require(hidden.type == DataType::f32 && weight.type == DataType::f32, "linear loss: the CPU backend computes in fp32 only");
  for (std::int64_t row = 0; row < hidden.rows; ++row) {
    if (targets[row] < 0) continue;
    require(targets[row] < weight.rows, "linear loss: target " + std::to_string(targets[row]) + " of row " + std::to_string(row) +
                                            " is outside the vocabulary of " + std::to_string(weight.rows));
    scored_.push_back(row);
  }
  const auto count = static_cast<std::int64_t>(scored_.size());
  if (count > 0) {
    const std::int64_t most = std::clamp(logit_elements / weight.rows / 48 * 48, std::int64_t{48}, chunk_rows);
    capacity_ = round_up(divide_up(count, divide_up(count, most)), 8);
  }
  // An odd number of cache lines per row, so that a column's elements spread over all sets of the caches.
  stride_ = round_up(capacity_, 16);
  if (stride_ / 16 % 2 == 0) stride_ += 16;
  rows_ = matrix(context.rows.request(capacity_ * hidden.columns), capacity_, hidden.columns);
  panels_ = context.panels.request(weight.columns * round_up(capacity_, context.kernels.tile_columns));
}

void LogitTiles::open(std::int64_t chunk) {
  first_ = chunk * capacity_;
  rows_.rows = std::min(capacity_, static_cast<std::int64_t>(scored_.size()) - first_);
  for (std::int64_t column = 0; column < columns(); ++column) {
    std::memcpy(rows_.f32() + column * rows_.stride, hidden_.f32() + row(column) * hidden_.stride,
                static_cast<std::size_t>(hidden_.columns) * sizeof(float));
  }
  packed_ = pack_right(context_, panels_, rows_, Transpose::yes, 0, columns());
}

void LogitTiles::multiply(std::int64_t index, float* out) const {
  const Kernels& kernels = context_.kernels;
  const std::int64_t depth = weight_.columns, step = depth_step(depth);
  GemmBlock block{};
  block.rows = tile_rows(index);
  block.columns = columns();
  block.left_stride = weight_.stride;
  block.left_group = kernels.tile_rows * weight_.stride;
  block.out = out;
  block.out_stride = stride_;
  for (std::int64_t k = 0; k < depth; k += step) {
    block.depth = std::min(step, depth - k);
    block.left = weight_.f32() + index * vocabulary_block * weight_.stride + k;
    block.right = packed_.run(k, block.depth, 0);
    block.right_panel = block.depth * kernels.tile_columns;
    block.accumulate = k > 0;
    kernels.gemm_block(block);
  }
}

}  // namespace tinyllama
