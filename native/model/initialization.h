// The weights before the first step.
#pragma once
#include <cstdint>
#include <vector>

#include "native/model/config.h"

namespace tinyllama {

// Standard normal values of the flat elements [offset, offset + count): element i depends on (seed, i) alone (Philox, Box-Muller).
void standard_normal(std::uint64_t seed, std::int64_t offset, std::int64_t count, float* out);

// TinyLlama's initialization (as in its repository since November 2023): N(0, sqrt(2 / (5 D))) for the embedding and every linear weight,
// N(0, 1 / (sqrt(D) L)) for o_proj and down_proj, ones for the norm gains. D: hidden_size, L: layers.
double initial_deviation(const LlamaConfig& config, ParameterRole role);

// The initial values of one parameter's elements [first, first + count).
void initialize(const LlamaConfig& config, const Parameter& parameter, std::uint64_t seed, std::int64_t first, std::int64_t count,
                float* out);

}  // namespace tinyllama
