// Remembers the ids of short words: two words a set, a set a cache line of 64 bytes.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

namespace tinyllama {

// Up to 15 bytes, zero padded, and their number in the last byte. Two words are equal exactly when their keys are.
struct WordKey {
  std::uint64_t low = 0, high = 0;
  bool operator==(const WordKey&) const = default;
};

inline constexpr std::size_t longest_key = 15;

// A key that no word has.
inline constexpr WordKey impossible_key{0, std::uint64_t{0xFF} << 56};

template <typename Id>
class WordCache {
 public:
  static constexpr std::size_t longest_ids = 16 / sizeof(Id) - 1;  // 7 of 16 bits, 3 of 32
  static constexpr Id lone_space = 0x80;                           // in the count: see Encoder

  struct Word {
    WordKey key;  // all zero: empty
    Id ids[longest_ids];
    Id count;  // 1..longest_ids, and lone_space
  };
  struct Set {
    Word words[2];
  };
  static_assert(sizeof(Set) == 64);

  // 2^bits words. Pages that are never touched cost nothing.
  explicit WordCache(int bits) : mask_((std::uint64_t{1} << (bits - 1)) - 1) {
    // Not aligned_alloc and memset: fresh pages of calloc are zero already.
    memory_.reset(std::calloc((mask_ + 1) * sizeof(Set) + sizeof(Set), 1));
    if (memory_ == nullptr) throw std::bad_alloc();
    const auto address = reinterpret_cast<std::uintptr_t>(memory_.get());
    sets_ = reinterpret_cast<Set*>((address + sizeof(Set) - 1) / sizeof(Set) * sizeof(Set));
  }

  Set& set_of(const WordKey& key) { return sets_[hash(key) & mask_]; }

  // Puts a word in front of the set and drops the one that was not used for longest.
  static void remember(Set& set, const WordKey& key, const Id* ids, std::size_t count, bool lone) {
    set.words[1] = set.words[0];
    Word& word = set.words[0];
    word.key = key;
    std::memcpy(word.ids, ids, count * sizeof(Id));
    word.count = static_cast<Id>(count | (lone ? lone_space : 0));
  }

 private:
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };

  static std::uint64_t hash(const WordKey& key) {
    const std::uint64_t mixed = (key.low ^ key.high * 0x9E3779B97F4A7C15u) * 0xD6E8FEB86659FD93u;
    return mixed ^ mixed >> 32;
  }

  std::unique_ptr<void, Free> memory_;
  Set* sets_;
  std::uint64_t mask_;
};

}  // namespace tinyllama
