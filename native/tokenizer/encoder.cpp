#include "native/tokenizer/encoder.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

#include "native/core/error.h"
#include "native/tokenizer/merge.h"
#include "native/tokenizer/utf8.h"

namespace tinyllama {

namespace {

constexpr std::size_t first_window = 4096;
constexpr std::size_t batch = 128;  // words whose cache lines are fetched ahead; half of a first-level cache
constexpr std::uint8_t written_space[] = {0xE2, 0x96, 0x81};  // ▁ in UTF-8

// What to keep of the 16 bytes at a word's begin, by its length; longer words get the impossible key.
struct KeyMask {
  WordKey keep, length;
};
constexpr auto key_masks = [] {
  std::array<KeyMask, longest_key + 2> masks{};
  for (std::size_t n = 1; n <= longest_key; ++n) {
    for (std::size_t byte = 0; byte < n; ++byte) (byte < 8 ? masks[n].keep.low : masks[n].keep.high) |= std::uint64_t{0xFF} << byte % 8 * 8;
    masks[n].length.high = static_cast<std::uint64_t>(n) << 56;
  }
  masks[longest_key + 1].length = impossible_key;
  return masks;
}();

WordKey key_of(const std::uint8_t* begin, std::size_t length) {
  WordKey key;
  std::memcpy(&key, begin, sizeof key);
  const KeyMask& mask = key_masks[std::min(length, longest_key + 1)];
  return {key.low & mask.keep.low, (key.high & mask.keep.high) | mask.length.high};
}

void set_bit(std::vector<std::uint64_t>& bits, std::size_t at, bool value) {
  std::uint64_t& word = bits[at / 64];
  word = (word & ~(std::uint64_t{1} << at % 64)) | static_cast<std::uint64_t>(value) << at % 64;
}

char32_t ascii_character(std::uint8_t byte) { return byte == ' ' ? space_symbol : byte; }

}  // namespace

template <typename Id>
Encoder<Id>::Encoder(std::shared_ptr<const Vocabulary> vocabulary, int cache_bits)
    : vocabulary_(std::move(vocabulary)),
      scan_(select_scan()),
      space_rule_(vocabulary_->longest_space_run() > 0),
      cache_((require(cache_bits >= 1 && cache_bits <= 24, "an encoder's cache has 2^1 to 2^24 words"), cache_bits)) {
  require(static_cast<std::uint32_t>(vocabulary_->size()) - 1 <= std::numeric_limits<Id>::max(), "the vocabulary's ids do not fit the encoder's");
  resize_window(first_window);
}

template <typename Id>
void Encoder<Id>::resize_window(std::size_t size) {
  require(size <= std::numeric_limits<std::uint32_t>::max(), "a word of 4 GB without a place to cut it is too long");
  window_size_ = size;
  window_.resize(margin + size + 2 * margin);
  for (auto* bits : {&cuts_, &spaces_, &high_}) bits->resize(size / 64 + 2);
  words_.resize(size + 2);
}

template <typename Id>
void Encoder<Id>::encode(std::span<const std::uint8_t> document, const EncodeOptions& options, IdBuffer<Id>& ids) {
  if (options.add_bos) ids.push_back(static_cast<Id>(vocabulary_->bos()));
  std::size_t held = 0;  // bytes at the window's begin that are not encoded yet
  if (options.dummy_prefix && !document.empty()) text()[held++] = ' ';
  for (std::size_t at = 0; at < document.size();) {
    const std::size_t taken = std::min(window_size_ - held, document.size() - at);
    std::memcpy(text() + held, document.data() + at, taken);
    at += taken;
    held += taken;
    const std::size_t done = encode_window(held, at == document.size(), ids);
    held -= done;
    std::memmove(text(), text() + done, held);
    if (held == window_size_) resize_window(2 * window_size_);  // a word or a run of spaces that is longer than the window
  }
  if (options.add_eos) ids.push_back(static_cast<Id>(vocabulary_->eos()));
}

template <typename Id>
std::vector<std::int32_t> Encoder<Id>::encode(std::span<const std::uint8_t> document, const EncodeOptions& options) {
  IdBuffer<Id> ids;
  encode(document, options, ids);
  return {ids.data(), ids.end()};
}

// Encodes the window's words, all of them if nothing of the document is left behind it, else up to the last place that can be trusted. Returns how
// many bytes that were. `size` shrinks where a written ▁ becomes a space.
template <typename Id>
std::size_t Encoder<Id>::encode_window(std::size_t& size, bool last, IdBuffer<Id>& ids) {
  find_cuts(size);
  const std::size_t count = list_words(size, last);
  if (count == 0) return 0;
  // A byte becomes at most three ids, where U+FFFD is no piece; a word's copy may write beyond its ids.
  Id* const out = ids.make_room(3 * size + 16);
  ids.set_end(encode_words(count, out));
  return words_[count];
}

template <typename Id>
void Encoder<Id>::find_cuts(std::size_t& size) {
  for (;;) {
    std::memset(text() + size, 0, margin + 64 - size % 64);
    text()[-1] = 0;
    const std::size_t words = size / 64 + 1;
    scan_(vocabulary_->ascii_pairs(), text(), words, {cuts_.data(), spaces_.data(), high_.data()});
    if (fix_cuts(size)) return cut_before_last_spaces(words);
    unwrite_spaces(size);
  }
}

// The cuts around characters that are not ASCII. False when one of them is a written ▁.
template <typename Id>
bool Encoder<Id>::fix_cuts(std::size_t size) {
  const Vocabulary& vocabulary = *vocabulary_;
  const std::uint8_t* const begin = text();
  const std::uint8_t* const end = begin + size;
  std::size_t at = 0;  // nothing is left to do before it
  for (std::size_t word = 0; word < size / 64 + 1; ++word) {
    while (at < 64 * (word + 1)) {
      const std::uint64_t high = high_[word] & ~std::uint64_t{0} << (at > 64 * word ? at % 64 : 0);
      if (high == 0) break;
      at = 64 * word + static_cast<std::size_t>(std::countr_zero(high));
      char32_t left = ascii_character(begin[static_cast<std::ptrdiff_t>(at) - 1]);
      do {
        const Utf8Character c = decode_utf8(begin + at, end);
        if (c.code_point == space_symbol) return false;
        set_bit(cuts_, at, !vocabulary.joined(left, c.code_point));
        for (std::uint32_t i = 1; i < c.length; ++i) set_bit(cuts_, at + i, false);
        left = c.code_point;
        at += c.length;
      } while (at < size && begin[at] >= 0x80);
      if (at < size) set_bit(cuts_, at, !vocabulary.joined(left, ascii_character(begin[at])));
    }
  }
  return true;
}

// A ▁ that is written in the text is the same as a space from here on, as in SentencePiece.
template <typename Id>
void Encoder<Id>::unwrite_spaces(std::size_t& size) {
  std::uint8_t* out = text();
  const std::uint8_t* const end = text() + size;
  for (const std::uint8_t* at = text(); at < end;) {
    if (end - at >= 3 && std::memcmp(at, written_space, 3) == 0) {
      *out++ = ' ';
      at += 3;
    } else {
      *out++ = *at++;
    }
  }
  size = static_cast<std::size_t>(out - text());
}

// Under the ▁-run rule, of several spaces only the last can belong to the word behind them.
template <typename Id>
void Encoder<Id>::cut_before_last_spaces(std::size_t words) {
  if (!space_rule_) return;
  std::uint64_t before = 0;  // the highest bit of the word before
  cuts_[words] = ~std::uint64_t{0};
  spaces_[words] = 0;
  for (std::size_t word = 0; word < words; ++word) {
    const std::uint64_t spaces = spaces_[word];
    const std::uint64_t after_space = spaces << 1 | before;
    const std::uint64_t before_other = ~(spaces >> 1 | spaces_[word + 1] << 63);
    const std::uint64_t before_joined = ~(cuts_[word] >> 1 | cuts_[word + 1] << 63);
    cuts_[word] |= spaces & after_space & before_other & before_joined;
    before = spaces >> 63;
  }
}

// Fills words_ and returns the number of words. The last word of a window that is not the document's last ends at a cut that the bytes to come
// cannot change, and never behind a space: the rule for runs of spaces looks at the whole run.
template <typename Id>
std::size_t Encoder<Id>::list_words(std::size_t size, bool last) {
  cuts_[0] |= 1;
  std::uint32_t* out = words_.data();
  for (std::size_t word = 0; 64 * word < size; ++word) {
    std::uint64_t cuts = cuts_[word];
    if (size - 64 * word < 64) cuts &= ~(~std::uint64_t{0} << (size - 64 * word));
    const auto base = static_cast<std::uint32_t>(64 * word);
    for (; cuts != 0; cuts &= cuts - 1) *out++ = base + static_cast<std::uint32_t>(std::countr_zero(cuts));
  }
  auto count = static_cast<std::size_t>(out - words_.data());
  if (last) {
    if (size == 0) return 0;
    *out = static_cast<std::uint32_t>(size);
    return count;
  }
  constexpr std::size_t longest_look_ahead = 8;  // a space, the character behind it, and some
  while (count > 0) {
    --count;
    const std::uint32_t end = words_[count];
    if (end > 0 && end + longest_look_ahead <= size && text()[end - 1] != ' ') return count;
  }
  return 0;
}

// Two passes: the first computes where each word would be in the cache and fetches the line, the second looks.
template <typename Id>
Id* Encoder<Id>::encode_words(std::size_t count, Id* out) {
  std::array<WordKey, batch> keys;
  std::array<typename Cache::Set*, batch> sets;
  const std::uint8_t* const text = this->text();
  for (std::size_t first = 0; first < count; first += batch) {
    const std::size_t words = std::min(batch, count - first);
    const std::uint32_t* const begins = words_.data() + first;
    for (std::size_t i = 0; i < words; ++i) {
      keys[i] = key_of(text + begins[i], begins[i + 1] - begins[i]);
      sets[i] = &cache_.set_of(keys[i]);
      __builtin_prefetch(sets[i]);
    }
    for (std::size_t i = 0; i < words; ++i) {
      const WordKey key = keys[i];
      const auto& [front, back] = sets[i]->words;
      const bool in_back = back.key == key;
      const auto& word = in_back ? back : front;
      if (!in_back && front.key != key) [[unlikely]] {
        out = encode_missed(begins[i], begins[i + 1], key, *sets[i], out);
        continue;
      }
      std::memcpy(out, word.ids, sizeof word.ids + sizeof word.count);
      if (word.count & Cache::lone_space) [[unlikely]] {
        out = give_back_space(begins[i], out, out + (word.count & ~Cache::lone_space));
      } else {
        out += word.count;
      }
    }
  }
  return out;
}

// A word that is not in the cache.
template <typename Id>
Id* Encoder<Id>::encode_missed(std::size_t begin, std::size_t end, const WordKey& key, typename Cache::Set& set, Id* out) {
  const std::uint8_t* const text = this->text();
  Id* const word_end = encode_word(text + begin, text + end, out);
  const auto count = static_cast<std::size_t>(word_end - out);
  // ▁ is joined to the word's first character, but did not merge with it.
  const bool lone = space_rule_ && text[begin] == ' ' && end - begin > 1 && out[0] == static_cast<Id>(vocabulary_->space_run(1)) && text[end - 1] != ' ';
  if (key != impossible_key && count <= Cache::longest_ids) Cache::remember(set, key, out, count, lone);
  return lone ? give_back_space(begin, out, word_end) : word_end;
}

// The ids of a word whose ▁ stayed alone are at [word, out). If a run of spaces ends in front of it, that ▁ belongs to the run, which is encoded
// again: its ids are the last ones in front of the word's.
template <typename Id>
Id* Encoder<Id>::give_back_space(std::size_t begin, Id* word, Id* out) const {
  const std::uint8_t* const text = window_.data() + margin;
  std::size_t spaces = 0;
  while (begin > spaces && text[begin - spaces - 1] == ' ') ++spaces;
  if (spaces == 0) return out;
  const auto longest = static_cast<std::size_t>(vocabulary_->longest_space_run());
  Id* const run = word - (spaces + longest - 1) / longest;
  Id* const run_end = run + (spaces + longest) / longest;  // of a space more
  std::memmove(run_end, word + 1, static_cast<std::size_t>(out - word - 1) * sizeof(Id));
  encode_spaces(spaces + 1, run);
  return run_end + (out - word - 1);
}

// Ids of text that can be encoded by itself.
template <typename Id>
Id* Encoder<Id>::encode_word(const std::uint8_t* begin, const std::uint8_t* end, Id* out) {
  if (space_rule_ && std::all_of(begin, end, [](std::uint8_t byte) { return byte == ' '; })) {
    return encode_spaces(static_cast<std::size_t>(end - begin), out);
  }
  // All characters of a word with a joined pair occur in pieces, so all of them have an id.
  symbols_.clear();
  for (const std::uint8_t* at = begin; at < end;) {
    const Utf8Character c = decode_utf8(at, end);
    const char32_t character = *at == ' ' ? space_symbol : c.code_point;
    at += c.length;
    if (at == end && symbols_.empty()) return encode_character(character, out);
    symbols_.push_back(vocabulary_->character_id(character));
  }
  merge_symbols(*vocabulary_, symbols_);
  return std::transform(symbols_.begin(), symbols_.end(), out, [](std::int32_t id) { return static_cast<Id>(id); });
}

template <typename Id>
Id* Encoder<Id>::encode_character(char32_t c, Id* out) const {
  const std::int32_t id = vocabulary_->character_id(c);
  if (id != no_id) {
    *out++ = static_cast<Id>(id);
    return out;
  }
  std::string bytes;
  append_utf8(bytes, c);
  for (const char byte : bytes) *out++ = static_cast<Id>(vocabulary_->byte_id(static_cast<std::uint8_t>(byte)));
  return out;
}

// A run of ▁ that no word takes part in.
template <typename Id>
Id* Encoder<Id>::encode_spaces(std::size_t count, Id* out) const {
  const auto longest = static_cast<std::size_t>(vocabulary_->longest_space_run());
  out = std::fill_n(out, count / longest, static_cast<Id>(vocabulary_->space_run(static_cast<int>(longest))));
  if (count % longest > 0) *out++ = static_cast<Id>(vocabulary_->space_run(static_cast<int>(count % longest)));
  return out;
}

template class Encoder<std::uint16_t>;
template class Encoder<std::uint32_t>;

}  // namespace tinyllama
