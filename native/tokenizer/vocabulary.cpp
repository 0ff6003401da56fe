#include "native/tokenizer/vocabulary.h"

#include <algorithm>
#include <bit>
#include <bitset>
#include <cmath>
#include <limits>
#include <numeric>
#include <string_view>
#include <unordered_map>
#include <unordered_set>

#include "native/core/error.h"
#include "native/tokenizer/utf8.h"

namespace tinyllama {

namespace {

// Bits to drop from a 64-bit hash so that the rest indexes a table with at least twice `entries` slots.
int table_shift(std::size_t entries) { return 64 - static_cast<int>(std::bit_width(std::max<std::size_t>(entries, 1) * 2 - 1)); }

std::size_t table_size(int shift) { return std::size_t{1} << (64 - shift); }

bool all_spaces(const std::u32string& text) {
  return std::all_of(text.begin(), text.end(), [](char32_t c) { return c == space_symbol; });
}

}  // namespace

Vocabulary::Vocabulary(std::vector<std::string> pieces, const std::vector<float>& scores, const std::vector<std::uint8_t>& types)
    : pieces_(std::move(pieces)), byte_values_(pieces_.size(), 0) {
  require(!pieces_.empty() && scores.size() == pieces_.size() && types.size() == pieces_.size(),
          "a vocabulary needs as many scores and types as pieces, and at least one piece");
  require(pieces_.size() < (std::size_t{1} << id_bits), "a vocabulary of " + std::to_string(pieces_.size()) + " pieces is too large; the limit is 2^21 - 1");
  for (std::size_t id = 0; id < scores.size(); ++id) require(std::isfinite(scores[id]), "the score of piece " + std::to_string(id) + " is not a number");
  for (std::size_t id = 0; id < types.size(); ++id) {
    const auto type = static_cast<PieceType>(types[id]);
    require(type == PieceType::normal || type == PieceType::unknown || type == PieceType::control || type == PieceType::byte,
            "piece " + std::to_string(id) + " has type " + std::to_string(types[id]) + "; only normal, unknown, control and byte are known");
    types_.push_back(type);
  }
  read_special_pieces();
  std::vector<std::u32string> texts(pieces_.size());  // of normal pieces only, so that the others are never found below
  for (std::size_t id = 0; id < pieces_.size(); ++id) {
    if (types_[id] != PieceType::normal) continue;
    texts[id] = code_points(pieces_[id]);
    require(!texts[id].empty(), "piece " + std::to_string(id) + " is empty");
  }
  build_characters(texts);
  build_merges(texts, scores);
  build_pairs(texts);
  build_ascii_pairs(texts);
  find_space_runs(texts, scores);
}

void Vocabulary::read_special_pieces() {
  byte_ids_.fill(no_id);
  for (std::int32_t id = 0; id < size(); ++id) {
    const std::string& text = piece(id);
    if (type(id) == PieceType::control && text == "<s>") bos_ = id;
    if (type(id) == PieceType::control && text == "</s>") eos_ = id;
    if (type(id) != PieceType::byte) continue;
    constexpr std::string_view digits = "0123456789ABCDEF";
    const std::size_t high = text.size() == 6 ? digits.find(text[3]) : std::string_view::npos;
    const std::size_t low = text.size() == 6 ? digits.find(text[4]) : std::string_view::npos;
    require(text.starts_with("<0x") && text.back() == '>' && high < 16 && low < 16, "byte piece " + std::to_string(id) + " is not of the form <0x00>");
    byte_values_[static_cast<std::size_t>(id)] = static_cast<std::uint8_t>(high << 4 | low);
    byte_ids_[high << 4 | low] = id;
  }
  require(std::find(byte_ids_.begin(), byte_ids_.end(), no_id) == byte_ids_.end(), "the vocabulary lacks some of the 256 byte pieces");
  require(bos_ != no_id && eos_ != no_id, "the vocabulary lacks the control pieces <s> and </s>");
}

void Vocabulary::build_characters(const std::vector<std::u32string>& texts) {
  character_pages_.emplace_back();
  for (std::int32_t id = 0; id < size(); ++id) {
    const std::u32string& text = texts[static_cast<std::size_t>(id)];
    if (text.size() != 1) continue;
    std::uint16_t& page = page_of_[text[0] >> 8];
    if (page == 0) {
      page = static_cast<std::uint16_t>(character_pages_.size());
      character_pages_.emplace_back();
    }
    character_pages_[page][text[0] & 0xFF] = static_cast<std::uint32_t>(id) + 1;
  }
  for (std::size_t id = 0; id < texts.size(); ++id) {
    for (const char32_t c : texts[id]) {
      require(character_id(c) != no_id, "piece " + std::to_string(id) + " (\"" + pieces_[id] + "\") has a character that is no piece itself");
    }
  }
}

void Vocabulary::build_merges(const std::vector<std::u32string>& texts, const std::vector<float>& scores) {
  std::unordered_map<std::u32string_view, std::int32_t> ids;
  std::vector<std::size_t> by_score;
  for (std::size_t id = 0; id < texts.size(); ++id) {
    if (texts[id].empty()) continue;
    require(ids.emplace(texts[id], static_cast<std::int32_t>(id)).second, "piece " + std::to_string(id) + " (\"" + pieces_[id] + "\") is there twice");
    by_score.push_back(id);
  }
  std::stable_sort(by_score.begin(), by_score.end(), [&](std::size_t a, std::size_t b) { return scores[a] > scores[b]; });

  // Every symbol that merging can meet is a normal piece, so the pairs of normal pieces whose concatenation is one are all the merges.
  std::vector<std::uint64_t> found;
  std::vector<std::uint32_t> ranks(pieces_.size(), no_rank);  // of a piece as the result of a merge
  std::uint32_t rank = 0;
  for (std::size_t i = 0; i < by_score.size(); ++i) {
    const std::size_t id = by_score[i];
    if (i > 0 && scores[id] != scores[by_score[i - 1]]) ++rank;
    ranks[id] = rank;
    const std::u32string_view text = texts[id];
    for (std::size_t cut = 1; cut < text.size(); ++cut) {
      const auto left = ids.find(text.substr(0, cut));
      const auto right = ids.find(text.substr(cut));
      if (left == ids.end() || right == ids.end()) continue;
      found.push_back(merge_key(left->second, right->second) << id_bits | id);
    }
  }
  for (merge_shift_ = table_shift(found.size()); !place_merges(found); --merge_shift_) {
    require(merge_shift_ > 36, "the vocabulary's merges cannot be hashed");
  }
  merge_ranks_.assign(merges_.size(), no_rank);
  for (std::size_t slot = 0; slot < merges_.size(); ++slot) {
    if (merges_[slot] != empty_key) merge_ranks_[slot] = ranks[merges_[slot] & id_mask];
  }
}

// Fills merges_ and displacements_ for the table's size in merge_shift_; buckets of many merges first, as they are the hardest to place. False when a
// bucket finds no displacement.
bool Vocabulary::place_merges(const std::vector<std::uint64_t>& merges) {
  displacement_shift_ = std::min(63, merge_shift_ + 3);  // one displacement for eight slots
  merges_.assign(table_size(merge_shift_), empty_key);
  displacements_.assign(table_size(displacement_shift_), 0);
  std::vector<std::vector<std::uint64_t>> buckets(displacements_.size());
  for (const std::uint64_t merge : merges) buckets[mix(merge >> id_bits) >> displacement_shift_].push_back(merge);
  std::vector<std::size_t> order(buckets.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return buckets[a].size() > buckets[b].size(); });
  for (const std::size_t bucket : order) {
    const std::vector<std::uint64_t>& members = buckets[bucket];
    std::uint32_t displacement = 0;
    for (; displacement <= std::numeric_limits<std::uint16_t>::max(); ++displacement) {
      std::size_t placed = 0;
      for (; placed < members.size(); ++placed) {
        std::uint64_t& slot = merges_[merge_slot(mix(members[placed] >> id_bits), static_cast<std::uint16_t>(displacement))];
        if (slot != empty_key) break;
        slot = members[placed];
      }
      if (placed == members.size()) break;
      while (placed-- > 0) merges_[merge_slot(mix(members[placed] >> id_bits), static_cast<std::uint16_t>(displacement))] = empty_key;
    }
    if (displacement > std::numeric_limits<std::uint16_t>::max()) return false;
    displacements_[bucket] = static_cast<std::uint16_t>(displacement);
  }
  return true;
}

