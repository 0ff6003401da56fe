// The merge loop of BPE: while neighbours form a piece, join the pair of the best score, the leftmost of equals.
#pragma once
#include <cstdint>
#include <vector>

#include "native/tokenizer/vocabulary.h"

namespace tinyllama {

// Merges `symbols` (ids of single characters) in place until no neighbours form a piece. O(n²) with a small constant for short words,
// O(n log n) by a heap for long ones.
void merge_symbols(const Vocabulary& vocabulary, std::vector<std::int32_t>& symbols);

}  // namespace tinyllama
