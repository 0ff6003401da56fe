// Normal values that depend on a seed and an index alone, the same on CPU and GPU up to rounding: Philox's words through Box and Muller's
// transform ("A Note on the Generation of Random Normal Deviates", 1958).
#pragma once
#include <array>
#include <cmath>
#include <cstdint>
#include <numbers>

#include "native/core/on_gpu_too.h"
#include "native/core/philox.h"

namespace tinyllama {

// Elements 4 * block to 4 * block + 3 of the seed's stream of standard normal values. The first of each pair of words is mapped into (0, 1), so that
// its logarithm is finite.
TINYLLAMA_ON_GPU_TOO inline std::array<float, 4> normal_block(std::uint64_t block, std::uint64_t seed) {
  const PhiloxCounter words = philox({static_cast<std::uint32_t>(block), static_cast<std::uint32_t>(block >> 32), 0, 0},
                                     {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)});
  std::array<float, 4> values{};
  for (std::size_t pair = 0; pair < 4; pair += 2) {
    const double uniform = (static_cast<double>(words[pair]) + 0.5) * 0x1p-32;
    const double radius = sqrt(-2.0 * log(uniform));
    const double angle = 2.0 * std::numbers::pi * static_cast<double>(words[pair + 1]) * 0x1p-32;
    values[pair] = static_cast<float>(radius * cos(angle));
    values[pair + 1] = static_cast<float>(radius * sin(angle));
  }
  return values;
}

}  // namespace tinyllama