void Vocabulary::build_pairs(const std::vector<std::u32string>& texts) {
  std::unordered_set<std::uint64_t> found;
  for (const std::u32string& text : texts) {
    for (std::size_t i = 1; i < text.size(); ++i) {
      found.insert(static_cast<std::uint64_t>(text[i - 1]) << 32 | text[i]);
      character_pages_[page_of_[text[i - 1] >> 8]][text[i - 1] & 0xFF] |= joins_right;
      character_pages_[page_of_[text[i] >> 8]][text[i] & 0xFF] |= joins_left;
    }
  }
  pair_shift_ = table_shift(found.size());
  pairs_.assign(table_size(pair_shift_), empty_key);
  for (const std::uint64_t key : found) {
    std::size_t slot = hash(key) >> pair_shift_;
    while (pairs_[slot] != empty_key) slot = (slot + 1) & (pairs_.size() - 1);
    pairs_[slot] = key;
  }
}

// Groups the left characters into eight, so that a group's right neighbours are as nearly as possible those of each of its characters: starts from one
// group for each set of neighbours and joins the two groups that lose the fewest cuts, weighted by how often pieces hold the characters.
void Vocabulary::build_ascii_pairs(const std::vector<std::u32string>& texts) {
  struct Group {
    std::bitset<128> members, neighbours;
  };
  std::array<std::bitset<128>, 128> neighbours;
  std::array<double, 128> frequency{};
  const auto ascii = [](char32_t c) { return c == space_symbol ? U' ' : c; };
  for (const std::u32string& text : texts) {
    for (std::size_t i = 0; i < text.size(); ++i) {
      const char32_t c = ascii(text[i]);
      if (c >= 128) continue;
      frequency[c] += 1;
      if (i > 0 && ascii(text[i - 1]) < 128) neighbours[ascii(text[i - 1])].set(c);
    }
  }
  const auto weight = [&](const std::bitset<128>& characters) {
    double sum = 0;
    for (std::size_t c = 0; c < 128; ++c) sum += characters[c] ? frequency[c] : 0;
    return sum;
  };
  std::vector<Group> groups;
  for (std::size_t c = 0; c < 128; ++c) {
    if (neighbours[c].none()) continue;
    const auto same = std::find_if(groups.begin(), groups.end(), [&](const Group& group) { return group.neighbours == neighbours[c]; });
    Group& group = same == groups.end() ? groups.emplace_back(Group{{}, neighbours[c]}) : *same;
    group.members.set(c);
  }
  while (groups.size() > 8) {
    std::size_t best_a = 0, best_b = 1;
    double best_cost = -1;
    for (std::size_t a = 0; a < groups.size(); ++a) {
      for (std::size_t b = a + 1; b < groups.size(); ++b) {
        const auto both = groups[a].neighbours | groups[b].neighbours;
        const double cost =
            weight(groups[a].members) * weight(both & ~groups[a].neighbours) + weight(groups[b].members) * weight(both & ~groups[b].neighbours);
        if (best_cost < 0 || cost < best_cost) best_a = a, best_b = b, best_cost = cost;
      }
    }
    groups[best_a].members |= groups[best_b].members;
    groups[best_a].neighbours |= groups[best_b].neighbours;
    groups.erase(groups.begin() + static_cast<std::ptrdiff_t>(best_b));
  }
  for (std::size_t group = 0; group < groups.size(); ++group) {
    for (std::size_t c = 0; c < 128; ++c) {
      if (groups[group].members[c]) ascii_pairs_.left[c] |= static_cast<std::uint8_t>(1 << group);
      if (groups[group].neighbours[c]) ascii_pairs_.right[c] |= static_cast<std::uint8_t>(1 << group);
    }
  }
}

