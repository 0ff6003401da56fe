#include "native/tokenizer/utf8.h"

#include <cstring>

#include "native/core/error.h"

namespace tinyllama {

void append_utf8(std::string& out, char32_t c) {
  const auto tail = [&](int shift) { out.push_back(static_cast<char>(0x80 | (c >> shift & 0x3F))); };
  if (c < 0x80) {
    out.push_back(static_cast<char>(c));
  } else if (c < 0x800) {
    out.push_back(static_cast<char>(0xC0 | c >> 6));
    tail(0);
  } else if (c < 0x10000) {
    out.push_back(static_cast<char>(0xE0 | c >> 12));
    tail(6), tail(0);
  } else {
    out.push_back(static_cast<char>(0xF0 | c >> 18));
    tail(12), tail(6), tail(0);
  }
}

std::u32string code_points(const std::string& text) {
  std::u32string result;
  const auto* at = reinterpret_cast<const std::uint8_t*>(text.data());
  const auto* end = at + text.size();
  while (at < end) {
    const Utf8Character c = decode_utf8(at, end);
    require(c.valid, "not valid UTF-8: \"" + text + "\"");
    result.push_back(c.code_point);
    at += c.length;
  }
  return result;
}

std::int64_t first_invalid_utf8(std::span<const std::uint8_t> text) {
  const std::uint8_t* begin = text.data();
  const std::uint8_t* end = begin + text.size();
  for (const std::uint8_t* at = begin; at < end;) {
    std::uint64_t eight;
    if (end - at >= 8 && (std::memcpy(&eight, at, 8), (eight & 0x8080808080808080u) == 0)) {
      at += 8;
      continue;
    }
    const Utf8Character c = decode_utf8(at, end);
    if (!c.valid) return at - begin;
    at += c.length;
  }
  return -1;
}

}  // namespace tinyllama
