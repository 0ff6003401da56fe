// What the stable radix sorts are made of: digits of 8 bits, prefix sums over a warp, and ranks among a warp's equal digits.
#pragma once
#include <cstdint>

namespace tinyllama::cuda {

inline constexpr int digit_bits = 8;
inline constexpr int digits = 1 << digit_bits;

__device__ __forceinline__ int digit_of(std::int32_t id, int shift) { return id >> shift & (digits - 1); }

// The sum of `value` over the lanes up to the own one, by a whole warp.
__device__ __forceinline__ std::int32_t sum_to_lane(std::int32_t value) {
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const std::int32_t before = __shfl_up_sync(0xffffffffu, value, distance);
    if (static_cast<int>(threadIdx.x % 32) >= distance) value += before;
  }
  return value;
}

// The valid lanes whose digit is the own one's, by a whole warp.
__device__ __forceinline__ unsigned lanes_with(int digit, bool valid) {
  unsigned equals = __ballot_sync(0xffffffffu, valid);
#pragma unroll
  for (int bit = 0; bit < digit_bits; ++bit) {
    const bool set = digit >> bit & 1;
    const unsigned with = __ballot_sync(0xffffffffu, set);
    equals &= set ? with : ~with;
  }
  return equals;
}

// How many of the warp's equal digits came before: in earlier calls, which `seen` counts by digit, and in lanes before the own one. Undefined where
// the lane is not valid. By a whole warp.
__device__ __forceinline__ std::int32_t rank_of(int digit, bool valid, std::int32_t* seen) {
  const unsigned equals = lanes_with(digit, valid), before = equals & ((1u << threadIdx.x % 32) - 1);
  const std::int32_t rank = seen[digit] + __popc(before);
  __syncwarp();
  if (valid && before == 0) seen[digit] += __popc(equals);
  __syncwarp();
  return rank;
}

}  // namespace tinyllama::cuda
