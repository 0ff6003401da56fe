#include "native/tokenizer/merge.h"

#include <algorithm>
#include <array>
#include <functional>

#include "native/core/error.h"

namespace tinyllama {

namespace {

constexpr std::size_t short_word = 32;  // up to here the scan for the best rank beats the heap

void merge_short(const Vocabulary& vocabulary, std::vector<std::int32_t>& symbols) {
  std::array<Merge, short_word> merges;  // of symbol i with its right neighbour
  std::size_t n = symbols.size();
  for (std::size_t i = 0; i + 1 < n; ++i) merges[i] = vocabulary.merge(symbols[i], symbols[i + 1]);
  while (n > 1) {
    std::size_t best = 0;
    for (std::size_t i = 1; i + 1 < n; ++i) {
      if (merges[i].rank < merges[best].rank) best = i;
    }
    if (merges[best].rank == no_rank) break;
    symbols[best] = merges[best].id;
    for (std::size_t i = best + 1; i + 1 < n; ++i) {
      symbols[i] = symbols[i + 1];
      merges[i] = merges[i + 1];
    }
    --n;
    if (best > 0) merges[best - 1] = vocabulary.merge(symbols[best - 1], symbols[best]);
    if (best + 1 < n) merges[best] = vocabulary.merge(symbols[best], symbols[best + 1]);
  }
  symbols.resize(n);
}

// A linked list of symbols, and a heap of (rank, position of the left symbol). A heap entry is good while the pair at its position still has that rank:
// merged-away symbols and changed pairs leave entries behind that no longer match.
void merge_long(const Vocabulary& vocabulary, std::vector<std::int32_t>& symbols) {
  require(symbols.size() < no_rank, "a word of 4 GB without a place to cut it is too long");
  const auto n = static_cast<std::uint32_t>(symbols.size());
  struct Node {
    std::uint32_t previous, next;  // n: none
    Merge merge;                   // with the next
  };
  std::vector<Node> nodes(n);
  std::vector<std::uint64_t> heap;
  heap.reserve(n);
  const auto entry = [&](std::uint32_t at) { return static_cast<std::uint64_t>(nodes[at].merge.rank) << 32 | at; };
  for (std::uint32_t i = 0; i < n; ++i) {
    nodes[i] = {i == 0 ? n : i - 1, i + 1, i + 1 < n ? vocabulary.merge(symbols[i], symbols[i + 1]) : Merge{}};
    if (nodes[i].merge.rank != no_rank) heap.push_back(entry(i));
  }
  std::make_heap(heap.begin(), heap.end(), std::greater<>{});
  const auto pair_up = [&](std::uint32_t at) {
    Node& node = nodes[at];
    node.merge = node.next < n ? vocabulary.merge(symbols[at], symbols[node.next]) : Merge{};
    if (node.merge.rank == no_rank) return;
    heap.push_back(entry(at));
    std::push_heap(heap.begin(), heap.end(), std::greater<>{});
  };
  while (!heap.empty()) {
    const std::uint64_t top = heap.front();
    std::pop_heap(heap.begin(), heap.end(), std::greater<>{});
    heap.pop_back();
    const auto at = static_cast<std::uint32_t>(top);
    Node& node = nodes[at];
    if (node.merge.rank != top >> 32) continue;
    const std::uint32_t gone = node.next;
    symbols[at] = node.merge.id;
    node.next = nodes[gone].next;
    if (node.next < n) nodes[node.next].previous = at;
    nodes[gone].merge = {};
    symbols[gone] = no_id;
    pair_up(at);
    if (node.previous < n) pair_up(node.previous);
  }
  std::erase(symbols, no_id);
}

}  // namespace

void merge_symbols(const Vocabulary& vocabulary, std::vector<std::int32_t>& symbols) {
  if (symbols.size() <= short_word) {
    merge_short(vocabulary, symbols);
  } else {
    merge_long(vocabulary, symbols);
  }
}

}  // namespace tinyllama
