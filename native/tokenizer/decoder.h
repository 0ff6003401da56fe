// Ids to text, as SentencePiece decodes.
#pragma once
#include <cstdint>
#include <span>
#include <string>

#include "native/tokenizer/vocabulary.h"

namespace tinyllama {

// Bytes of the text of `ids`: ▁ as a space, without the one leading space that the dummy prefix gave; control pieces are nothing, the unknown piece
// is " ⁇ ", byte pieces are read as UTF-8 with U+FFFD for every bad byte. Throws Error for an id outside the vocabulary.
std::string decode(const Vocabulary& vocabulary, std::span<const std::int32_t> ids);

}  // namespace tinyllama
