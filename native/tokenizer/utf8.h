// UTF-8 as SentencePiece reads it: a byte that starts no valid sequence stands for one U+FFFD by itself, so the reader never skips a byte.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace tinyllama {

inline constexpr char32_t replacement_character = 0xFFFD;

struct Utf8Character {
  char32_t code_point;
  std::uint32_t length;  // bytes it took, 1..4; 1 when not valid
  bool valid;
};

// The character at the start of [begin, end), which must not be empty. Overlong forms, surrogates, values over U+10FFFF and cut sequences
// are not valid: U+FFFD of length 1.
inline Utf8Character decode_utf8(const std::uint8_t* begin, const std::uint8_t* end) {
  const auto continues = [&](std::ptrdiff_t i) { return end - begin > i && (begin[i] & 0xC0) == 0x80; };
  const char32_t first = begin[0];
  if (first < 0x80) return {first, 1, true};
  if (first >= 0xC2 && first <= 0xDF && continues(1)) return {(first & 0x1F) << 6 | (begin[1] & 0x3Fu), 2, true};
  if ((first & 0xF0) == 0xE0 && continues(1) && continues(2)) {
    const char32_t value = (first & 0x0F) << 12 | (begin[1] & 0x3Fu) << 6 | (begin[2] & 0x3Fu);
    if (value >= 0x800 && !(value >= 0xD800 && value <= 0xDFFF)) return {value, 3, true};
  }
  if ((first & 0xF8) == 0xF0 && continues(1) && continues(2) && continues(3)) {
    const char32_t value = (first & 0x07) << 18 | (begin[1] & 0x3Fu) << 12 | (begin[2] & 0x3Fu) << 6 | (begin[3] & 0x3Fu);
    if (value >= 0x10000 && value <= 0x10FFFF) return {value, 4, true};
  }
  return {replacement_character, 1, false};
}

void append_utf8(std::string& out, char32_t code_point);

// Code points of a text; throws Error when it is not valid UTF-8.
std::u32string code_points(const std::string& text);

// Offset of the first byte that is not part of valid UTF-8, or -1.
std::int64_t first_invalid_utf8(std::span<const std::uint8_t> text);

}  // namespace tinyllama
