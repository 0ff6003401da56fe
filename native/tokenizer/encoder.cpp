#include "native/tokenizer/encoder.h"

#include <algorithm>
#include <cstring>

#include "native/core/error.h"
#include "native/tokenizer/merge.h"
#include "native/tokenizer/utf8.h"

namespace tinyllama {

namespace {

// A space and a written ▁ are the same from here on, as in SentencePiece.
Utf8Character read_character(const std::uint8_t* at, const std::uint8_t* end) {
  if (*at == ' ') return {space_symbol, 1, true};
  return decode_utf8(at, end);
}

std::uint64_t hash_word(const std::uint64_t (&key)[2]) {
  std::uint64_t h = key[0] * 0x9E3779B97F4A7C15u;
  h ^= h >> 32;
  h = (h ^ key[1]) * 0xD6E8FEB86659FD93u;
  return h ^ h >> 32;
}

}  // namespace

Encoder::Encoder(std::shared_ptr<const Vocabulary> vocabulary, int cache_bits) : vocabulary_(std::move(vocabulary)), cache_shift_(64 - cache_bits) {
  require(cache_bits >= 1 && cache_bits <= 24, "an encoder's cache has 2^1 to 2^24 words");
  cache_.resize(std::size_t{1} << cache_bits);
}

std::vector<std::int32_t> Encoder::encode(std::span<const std::uint8_t> document, const EncodeOptions& options) {
  const Vocabulary& vocabulary = *vocabulary_;
  const bool space_rule = vocabulary.longest_space_run() > 0;
  out_.clear();
  out_.reserve(document.size() / 3 + 16);
  if (options.add_bos) out_.push_back(vocabulary.bos());
  const std::uint8_t* at = document.data();
  const std::uint8_t* const end = at + document.size();
  bool prefix = options.dummy_prefix && !document.empty();
  while (at < end) {
    // The spaces before a word: under the ▁-run rule only the last of them can belong to it.
    std::size_t spaces = prefix ? 1 : 0;
    prefix = false;
    Utf8Character c = read_character(at, end);
    if (space_rule) {
      while (c.code_point == space_symbol) {
        ++spaces;
        at += c.length;
        if (at == end) break;
        c = read_character(at, end);
      }
      if (at == end) {
        encode_spaces(spaces);
        break;
      }
    }
    const bool space = spaces > 0 && vocabulary.joined(space_symbol, c.code_point);
    // The word goes on up to the first boundary that no piece spans.
    const std::uint8_t* const begin = at;
    for (at += c.length; at < end; at += c.length) {
      const char32_t left = c.code_point;
      c = read_character(at, end);
      if (!vocabulary.joined(left, c.code_point)) break;
    }
    if (!space) {
      encode_spaces(spaces);
      encode_word(false, begin, at);
      continue;
    }
    // Whether the word takes the ▁ decides what the spaces before it become, so it is encoded first and moved behind them.
    const std::size_t word = out_.size();
    encode_word(true, begin, at);
    if (spaces == 1 || !space_rule) continue;
    const bool taken = out_[word] != vocabulary.space_run(1);
    if (!taken) out_.erase(out_.begin() + static_cast<std::ptrdiff_t>(word));
    const std::size_t spaces_at = out_.size();
    encode_spaces(taken ? spaces - 1 : spaces);
    std::rotate(out_.begin() + static_cast<std::ptrdiff_t>(word), out_.begin() + static_cast<std::ptrdiff_t>(spaces_at), out_.end());
  }
  if (options.add_eos) out_.push_back(vocabulary.eos());
  return {out_.begin(), out_.end()};
}

// A run of ▁ that no word takes part in. Without the rule there is at most one, the dummy prefix.
void Encoder::encode_spaces(std::size_t count) {
  if (count == 0) return;
  if (vocabulary_->longest_space_run() == 0) return encode_character(space_symbol);
  const auto longest = static_cast<std::size_t>(vocabulary_->longest_space_run());
  out_.insert(out_.end(), count / longest, vocabulary_->space_run(static_cast<int>(longest)));
  if (count % longest > 0) out_.push_back(vocabulary_->space_run(static_cast<int>(count % longest)));
}

void Encoder::encode_character(char32_t c) {
  const std::int32_t id = vocabulary_->character_id(c);
  if (id != no_id) return out_.push_back(id);
  std::string bytes;
  append_utf8(bytes, c);
  for (const char byte : bytes) out_.push_back(vocabulary_->byte_id(static_cast<std::uint8_t>(byte)));
}

// A stretch that can be encoded by itself: [begin, end), with a ▁ in front if `space`.
void Encoder::encode_word(bool space, const std::uint8_t* begin, const std::uint8_t* end) {
  const std::size_t length = static_cast<std::size_t>(end - begin) + space;
  if (length == 1) return encode_character(read_character(begin, end).code_point);
  if (length > 15) return merge_word(space, begin, end);
  std::uint8_t bytes[16] = {};
  bytes[0] = ' ';
  std::memcpy(bytes + space, begin, static_cast<std::size_t>(end - begin));
  bytes[15] = static_cast<std::uint8_t>(length);
  std::uint64_t key[2];
  std::memcpy(key, bytes, sizeof key);
  Word& word = cache_[hash_word(key) >> cache_shift_];
  if (word.key[0] == key[0] && word.key[1] == key[1]) {
    out_.insert(out_.end(), word.ids, word.ids + word.count);
    return;
  }
  const std::size_t first = out_.size();
  merge_word(space, begin, end);
  const std::size_t count = out_.size() - first;
  if (count > cached_ids) return;
  std::memcpy(word.key, key, sizeof key);
  word.count = static_cast<std::uint32_t>(count);
  std::copy_n(out_.begin() + static_cast<std::ptrdiff_t>(first), count, word.ids);
}

void Encoder::merge_word(bool space, const std::uint8_t* begin, const std::uint8_t* end) {
  const Utf8Character first = read_character(begin, end);
  if (!space && begin + first.length == end) return encode_character(first.code_point);
  // All characters of a word with a joined pair occur in pieces, so all of them have an id.
  symbols_.clear();
  if (space) symbols_.push_back(vocabulary_->character_id(space_symbol));
  for (const std::uint8_t* at = begin; at < end;) {
    const Utf8Character c = read_character(at, end);
    symbols_.push_back(vocabulary_->character_id(c.code_point));
    at += c.length;
  }
  merge_symbols(*vocabulary_, symbols_);
  out_.insert(out_.end(), symbols_.begin(), symbols_.end());
}

std::string decode(const Vocabulary& vocabulary, std::span<const std::int32_t> ids) {
  std::string text;
  std::string bytes;  // of the byte pieces in a row
  bool may_drop_space = true;
  bool dropped_space = false;
  const auto flush_bytes = [&] {
    const auto* at = reinterpret_cast<const std::uint8_t*>(bytes.data());
    const auto* end = at + bytes.size();
    while (at < end) {
      const Utf8Character c = decode_utf8(at, end);
      append_utf8(text, c.code_point);
      at += c.length;
    }
    bytes.clear();
  };
  for (const std::int32_t id : ids) {
    require(id >= 0 && id < vocabulary.size(),
            "token id " + std::to_string(id) + " is outside the vocabulary of " + std::to_string(vocabulary.size()) + " pieces");
    if (vocabulary.type(id) == PieceType::byte) {
      bytes.push_back(static_cast<char>(vocabulary.byte_of(id)));
      continue;
    }
    flush_bytes();
    if (dropped_space || !text.empty()) may_drop_space = false;
    if (vocabulary.type(id) == PieceType::unknown) text += " \xE2\x81\x87 ";
    if (vocabulary.type(id) != PieceType::normal) continue;
    std::string_view rest = vocabulary.piece(id);
    constexpr std::string_view space = "\xE2\x96\x81";
    if (may_drop_space && rest.starts_with(space)) {
      rest.remove_prefix(space.size());
      dropped_space = true;
    }
    for (std::size_t found = rest.find(space); found != std::string_view::npos; found = rest.find(space)) {
      text.append(rest.substr(0, found)).push_back(' ');
      rest.remove_prefix(found + space.size());
    }
    text.append(rest);
  }
  flush_bytes();
  return text;
}

}  // namespace tinyllama
