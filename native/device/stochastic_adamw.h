// AdamW on weights and moments that are bf16 between the steps: the arithmetic of one element, and the random bits that round it. Every device uses
// what stands here, and so gives the same bits: each sum of a product is a fused multiply-add by name, which leaves a compiler nothing to fuse.
#pragma once
#include <cmath>
#include <cstdint>

#include "native/core/on_gpu_too.h"
#include "native/core/philox.h"
#include "native/device/adamw_factors.h"

namespace tinyllama {

// Neighbouring elements that one Philox call gives 16 random bits each: those of global index rounding_block * b to rounding_block * (b + 1) - 1.
constexpr std::int64_t rounding_block = 8;

// Which of an element's three values is rounded. Counted from 1: the stream of 0 is that of the initial weights (native/core/normal.h).
enum class RoundedValue : std::uint8_t { weight = 1, first_moment = 2, second_moment = 3 };

// A block's random words: they depend on the run's seed, the optimizer's step, where the block lies in the whole model, and the value; never on a
// rank, a thread, or how the update was cut into calls.
constexpr PhiloxCounter rounding_words(std::uint64_t seed, std::uint64_t step, std::uint64_t block, RoundedValue value) {
  return philox({static_cast<std::uint32_t>(block), static_cast<std::uint32_t>(block >> 32),
                 static_cast<std::uint32_t>(value) | static_cast<std::uint32_t>(step >> 32) << 2, static_cast<std::uint32_t>(step)},
                {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)});
}

// The 16 bits of the block's element `lane`, 0 <= lane < rounding_block.
constexpr std::uint32_t rounding_bits(const PhiloxCounter& words, int lane) {
  return words[static_cast<std::size_t>(lane / 2)] >> lane % 2 * 16 & 0xFFFFU;
}

struct AdamWValues {
  float weight, first_moment, second_moment;
};

// What Device::adamw computes of one element, in fp32.
TINYLLAMA_ON_GPU_TOO inline AdamWValues adamw_values(const AdamWValues& before, float gradient, const AdamWFactors& factors) {
  gradient *= factors.gradient_scale;
  const float first = fmaf(factors.beta1, before.first_moment, (1.f - factors.beta1) * gradient);
  const float second = fmaf(factors.beta2, before.second_moment, (1.f - factors.beta2) * (gradient * gradient));
  const float update = factors.step_size * first / fmaf(sqrtf(second), factors.root_correction, factors.epsilon);
  return {fmaf(before.weight, factors.decay, -update), first, second};
}

}  // namespace tinyllama
