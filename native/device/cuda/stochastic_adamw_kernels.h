// AdamW on bf16 weights and moments. A thread owns one rounding block: the 8 neighbours whose random bits come from the same three Philox calls,
// and 16 bytes of each of the three bf16 arrays, 32 of the gradients. Rounding blocks lie on multiples of 8 of the global index, so the first and
// the last thread of a range may own a part of one; a range whose addresses are not aligned where its blocks begin goes element by element.
//
// 20 bytes an element (read 2 + 2 + 2 + 4, written the same); all loads of a thread are issued before its random words are made, which hides
// their latency. Nothing of it is read again soon: all accesses leave the caches to others.
#pragma once
#include "native/core/bfloat16.h"
#include "native/device/cuda/vector_access.h"
#include "native/device/stochastic_adamw.h"

namespace tinyllama::cuda {

constexpr int stochastic_threads = 256, stochastic_resident = 4;  // 64 registers a thread: a fifth block's 48 spill

struct StochasticAdamWArrays {
  std::uint16_t* weights;
  std::uint16_t* first_moment;
  std::uint16_t* second_moment;
  float* gradients;
  std::int64_t count;
  std::int64_t first;   // global index of element 0
  std::uint64_t seed, step;
  bool aligned;         // the addresses of each rounding block's elements are multiples of 16 bytes
};

// How a warp goes through its 1024 bytes of gradients, of which each lane needs 32 in a row. A lane that reads or writes its own 32 bytes takes
// two instructions, each of which touches half of every 32-byte sector; side by side the lanes fill whole sectors with each.
enum class GradientAccess {
  own,     // each lane its own 32 bytes
  zeros,   // read so, zeroed side by side
  shuffled // read and zeroed side by side; lanes exchange what they read
};

// Eight bf16 as they lie in memory. Elements 2i and 2i + 1 are the halves of word i, as their random bits are the halves of random word i.
__device__ __forceinline__ float widen_lane(const uint4& packed, int lane) {
  const unsigned words[4] = {packed.x, packed.y, packed.z, packed.w};
  return __uint_as_float(lane % 2 == 0 ? words[lane / 2] << 16 : words[lane / 2] & 0xffff0000u);
}

// The upper halves of eight words.
__device__ __forceinline__ uint4 pack_upper(const unsigned (&words)[rounding_block]) {
  return {__byte_perm(words[0], words[1], 0x7632), __byte_perm(words[2], words[3], 0x7632), __byte_perm(words[4], words[5], 0x7632),
          __byte_perm(words[6], words[7], 0x7632)};
}

struct EightGradients {
  float4 low, high;
};

__device__ __forceinline__ float gradient_lane(const EightGradients& gradients, int lane) {
  const float4& half = lane < 4 ? gradients.low : gradients.high;
  return lane % 4 == 0 ? half.x : lane % 4 == 1 ? half.y : lane % 4 == 2 ? half.z : half.w;
}

__device__ __forceinline__ float4 shuffle(const float4& value, int lane) {
  constexpr unsigned all = 0xffffffffu;
  return {__shfl_sync(all, value.x, lane), __shfl_sync(all, value.y, lane), __shfl_sync(all, value.z, lane), __shfl_sync(all, value.w, lane)};
}

// `gradients` points to the warp's 1024 bytes. Lane l wants vectors 2l and 2l + 1 of the warp's 64; it has read l and l + 32.
template <GradientAccess access>
__device__ __forceinline__ EightGradients load_gradients(const float* gradients) {
  const auto* vectors = reinterpret_cast<const float4*>(gradients);
  const int lane = static_cast<int>(threadIdx.x % 32);
  if constexpr (access != GradientAccess::shuffled) {
    return {__ldcs(vectors + 2 * lane), __ldcs(vectors + 2 * lane + 1)};
  } else {
    const float4 near = __ldcs(vectors + lane), far = __ldcs(vectors + 32 + lane);
    const int source = 2 * lane % 32;
    const float4 low[2] = {shuffle(near, source), shuffle(far, source)};
    const float4 high[2] = {shuffle(near, source + 1), shuffle(far, source + 1)};
    return lane < 16 ? EightGradients{low[0], high[0]} : EightGradients{low[1], high[1]};
  }
}

template <GradientAccess access>
__device__ __forceinline__ void zero_gradients(float* gradients) {
  auto* vectors = reinterpret_cast<float4*>(gradients);
  const int lane = static_cast<int>(threadIdx.x % 32);
  constexpr float4 zeros{0.f, 0.f, 0.f, 0.f};
  if constexpr (access == GradientAccess::own) {
    __stcs(vectors + 2 * lane, zeros);
    __stcs(vectors + 2 * lane + 1, zeros);
  } else {
    __syncwarp();  // other lanes have read what this one zeroes
    __stcs(vectors + lane, zeros);
    __stcs(vectors + 32 + lane, zeros);
  }
}

// What a thread holds of its block.
struct StochasticBlock {
  uint4 weights, first_moment, second_moment;
  EightGradients gradients;
};

__device__ __forceinline__ void update_block(StochasticBlock& block, const PhiloxCounter (&random)[3], const AdamWFactors& factors) {
  unsigned weights[rounding_block], first[rounding_block], second[rounding_block];
#pragma unroll
  for (int lane = 0; lane < rounding_block; ++lane) {
    const AdamWValues before{widen_lane(block.weights, lane), widen_lane(block.first_moment, lane), widen_lane(block.second_moment, lane)};
    const AdamWValues after = adamw_values(before, gradient_lane(block.gradients, lane), factors);
    weights[lane] = round_stochastically_above(after.weight, rounding_bits(random[0], lane));
    first[lane] = round_stochastically_above(after.first_moment, rounding_bits(random[1], lane));
    second[lane] = round_stochastically_above(after.second_moment, rounding_bits(random[2], lane));
  }
  block.weights = pack_upper(weights);
  block.first_moment = pack_upper(first);
  block.second_moment = pack_upper(second);
}

// The elements of a block that lie in the range, one by one; `at` may be negative.
__device__ __forceinline__ void update_part(const StochasticAdamWArrays& a, std::int64_t at, const PhiloxCounter (&random)[3],
                                            const AdamWFactors& factors) {
#pragma unroll
  for (int lane = 0; lane < rounding_block; ++lane) {
    const std::int64_t i = at + lane;
    if (i < 0 || i >= a.count) continue;
    const AdamWValues before{tinyllama::widen(a.weights[i]), tinyllama::widen(a.first_moment[i]), tinyllama::widen(a.second_moment[i])};
    const AdamWValues after = adamw_values(before, a.gradients[i], factors);
    a.weights[i] = round_stochastically(after.weight, rounding_bits(random[0], lane));
    a.first_moment[i] = round_stochastically(after.first_moment, rounding_bits(random[1], lane));
    a.second_moment[i] = round_stochastically(after.second_moment, rounding_bits(random[2], lane));
    a.gradients[i] = 0.f;
  }
}

__device__ __forceinline__ uint4 load_eight(const std::uint16_t* values) { return __ldcs(reinterpret_cast<const uint4*>(values)); }
__device__ __forceinline__ void store_eight(std::uint16_t* values, const uint4& packed) { __stcs(reinterpret_cast<uint4*>(values), packed); }

// Grid: a thread for each rounding block that the range touches.
template <GradientAccess access>
__global__ __launch_bounds__(stochastic_threads, stochastic_resident) void adamw_stochastic_update(StochasticAdamWArrays a, AdamWFactors factors) {
  const std::int64_t index = a.first / rounding_block + static_cast<std::int64_t>(blockIdx.x) * stochastic_threads + threadIdx.x;
  const std::int64_t at = index * rounding_block - a.first;
  // The warp's whole, for the lanes' exchange of gradients.
  const std::int64_t warp_at = at - static_cast<std::int64_t>(threadIdx.x % 32) * rounding_block;
  const bool whole = a.aligned && warp_at >= 0 && warp_at + 32 * rounding_block <= a.count;
  StochasticBlock block;
  if (whole) {
    block.weights = load_eight(a.weights + at);
    block.first_moment = load_eight(a.first_moment + at);
    block.second_moment = load_eight(a.second_moment + at);
    block.gradients = load_gradients<access>(a.gradients + warp_at);
  }
  const auto number = static_cast<std::uint64_t>(index);
  const PhiloxCounter random[3] = {rounding_words(a.seed, a.step, number, RoundedValue::weight),
                                   rounding_words(a.seed, a.step, number, RoundedValue::first_moment),
                                   rounding_words(a.seed, a.step, number, RoundedValue::second_moment)};
  if (whole) {
    update_block(block, random, factors);
    store_eight(a.weights + at, block.weights);
    store_eight(a.first_moment + at, block.first_moment);
    store_eight(a.second_moment + at, block.second_moment);
    zero_gradients<access>(a.gradients + warp_at);
  } else {
    update_part(a, at, random, factors);
  }
}

}  // namespace tinyllama::cuda
