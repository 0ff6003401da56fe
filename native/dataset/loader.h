// Batches of a packed dataset in the order of one global sample index: any index is reached at once, and the ranks of any world that stride over
// it see each block once an epoch.
#pragma once
#include <cstdint>
#include <span>

#include "native/dataset/arrow_blocks.h"
#include "native/dataset/sample_order.h"

namespace tinyllama {

// (rows, block_length - 1) each: the inputs, and the next tokens, -1 in the padding. `first_keys` may be empty; else it receives where in the row the
// input's document begins, 0 for one that goes on from the block before. The padding is a document of its own.
struct Rows {
  std::span<std::int32_t> tokens, targets, first_keys = {};
};

// Not for use by several threads.
class Loader {
 public:
  // `vocabulary` bounds the ids, which are checked as they are read.
  Loader(const std::string& path, const BlockLayout& layout, std::uint64_t vocabulary, std::uint64_t seed);

  std::uint64_t blocks() const { return blocks_.blocks(); }
  std::uint64_t sample_at(std::uint64_t index) { return order_.at(index); }

  // Samples first, first + stride, … fill the rows. Afterwards the pages of the next `ahead` samples are on their way. Throws Error for an id beyond
  // the vocabulary, with its block.
  void samples(std::uint64_t first, std::uint64_t stride, const Rows& rows, std::uint64_t ahead);
  // Blocks first, first + 1, … as they lie in the file.
  void in_order(std::uint64_t first, const Rows& rows);

 private:
  std::size_t row_length() const { return blocks_.layout().block_length - 1; }
  // How many rows there is room for.
  std::size_t check(const Rows& rows) const;
  void read(std::uint64_t block, const Rows& rows, std::size_t row) const;

  ArrowBlocks blocks_;
  std::uint64_t vocabulary_;
  SampleOrder order_;
};

}  // namespace tinyllama
