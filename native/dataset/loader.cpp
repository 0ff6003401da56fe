#include "native/dataset/loader.h"

#include <algorithm>

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

}  // namespace

Loader::Loader(const std::string& path, const BlockLayout& layout, std::uint64_t vocabulary, std::uint64_t seed)
    : blocks_(path, layout), vocabulary_(vocabulary), order_(std::max<std::uint64_t>(1, blocks_.blocks()), seed) {}

void Loader::read(std::uint64_t block, std::int32_t* tokens, std::int32_t* targets) const {
  const BlockView view = blocks_.block(block);
  const BlockLayout& layout = blocks_.layout();
  const std::uint32_t most = layout.wide ? widen<std::uint32_t>(view.tokens, layout.block_length, tokens, targets)
                                         : widen<std::uint16_t>(view.tokens, layout.block_length, tokens, targets);
  require(most < vocabulary_, blocks_.path() + ": block " + std::to_string(block) + " has the token id " + std::to_string(most) +
                                  ", the vocabulary ends at " + std::to_string(vocabulary_));
  for (std::size_t i = std::max<std::size_t>(view.length, 1) - 1; i < row_length(); ++i) targets[i] = -1;
}

void Loader::samples(std::uint64_t first, std::uint64_t stride, std::span<std::int32_t> tokens, std::span<std::int32_t> targets, std::uint64_t ahead) {
  const std::size_t length = row_length();
  require(blocks() > 0, blocks_.path() + ": there are no blocks");
  require(length > 0 && tokens.size() % length == 0 && targets.size() == tokens.size(), "tokens and targets hold whole rows of inputs");
  const std::size_t rows = tokens.size() / length;
  for (std::size_t row = 0; row < rows; ++row) read(order_.at(first + row * stride), tokens.data() + row * length, targets.data() + row * length);
  for (std::size_t row = rows; row < rows + ahead; ++row) blocks_.prefetch(order_.at(first + row * stride));
}

void Loader::in_order(std::uint64_t first, std::span<std::int32_t> tokens, std::span<std::int32_t> targets) {
  const std::size_t length = row_length();
  require(length > 0 && tokens.size() % length == 0 && targets.size() == tokens.size(), "tokens and targets hold whole rows of inputs");
  for (std::size_t row = 0; row * length < tokens.size(); ++row) read(first + row, tokens.data() + row * length, targets.data() + row * length);
}

}  // namespace tinyllama
