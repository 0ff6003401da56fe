#include "native/dataset/loader.h"

#include <algorithm>
#include <cstring>

#include "native/core/error.h"

namespace tinyllama {

namespace {

// Widens a block's ids; returns the largest.
template <typename Id>
std::uint32_t widen(const std::uint8_t* bytes, std::size_t length, std::int32_t* tokens, std::int32_t* targets) {
  // Arrow aligns buffers to 8 bytes, and blocks begin at multiples of an id's size.
  const auto* ids = reinterpret_cast<const Id*>(bytes);
  std::uint32_t most = ids[0];
  for (std::size_t i = 0; i + 1 < length; ++i) tokens[i] = static_cast<std::int32_t>(ids[i]);
  for (std::size_t i = 1; i < length; ++i) {
    targets[i - 1] = static_cast<std::int32_t>(ids[i]);
    most = std::max(most, std::uint32_t{ids[i]});
  }
  return most;
}

// Each position's document start, by the block's.
void write_first_keys(const BlockView& view, std::span<std::int32_t> first_keys) {
  std::size_t begin = 0;
  const auto document_ends = [&](std::size_t end) {
    end = std::min(end, first_keys.size());
    if (begin < end) std::fill(first_keys.begin() + begin, first_keys.begin() + end, static_cast<std::int32_t>(begin));
    begin = std::max(begin, end);
  };
  for (std::size_t i = 0; i < view.start_count; ++i) {
    std::uint32_t start;
    std::memcpy(&start, view.starts + 4 * i, sizeof start);
    document_ends(start);
  }
  document_ends(view.length);
  document_ends(first_keys.size());
}

}  // namespace

Loader::Loader(const std::string& path, const BlockLayout& layout, std::uint64_t vocabulary, std::uint64_t seed)
    : blocks_(path, layout), vocabulary_(vocabulary), order_(std::max<std::uint64_t>(1, blocks_.blocks()), seed) {}

std::size_t Loader::check(const Rows& rows) const {
  const std::size_t length = row_length();
  require(length > 0 && rows.tokens.size() % length == 0 && rows.targets.size() == rows.tokens.size(), "tokens and targets hold whole rows of inputs");
  require(rows.first_keys.empty() || rows.first_keys.size() == rows.tokens.size(), "first keys are as many as tokens");
  require(rows.first_keys.empty() || blocks_.layout().boundaries, blocks_.path() + ": it does not tell where documents begin");
  return rows.tokens.size() / length;
}

void Loader::read(std::uint64_t block, const Rows& rows, std::size_t row) const {
  const BlockView view = blocks_.block(block);
  const BlockLayout& layout = blocks_.layout();
  std::int32_t* tokens = rows.tokens.data() + row * row_length();
  std::int32_t* targets = rows.targets.data() + row * row_length();
  const std::uint32_t most = layout.wide ? widen<std::uint32_t>(view.tokens, layout.block_length, tokens, targets)
                                         : widen<std::uint16_t>(view.tokens, layout.block_length, tokens, targets);
  require(most < vocabulary_, blocks_.path() + ": block " + std::to_string(block) + " has the token id " + std::to_string(most) +
                                  ", the vocabulary ends at " + std::to_string(vocabulary_));
  for (std::size_t i = std::max<std::size_t>(view.length, 1) - 1; i < row_length(); ++i) targets[i] = -1;
  if (!rows.first_keys.empty()) write_first_keys(view, rows.first_keys.subspan(row * row_length(), row_length()));
}

void Loader::samples(std::uint64_t first, std::uint64_t stride, const Rows& rows, std::uint64_t ahead) {
  require(blocks() > 0, blocks_.path() + ": there are no blocks");
  const std::size_t count = check(rows);
  for (std::size_t row = 0; row < count; ++row) read(order_.at(first + row * stride), rows, row);
  for (std::size_t row = count; row < count + ahead; ++row) blocks_.prefetch(order_.at(first + row * stride));
}

void Loader::in_order(std::uint64_t first, const Rows& rows) {
  const std::size_t count = check(rows);
  for (std::size_t row = 0; row < count; ++row) read(first + row, rows, row);
}

}  // namespace tinyllama