// Runs of spaces can be encoded without merging when
//  (1) no normal piece has ▁ after another character, nor two ▁ in front of one: a run's ▁ merge with each other, and only the last of them with
//      the word that follows;
//  (2) the pieces of ▁ alone are there for every length 1..L, and those of length > 1 share one score below all other merge results: the run merges
//      after the word has taken the last ▁ or left it, and, ties going leftmost, it grows from the left into pieces of L and one of the rest.
void Vocabulary::find_space_runs(const std::vector<std::u32string>& texts, const std::vector<float>& scores) {
  std::vector<std::int32_t> runs;
  constexpr float infinity = std::numeric_limits<float>::infinity();
  float lowest_word = infinity, highest_run = -infinity, lowest_run = infinity;
  for (std::size_t id = 0; id < texts.size(); ++id) {
    const std::u32string& text = texts[id];
    if (text.empty()) continue;
    if (all_spaces(text)) {
      if (runs.size() < text.size()) runs.resize(text.size(), no_id);
      runs[text.size() - 1] = static_cast<std::int32_t>(id);
      if (text.size() == 1) continue;
      highest_run = std::max(highest_run, scores[id]);
      lowest_run = std::min(lowest_run, scores[id]);
    } else if (text.size() > 1) {
      if (text.find(space_symbol, 1) != std::u32string::npos) return;
      lowest_word = std::min(lowest_word, scores[id]);
    }
  }
  if (std::find(runs.begin(), runs.end(), no_id) != runs.end()) return;
  if (runs.size() > 1 && (highest_run != lowest_run || highest_run >= lowest_word)) return;
  space_runs_ = std::move(runs);
}

}  // namespace tinyllama
