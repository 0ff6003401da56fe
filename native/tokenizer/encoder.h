// Text to ids, with the exact semantics of SentencePiece BPE without a normalizer or pre-tokenizer.
//
// The text is cut wherever no piece spans the boundary (Vocabulary::joined); what lies between two cuts, a word, is encoded by itself, and most
// words are found in a cache.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "native/tokenizer/id_buffer.h"
#include "native/tokenizer/scan.h"
#include "native/tokenizer/vocabulary.h"
#include "native/tokenizer/word_cache.h"

namespace tinyllama {

struct EncodeOptions {
  bool add_bos = false;
  bool add_eos = false;
  bool dummy_prefix = true;  // one ▁ in front of a text that is not empty
};

// One thread's encoder: the shared vocabulary, a cache of words, and scratch memory of a few kilobytes or, if longer, of the longest word.
// Id is std::uint16_t or std::uint32_t; the vocabulary's ids must fit.
template <typename Id>
class Encoder {
 public:
  // The cache holds 2^cache_bits words of up to 15 bytes, 32 bytes each; any size gives the same ids.
  explicit Encoder(std::shared_ptr<const Vocabulary> vocabulary, int cache_bits = 17);

  const Vocabulary& vocabulary() const { return *vocabulary_; }

  // Appends the ids of one document of any bytes. Pieces written out in the text ("<s>") are characters like others.
  void encode(std::span<const std::uint8_t> document, const EncodeOptions& options, IdBuffer<Id>& ids);

  // The same as numbers that JavaScript has an array for.
  std::vector<std::int32_t> encode(std::span<const std::uint8_t> document, const EncodeOptions& options);

 private:
  using Cache = WordCache<Id>;

  std::uint8_t* text() { return window_.data() + margin; }
  void resize_window(std::size_t size);
  std::size_t encode_window(std::size_t& size, bool last, IdBuffer<Id>& ids);
  void find_cuts(std::size_t& size);
  bool fix_cuts(std::size_t size);
  void unwrite_spaces(std::size_t& size);
  void cut_before_last_spaces(std::size_t words);
  std::size_t list_words(std::size_t size, bool last);
  Id* encode_words(std::size_t count, Id* out);
  Id* encode_missed(std::size_t begin, std::size_t end, const WordKey& key, typename Cache::Set& set, Id* out);
  Id* encode_word(const std::uint8_t* begin, const std::uint8_t* end, Id* out);
  Id* encode_character(char32_t c, Id* out) const;
  Id* encode_spaces(std::size_t count, Id* out) const;
  Id* give_back_space(std::size_t begin, Id* word, Id* out) const;

  static constexpr std::size_t margin = 64;  // readable bytes in front of and behind the window

  std::shared_ptr<const Vocabulary> vocabulary_;
  Scan scan_;
  bool space_rule_;
  Cache cache_;
  std::vector<std::uint8_t> window_;
  std::size_t window_size_ = 0;
  std::vector<std::uint64_t> cuts_, spaces_, high_;
  std::vector<std::uint32_t> words_;  // where each word of the window begins, and where the last one ends
  std::vector<std::int32_t> symbols_;
};

extern template class Encoder<std::uint16_t>;
extern template class Encoder<std::uint32_t>;

}  // namespace tinyllama
