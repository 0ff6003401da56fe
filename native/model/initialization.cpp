#include "native/model/initialization.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "native/core/philox.h"

namespace tinyllama {

namespace {

// Four normal values from four words; the first of each pair of words is mapped into (0, 1) so that its logarithm is finite.
std::array<float, 4> normal_block(std::uint64_t block, std::uint64_t seed) {
  const PhiloxCounter words = philox({static_cast<std::uint32_t>(block), static_cast<std::uint32_t>(block >> 32), 0, 0},
                                     {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)});
  std::array<float, 4> values{};
  for (std::size_t pair = 0; pair < 4; pair += 2) {
    const double uniform = (static_cast<double>(words[pair]) + 0.5) * 0x1p-32;
    const double radius = std::sqrt(-2.0 * std::log(uniform));
    const double angle = 2.0 * std::numbers::pi * static_cast<double>(words[pair + 1]) * 0x1p-32;
    values[pair] = static_cast<float>(radius * std::cos(angle));
    values[pair + 1] = static_cast<float>(radius * std::sin(angle));
  }
  return values;
}

}  // namespace

void standard_normal(std::uint64_t seed, std::int64_t offset, std::int64_t count, float* out) {
  std::int64_t index = offset;
  while (index < offset + count) {
    const std::array<float, 4> values = normal_block(static_cast<std::uint64_t>(index) / 4, seed);
    for (std::size_t lane = static_cast<std::size_t>(index % 4); lane < 4 && index < offset + count; ++lane, ++index) *out++ = values[lane];
  }
}

double initial_deviation(const LlamaConfig& config, ParameterRole role) {
  const auto width = static_cast<double>(config.hidden_size);
  if (role == ParameterRole::residual_projection) return 1.0 / (std::sqrt(width) * static_cast<double>(config.num_hidden_layers));
  return std::sqrt(2.0 / (5.0 * width));
}

void initialize(const LlamaConfig& config, const Parameter& parameter, std::uint64_t seed, std::int64_t first, std::int64_t count,
                float* out) {
  if (parameter.role == ParameterRole::gain) {
    std::fill_n(out, count, 1.0f);
    return;
  }
  standard_normal(seed, parameter.offset + first, count, out);
  const auto deviation = static_cast<float>(initial_deviation(config, parameter.role));
  for (std::int64_t index = 0; index < count; ++index) out[index] *= deviation;
}

}  // namespace tinyllama
