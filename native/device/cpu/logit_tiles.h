// The logits of the output projection, tile by tile, for the rows that have a target.
//
// Logits are computed transposed, (vocabulary, rows): the weight is then the operand read in place, and only the few rows of hidden states
// are packed. Rows come in chunks, and the vocabulary in blocks whose tile of logits fits the second-level cache.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "native/core/tensor.h"
#include "native/device/cpu/cpu_context.h"
#include "native/device/cpu/gemm.h"

namespace tinyllama {

// Rows of the weight whose logits make one tile.
constexpr std::int64_t vocabulary_block = 96;

class LogitTiles {
 public:
  // A row with a negative target is left out. Throws Error for a target outside the vocabulary and for shapes that do not fit.
  LogitTiles(CpuContext& context, const Tensor& hidden, const Tensor& weight, const std::int32_t* targets);

  std::int64_t blocks() const { return divide_up(weight_.rows, vocabulary_block); }
  std::int64_t chunks() const { return capacity_ == 0 ? 0 : divide_up(static_cast<std::int64_t>(scored_.size()), capacity_); }
  // Most rows of a chunk, and the elements from one row of a tile to the next.
  std::int64_t capacity() const { return capacity_; }
  std::int64_t stride() const { return stride_; }

  // Gathers and packs the rows of a chunk; what follows is about this chunk, whose rows are the tiles' columns.
  void open(std::int64_t chunk);
  std::int64_t columns() const { return rows_.rows; }
  // Row of the hidden states, and its target.
  std::int64_t row(std::int64_t column) const { return scored_[static_cast<std::size_t>(first_ + column)]; }
  std::int64_t target(std::int64_t column) const { return targets_[row(column)]; }
  // The gathered rows, which may be overwritten: the tiles come from the packed ones.
  const Tensor& rows() const { return rows_; }

  std::int64_t tile_rows(std::int64_t block) const { return std::min(vocabulary_block, weight_.rows - block * vocabulary_block); }
  // body(column, row of the tile) for each target that lies in the block, in the order of the columns.
  template <class Body>
  void for_each_target(std::int64_t block, Body&& body) const {
    for (std::int64_t column = 0; column < columns(); ++column) {
      const std::int64_t at = target(column) - block * vocabulary_block;
      if (at >= 0 && at < tile_rows(block)) body(column, at);
    }
  }
  // The tile of a block of the vocabulary: out(tile_rows, columns). On the calling thread.
  void multiply(std::int64_t block, float* out) const;

 private:
  CpuContext& context_;
  const Tensor hidden_, weight_;
  const std::int32_t* targets_;
  std::vector<std::int64_t> scored_;
  std::int64_t capacity_ = 0, stride_ = 0, first_ = 0;
  Tensor rows_;
  float* panels_ = nullptr;
  PackedRight packed_{};
};

}  // namespace tinyllama
