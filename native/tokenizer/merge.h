// The merge loop of BPE: while neighbours form a piece, join the pair of the best score, the leftmost of equals.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "native/tokenizer/vocabulary.h"

namespace tinyllama {

// What up to 64 symbols become: `count` ids, and where in the symbols each of them starts.
struct MergedWindow {
  static constexpr std::size_t capacity = 64;
  std::size_t count = 0;
  std::array<std::int32_t, capacity> ids;
  std::array<std::uint8_t, capacity> starts;
};

// Merges 1 to 64 symbols (ids of single characters).
void merge_window(const Vocabulary& vocabulary, const std::int32_t* symbols, std::size_t count, MergedWindow& merged);

// Merges any number of symbols in place, in linear time for all but made-up texts: encodes windows by themselves and proves each seam between
// them. Where seams keep failing, a heap does it in O(n log n).
void merge_symbols(const Vocabulary& vocabulary, std::vector<std::int32_t>& symbols);

}  // namespace tinyllama
