// bfloat16 as bits: the upper half of a float, with its exponents, subnormals and infinities. Written with integers alone, so that every device
// gives the same bits.
#pragma once
#include <bit>
#include <cstdint>

namespace tinyllama {

constexpr std::uint16_t bfloat16_nan = 0x7FC0;

// The float of the same value.
constexpr float widen(std::uint16_t value) { return std::bit_cast<float>(static_cast<std::uint32_t>(value) << 16); }

// To the nearest, ties to even; every NaN becomes bfloat16_nan.
constexpr std::uint16_t round_to_nearest(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7FFFFFFFU) > 0x7F800000U) return bfloat16_nan;
  return static_cast<std::uint16_t>((bits + 0x7FFFU + (bits >> 16 & 1U)) >> 16);
}

// To one of the two neighbours, `random` (0 to 65535) deciding: away from zero with the probability that makes the mean the value itself, where
// random is uniform. What a bfloat16 holds stays, also infinities; every NaN becomes bfloat16_nan. Beyond the largest finite bfloat16 the neighbour
// away from zero is infinity, as it is for rounding to the nearest. The result is the upper half of the returned word; the lower half means nothing.
constexpr std::uint32_t round_stochastically_above(float value, std::uint32_t random) {
  return value != value ? static_cast<std::uint32_t>(bfloat16_nan) << 16 : std::bit_cast<std::uint32_t>(value) + random;
}

// The result itself.
constexpr std::uint16_t round_stochastically(float value, std::uint32_t random) {
  return static_cast<std::uint16_t>(round_stochastically_above(value, random) >> 16);
}

}  // namespace tinyllama
