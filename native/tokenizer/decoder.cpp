#include "native/tokenizer/decoder.h"

#include <string_view>

#include "native/core/error.h"
#include "native/tokenizer/utf8.h"

namespace tinyllama {

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
