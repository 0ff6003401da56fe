// Text to ids and back, with the exact semantics of SentencePiece BPE without a normalizer or pre-tokenizer.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "native/tokenizer/vocabulary.h"

namespace tinyllama {

struct EncodeOptions {
  bool add_bos = false;
  bool add_eos = false;
  bool dummy_prefix = true;  // one ▁ in front of a text that is not empty
};

// Bytes of the text of `ids`: ▁ as a space, without the one leading space that the dummy prefix gave; control pieces are nothing, the unknown piece
// is " ⁇ ", byte pieces are read as UTF-8 with U+FFFD for every bad byte. Throws Error for an id outside the vocabulary.
std::string decode(const Vocabulary& vocabulary, std::span<const std::int32_t> ids);

// One thread's encoder: the shared vocabulary, a cache of recent words, and scratch memory. O(n log n) for any text, linear for real ones.
class Encoder {
 public:
  // The cache holds 2^cache_bits words of up to 15 bytes; any size gives the same ids.
  explicit Encoder(std::shared_ptr<const Vocabulary> vocabulary, int cache_bits = 15);

  const Vocabulary& vocabulary() const { return *vocabulary_; }

  // Ids of one document of any bytes. Pieces written out in the text ("<s>") are characters like others.
  std::vector<std::int32_t> encode(std::span<const std::uint8_t> document, const EncodeOptions& options);

 private:
  static constexpr std::size_t cached_ids = 7;
  struct Word {
    std::uint64_t key[2] = {0, 0};  // the bytes, zero padded, and their number in the last byte; never all zero for a word
    std::uint32_t count = 0;
    std::int32_t ids[cached_ids] = {};
  };

  void encode_spaces(std::size_t count);
  void encode_word(bool space, const std::uint8_t* begin, const std::uint8_t* end);
  void merge_word(bool space, const std::uint8_t* begin, const std::uint8_t* end);
  void encode_character(char32_t c);

  std::shared_ptr<const Vocabulary> vocabulary_;
  std::vector<Word> cache_;
  int cache_shift_;
  std::vector<std::int32_t> out_;
  std::vector<std::int32_t> symbols_;
};

}  // namespace tinyllama
