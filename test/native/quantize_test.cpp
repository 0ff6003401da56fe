// Golden blocks: the hashes were taken from ggml's own quantizer (old and new versions agree) on the same generated input.
#include "native/quantize/quantize.h"

#include <bit>
#include <cmath>
#include <cstdio>
#include <limits>

#include "native/core/error.h"

using namespace tinyllama;

namespace {

int failures = 0;

void check(bool ok, const std::string& what) {
  if (ok) return;
  std::printf("FAILED: %s\n", what.c_str());
  ++failures;
}

// FNV-1a, 64 bits. The TypeScript test compares the sha256 of the same bytes with ggml's; this one notices any change without a sha256 in C++.
std::uint64_t fingerprint(const std::vector<std::uint8_t>& bytes) {
  std::uint64_t hash = 0xCBF29CE484222325u;
  for (const std::uint8_t byte : bytes) hash = (hash ^ byte) * 0x100000001B3u;
  return hash;
}

// 8 rows of 2048: sums of four steps of a linear congruential generator, so roughly bell-shaped.
std::vector<float> golden_input() {
  std::uint32_t state = 1;
  std::vector<float> values(8 * 2048);
  for (float& value : values) {
    std::int32_t sum = 0;
    for (int i = 0; i < 4; ++i) {
      state = state * 1664525u + 1013904223u;
      sum += static_cast<std::int32_t>(state >> 8) - 8388608;
    }
    value = static_cast<float>(sum) * 0x1p-23f * 0x1p-6f;
  }
  return values;
}

template <typename Body>
std::string error_of(Body body) {
  try {
    body();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

float from_f16(std::uint16_t half) {
  const int exponent = half >> 10 & 31;
  const int fraction = half & 1023;
  const float magnitude = exponent == 31 ? std::numeric_limits<float>::infinity()
                          : exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                                          : std::ldexp(static_cast<float>(1024 + fraction), exponent - 25);
  return half & 0x8000 ? -magnitude : magnitude;
}

void test_half() {
  for (std::uint32_t half = 0; half < 0x7C00; ++half) {
    const float value = from_f16(static_cast<std::uint16_t>(half));
    check(to_f16(value) == half, "f16 round trip of " + std::to_string(half));
    check(to_f16(-value) == (half | 0x8000), "f16 round trip of -" + std::to_string(half));
    if (half == 0x7BFF) continue;
    // Ties go to the even neighbour, and the floats next to the tie to the nearer one.
    const float middle = (value + from_f16(static_cast<std::uint16_t>(half + 1))) / 2;
    check(to_f16(middle) == half + (half & 1), "f16 tie above " + std::to_string(half));
    check(to_f16(std::nextafterf(middle, 0.0f)) == half, "f16 below the tie above " + std::to_string(half));
    check(to_f16(std::nextafterf(middle, 1e9f)) == half + 1, "f16 over the tie above " + std::to_string(half));
  }
  check(to_f16(65519.99f) == 0x7BFF && to_f16(65520.0f) == 0x7C00 && to_f16(-1e30f) == 0xFC00, "f16 overflow");
}

void test_golden() {
  const std::vector<float> values = golden_input();
  check(values[0] == -0.00578589551f && values[1] == -0.00778083131f, "the golden input is generated right");
  const auto q8_0 = quantize(BlockType::q8_0, values, 2048);
  const auto q4_0 = quantize(BlockType::q4_0, values, 2048);
  check(q8_0.size() == values.size() / 32 * 34 && q4_0.size() == values.size() / 32 * 18, "sizes of the blocks");
  check(fingerprint(q8_0) == 0x20b00689185bc58au, "Q8_0 blocks as ggml's");
  check(fingerprint(q4_0) == 0xca470c2986e718e6u, "Q4_0 blocks as ggml's");
}

void test_edges() {
  const std::vector<float> zeros(32, 0.0f);
  for (const std::uint8_t byte : quantize(BlockType::q8_0, zeros, 32)) check(byte == 0, "a zero block of Q8_0 is zero");
  const auto q4 = quantize(BlockType::q4_0, zeros, 32);
  for (std::size_t i = 2; i < q4.size(); ++i) check(q4[i] == 0x88, "a zero block of Q4_0 has all quants in the middle");
  check(quantize(BlockType::f16, std::vector<float>{1.0f, -2.0f, 0.5f}, 3) == std::vector<std::uint8_t>{0x00, 0x3C, 0x00, 0xC0, 0x00, 0x38}, "F16 bytes");
  check(quantize(BlockType::q8_0, {}, 32).empty(), "no rows give no bytes");

  std::vector<float> broken(64, 1.0f);
  broken[37] = std::numeric_limits<float>::quiet_NaN();
  check(error_of([&] { quantize(BlockType::q8_0, broken, 64); }).find("value 37 is not finite") != std::string::npos, "NaN names its index");
  check(!error_of([&] { quantize(BlockType::q4_0, std::vector<float>(48), 48); }).empty(), "columns must fit the block");
  check(!error_of([&] { quantize(BlockType::q4_0, std::vector<float>(48), 32); }).empty(), "values must be whole rows");
  check(!error_of([] { block_type("Q9_9"); }).empty(), "unknown types are refused");
}

void test_threads() {
  std::vector<float> values;
  for (int i = 0; i < 80; ++i) {
    const auto more = golden_input();
    values.insert(values.end(), more.begin(), more.end());
  }
  for (const BlockType type : {BlockType::f16, BlockType::q8_0, BlockType::q4_0}) {
    check(quantize(type, values, 2048, 1) == quantize(type, values, 2048, 5), "the number of threads changes nothing");
  }
}

}  // namespace

int main() {
  test_half();
  test_golden();
  test_edges();
  test_threads();
  if (failures == 0) std::printf("quantize: all checks passed\n");
  return failures == 0 ? 0 : 1;
}
