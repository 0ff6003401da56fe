#include "native/tokenizer/merge.h"

#include <algorithm>
#include <functional>
#include <limits>

#include "native/core/error.h"

namespace tinyllama {

namespace {

constexpr std::int32_t no_pair = std::numeric_limits<std::int32_t>::max();
constexpr std::size_t group_size = 8;  // the best pair is kept for each group of positions, and of all groups

std::int32_t smaller(std::int32_t a, std::int32_t b) { return a < b ? a : b; }

std::int32_t smallest(const std::int32_t* keys) {
  return smaller(smaller(smaller(keys[0], keys[1]), smaller(keys[2], keys[3])), smaller(smaller(keys[4], keys[5]), smaller(keys[6], keys[7])));
}

// Whether the text of two tokens becomes these two tokens again when it is encoded alone: symbols [left, seam) and [seam, end).
//
// Why that makes a seam right: let X and Y be encodings of two texts, x the last token of X and y the first of Y, and let the text of x and y
// encode to x, y. Then the whole text encodes to X, Y. For suppose the first merge across the seam joined a and b, at a moment when it was
// better than all other pairs. Until then X and Y grew as they do alone, and so did x and y inside them, each time by the better of their next
// merges; when only x and y are encoded they pass through the same state, and there a and b are the best pair too, and would have been joined.
bool seam_holds(const Vocabulary& vocabulary, const std::int32_t* symbols, std::size_t left, std::size_t seam, std::size_t end) {
  if (end - left > MergedWindow::capacity) return false;
  MergedWindow merged;
  merge_window(vocabulary, symbols + left, end - left, merged);
  return merged.count == 2 && merged.starts[1] == seam - left;
}

// False when too many seams failed; then `symbols` is as it was. Windows overlap: the tokens at the end of one are dropped, because a token that
// is cut off by the window's end is rarely the right one.
bool merge_by_windows(const Vocabulary& vocabulary, std::vector<std::int32_t>& symbols) {
  constexpr std::size_t overlap = 12;
  const std::size_t n = symbols.size();
  std::vector<std::int32_t> ids;
  std::vector<std::size_t> starts;
  std::size_t failures_left = 16 + n / 256;
  MergedWindow window;
  for (std::size_t at = 0; at < n;) {
    const std::size_t length = std::min(n - at, MergedWindow::capacity);
    merge_window(vocabulary, symbols.data() + at, length, window);
    const std::size_t first_end = window.count > 1 ? window.starts[1] : length;
    if (!ids.empty() && !seam_holds(vocabulary, symbols.data(), starts.back(), at, at + first_end)) {
      if (failures_left-- == 0) return false;
      at = starts.back();
      ids.pop_back();
      starts.pop_back();
      continue;
    }
    std::size_t kept = window.count;
    if (at + length < n) {
      while (kept > 1 && window.starts[kept - 1] > length - overlap) --kept;  // the last token that is kept ends before the overlap …
      if (kept > 1) --kept;
    }
    for (std::size_t i = 0; i < kept; ++i) {
      ids.push_back(window.ids[i]);
      starts.push_back(at + window.starts[i]);
    }
    at += kept < window.count ? window.starts[kept] : length;
  }
  symbols = std::move(ids);
  return true;
}

// A linked list of symbols, and a heap of (rank, position of the left symbol). A heap entry is good while the pair at its position still has that rank:
// merged-away symbols and changed pairs leave entries behind that no longer match.
void merge_by_heap(const Vocabulary& vocabulary, std::vector<std::int32_t>& symbols) {
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

void merge_window(const Vocabulary& vocabulary, const std::int32_t* symbols, std::size_t count, MergedWindow& merged) {
  constexpr std::size_t capacity = MergedWindow::capacity;
  // Of the pair that starts at this symbol: rank << 6 | position, so that the smallest is the best, the leftmost of equals; no_pair also for symbols
  // that were merged away.
  std::array<std::int32_t, capacity> keys;
  std::array<std::int32_t, capacity / group_size> best;  // of each group
  std::array<std::int32_t, capacity> results;            // of that pair
  std::array<std::int32_t, capacity> ids;
  std::array<std::uint8_t, capacity> next, previous;
  const std::size_t groups = (count + group_size - 1) / group_size;
  const auto pair_up = [&](std::size_t at, std::size_t with) {
    const Merge merge = vocabulary.merge(ids[at], ids[with]);
    keys[at] = merge.rank == no_rank ? no_pair : static_cast<std::int32_t>(merge.rank << 6 | at);
    results[at] = merge.id;
  };
  const auto find_best = [&](std::size_t group) { best[group] = smallest(keys.data() + group * group_size); };
  for (std::size_t i = 0; i < count; ++i) {
    ids[i] = symbols[i];
    next[i] = static_cast<std::uint8_t>(i + 1);
    previous[i] = static_cast<std::uint8_t>(i - 1);
    if (i > 0) pair_up(i - 1, i);
  }
  for (std::size_t i = count - 1; i < groups * group_size; ++i) keys[i] = no_pair;
  best.fill(no_pair);
  for (std::size_t group = 0; group < groups; ++group) find_best(group);
  for (;;) {
    const std::int32_t key = groups == 1 ? best[0] : smallest(best.data());
    if (key == no_pair) break;
    const std::size_t at = key & 63;
    const std::size_t gone = next[at], after = next[gone];
    ids[at] = results[at];
    keys[gone] = no_pair;
    next[at] = static_cast<std::uint8_t>(after);
    if (after < count) {
      previous[after] = static_cast<std::uint8_t>(at);
      pair_up(at, after);
    } else {
      keys[at] = no_pair;
    }
    const std::size_t group = at / group_size;
    if (gone / group_size != group) find_best(gone / group_size);
    if (at > 0) {
      const std::size_t before = previous[at];
      pair_up(before, at);
      if (before / group_size != group) find_best(before / group_size);
    }
    find_best(group);
  }
  merged.count = 0;
  for (std::size_t i = 0; i < count; i = next[i]) {
    merged.ids[merged.count] = ids[i];
    merged.starts[merged.count++] = static_cast<std::uint8_t>(i);
  }
}

void merge_symbols(const Vocabulary& vocabulary, std::vector<std::int32_t>& symbols) {
  if (symbols.empty()) return;
  if (symbols.size() > MergedWindow::capacity) {
    if (!merge_by_windows(vocabulary, symbols)) merge_by_heap(vocabulary, symbols);
    return;
  }
  MergedWindow merged;
  merge_window(vocabulary, symbols.data(), symbols.size(), merged);
  symbols.assign(merged.ids.begin(), merged.ids.begin() + static_cast<std::ptrdiff_t>(merged.count));
}

}  // namespace tinyllama
