#include "native/quantize/quantize.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <thread>

#include "native/core/error.h"

namespace tinyllama {

namespace {

constexpr std::size_t block = 32;
constexpr std::size_t thread_share = std::size_t{1} << 18;  // values that are worth a thread

struct Format {
  std::size_t block_values, block_bytes;
  void (*block)(const float* values, std::uint8_t* out);
};

std::uint8_t* put_f16(std::uint8_t* out, float value) {
  const std::uint16_t half = to_f16(value);
  *out++ = static_cast<std::uint8_t>(half & 0xFF);
  *out++ = static_cast<std::uint8_t>(half >> 8);
  return out;
}

void block_f16(const float* x, std::uint8_t* out) { put_f16(out, *x); }

// d = amax / 127, q = round half away from zero of x · (1/d). The float d divides; only its f16 is stored.
void block_q8_0(const float* x, std::uint8_t* out) {
  float largest = 0;
  for (std::size_t i = 0; i < block; ++i) largest = std::max(largest, std::fabs(x[i]));
  const float d = largest / 127.0f;
  const float inverse = d != 0 ? 1.0f / d : 0.0f;
  out = put_f16(out, d);
  for (std::size_t i = 0; i < block; ++i) out[i] = static_cast<std::uint8_t>(static_cast<std::int8_t>(std::round(x[i] * inverse)));
}

// d = m / -8 for the first value m of largest magnitude, q = min(15, trunc(x · (1/d) + 8.5)).
void block_q4_0(const float* x, std::uint8_t* out) {
  float largest = 0, extreme = 0;
  for (std::size_t i = 0; i < block; ++i) {
    if (std::fabs(x[i]) > largest) largest = std::fabs(x[i]), extreme = x[i];
  }
  const float d = extreme / -8.0f;
  const float inverse = d != 0 ? 1.0f / d : 0.0f;
  out = put_f16(out, d);
  const auto nibble = [&](float value) { return std::min(15, static_cast<int>(value * inverse + 8.5f)); };
  for (std::size_t j = 0; j < block / 2; ++j) out[j] = static_cast<std::uint8_t>(nibble(x[j]) | nibble(x[j + block / 2]) << 4);
}

Format format_of(BlockType type) {
  switch (type) {
    case BlockType::f16: return {1, 2, block_f16};
    case BlockType::q8_0: return {block, 34, block_q8_0};
    case BlockType::q4_0: return {block, 18, block_q4_0};
  }
  throw Error("unknown block type");
}

}  // namespace

BlockType block_type(const std::string& name) {
  if (name == "F16") return BlockType::f16;
  if (name == "Q8_0") return BlockType::q8_0;
  if (name == "Q4_0") return BlockType::q4_0;
  throw Error("cannot quantize to " + name + ": the types are F16, Q8_0 and Q4_0");
}

std::uint16_t to_f16(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const auto sign = static_cast<std::uint16_t>(bits >> 16 & 0x8000);
  const std::uint32_t magnitude = bits & 0x7FFFFFFF;
  if (magnitude > 0x7F800000) return static_cast<std::uint16_t>(sign | 0x7E00);   // NaN
  if (magnitude >= 0x477FF000) return static_cast<std::uint16_t>(sign | 0x7C00);  // 65520 and more round to infinity
  if (magnitude < 0x38800000) {  // below 2^-14: steps of 2^-24, which adding 0.5 (ulp 2^-24) rounds to, half to even
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(shifted) - 0x3F000000));
  }
  const std::uint32_t rounded = magnitude + 0xFFF + (magnitude >> 13 & 1);
  return static_cast<std::uint16_t>(sign | ((rounded - 0x38000000) >> 13));
}

std::vector<std::uint8_t> quantize(BlockType type, std::span<const float> values, std::size_t columns, unsigned threads) {
  const Format format = format_of(type);
  require(columns > 0 && columns % format.block_values == 0,
          "rows of " + std::to_string(columns) + " values cannot be quantized: blocks hold " + std::to_string(format.block_values));
  require(values.size() % columns == 0, std::to_string(values.size()) + " values are no whole rows of " + std::to_string(columns));
  const auto bad = std::find_if(values.begin(), values.end(), [](float x) { return !std::isfinite(x); });
  require(bad == values.end(), "value " + std::to_string(bad - values.begin()) + " is not finite");

  const std::size_t row_blocks = columns / format.block_values;
  const std::size_t rows = values.size() / columns;
  std::vector<std::uint8_t> out(rows * row_blocks * format.block_bytes);
  const auto convert = [&](std::size_t first_row, std::size_t last_row) {
    for (std::size_t b = first_row * row_blocks; b < last_row * row_blocks; ++b) {
      format.block(values.data() + b * format.block_values, out.data() + b * format.block_bytes);
    }
  };
  const std::size_t available = threads > 0 ? threads : std::max(1u, std::thread::hardware_concurrency());
  const std::size_t parts = std::min({available, values.size() / thread_share + 1, std::max<std::size_t>(rows, 1)});
  std::vector<std::jthread> pool;
  for (std::size_t part = 1; part < parts; ++part) pool.emplace_back(convert, rows * part / parts, rows * (part + 1) / parts);
  convert(0, rows / parts);
  pool.clear();  // joins
  return out;
}

}  // namespace tinyllama
