// The weights before the first step.
#pragma once
#include "native/model/config.h"

namespace tinyllama {

// TinyLlama's initialization (as in its repository since November 2023): N(0, sqrt(2 / (5 D))) for the embedding and every linear weight,
// N(0, 1 / (sqrt(D) L)) for o_proj and down_proj; gains are ones. D: hidden_size, L: layers.
double initial_deviation(const LlamaConfig& config, ParameterRole role);

}  // namespace tinyllama
