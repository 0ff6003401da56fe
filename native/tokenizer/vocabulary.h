// A SentencePiece BPE vocabulary with byte fallback, and everything encoding needs that follows from the pieces alone: merge ranks,
// character ids, and the places where a text may be cut without changing its ids. Immutable: threads share one.
#pragma once
#include <array>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "native/tokenizer/scan.h"

namespace tinyllama {

// SentencePiece's ModelProto.SentencePiece.Type; other types (user defined, unused) are refused.
enum class PieceType : std::uint8_t { normal = 1, unknown = 2, control = 3, byte = 6 };

inline constexpr char32_t space_symbol = 0x2581;  // ▁
inline constexpr std::int32_t no_id = -1;
inline constexpr std::uint32_t no_rank = 0xFFFFFFFF;

// What two neighbouring pieces become. Lower ranks merge first; pieces of equal score have equal rank.
struct Merge {
  std::uint32_t rank = no_rank;
  std::int32_t id = no_id;
};

class Vocabulary {
 public:
  // One entry per id. Throws Error where a piece is not UTF-8, is doubled, has a type not listed above, uses a character that is no piece itself,
  // or where one of the 256 byte pieces, <s> or </s> is missing.
  Vocabulary(std::vector<std::string> pieces, const std::vector<float>& scores, const std::vector<std::uint8_t>& types);

  std::int32_t size() const { return static_cast<std::int32_t>(pieces_.size()); }
  const std::string& piece(std::int32_t id) const { return pieces_[static_cast<std::size_t>(id)]; }
  PieceType type(std::int32_t id) const { return types_[static_cast<std::size_t>(id)]; }
  std::int32_t bos() const { return bos_; }
  std::int32_t eos() const { return eos_; }
  std::int32_t byte_id(std::uint8_t byte) const { return byte_ids_[byte]; }
  // The byte of a byte piece.
  std::uint8_t byte_of(std::int32_t id) const { return byte_values_[static_cast<std::size_t>(id)]; }

  // Id of the normal piece that is this one character, or no_id.
  std::int32_t character_id(char32_t c) const { return static_cast<std::int32_t>(character(c) & character_mask) - 1; }

  // The merge of two pieces; rank no_rank, and an id without meaning, when their concatenation is no normal piece. Without a branch: whether two
  // pieces merge cannot be foretold.
  Merge merge(std::int32_t left, std::int32_t right) const {
    const std::uint64_t key = merge_key(left, right);
    const std::uint64_t mixed = mix(key);
    const std::size_t slot = merge_slot(mixed, displacements_[mixed >> displacement_shift_]);
    const std::uint64_t found = merges_[slot];
    const std::uint32_t rank = merge_ranks_[slot];
    return {found >> id_bits == key ? rank : no_rank, static_cast<std::int32_t>(found & id_mask)};
  }

  // False when no normal piece holds these two characters side by side: then no merge ever crosses the boundary between them, the ids on
  // either side do not depend on the other, and the text may be cut there.
  bool joined(char32_t left, char32_t right) const {
    if ((character(left) & joins_right) == 0 || (character(right) & joins_left) == 0) return false;
    const std::uint64_t key = static_cast<std::uint64_t>(left) << 32 | right;
    for (std::size_t slot = hash(key) >> pair_shift_;; slot = (slot + 1) & (pairs_.size() - 1)) {
      if (pairs_[slot] == key) return true;
      if (pairs_[slot] == empty_key) return false;
    }
  }

  // Whether every text may be cut in front of and behind a line feed.
  bool line_feed_is_wall() const { return (character(U'\n') & (joins_left | joins_right)) == 0; }

  // The same of ASCII characters, for scanning.
  const AsciiPairs& ascii_pairs() const { return ascii_pairs_; }

  // The ▁-run rule (see find_space_runs): space_run(n) is the id of n times ▁ for 1 <= n <= longest_space_run(). 0: the rule does not hold.
  int longest_space_run() const { return static_cast<int>(space_runs_.size()); }
  std::int32_t space_run(int length) const { return space_runs_[static_cast<std::size_t>(length) - 1]; }

 private:
  static constexpr std::uint64_t empty_key = ~std::uint64_t{0};
  static constexpr int id_bits = 21;  // a merge is left, right and result in 63 bits
  static constexpr std::uint64_t id_mask = (std::uint64_t{1} << id_bits) - 1;
  static constexpr std::uint32_t joins_left = std::uint32_t{1} << 31;  // some piece has another character in front of this one
  static constexpr std::uint32_t joins_right = std::uint32_t{1} << 30;
  static constexpr std::uint32_t character_mask = joins_right - 1;

  // The character's id + 1, or 0, and the bits above; 0 for values that are no characters.
  std::uint32_t character(char32_t c) const { return character_pages_[page_of_[c >> 8]][c & 0xFF]; }

  static std::uint64_t merge_key(std::int32_t left, std::int32_t right) {
    return static_cast<std::uint64_t>(left) << id_bits | static_cast<std::uint64_t>(right);
  }
  static std::uint64_t hash(std::uint64_t key) {  // the top bits are the good ones
    key ^= key >> 29;
    return key * 0x9E3779B97F4A7C15u;
  }

  static std::uint64_t mix(std::uint64_t key) {
    key *= 0x9E3779B97F4A7C15u;
    return key ^ key >> 32;
  }
  std::size_t merge_slot(std::uint64_t mixed, std::uint16_t displacement) const {
    return (mixed ^ displacement * 0xD6E8FEB86659FD93u) * 0xA0761D6478BD642Fu >> merge_shift_;
  }

  void read_special_pieces();
  void build_characters(const std::vector<std::u32string>& texts);
  void build_merges(const std::vector<std::u32string>& texts, const std::vector<float>& scores);
  bool place_merges(const std::vector<std::uint64_t>& merges);
  void build_pairs(const std::vector<std::u32string>& texts);
  void build_ascii_pairs(const std::vector<std::u32string>& texts);
  void find_space_runs(const std::vector<std::u32string>& texts, const std::vector<float>& scores);

  std::vector<std::string> pieces_;
  std::vector<PieceType> types_;
  std::array<std::int32_t, 256> byte_ids_{};
  std::vector<std::uint8_t> byte_values_;
  std::int32_t bos_ = no_id;
  std::int32_t eos_ = no_id;
  std::array<std::uint16_t, 0x1100> page_of_{};  // of 256 code points each; page 0 is empty
  std::vector<std::array<std::uint32_t, 256>> character_pages_;
  // A perfect hash (hash and displace): the upper bits of a mixed key choose a displacement, with which no two merges share a slot.
  std::vector<std::uint64_t> merges_;
  std::vector<std::uint32_t> merge_ranks_;
  std::vector<std::uint16_t> displacements_;
  int merge_shift_ = 0, displacement_shift_ = 0;
  AsciiPairs ascii_pairs_;
  std::vector<std::uint64_t> pairs_;  // likewise
  int pair_shift_ = 0;
  std::vector<std::int32_t> space_runs_;
};

}  // namespace tinyllama
