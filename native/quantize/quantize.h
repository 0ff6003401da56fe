// Blocks of ggml's tensor formats, bit for bit as ggml's reference quantizer makes them (ggml-quants.c, without importance matrix).
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace tinyllama {

enum class BlockType : std::uint8_t { f16, q8_0, q4_0 };

// "F16", "Q8_0" or "Q4_0"; throws Error for other names.
BlockType block_type(const std::string& name);

// IEEE binary16 of a float, rounded to nearest even; too large becomes infinity.
std::uint16_t to_f16(float value);

// Rows of `columns` values to rows of blocks, `threads` rows at a time (0: as many as the machine has).
//   F16   2 bytes an element, any number of columns
//   Q8_0  34 bytes per 32 elements: f16 scale d, then 32 int8
//   Q4_0  18 bytes per 32 elements: f16 scale d, then 16 bytes; byte j holds element j in its low nibble and element j + 16 in its high one
// The result does not depend on `threads`. Throws Error naming the index of a value that is not finite, or when the columns do not fit.
std::vector<std::uint8_t> quantize(BlockType type, std::span<const float> values, std::size_t columns, unsigned threads = 0);

}  // namespace tinyllama
